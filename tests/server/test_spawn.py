"""A child does not outlive the program that started it, nor does what the child has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Eventually = Callable[[Callable[[], Any]], Any]
Lives = Callable[[int], bool]
Parent = Callable[..., tuple[int, ...]]

DEADLINE = 20.0

# The child is a script that starts another process, as a wrapper of llama-server does.
PARENT = """
import ctypes, os, sys, threading, time
from rocllm.server import LaunchCommand, ServerProcess, _spawn
{before}
numbers = []
child = ServerProcess(
    LaunchCommand(("/bin/sh", "-c", "sleep 1000 & echo $!; wait"), dict(os.environ)),
    on_line=lambda line: numbers.append(int(line)),
)
child.start()
while not numbers:
    time.sleep(0.005)
more = []
{after}
print(child.pid, *numbers, *more, flush=True)
{end}
time.sleep(1000)
"""

NO_SETPRIV = "_spawn.shutil.which = lambda *_, **__: None"
GATE_ONLY = """_spawn._helper = lambda: ("/bin/sh", "-c", 'read -r _ && exec "$@"', "sh")"""
# Each leaves a process that lives on; its number is the last that is printed.
COPIES = {
    "os.fork": "more = [os.fork()]\nif not more[0]: time.sleep(1000)",
    "multiprocessing": "import multiprocessing\n"
    "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,))\n"
    "worker.start()\nmore = [worker.pid]",
    "subprocess": "import subprocess\n"
    "more = [subprocess.Popen(['sleep', '1000'], close_fds=False).pid]",
}


@pytest.fixture
def parent() -> Iterator[Parent]:
    """Runs a program with a child to its end, and returns the numbers that it printed."""
    numbers: list[int] = []

    def run(*, before: str = "", after: str = "", end: str = "") -> tuple[int, ...]:
        code = PARENT.format(before=before, after=after, end=end)
        argv = [sys.executable, "-c", code]
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as program:
            assert program.stdout is not None
            printed = tuple(map(int, program.stdout.readline().split()))
            numbers.extend(printed)
            if not end:
                assert all(Path(f"/proc/{pid}").exists() for pid in printed)
                program.kill()
            program.wait(DEADLINE)
        return printed

    yield run
    for pid in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("before", ["", NO_SETPRIV, GATE_ONLY], ids=["setpriv", "python", "leash"])
@pytest.mark.parametrize("end", ["", "os._exit(1)", "sys.exit()", "os.abort()", "child.stop()"])
def test_the_child_dies_with_its_parent(
    parent: Parent, before: str, end: str, eventually: Eventually, lives: Lives
) -> None:
    """However the parent ends; with all that the child has started; the leash alone is enough."""
    end = f"{end}\nos._exit(0)" if end else ""
    for pid in parent(before=before, end=end):
        eventually(lambda pid=pid: not lives(pid))


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_the_parent_does_not_hold_the_leash(
    parent: Parent, copy: str, eventually: Eventually, lives: Lives
) -> None:
    """A worker or another child that outlives the parent does not keep the server running."""
    # Without the parent-death signal, which would end the child, though not the grandchild.
    *ours, other = parent(before=GATE_ONLY, after=COPIES[copy])
    for pid in ours:
        eventually(lambda pid=pid: not lives(pid))
    assert lives(other)


@pytest.mark.parametrize("before", ["", NO_SETPRIV], ids=["setpriv", "python"])
def test_a_copy_that_python_knows_nothing_of(
    parent: Parent, before: str, eventually: Eventually, lives: Lives
) -> None:
    """It holds the leash; then the parent-death signal ends the child."""
    fork = "more = [ctypes.PyDLL(None).fork()]\nif not more[0]: time.sleep(1000)"
    child, _grandchild, other = parent(before=before, after=fork)
    eventually(lambda: not lives(child))
    assert lives(other)


@pytest.mark.parametrize("before", ["", NO_SETPRIV], ids=["setpriv", "python"])
def test_a_parent_that_dies_before_the_child_is_on_the_leash(
    tmp_path: Path, before: str, eventually: Eventually, lives: Lives
) -> None:
    """The helper waits at the gate until then: it ends, and the command is never executed."""
    code = (
        "import os, sys, time\n"
        "from rocllm.server import LaunchCommand, ServerProcess, _spawn\n"
        f"{before}\n"
        "def hang(pid):\n"
        "    print(pid, flush=True)\n"
        "    time.sleep(1000)\n"
        "_spawn.os.pidfd_open = hang\n"
        f"command = ('/usr/bin/touch', {str(tmp_path / 'executed')!r})\n"
        "ServerProcess(LaunchCommand(command, dict(os.environ))).start()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        helper = int(program.stdout.readline())
        assert lives(helper)
        program.kill()
    eventually(lambda: not lives(helper))
    assert not (tmp_path / "executed").exists()


def test_a_program_that_is_only_asked_a_question(
    tmp_path: Path, lives: Lives, eventually: Eventually
) -> None:
    """`--version` may take long, or hang: it dies with who asked, and what it has started, too."""
    program, log = tmp_path / "llama-server", tmp_path / "log"
    program.write_text(f"#!/bin/sh\nsleep 1000 & echo $$ $! > {log}.new\nmv {log}.new {log}\nwait")
    program.chmod(0o755)
    ask = "import os, sys, rocllm.server as s; s.find_server(sys.argv[1], dict(os.environ))"
    with subprocess.Popen([sys.executable, "-c", ask, str(program)]) as asking:
        try:
            eventually(log.exists)
        finally:
            asking.kill()
    pids = [int(pid) for pid in log.read_text().split()]
    try:
        eventually(lambda: not any(map(lives, pids)))
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
