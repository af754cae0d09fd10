"""Finding the running servers of this user, without touching any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rocllm.endpoint import Endpoint
from rocllm.server import RunDir
from rocllm.server.running import list_running

Child = Callable[..., int]


@pytest.fixture
def child() -> Iterator[Child]:
    """Starts a process that has arguments as a server has, and does nothing."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str | bytes) -> int:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", _WAIT, *arguments]))
        pid, deadline = started[-1].pid, time.monotonic() + 10
        # While it is still in execve, it has no arguments.
        while not Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
        return pid

    yield start
    for process in started:
        process.kill()
        process.wait()


_WAIT = "import signal; signal.pause()"


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    """An environment whose directories nobody else uses."""
    return {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}


def pids(environ: dict[str, str], parent: int | None = None) -> set[int]:
    """Of the servers that belong to this process; `/tmp` is always looked into as well."""
    parent = os.getpid() if parent is None else parent
    return {one.pid for one in list_running(environ) if one.parent_pid == parent}


def test_a_server_is_described_by_what_it_was_started_with(
    run_dir: RunDir, child: Child, here: dict[str, str]
) -> None:
    """The owner file names the processes, the argument vector the rest."""
    before = time.time()
    pid = child(
        "--model",
        "/models/a b.gguf",
        "--alias",
        "A \x1b[31mmodel",
        "--host",
        str(run_dir.socket_path),
        "--parallel",
        "4",
        "--device",
        "ROCm0,ROCm1",
    )
    run_dir.write_owner(pid)

    (server,) = (one for one in list_running(here) if one.pid == pid)

    assert server.parent_pid == os.getpid()
    assert server.endpoint == Endpoint.unix(run_dir.socket_path)
    assert server.model_path == Path("/models/a b.gguf")
    assert server.alias == "A \x1b[31mmodel"
    assert server.parallel == 4
    assert server.device_names == ("ROCm0", "ROCm1")
    assert server.started is not None
    # The kernel counts in hundredths of a second, and from a whole one.
    assert abs(server.started - before) < 5


def test_looking_changes_nothing(run_dir: RunDir, child: Child, here: dict[str, str]) -> None:
    """Another rocllm owns what is found; not even a time of access tells that one has looked."""
    run_dir.write_owner(child())
    before = sorted((path, path.stat().st_mtime_ns) for path in run_dir.path.rglob("*"))

    assert len(pids(here)) == 1
    assert before == sorted((path, path.stat().st_mtime_ns) for path in run_dir.path.rglob("*"))


def test_a_server_on_tcp_and_on_the_cpu(
    run_dir: RunDir, child: Child, here: dict[str, str]
) -> None:
    """Its key is written nowhere, so it is not known."""
    pid = child("--host", "127.0.0.1", "--port", "8099", "--device", "none")
    run_dir.write_owner(pid)

    (server,) = (one for one in list_running(here) if one.pid == pid)

    assert server.endpoint == Endpoint.tcp("127.0.0.1", 8099)
    assert server.device_names == ()
    assert (server.model_path, server.alias, server.parallel) == (None, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model",),
        ("--port", "99999"),
        ("--port", "-1", "--parallel", "many"),
        ("--host", "/" + "x" * 200),
        (b"--model", b"/\xff\xfe.gguf", b"--alias", b"\xff"),
        ("", "", ""),
    ],
)
def test_arguments_that_say_nothing(
    arguments: tuple[str, ...], run_dir: RunDir, child: Child, here: dict[str, str]
) -> None:
    """A server is listed with what is known of it, and nothing is made up."""
    pid = child(*arguments)
    run_dir.write_owner(pid)

    (server,) = (one for one in list_running(here) if one.pid == pid)
    assert server.parallel is None
    assert server.endpoint is None or server.endpoint.socket_path is not None


def test_a_server_that_has_ended_is_not_listed(run_dir: RunDir, here: dict[str, str]) -> None:
    """Neither while it is a zombie, nor when another process has its number."""
    with subprocess.Popen(["true"]) as process:
        run_dir.write_owner(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert pids(here) == set()
    run_dir.write_owner(os.getpid())
    assert pids(here) == {os.getpid()}
    owner = json.loads((run_dir.path / "owner.json").read_text())
    owner["child"]["start_time"] -= 1
    (run_dir.path / "owner.json").write_text(json.dumps(owner))
    assert pids(here) == set()


def test_a_server_without_its_program_is_listed(
    run_dir: RunDir, child: Child, here: dict[str, str]
) -> None:
    """Until the next start removes it."""
    pid = child()
    run_dir.write_owner(pid)
    owner = json.loads((run_dir.path / "owner.json").read_text())
    owner["parent"]["start_time"] -= 1
    (run_dir.path / "owner.json").write_text(json.dumps(owner))

    assert {one.pid for one in list_running(here) if one.parent_pid is None} >= {pid}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"child": null}',
        '{"child": {"pid": "x", "start_time": 1}}',
        '{"child": {"pid": -1, "start_time": 1}}',
        '{"child": {"pid": 1e400, "start_time": 1}}',
        '{"child": {"pid": [1], "start_time": 1}}',
        "[" * 100_000,
        "\0" * 5000,
    ],
)
def test_a_directory_that_says_nothing(text: str, tmp_path: Path, here: dict[str, str]) -> None:
    """One that is being made, or that another program has made, is left out."""
    (tmp_path / "rocllm-abc").mkdir()
    (tmp_path / "rocllm-abc/owner.json").write_text(text)
    (tmp_path / "rocllm-file").touch()
    (tmp_path / "rocllm-empty").mkdir()

    assert pids(here) == set()


def test_a_link_to_a_directory_is_not_followed(
    run_dir: RunDir, child: Child, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Anybody may make one in `/tmp`."""
    run_dir.write_owner(child())
    elsewhere = tmp_path_factory.mktemp("other")
    (elsewhere / "rocllm-link").symlink_to(run_dir.path)

    assert pids({"XDG_RUNTIME_DIR": str(elsewhere), "TMPDIR": str(elsewhere)}) == set()


def test_no_place_to_look_into() -> None:
    """No such directory is no error."""
    assert pids({"XDG_RUNTIME_DIR": "/nowhere", "TMPDIR": "relative"}) == set()
