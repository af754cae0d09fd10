"""Start a child that does not outlive this program, and neither does what it starts in its turn.

Two nets, both the kernel's own, so that nothing of ours has to be alive for them to work:

* The leash, a pipe of which this program holds the only end that writes, and never writes. The
  child has the other end, which is set to send SIGKILL to the child's process group as soon as the
  writer is gone, however that came about (F_SETOWN, F_SETSIG and O_ASYNC, fcntl(2)).
* The parent-death signal (prctl(2)). It reaches the child alone, but also when a copy of this
  program that Python knows nothing of, a fork by a library written in C, keeps the leash. It comes
  when the *thread* ends that forked, so that thread must live as long as the child.

None of this comes too late. What is started is a helper that waits at a gate; it becomes the child
when the leash is on, and ends when the gate goes away instead. `preexec_fn` would do without a
helper, and can deadlock in a program with threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rocllm.server._forks import not_for_forks


class Leash:
    """Kills a process group when it is closed, or when this program ends."""

    def __init__(self) -> None:
        self._child_end, self._our_end = _pipe()

    @property
    def fd(self) -> int:
        """What a process of the group must be given, and must keep."""
        return self._child_end.fileno()

    def tie(self, group: int) -> None:
        """From now on it holds."""
        fcntl.fcntl(self._child_end, fcntl.F_SETOWN, -group)
        fcntl.fcntl(self._child_end, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self._child_end, fcntl.F_SETFL, os.O_ASYNC)
        self._child_end.close()

    def close(self) -> None:
        """Let go: what is left of the group is killed. Idempotent."""
        self._child_end.close()
        self._our_end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Spawned:
    """A child on its leash; exit_fd becomes readable when it ends."""

    popen: subprocess.Popen[bytes]
    exit_fd: int
    leash: Leash


def spawn(argv: Sequence[str], environ: Mapping[str, str], pass_fds: Sequence[int] = ()) -> Spawned:
    """Start a child in a process group of its own, its output in one pipe, without input.

    pass_fds: what else it is given, under the same numbers.

    Raises `OSError`, and `ValueError` for an argument with a NUL; no process is left then.
    """
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as passing:
        leash = undo.enter_context(Leash())
        wait, gate = map(passing.enter_context, _pipe())
        popen = undo.enter_context(
            subprocess.Popen(
                (*_helper(), *argv),
                env=dict(environ),
                stdin=wait,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(leash.fd, *pass_fds),
                bufsize=0,
                cwd="/",
                umask=0o077,
                process_group=0,
            )
        )
        undo.callback(popen.kill)
        exit_fd = os.pidfd_open(popen.pid)
        undo.callback(os.close, exit_fd)
        leash.tie(popen.pid)
        gate.write(b"\n")
        undo.pop_all()
    return Spawned(popen, exit_fd, leash)


def _pipe() -> tuple[io.FileIO, io.FileIO]:
    reader, writer = os.pipe()
    return io.FileIO(reader, "r"), not_for_forks(io.FileIO(writer, "w"))


def _helper() -> tuple[str, ...]:
    """What stands before the command: waits at the gate, asks for the signal, and executes it.

    A shell and setpriv (util-linux 2.33) take two milliseconds together, a Python of our own ten.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin:/usr/local/bin")
    # BusyBox has one that does not know the signal.
    if setpriv is None or os.path.basename(os.path.realpath(setpriv)) == "busybox":
        return (sys.executable, "-I", "-S", str(Path(__file__).with_name("_parent_death.py")))
    script = 'read -r _ && exec "$@" </dev/null'
    return ("/bin/sh", "-c", script, "sh", setpriv, "--pdeathsig", "KILL", "--")
