"""The private directory of one child: its socket, its empty configuration, who owns it.

`owner.json` names the child and its parent by process id and start time, so that what a killed
parent left behind is recognised at the next start, and nothing else is ever touched: a process id
is used again, together with its start time it is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rocllm import env
from rocllm.endpoint import MAX_SOCKET_PATH
from rocllm.errors import StartFailed

_PREFIX = "rocllm-"
_OWNER = "owner.json"


@dataclass(frozen=True, slots=True)
class RunDir:
    """A directory of mode 0700 in `XDG_RUNTIME_DIR`, or the first of `TMPDIR` and `/tmp` that fits.

    >>> with_socket = RunDir.create(os.environ).socket_path  # doctest: +SKIP
    """

    path: Path

    @classmethod
    def create(cls, environ: Mapping[str, str]) -> RunDir:
        """Make one, after removing what killed processes of this user left behind.

        Raises `StartFailed` when no directory can be made in which a socket's path would fit.
        """
        tried: list[str] = []
        for base in env.runtime_dirs(environ):
            # mkdtemp adds eight characters to the prefix.
            longest = len(os.fsencode(base / f"{_PREFIX}12345678" / "s.sock"))
            if longest > MAX_SOCKET_PATH:
                tried.append(f"{base}: the socket's path would have {longest} bytes")
                continue
            reap(base)
            try:
                run_dir = cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base)))
            except OSError as exc:
                tried.append(f"{base}: {exc.strerror}")
                continue
            try:
                run_dir.config_home.mkdir(mode=0o700)
                run_dir.write_owner(child=None)
            except OSError as exc:  # the disk is full
                run_dir.remove()
                tried.append(f"{base}: {exc.strerror}")
                continue
            return run_dir
        raise StartFailed(
            "no directory for the server's socket",
            why=f"a socket's path may have {MAX_SOCKET_PATH} bytes; " + "; ".join(tried),
            remedy="set XDG_RUNTIME_DIR or TMPDIR to a short, writable path",
        )

    @property
    def socket_path(self) -> Path:
        """Where the child listens."""
        return self.path / "s.sock"

    @property
    def config_home(self) -> Path:
        """An empty directory: the child must not read anybody's configuration."""
        return self.path / "config"

    def write_owner(self, child: int | None) -> None:
        """Note whose directory this is."""
        owner = {"parent": _identity(os.getpid()), "child": _identity(child) if child else None}
        (self.path / _OWNER).write_text(json.dumps(owner))

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def reap(base: Path) -> None:
    """End and remove what parents that no longer live left in `base`; only this user's."""
    for path in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            # lstat: anybody may make a link in /tmp to a directory of ours.
            if path.lstat().st_uid != os.getuid():
                continue
            owner = json.loads((path / _OWNER).read_text())
            if _lives(owner["parent"]):
                continue
            if owner["child"] is not None and _lives(owner["child"]):
                # The child leads its own process group; its helpers go with it.
                os.killpg(owner["child"]["pid"], signal.SIGKILL)
            shutil.rmtree(path, ignore_errors=True)


def _identity(pid: int) -> dict[str, int | None]:
    return {"pid": pid, "start_time": start_time(pid)}


def _lives(identity: Mapping[str, int]) -> bool:
    started = start_time(identity["pid"])
    return started is not None and started == identity["start_time"]


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5), `stat` field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from its end: field 3 is the state.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])
