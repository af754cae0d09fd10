"""One child process: started, drained, stopped. No HTTP and no policy in here.

One thread belongs to each child. It starts the child, reads its output to the end and reaps it, and
it lives exactly as long as the child. Both halves of that are on purpose:

* The parent-death signal comes with the end of the *thread* that forked (`server/_spawn.py`), so a
  child must not be started by a thread that may go away before it, such as a worker of a pool.
* llama-server hangs, and then ignores SIGTERM, when nobody empties its output pipe.

The stop ladder: (1) the caller has closed its connections, because a connected client keeps the
server alive after SIGTERM; (2) SIGTERM; (3) after `TERM_GRACE` a second SIGTERM, which ends
llama-server at once; (4) after `KILL_GRACE` SIGKILL to the whole group; (5) wait for the real exit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rocllm.errors import StartFailed
from rocllm.server._spawn import Spawned, spawn
from rocllm.server.command import LaunchCommand
from rocllm.server.diagnose import cannot_run

# Seconds from the first to the second SIGTERM: time for the decode under way to end.
TERM_GRACE = 3.0
# Seconds from the second SIGTERM to SIGKILL.
KILL_GRACE = 2.0
# Seconds for output that a helper of the child may still write after the child itself is gone.
DRAIN_GRACE = 0.2
# Seconds for the rest of the child's group, which is killed with it, to be gone.
GROUP_GRACE = 2.0
# Seconds for the kernel to take away a killed process. A process in an uninterruptible driver call
# cannot be killed; then the truth is said instead of waiting for ever.
REAP_TIMEOUT = 30.0

# Lines of output that are kept for a diagnosis.
KEPT_LINES = 200
_LONGEST_LINE = 4096
_CHUNK = 1 << 16
# A process that ends has this flag from the beginning of its end, before its files are closed, and
# also when it is dead (include/linux/sched.h, do_exit in kernel/exit.c).
_PF_EXITING = 0x4

_log = logging.getLogger(__name__)


class ServerProcess:
    """A child process with its output drained and its end observed.

    Thread-safe. `on_line` is called with every line of output, `on_exit` with nothing when the
    child is reaped, both from the child's own thread; they must not block, nor call `stop`. One
    that raises is logged, and not called again.

    >>> process = ServerProcess(command)        # doctest: +SKIP
    >>> process.start()                         # doctest: +SKIP
    >>> process.stop()                          # doctest: +SKIP
    0
    """

    def __init__(
        self,
        command: LaunchCommand,
        on_line: Callable[[str], None] | None = None,
        on_exit: Callable[[], None] | None = None,
        *,
        kept_lines: int = KEPT_LINES,
    ) -> None:
        self.command = command
        self._on_line = on_line
        self._on_exit = on_exit
        self._lines: deque[str] = deque(maxlen=kept_lines)
        self._popen: subprocess.Popen[bytes] | None = None
        self._start_error: Exception | None = None
        self._spawned = threading.Event()
        self._exited = threading.Event()
        self._owner = os.getpid()
        self._stop_lock = threading.Lock()
        self._reaping = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rocllm-server", daemon=True)

    @property
    def pid(self) -> int | None:
        """The child's process id; `None` before the start."""
        return self._popen.pid if self._popen else None

    @property
    def exit_status(self) -> int | None:
        """`None` while it runs; negative: the signal that ended it."""
        return self._popen.returncode if self._popen and self._exited.is_set() else None

    @property
    def output(self) -> tuple[str, ...]:
        """The last lines that the child printed."""
        return tuple(self._lines)

    def start(self) -> None:
        """Start the child. Raises `StartFailed`, or `OutOfMemory`, if the system cannot do it."""
        try:
            self._thread.start()
        except RuntimeError as exc:  # no more threads
            raise cannot_run(self.command.argv, exc) from exc
        self._spawned.wait()
        if self._start_error is not None:
            self._thread.join()
            raise cannot_run(self.command.argv, self._start_error) from self._start_error

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most `timeout` seconds; the exit status, `None` if it still runs."""
        return self.exit_status if self._exited.wait(timeout) else None

    def wait_if_ending(self) -> int | None:
        """Wait for the end if it has begun; the exit status, `None` if the child runs on.

        The kernel says so, which knows it before the child's connections break; the child's thread
        may learn of it much later on a machine that has no time for it.
        """
        return self.wait(REAP_TIMEOUT if self._is_ending() else 0.0)

    def stop(self, term_grace: float = TERM_GRACE, kill_grace: float = KILL_GRACE) -> int:
        """Climb the stop ladder and return the exit status. Idempotent, and safe at any moment."""
        if os.getpid() != self._owner:
            return 0  # a forked copy of this object: the child belongs to the parent
        if self._thread.ident is None:
            return 0  # never started
        self._spawned.wait()
        if self._popen is None:
            return 0  # could not be started
        with self._stop_lock:
            try:
                self._climb(term_grace, kill_grace)
            except BaseException:
                # A second Ctrl-C does not wait any longer, and leaves no process behind either.
                self._signal(signal.SIGKILL)
                raise
            status = self.exit_status
            if status is None:
                raise StartFailed(
                    f"process {self.pid} cannot be killed",
                    why=f"it is still there {REAP_TIMEOUT:.0f} s after SIGKILL, most likely in a "
                    "driver call that hangs",
                    remedy="look at dmesg; a reboot may be needed",
                    argv=self.command.argv,
                )
            self._thread.join()
            return status

    def kill(self) -> None:
        """End it at once with all that it started, without waiting; `stop` is still to follow."""
        self._signal(signal.SIGKILL)

    def _is_ending(self) -> bool:
        if os.getpid() != self._owner:
            return False  # a forked copy of this object would never learn of the end
        with self._reaping, contextlib.suppress(OSError):
            if self.pid is None or self._exited.is_set():
                return False
            # Not reaped yet, so the number is the child's and nobody else's. The name of a program
            # may hold blanks and parentheses; the flags are the seventh field after it, proc(5).
            stat = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2]
            return bool(int(stat.split()[6]) & _PF_EXITING)
        return False

    def _climb(self, term_grace: float, kill_grace: float) -> None:
        for number, grace in (
            (signal.SIGTERM, term_grace),
            (signal.SIGTERM, kill_grace),
            (signal.SIGKILL, REAP_TIMEOUT),
        ):
            if self._exited.is_set():
                break
            self._signal(number)
            self._exited.wait(grace)

    def _signal(self, number: signal.Signals) -> None:
        with self._reaping:
            if self.pid is None or self._exited.is_set():
                return
            # Not reaped yet, so the number is the child's and nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number is signal.SIGKILL:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)

    def _run(self) -> None:
        try:
            child = spawn(self.command.argv, self.command.environ, self.command.pass_fds)
            self._popen = child.popen
        except (OSError, MemoryError, ValueError, RuntimeError) as exc:
            # A NUL in an argument is a ValueError; RuntimeError: the interpreter is shutting down.
            self._start_error = exc
            return
        finally:
            self._spawned.set()
        try:
            self._drain(child)
        finally:
            # The pipe is closed by now, so the child cannot hang for want of a reader.
            os.close(child.exit_fd)
            self._reap(child.popen)
            child.leash.close()
            if self._on_exit is not None:
                self._call(self._on_exit)

    def _reap(self, popen: subprocess.Popen[bytes]) -> None:
        # Raises ChildProcessError when the program reaps children that are not its own: SIGCHLD is
        # ignored, or it calls waitpid(-1). Then the status is lost, and the number not ours.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
            with self._reaping:
                # What the child started and left running has no owner any more. While the child
                # is not reaped its group's number is taken.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(popen.pid, signal.SIGKILL)
                popen.wait()
                self._exited.set()
            # Whoever waits for the end is told of it before; who stops it, or starts the next one,
            # waits for this, too.
            _await_group(popen.pid)
            return
        popen.wait()
        self._exited.set()

    def _drain(self, child: Spawned) -> None:
        """Read to the end of the output, or until `DRAIN_GRACE` after the child is gone."""
        assert child.popen.stdout is not None
        rest = b""
        deadline: float | None = None
        poller = select.poll()
        poller.register(child.exit_fd, select.POLLIN)
        with child.popen.stdout as pipe:
            poller.register(pipe, select.POLLIN)
            while deadline is None or time.monotonic() < deadline:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                files = {fd for fd, _ in poller.poll(None if left is None else 1000 * left)}
                if child.exit_fd in files:
                    poller.unregister(child.exit_fd)
                    deadline = time.monotonic() + DRAIN_GRACE
                if pipe.fileno() in files:
                    chunk = os.read(pipe.fileno(), _CHUNK)
                    if not chunk:
                        break
                    rest = self._take(rest + chunk)
        if rest:
            self._take(rest + b"\n")

    def _take(self, data: bytes) -> bytes:
        # A bar of progress goes back to the beginning of its line instead of ending it.
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        for raw in lines:
            line = raw[:_LONGEST_LINE].decode("utf-8", "replace")
            self._lines.append(line)
            if self._on_line is not None and not self._call(self._on_line, line):
                self._on_line = None
        return rest[-_LONGEST_LINE:]

    def _call(self, callback: Callable[..., None], *arguments: str) -> bool:
        """Whether it went well. A fault of the caller's must not leave the child unattended."""
        try:
            callback(*arguments)
        except Exception:  # noqa: BLE001  whatever it is
            _log.exception("a callback of the child %s has raised", self.pid)
            return False
        return True


def _await_group(group: int) -> None:
    """Wait until nobody is left of a killed group: its memory is wanted by who comes next.

    Not for long: in a container whose first process does not reap, the dead stay in it.
    """
    deadline = time.monotonic() + GROUP_GRACE
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.01)
