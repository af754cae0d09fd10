"""What the kernel knows about a child's end: gathered from files before it and after it.

A process that the kernel kills for want of memory has no time for a word, and SIGKILL looks the
same whoever sent it. Two witnesses tell them apart: the counter of such kills in the child's
control group, and the kernel's log, where it may be read.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rocllm.server.diagnose import Evidence
from rocllm.units import format_bytes

# Seconds by which the clock of the kernel's log may be behind ours.
_CLOCK_MARGIN = 1.0
# What the kernel's ring buffer holds is less than this.
_MAX_LOG = 16 << 20
_LIMITS = ("memory.max", "memory.limit_in_bytes")
# "no limit" of control groups v1 is the largest number of pages, in bytes.
_NO_LIMIT = 1 << 62
# A record of /dev/kmsg (Documentation/ABI/testing/dev-kmsg): level, number, microseconds, flags.
_RECORD = re.compile(r"^\d+,\d+,(?P<time>\d+),[^;]*;(?P<text>.*)$")
_KILLED = re.compile(r"[Oo]ut of memory: Killed process (?P<pid>\d+)")


@dataclass(frozen=True, slots=True)
class Before:
    """What the kernel had counted when the child was started.

    counter: the file with the counter of its control group, if there is one; kills: its value;
    since: seconds on the clock of the kernel's log.
    """

    pid: int
    counter: Path | None
    kills: int
    since: float


def look_before(pid: int, root: Path = Path("/")) -> Before:
    """Note what is to be compared when process `pid` has ended. Does not raise.

    >>> before = look_before(process.pid)   # doctest: +SKIP
    >>> look_after(before).killed_by_oom    # doctest: +SKIP
    'its control group /user.slice has counted a kill for want of memory, limit 2.0 GiB'
    """
    counter = _find_counter(pid, root)
    kills = 0 if counter is None else _kills(counter)
    return Before(pid, counter, kills, time.monotonic() - _CLOCK_MARGIN)


def look_after(before: Before, root: Path = Path("/")) -> Evidence:
    """What has changed since. Does not raise: what may not be read is no evidence."""
    log = _kernel_log(root / "dev/kmsg", before.since)
    killed = None
    for line in log:
        match = _KILLED.search(line)
        if match is not None and int(match["pid"]) == before.pid:
            killed = f"the kernel's log says: {line}"
    if killed is None and before.counter is not None and _kills(before.counter) > before.kills:
        group = before.counter.parent
        limit = _limit(group)
        bounded = "" if limit is None else f", limit {format_bytes(limit)}"
        killed = f"its control group {group} has counted a kill for want of memory{bounded}"
    told = (line for line in log if "amdgpu" in line or f"[{before.pid}]" in line)
    return Evidence(killed, tuple(told))


def _find_counter(pid: int, root: Path) -> Path | None:
    """The counter of the process's control group, or of the nearest one above that has it."""
    for line in _text(root / f"proc/{pid}/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        # A container sees its own group as the top, whatever the path says.
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")
        name = "memory.oom_control" if controllers else "memory.events"
        for folder in (group, *group.parents):
            if (folder / name).is_file():
                return folder / name
            if folder == top:
                break
    return None


def _kills(counter: Path) -> int:
    for line in _text(counter).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdecimal():
            return int(value)
    return 0


def _limit(group: Path) -> int | None:
    for name in _LIMITS:
        value = _text(group / name).strip()
        if value.isdecimal() and int(value) < _NO_LIMIT:
            return int(value)
    return None


def _kernel_log(path: Path, since: float) -> list[str]:
    """The lines of the kernel's log since then; nothing where it may not be read."""
    records = []
    for line in _read_log(path).decode(errors="replace").splitlines():
        match = _RECORD.match(line)
        if match is not None and int(match["time"]) >= since * 1e6:
            records.append(match["text"])
    return records


def _read_log(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    data = bytearray()
    try:
        while len(data) < _MAX_LOG:
            try:
                record = os.read(descriptor, 8192)  # a record of the log a time
            except BrokenPipeError:
                continue  # the record was overwritten meanwhile; the next read gives the oldest
            if not record:
                break
            data += record
    except OSError:  # BlockingIOError: no record is left
        pass
    finally:
        os.close(descriptor)
    return bytes(data)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
