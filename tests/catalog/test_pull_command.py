"""`rocllm pull`, as a user runs it."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rocllm.cli.pull import _progress

_SECONDS = 30
_COMMAND = (sys.executable, "-m", "rocllm", "pull")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
    )


def test_pull_demo_again(demo_model: Path) -> None:
    """What is there is not fetched: its path, and not a word."""
    done = _run("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).samefile(demo_model)


@pytest.mark.parametrize(
    ("name", "remedy"), [("Demo", "did you mean 'demo'?"), ("org/model", "fetch the .gguf file")]
)
def test_pull_something_else(name: str, remedy: str) -> None:
    """The message says what can be fetched, and the exit code that it is about the model."""
    done = _run(name)
    assert done.returncode == 3
    assert f"cannot pull {name!r}" in done.stderr
    assert remedy in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    """Stopped from outside while the index does not answer: no traceback, no file, no pip."""
    environ = {
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "ROCLLM_TEST_SESSION": os.environ["ROCLLM_TEST_SESSION"],
    }
    with socket.create_server(("127.0.0.1", 0)) as index:
        index.settimeout(_SECONDS)
        environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        with subprocess.Popen(
            [*_COMMAND, "demo"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            connection, _ = index.accept()
            with connection:
                process.send_signal(sent)
                output, errors = process.communicate(timeout=_SECONDS)
                connection.settimeout(_SECONDS)
                while connection.recv(1 << 16):
                    pass  # until the kernel closes it: pip is dead
    assert process.returncode == code
    assert (output, b"Traceback" in errors) == (b"", False)
    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == [".demo.lock"]


def test_progress_in_a_log() -> None:
    """Not on a terminal, progress is a few plain lines."""
    output = io.StringIO()
    with _progress(Console(file=output)) as progress:
        for done in range(0, 1025, 64):
            progress("download", done, 1024)
        for done in range(0, 2049, 512):
            progress("unpack", done, 2048)
    assert output.getvalue().splitlines() == [
        "Fetching the model (1.0 KiB)",
        *("  25 %", "  50 %", "  75 %", "  100 %"),
        "Unpacking and checking it (2.0 KiB)",
        *("  25 %", "  50 %", "  75 %", "  100 %"),
    ]


def test_progress_on_a_terminal() -> None:
    """On a terminal there is a bar for each stage."""
    output = io.StringIO()
    with _progress(Console(file=output, force_terminal=True, width=100)) as progress:
        progress("download", 512 << 20, 1 << 30)
        progress("unpack", 1 << 30, 1 << 30)
    assert "Fetching the model" in output.getvalue()
    assert "0.5/1.0 GiB" in output.getvalue()
    assert "Unpacking and checking it" in output.getvalue()
