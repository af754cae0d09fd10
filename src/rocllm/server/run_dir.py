"""The private directory of one child: its socket, its empty configuration, who owns it.

What a killed program left behind is recognised at the next start, and nothing else is touched:

* Its owner is gone when `owner.json` is no longer locked. That also holds for a program in another
  container that has the same `/tmp`, whose process ids mean nothing here.
* Its child is the process of that id and start time; an id is used again, both together are not.
* What the child started has the directory in its environment, where llama.cpp looks for its
  configuration, and so has a child that was not yet noted.

A lock is known to this machine only, or not at all, on some network file systems. A directory that
cannot be locked is not reaped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import json
import os
import select
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocllm import env
from rocllm.endpoint import MAX_SOCKET_PATH
from rocllm.errors import StartFailed
from rocllm.server._forks import not_for_forks

_PREFIX = "rocllm-"
_OWNER = "owner.json"
_CONFIG = "config"
# Written whole and in place, because a file put in its place would not be locked.
_OWNER_SIZE = 512
# Seconds after which a directory that is being made, and has no owner yet, was given up.
_MAKING = 60.0
# Seconds for a killed process to go: its memory is wanted by who comes next.
_END_TIMEOUT = 5.0
# Seconds for the kernel to make a new program of a process; really a fraction of one thousandth.
_EXECVE_TIMEOUT = 1.0
# How users that are not mapped into a user namespace are shown; root is one of them in a container
# without privileges (user_namespaces(7)).
_UNMAPPED = 65534


@dataclass(frozen=True, slots=True)
class RunDir:
    """A directory of mode 0700 in `XDG_RUNTIME_DIR`, or the first of `TMPDIR` and `/tmp` that fits.

    >>> with_socket = RunDir.create(os.environ).socket_path  # doctest: +SKIP
    """

    path: Path
    # Open and locked for as long as the directory is ours; closed in a forked copy of the program.
    _owner: io.FileIO = field(repr=False, compare=False)

    @classmethod
    def create(cls, environ: Mapping[str, str]) -> RunDir:
        """Make one, after ending and removing what killed programs of this user left behind.

        Raises `StartFailed` when there is no directory in which a socket's path would fit and that
        nobody else can replace.
        """
        tried: list[str] = []
        cause = "socket_failed"
        for named in env.runtime_dirs(environ):
            # A link may be led elsewhere later.
            base = Path(os.path.realpath(named))
            # mkdtemp adds eight characters to the prefix.
            longest = len(os.fsencode(base / f"{_PREFIX}12345678" / "s.sock"))
            unfit = (
                f"the socket's path would have {longest} bytes"
                if longest > MAX_SOCKET_PATH
                else _why_unsafe(base)
            )
            if unfit is None:
                reap(base)
                try:
                    return cls._make(base)
                except OSError as exc:
                    unfit = exc.strerror
                    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                        cause = "disk_full"
            tried.append(f"{base}: {unfit}")
        failed = StartFailed(
            "no directory for the server's socket",
            why=f"a socket's path may have {MAX_SOCKET_PATH} bytes, and nobody else may be able to "
            "replace it; " + "; ".join(tried),
            remedy="set XDG_RUNTIME_DIR to a short path of a directory of your own (mkdir -m 700)",
        )
        failed.cause = cause
        raise failed

    @classmethod
    def _make(cls, base: Path) -> RunDir:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, path, ignore_errors=True)
            made = path.lstat()
            if made.st_uid != os.getuid() or stat.S_IMODE(made.st_mode) & 0o077:
                raise OSError(0, "this file system does not keep others out")
            owner = undo.enter_context(not_for_forks(io.FileIO(path / _OWNER, "x")))
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            run_dir = cls(path, owner)
            run_dir.write_owner(child=None)
            run_dir.config_home.mkdir(mode=0o700)
            run_dir.slot_save_path.mkdir(mode=0o700)
            undo.pop_all()
        return run_dir

    @property
    def socket_path(self) -> Path:
        """Where the child listens."""
        return self.path / "s.sock"

    @property
    def config_home(self) -> Path:
        """An empty directory: the child must not read anybody's configuration."""
        return self.path / _CONFIG

    @property
    def slot_save_path(self) -> Path:
        """A directory in which the child may save the content of its slots."""
        return self.path / "slots"

    def write_owner(self, child: int | None) -> None:
        """Note whose directory this is."""
        owner = {
            "system": _system(),
            "parent": _identity(os.getpid()),
            "child": _identity(child) if child else None,
        }
        os.pwrite(self._owner.fileno(), json.dumps(owner).ljust(_OWNER_SIZE).encode(), 0)

    def remove(self) -> None:
        """Remove the directory with all that is in it, and end what still belongs to it.

        Idempotent. In a forked copy of the program it does nothing: the directory is the parent's.
        """
        if not self._owner.closed:
            _end_what_belongs_to(self.path)
            shutil.rmtree(self.path, ignore_errors=True)
            self._owner.close()


def reap(base: Path) -> None:
    """End and remove what programs that no longer live left in `base`; only this user's."""
    for path in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            # lstat: anybody may make a link in /tmp to a directory of ours.
            if path.lstat().st_uid == os.getuid():
                _reap(path)


def _reap(path: Path) -> None:
    try:
        file = io.FileIO(path / _OWNER, "r")
    except FileNotFoundError:
        if _was_given_up(path):
            path.rmdir()  # fails, unless it is empty as it was made: any other is not ours
        return
    with file:
        if not file.read(1):
            if _was_given_up(path):
                (path / _OWNER).unlink()
                path.rmdir()
            return
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises: its owner lives
        file.seek(0)
        owner = json.loads(file.read())
        parent, child = owner["parent"], owner["child"]
        if owner.get("system") == _system():
            if _lives(parent):
                return  # its file system had no locks
            if child is not None:
                _end(child["pid"], functools.partial(_lives, child))
        _end_what_belongs_to(path)
        shutil.rmtree(path, ignore_errors=True)


def _was_given_up(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > _MAKING


def _end_what_belongs_to(path: Path) -> None:
    """End the processes whose configuration would be in the directory: the child and all below."""
    mark = b"XDG_CONFIG_HOME=" + os.fsencode(path / _CONFIG)
    for pid in list(_bearers(mark)):
        _end(pid, functools.partial(_bears, pid, mark))


def _bearers(mark: bytes) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _bears(int(name), mark):
            yield int(name)


def _bears(pid: int, mark: bytes) -> bool:
    try:
        deadline = time.monotonic() + _EXECVE_TIMEOUT
        while not (found := Path(f"/proc/{pid}/environ").read_bytes()) and _is_in_execve(pid):
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        return mark in found.split(b"\0")
    except OSError:
        return False  # it is gone, or another user's


def _is_in_execve(pid: int) -> bool:
    """It has its new program, which has no arguments yet, nor an environment."""
    # Kernel threads and zombies have no program: this raises.
    return bool(os.readlink(f"/proc/{pid}/exe")) and not Path(f"/proc/{pid}/cmdline").read_bytes()


def _end(pid: int, is_it: Callable[[], bool]) -> None:
    """Kill a process, if it is the one that is meant once its number is held."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if is_it():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                poller = select.poll()
                poller.register(descriptor, select.POLLIN)
                poller.poll(1000 * _END_TIMEOUT)
        finally:
            os.close(descriptor)


def _why_unsafe(base: Path) -> str | None:
    """Why somebody else could put a directory of his in the place of one in `base`."""
    for folder in (base, *base.parents):
        try:
            found = folder.lstat()
        except OSError as exc:
            return exc.strerror
        if not stat.S_ISDIR(found.st_mode):
            return f"{folder} is no directory"
        if found.st_uid not in (0, os.getuid(), _UNMAPPED):
            return f"{folder} belongs to user {found.st_uid}"
        ours = found.st_gid == os.getgid()
        writable = found.st_mode & (stat.S_IWOTH if ours else stat.S_IWOTH | stat.S_IWGRP)
        if writable and not found.st_mode & stat.S_ISVTX:
            return f"others may rename what is in {folder}"
    return None


def _system() -> str:
    """Within what a process id and a start time have a meaning: this boot, this pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # a sandbox shows neither
        return "unknown"


def _identity(pid: int) -> dict[str, int | None]:
    return {"pid": pid, "start_time": start_time(pid)}


def _lives(identity: Mapping[str, Any]) -> bool:
    started = start_time(identity["pid"])
    return started is not None and started == identity["start_time"]


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), `stat` field 22)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from its end: field 3 is the state.
    return None if fields[0] in ("Z", "X") else int(fields[19])
