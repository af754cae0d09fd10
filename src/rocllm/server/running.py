"""Which servers of this user are running, whoever started them. Read-only: nothing is touched.

Each has a directory (`run_dir.py`) whose `owner.json` names it and its parent by process id and
start time. The rest is in its argument vector, which rocllm wrote itself (`command.py`).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocllm import env
from rocllm.endpoint import MAX_SOCKET_PATH, Endpoint

_DIRECTORIES = "rocllm-*"
_OWNER = "owner.json"
_MAX_OWNER = 4096
# What a file of any content, and a process that ends meanwhile, can lead to.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server that a rocllm of this user has started; `None`: not known.

    pid: its process id. parent_pid: that of the program it belongs to; `None`: that has ended.
    endpoint: where it listens; without the key that a TCP address wants, which nobody writes down.
    model_path, alias: the model file and what it calls itself. Names are as they were given: make
    them printable before you print them. parallel: slots. started: seconds since 1970.
    """

    pid: int
    parent_pid: int | None = None
    endpoint: Endpoint | None = None
    model_path: Path | None = None
    alias: str | None = None
    device_names: tuple[str, ...] | None = None
    parallel: int | None = None
    started: float | None = None


def list_running(environ: Mapping[str, str]) -> tuple[RunningServer, ...]:
    """The running servers of this user, oldest first.

    environ: where the directories are looked for (`XDG_RUNTIME_DIR`, `TMPDIR`); programs that have
    another one keep theirs elsewhere.

    Never raises: a directory that is being made, or removed, or is no rocllm's, is left out.

    >>> [server.alias for server in list_running(os.environ)]  # doctest: +SKIP
    ['SmolLM2 135M Instruct']
    """
    found: dict[int, RunningServer] = {}
    for directory in _directories(environ):
        server = _read(directory)
        if server is not None:
            found[server.pid] = server
    return tuple(sorted(found.values(), key=lambda server: (server.started or 0.0, server.pid)))


def _directories(environ: Mapping[str, str]) -> Iterator[Path]:
    for base in dict.fromkeys(Path(os.path.realpath(base)) for base in env.runtime_dirs(environ)):
        for path in sorted(base.glob(_DIRECTORIES)):
            try:
                # lstat: in /tmp anybody may make a directory or a link of that name.
                if path.lstat().st_uid == os.getuid() and not path.is_symlink():
                    yield path
            except OSError:
                continue


def _read(directory: Path) -> RunningServer | None:
    try:
        with open(directory / _OWNER, "rb") as file:
            owner = json.loads(file.read(_MAX_OWNER))
        pid, ticks = _alive(owner["child"])
        arguments = _arguments(pid)
    except _UNREADABLE:
        return None
    try:
        parent: int | None = _alive(owner["parent"])[0]
    except _UNREADABLE:
        parent = None
    path, names = arguments.get("--model"), arguments.get("--device")
    return RunningServer(
        pid=pid,
        parent_pid=parent,
        endpoint=_endpoint(directory, arguments),
        model_path=None if path is None else Path(path),
        alias=arguments.get("--alias"),
        device_names=None if names is None else () if names == "none" else tuple(names.split(",")),
        parallel=_number(arguments.get("--parallel")),
        started=_since_1970(ticks),
    )


def _alive(identity: Mapping[str, Any]) -> tuple[int, int]:
    """Process id and start time of a process that is still the one that is meant.

    Raises what goes wrong with a file, and `ValueError` if it is not.
    """
    pid = int(identity["pid"])
    stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    ticks = int(stat[19])  # field 22, in clock ticks since boot (proc(5))
    if stat[0] in (b"Z", b"X") or ticks != identity["start_time"]:
        raise ValueError(f"process {pid} has ended")
    return pid, ticks


def _arguments(pid: int) -> dict[str, str]:
    """Every argument and the one that follows it: values by flag, as `command.py` writes them."""
    data = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape")
    parts = data.split("\0")
    return dict(itertools.pairwise(parts))


def _endpoint(directory: Path, arguments: Mapping[str, str]) -> Endpoint | None:
    port = _number(arguments.get("--port"))
    if port is not None and port < 1 << 16:
        return Endpoint.tcp(arguments.get("--host", "127.0.0.1"), port)
    path = arguments.get("--host", str(directory / "s.sock"))
    fits = len(os.fsencode(path)) <= MAX_SOCKET_PATH
    return Endpoint.unix(path) if fits else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _since_1970(ticks: int) -> float | None:
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        booted = next(int(line.split()[1]) for line in lines if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return booted + ticks / os.sysconf("SC_CLK_TCK")
