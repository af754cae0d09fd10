"""Fake servers, run directories and processes, none of which outlives its test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import Endpoint
from rocllm.server import LaunchCommand, RunDir, ServerProcess
from rocllm.testing.fake_llama_server import write_fake_llama_server

DEADLINE = 20.0


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    """The private directory of one child."""
    made = RunDir.create({"XDG_RUNTIME_DIR": str(tmp_path)})
    yield made
    made.remove()


@pytest.fixture
def endpoint(run_dir: RunDir) -> Endpoint:
    """A UNIX socket in the run directory."""
    return Endpoint.unix(run_dir.socket_path)


@pytest.fixture
def fake(tmp_path: Path, endpoint: Endpoint) -> Callable[..., LaunchCommand]:
    """The command of a fake llama-server on the endpoint; its arguments are the switches."""

    def command(*flags: str, **switches: Any) -> LaunchCommand:
        path = write_fake_llama_server(tmp_path / "llama-server", **switches)
        return LaunchCommand(
            (str(path), "--host", str(endpoint.socket_path), *flags), dict(os.environ)
        )

    return command


@pytest.fixture
def shell() -> Callable[[str], LaunchCommand]:
    """The command of a shell script."""
    return lambda text: LaunchCommand(("/bin/sh", "-c", text), dict(os.environ))


@pytest.fixture
def started() -> Iterator[Callable[..., ServerProcess]]:
    """Starts a command as a ServerProcess, and stops it after the test."""
    processes: list[ServerProcess] = []

    def start(command: LaunchCommand, **arguments: Any) -> ServerProcess:
        process = ServerProcess(command, **arguments)
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.stop(term_grace=0, kill_grace=0)


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Waits until something is true, and returns it."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.005)
        return value

    return wait


@pytest.fixture
def lives() -> Callable[[int], bool]:
    """Whether a process runs; a zombie does not."""

    def check(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"

    return check
