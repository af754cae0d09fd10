"""One child: started, drained, stopped, with nothing left."""

from __future__ import annotations

import concurrent.futures
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import Endpoint
from rocllm.errors import StartFailed
from rocllm.server import LaunchCommand, ServerProcess, _spawn, process

Eventually = Callable[[Callable[[], Any]], Any]
Fake = Callable[..., LaunchCommand]
Lives = Callable[[int], bool]
Shell = Callable[[str], LaunchCommand]
Started = Callable[..., ServerProcess]

DEADLINE = 20.0
# A shell runs its traps between two commands only.
NAP = "while :; do sleep 0.02; done"


def test_start_and_stop(shell: Shell, started: Started, lives: Lives) -> None:
    """It runs until it is stopped, and SIGTERM is what ends it."""
    child = started(shell("exec sleep 1000"))
    assert child.pid is not None
    assert lives(child.pid)
    assert child.exit_status is None
    assert child.wait(0) is None
    assert child.stop() == -signal.SIGTERM
    assert child.exit_status == child.wait() == -signal.SIGTERM
    assert not Path(f"/proc/{child.pid}").exists()


def test_stop_is_idempotent(shell: Shell, started: Started) -> None:
    """Again, and after the child has ended by itself."""
    child = started(shell("exit 3"))
    assert child.wait(DEADLINE) == 3
    assert [child.stop(), child.stop()] == [3, 3]


def test_stop_without_a_child(shell: Shell) -> None:
    """Nothing to stop: before the start, and after a start that failed."""
    assert ServerProcess(shell("exit 1")).stop() == 0
    failed = ServerProcess(LaunchCommand(("/bin/sh", "--alias", "a\0b"), {}))
    with pytest.raises(StartFailed, match="cannot run '/bin/sh': embedded null byte"):
        failed.start()
    assert failed.stop() == 0


def test_stop_from_many_threads(shell: Shell, started: Started) -> None:
    """All return the same status when the child is gone."""
    child = started(shell("trap 'exit 4' TERM; " + NAP))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        stops = [pool.submit(child.stop, 10.0, 5.0) for _ in range(8)]
        statuses = {stop.result(DEADLINE) for stop in stops}
    assert len(statuses) == 1
    assert statuses == {child.exit_status}


def test_the_second_sigterm_ends_what_waits_for_its_clients(
    fake: Fake, started: Started, endpoint: Endpoint, eventually: Eventually
) -> None:
    """A llama-server with a connected client hears the first one, and stays."""
    child = started(fake(hang_after_tokens=1))
    eventually(lambda: any("n_slots" in line for line in child.output))
    with socket.socket(socket.AF_UNIX) as client:
        assert endpoint.socket_path is not None
        client.connect(endpoint.socket_path)
        body = b'{"prompt": "", "stream": true}'
        head = b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        assert child.stop(term_grace=0.3, kill_grace=DEADLINE) == 1


def test_the_ladder_in_order(shell: Shell, started: Started, eventually: Eventually) -> None:
    """SIGTERM, a second SIGTERM, and only then SIGKILL."""
    child = started(shell("trap 'echo term' TERM; echo ready; " + NAP))
    eventually(lambda: "ready" in child.output)
    assert child.stop(term_grace=0.5, kill_grace=0.5) == -signal.SIGKILL
    assert child.output.count("term") == 2


def test_one_that_ignores_sigterm(fake: Fake, started: Started, eventually: Eventually) -> None:
    """It is killed."""
    child = started(fake(ignore_sigterm=True))
    eventually(lambda: any("n_slots" in line for line in child.output))
    assert child.stop(term_grace=0.05, kill_grace=0.05) == -signal.SIGKILL


def test_a_stopped_child(shell: Shell, started: Started, eventually: Eventually) -> None:
    """One that hangs in SIGSTOP, as under a debugger, is killed too."""
    child = started(shell("exec sleep 1000"))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    eventually(lambda: ") T " in Path(f"/proc/{child.pid}/stat").read_text())
    assert child.stop(term_grace=0.05, kill_grace=0.05) == -signal.SIGKILL


def test_a_grandchild_that_holds_the_pipe(
    fake: Fake, started: Started, eventually: Eventually, lives: Lives
) -> None:
    """It delays nothing and does not stay."""
    child = started(fake(grandchild=True))
    log = eventually(lambda: "n_slots" in "".join(child.output) and "\n".join(child.output))
    grandchild = int(re.findall(r"grandchild (\d+)", log)[0])
    assert lives(grandchild)
    child.stop()
    eventually(lambda: not lives(grandchild))


def test_a_grandchild_of_a_child_that_ended(
    shell: Shell, started: Started, eventually: Eventually, lives: Lives
) -> None:
    """The end is observed although the pipe is open, and the rest of the group is ended."""
    child = started(shell("sleep 1000 & echo $!; exit 5"))
    assert child.wait(DEADLINE) == 5
    grandchild = int(child.output[0])
    eventually(lambda: not lives(grandchild))


def test_the_exit_is_observed(fake: Fake, started: Started) -> None:
    """Status and last words, without anybody asking for them before."""
    child = started(fake(exit_status=7, stderr="the reason\n"))
    assert child.wait(DEADLINE) == 7
    assert child.output == ("the reason",)


def test_a_signal_is_observed(fake: Fake, started: Started) -> None:
    """A negative status names it."""
    assert started(fake(signal=signal.SIGSEGV)).wait(DEADLINE) == -signal.SIGSEGV


def test_a_flood_is_drained(fake: Fake, started: Started) -> None:
    """Many times the pipe's 64 KiB do not stop it, and do not fill the memory."""
    seen = 0

    def count(line: str) -> None:
        nonlocal seen
        seen += len(line) + 1

    child = started(fake(flood=5_000_000, exit_status=0), on_line=count)
    assert child.wait(DEADLINE) == 0
    assert seen == 5_000_000
    assert len(child.output) <= 200


def test_a_line_without_an_end(fake: Fake, started: Started) -> None:
    """Megabytes without a newline are cut, and what follows is read."""
    child = started(fake(long_line=3_000_000, stderr="\nlast\n", exit_status=0))
    assert child.wait(DEADLINE) == 0
    assert child.output[-1] == "last"
    assert max(map(len, child.output)) <= 4096


def test_a_last_line_without_a_newline(shell: Shell, started: Started) -> None:
    """It counts: a dying program does not always finish its sentence."""
    child = started(shell("printf 'one\\ntwo'"))
    child.wait(DEADLINE)
    assert child.output == ("one", "two")


def test_output_that_is_not_utf8(fake: Fake, started: Started) -> None:
    """It is shown with replacement characters."""
    child = started(fake(invalid_utf8=True, exit_status=0))
    assert child.wait(DEADLINE) == 0
    assert child.output == ("\ufffd\ufffd\ufffd(",)


def test_a_child_that_closes_its_output(shell: Shell, started: Started) -> None:
    """It is not taken for ended."""
    child = started(shell("exec >&- 2>&-; exec sleep 1000"))
    assert child.wait(0.3) is None
    assert child.stop() == -signal.SIGTERM


def test_what_the_child_is_given(shell: Shell, started: Started) -> None:
    """Its environment, no input, the root as directory, private files, a group of its own."""
    command = shell("env; umask; pwd; cat; ps -o pgid= -p $$ || cut -d' ' -f5 /proc/$$/stat")
    only = LaunchCommand(command.argv, {"PATH": os.environ["PATH"], "ONLY": "this"})
    child = started(only)
    child.wait(DEADLINE)
    assert "ONLY=this" in child.output
    assert not any(line.startswith("HOME=") for line in child.output)
    assert child.output[-3:-1] == ("0077", "/")
    assert int(child.output[-1]) == child.pid


def test_a_fork_of_the_program_cannot_stop_it(shell: Shell, started: Started, lives: Lives) -> None:
    """Garbage collection in a forked worker must not end the parent's server."""
    child = started(shell("exec sleep 1000"))
    assert child.pid is not None
    fork = os.fork()
    if not fork:
        os._exit(child.stop())
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert lives(child.pid)


def test_a_fork_of_the_program_does_not_wait_for_the_end(shell: Shell, started: Started) -> None:
    """The child's thread is not there, so it would hear of it after the whole deadline only."""
    child = started(shell("exec sleep 1000"))
    assert child.pid is not None
    reader, writer = os.pipe()
    fork = os.fork()
    if not fork:
        os.read(reader, 1)
        began = time.monotonic()
        child.wait_if_ending()
        os._exit(time.monotonic() - began > 5)
    with child._reaping:  # it has ended, and stays there
        child_end = os.pidfd_open(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        select.select([child_end], [], [], DEADLINE)
        os.write(writer, b"x")
        status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    for descriptor in (reader, writer, child_end):
        os.close(descriptor)
    assert status == 0


def test_the_starting_thread_may_end(
    shell: Shell, started: Started, lives: Lives, eventually: Eventually
) -> None:
    """The parent-death signal comes with the end of the thread that forked: not this one."""

    def start() -> ServerProcess:
        child = started(shell("echo up; exec sleep 1000"))
        eventually(lambda: child.output)  # by now the signal has been asked for
        return child

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        child = pool.submit(start).result(DEADLINE)
    assert child.wait(0.3) is None
    assert lives(child.pid or 0)


def test_a_program_that_cannot_be_executed(started: Started) -> None:
    """The helper says so, and it ends as any other child."""
    child = started(LaunchCommand(("/nonexistent/llama-server",), dict(os.environ)))
    assert child.wait(DEADLINE) == 127
    assert "No such file or directory" in child.output[-1]


def test_a_helper_that_cannot_be_executed(
    shell: Shell, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then is it the system's error."""
    monkeypatch.setattr(_spawn, "_helper", lambda: ("/nonexistent/sh",))
    with pytest.raises(StartFailed, match="cannot run '/bin/sh': No such file or directory"):
        started(shell("exit 0"))


def test_an_interrupted_stop_kills(
    shell: Shell, started: Started, eventually: Eventually, lives: Lives
) -> None:
    """A second Ctrl-C during the ladder does not leave the process behind."""
    child = started(shell("trap '' TERM; echo ready; " + NAP))
    eventually(lambda: "ready" in child.output)
    assert child.pid is not None
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        child.stop(term_grace=DEADLINE, kill_grace=DEADLINE)
    timer.join()
    assert child.wait(DEADLINE) == -signal.SIGKILL


def test_a_program_that_ignores_its_children() -> None:
    """With SIGCHLD ignored the kernel reaps: the status is lost, and nobody waits for ever."""
    code = (
        "import os, signal\n"
        "from rocllm.server import LaunchCommand, ServerProcess\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "child = ServerProcess(LaunchCommand(('/bin/sleep', '1000'), dict(os.environ)))\n"
        "child.start()\n"
        "child.stop()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=False,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_twenty_cycles_leave_nothing(shell: Shell, lives: Lives) -> None:
    """No thread, no descriptor, no process, no zombie."""

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = (open_files(), threading.active_count())
    pids = []
    for number in range(20):
        child = ServerProcess(shell("exit 1" if number % 2 else "echo x; exec sleep 1000"))
        child.start()
        pids.append(child.pid)
        child.stop()
    assert (open_files(), threading.active_count()) == before
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_without_setpriv(shell: Shell, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own helper starts the same program with the same number, without input."""
    monkeypatch.setattr(_spawn.shutil, "which", lambda *_, **__: None)
    child = started(shell("echo $$; cat; exit 6"))
    assert child.wait(DEADLINE) == 6
    assert child.output == (str(child.pid),)
    missing = started(LaunchCommand(("/nonexistent/llama-server",), dict(os.environ)))
    assert missing.wait(DEADLINE) == 127
    why = "failed to execute /nonexistent/llama-server: No such file or directory"
    assert missing.output == (why,)


def test_a_callback_that_raises(
    shell: Shell, started: Started, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the child is drained and reaped all the same."""

    def fail(line: str) -> None:
        raise KeyError(line)

    flood = "for i in 1 2 3 4 5 6 7 8; do head -c 60000 /dev/zero | tr '\\0' x; echo; done; exit 3"
    child = started(shell(flood), on_line=fail, on_exit=lambda: fail("at the end"))
    assert child.wait(DEADLINE) == 3
    assert child.stop() == 3
    assert len(child.output) == 8
    assert [str(one.exc_info[1])[:11] for one in caplog.records if one.exc_info] == [
        "'xxxxxxxxxx",
        "'at the end",
    ]


def test_no_more_threads(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a failed start as any other."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    child = ServerProcess(shell("exec sleep 1000"))
    with pytest.raises(StartFailed, match="can't start new thread"):
        child.start()
    assert child.stop() == 0


def test_no_more_descriptors() -> None:
    """At whichever of them it fails: no process and no descriptor is left."""
    code = (
        "import os, resource\n"
        "from rocllm.errors import StartFailed\n"
        "from rocllm.server import LaunchCommand, ServerProcess\n"
        "count = lambda: len(os.listdir('/proc/self/fd'))\n"
        "before, hard = count(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "for more in range(20):\n"
        "    child = ServerProcess(LaunchCommand(('/bin/sleep', '1000'), dict(os.environ)))\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (before + more, hard))\n"
        "    try:\n"
        "        child.start()\n"
        "    except StartFailed as exc:\n"
        "        print('Too many open files' in str(exc))\n"
        "    else:\n"
        "        print(child.stop())\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "    assert count() == before, more\n"
        "try:\n"
        "    print(os.waitpid(-1, os.WNOHANG))\n"
        "except ChildProcessError:\n"
        "    print('no child')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    *starts, children = done.stdout.split("\n")[:-1]
    assert set(starts) == {"True", str(-signal.SIGTERM)}
    assert children == "no child"
    assert done.stderr == ""


def test_a_bar_of_progress(shell: Shell, started: Started) -> None:
    """What goes back to the beginning of its line is told as lines, while it grows."""
    child = started(shell("printf 'load 10%%\\rload 20%%\\r\\ndone\\n'"))
    child.wait(DEADLINE)
    assert child.output == ("load 10%", "load 20%", "done")


def test_its_end_is_told_before_that_of_its_group(
    shell: Shell, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers learn of a crash at once; where nobody reaps orphans, they stay in the group."""
    gone = threading.Event()
    monkeypatch.setattr(process, "_await_group", lambda _group: gone.wait(DEADLINE))
    child = started(shell("kill -SEGV $$"))
    assert child.wait(DEADLINE) == -signal.SIGSEGV
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(child.stop)
        with pytest.raises(TimeoutError):
            stopped.result(0.1)
        gone.set()
        assert stopped.result(DEADLINE) == -signal.SIGSEGV


def test_nobody_of_its_group_is_left(shell: Shell, started: Started) -> None:
    """Those that it started are gone when its end is told: their memory is wanted."""
    child = started(shell("sleep 600 & sleep 600 & wait"))
    child.stop()
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid or 0, 0)
