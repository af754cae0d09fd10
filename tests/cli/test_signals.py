"""Signals that come at a bad moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE = 60.0
# The program, with something else in the place of its command line.
PROGRAM = """
import signal, threading, time
import rocllm.cli
from rocllm.__main__ import main

class Lock:
    def __init__(self):
        self.lock = threading.Lock()
        self.acquire, self.release = self.lock.acquire, self.lock.release
    def __enter__(self):
        self.lock.acquire()
        {interrupt}
    def __exit__(self, *_):
        self.lock.release()

class Dying:
    def __del__(self):
        {interrupt}

def app(prog_name):
    {code}
    print("it went on")

rocllm.cli.app = app
main()
"""
INTERRUPT = "signal.raise_signal(signal.{})"
MOMENTS = {
    "collection": "dying = Dying(); del dying; time.sleep(1000)",
    "making of a class": "exec(interrupt)",
    "locking": "lock = Lock()\n    try:\n        with threading.Condition(lock): time.sleep(1000)\n"
    "    finally: print(lock.lock.locked())",
}


def run(folder: Path, code: str, interrupt: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run the program to its end, as `python -m` does it: only there Python ends by the signal."""
    text = PROGRAM.format(code=code, interrupt=interrupt)
    (folder / "program.py").write_text(text.replace("exec(interrupt)", f"exec({interrupt!r})"))
    return python_m(folder, "program")


def python_m(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m`, which finds first what is in the folder."""
    return subprocess.run(
        (sys.executable, "-m", *arguments),
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_the_program_all_the_same(
    tmp_path: Path, moment: str, name: str, status: int
) -> None:
    """It is neither lost, nor does it leave a lock behind, nor another exit status."""
    done = run(tmp_path, MOMENTS[moment], INTERRUPT.format(name))
    assert done.returncode == status, done.stderr
    assert done.stdout == ("False\n" if moment == "locking" else "")
    assert done.stderr == ""


def test_while_it_is_imported(tmp_path: Path) -> None:
    """Ctrl-C within the first moment is no reason to show a traceback."""
    (tmp_path / "typer.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    done = python_m(tmp_path, "rocllm", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As nohup has it for SIGHUP, and a script for the SIGINT of its jobs in the background."""
    text = PROGRAM.format(
        code="signal.raise_signal(signal.SIGHUP); signal.raise_signal(signal.SIGINT)",
        interrupt="pass",
    )
    ignoring = "import signal\nfor number in (1, 2): signal.signal(number, signal.SIG_IGN)\n"
    (tmp_path / "program.py").write_text(ignoring + text)
    done = python_m(tmp_path, "program")
    assert (done.returncode, done.stdout, done.stderr) == (0, "it went on\n", "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
    """The program goes on without them, and writes into no file in their place."""
    command = f'"$1" -m rocllm --debug models "$2" {closed}'
    done = subprocess.run(
        ("/bin/sh", "-c", command, "sh", sys.executable, str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
