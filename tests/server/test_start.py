"""Starting a child and waiting until it serves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rocllm.endpoint import Endpoint
from rocllm.errors import (
    AddressInUse,
    OutOfMemory,
    StartCancelled,
    StartFailed,
    StartTimeout,
)
from rocllm.server import (
    LaunchCommand,
    LoadProgress,
    LoadReport,
    ServerProcess,
    UsedDevice,
    start_server,
)
from rocllm.server import start as start_module
from rocllm.server.health import check_health
from rocllm.server.report import LoadReportBuilder
from rocllm.server.start import family

Fake = Callable[..., LaunchCommand]
Lives = Callable[[int], bool]
Start = Callable[..., tuple[ServerProcess, LoadReport]]

# Far longer than any start here takes, so that only a hang ends by it.
PATIENCE = 20.0


@pytest.fixture
def spawned() -> list[int]:
    """The process ids that `start` was told of."""
    return []


@pytest.fixture
def start(endpoint: Endpoint, tmp_path: Path, spawned: list[int]) -> Iterator[Start]:
    """`start_server`, with an end after the test."""
    model = tmp_path / "model.gguf"
    model.write_bytes(bytes(1000))
    with contextlib.ExitStack() as stack:

        def run(command: LaunchCommand, **arguments: Any) -> tuple[ServerProcess, LoadReport]:
            defaults = {
                "endpoint": endpoint,
                "model_path": model,
                "start_timeout": PATIENCE,
                "on_spawn": spawned.append,
            }
            process, report = start_server(command, **{**defaults, **arguments})
            stack.callback(process.stop, 0, 0)
            return process, report

        yield run


def test_ready(start: Start, fake: Fake, endpoint: Endpoint, spawned: list[int]) -> None:
    """It answers when start_server returns, and it is known what it said."""
    process, report = start(fake("--parallel", "2", "--ctx-size", "1024"))
    assert check_health(endpoint) == "ready"
    assert spawned == [process.pid]
    assert (report.n_slots, report.n_ctx_slot) == (2, 512)
    assert {buffer.kind for buffer in report.buffers} == {"model", "KV", "compute"}
    assert report.devices == ()


def test_a_rocm_load(start: Start, fake: Fake) -> None:
    """Devices with their addresses, and how many layers are on them."""
    _, report = start(fake("--device", "ROCm1", devices=["0000:03:00.0", "0000:0d:00.0"]))
    assert report.devices == (UsedDevice("ROCm1", "AMD Radeon RX 7800 XT", "0000:0d:00.0"),)
    assert (report.offloaded_layers, report.total_layers) == (33, 33)
    assert {buffer.device for buffer in report.buffers} == {"ROCm1"}


def test_another_device_than_the_selected_one(start: Start, fake: Fake) -> None:
    """What is reported is what the child says, not what it was told."""
    _, report = start(fake("--device", "ROCm0", devices=["0000:03:00.0"], uses=["0000:0d:00.0"]))
    assert [device.pci_address for device in report.devices] == ["0000:0d:00.0"]


def test_a_log_that_comes_after_the_first_answer(
    start: Start, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report without its device would be taken for a failed offload."""
    monkeypatch.setattr(start_module, "LOG_GRACE", 60.0)
    _, report = start(fake(late_log=0.2, devices=["0000:03:00.0"]))
    assert len(report.devices) == 1
    assert report.n_slots == 1


@pytest.mark.parametrize("switch", ["silent", "never_ready"])
def test_no_progress(
    start: Start, fake: Fake, spawned: list[int], lives: Lives, switch: str
) -> None:
    """The stall timeout ends it, with the last output, and without a process left."""
    with pytest.raises(StartTimeout, match="no progress for 700 ms") as caught:
        start(fake(**{switch: True}), start_timeout=0.7)
    assert not lives(spawned[0])
    assert caught.value.argv[0].endswith("llama-server")


def test_a_slow_load_that_shows_progress(
    start: Start, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take longer than the timeout. The clock moves with every sign of life, by less."""
    clock, seen = 0.0, (0, 0, 0)
    look = start_module._signs_of_life

    def look_and_tick(process: ServerProcess) -> tuple[int, int, int]:
        nonlocal clock, seen
        signs = look(process)
        clock += 10.0 * (signs != seen)
        seen = signs
        return signs

    # With a clock that stands still otherwise nobody would ever look.
    monkeypatch.setattr(start_module, "LOOK_INTERVAL", 0.0)
    monkeypatch.setattr(start_module, "POLL_INTERVALS", (0.01, 0.01))
    monkeypatch.setattr(start_module, "_signs_of_life", look_and_tick)
    monkeypatch.setattr(start_module, "time", SimpleNamespace(monotonic=lambda: clock))
    start(fake(load_seconds=0.5), start_timeout=15.0)
    assert clock > 2 * 15.0


def test_an_exit_while_loading(start: Start, fake: Fake, spawned: list[int]) -> None:
    """It is diagnosed from what was printed."""
    said = "ggml_cuda: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory\n"
    with pytest.raises(OutOfMemory, match=r"could not load '.*model.gguf'") as caught:
        start(fake(exit_status=1, stderr=said))
    assert caught.value.exit_status == 1
    assert caught.value.output == (said.strip(),)
    assert not Path(f"/proc/{spawned[0]}").exists()


def test_a_signal_while_loading(start: Start, fake: Fake) -> None:
    """It is named."""
    with pytest.raises(StartFailed, match="SIGILL"):
        start(fake(signal=signal.SIGILL, load_seconds=0.1))


def test_a_port_in_use(start: Start, fake: Fake, tmp_path: Path) -> None:
    """It is told as such, so that another port can be tried."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = fake()
        tcp = LaunchCommand(
            (command.argv[0], "--host", "127.0.0.1", "--port", str(port)), command.environ
        )
        with pytest.raises(AddressInUse, match=f"127.0.0.1 port {port}"):
            start(tcp, endpoint=Endpoint.tcp("127.0.0.1", port))


def test_a_stranger_who_answers_in_place_of_the_child(start: Start, fake: Fake) -> None:
    """He has taken the port before the child could: he is not taken for it."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            while True:
                try:
                    connection = stranger.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        port = stranger.getsockname()[1]
        command = fake()
        tcp = LaunchCommand(
            (command.argv[0], "--host", "127.0.0.1", "--port", str(port)), command.environ
        )
        try:
            with pytest.raises(AddressInUse, match=f"127.0.0.1 port {port}"):
                start(tcp, endpoint=Endpoint.tcp("127.0.0.1", port))
        finally:
            stranger.shutdown(socket.SHUT_RDWR)
            answering.join(PATIENCE)


def test_cancelling(start: Start, fake: Fake, spawned: list[int], lives: Lives) -> None:
    """Another thread sets the event, and the child is gone when start_server has raised."""
    cancel = threading.Event()
    timer = threading.Timer(0.2, cancel.set)
    timer.start()
    with pytest.raises(StartCancelled):
        start(fake(never_ready=True), cancel=cancel)
    timer.join()
    assert not lives(spawned[0])


def test_ctrl_c(start: Start, fake: Fake, spawned: list[int], lives: Lives) -> None:
    """KeyboardInterrupt goes on, and no process stays."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        start(fake(never_ready=True, ignore_sigterm=True))
    timer.join()
    assert not lives(spawned[0])


def test_ctrl_c_while_the_process_is_made(
    start: Start, fake: Fake, monkeypatch: pytest.MonkeyPatch, lives: Lives
) -> None:
    """Between the fork and the wait is no gap either."""
    begin = ServerProcess.start
    made: list[ServerProcess] = []

    def interrupted(self: ServerProcess) -> None:
        begin(self)
        made.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(ServerProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(fake(silent=True))
    assert made[0].pid is not None
    assert not lives(made[0].pid)


@pytest.mark.parametrize("callback", ["on_spawn", "on_progress"])
def test_a_callback_that_fails(start: Start, fake: Fake, callback: str) -> None:
    """Its error goes on, and no process stays; the session fails if one does."""

    def fail(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(fake(load_seconds=1.0), **{callback: fail})


def test_progress(start: Start, fake: Fake) -> None:
    """It is never more than the whole file."""
    seen: list[LoadProgress] = []
    start(fake(load_seconds=0.2), on_progress=seen.append)
    assert seen
    assert all(0 <= each.loaded <= each.total == 1000 for each in seen)


def test_a_program_that_is_not_there(start: Start, tmp_path: Path) -> None:
    """It was there when it was found, and is not now."""
    gone = str(tmp_path / "gone")
    with pytest.raises(StartFailed, match=f"no file '{gone}'"):
        start(LaunchCommand((gone,), dict(os.environ)))


def test_who_does_the_work_of_a_child() -> None:
    """Those that it started, and theirs; an engine's start may go on in any of them."""
    with subprocess.Popen(
        ("/bin/sh", "-c", "(sleep 600 & echo; wait) & echo; wait"),
        stdout=subprocess.PIPE,
        process_group=0,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.read(2) == b"\n\n"
            assert len(family(child.pid)) == 3
            assert family(child.pid)[0] == child.pid
        finally:
            os.killpg(child.pid, signal.SIGKILL)
    assert family(child.pid) == [child.pid]
    assert family(None) == []


def test_progress_that_the_log_tells(start: Start, fake: Fake) -> None:
    """It counts more than the memory that is filled, which may be the engine's own."""
    seen: list[LoadProgress] = []
    log = LoadReportBuilder(loaded=0.0)
    start(fake(load_seconds=0.3), on_progress=seen.append, log=log)
    assert seen
    assert {progress.loaded for progress in seen} == {0}
