"""Loading and closing with a real server: what is used, and that nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
import time
import warnings
from pathlib import Path

import pytest

import rocllm
from rocllm import env
from rocllm.client import Client
from rocllm.endpoint import Endpoint
from rocllm.errors import (
    AddressInUse,
    InvalidGGUF,
    ModelFileError,
    ModelNotFound,
    OptionsError,
    RequestError,
    ServerCrashed,
    StartCancelled,
    StartFailed,
    StreamClosed,
)
from rocllm.gguf import read_gguf
from rocllm.server import ServerProcess
from rocllm.testing.fake_llama_server import write_fake_llama_server

# Seconds for a server to end after SIGTERM, on a machine that has no time for it.
STOP_DEADLINE = 60.0


def process_is_gone(pid: int | None) -> bool:
    """No such process, not even a zombie of ours."""
    return not Path(f"/proc/{pid}").exists()


def leftovers() -> set[str]:
    """Directories of servers where rocllm makes them.

    There may be fewer after a test than before it: a start removes what a killed one has left.
    """
    return {str(path) for path in env.runtime_dirs(os.environ)[0].glob("rocllm-*")}


def open_files() -> set[str]:
    """What this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{link.name}:{link.readlink()}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def test_info_says_what_is_used(demo_model: Path) -> None:
    """The engine, the device, the context, and why."""
    with rocllm.load_model("demo", device="cpu") as model:
        info = model.info
        assert info.path.name == demo_model.name
        assert info.backend == "rocm"
        assert "llama-server" in info.engine
        assert info.devices == ()
        assert (info.ctx_size, info.parallel, info.n_gpu_layers) == (8192, 1, 0)
        assert {buffer.kind for buffer in info.buffers} >= {"model", "KV", "compute"}
        assert any("context of 8192" in reason for reason in info.because)
        assert info.endpoint is not None
        assert info.endpoint.socket_path is not None
        assert Path(info.endpoint.socket_path).parent.stat().st_mode & 0o777 == 0o700
        assert info.warnings == ()
    assert process_is_gone(info.pid)


@pytest.mark.timeout(300)
def test_twenty_cycles_leave_nothing(demo_model: Path) -> None:
    """No process, thread, descriptor, socket or directory is left after loading and closing."""
    files, threads, directories = open_files(), threading.active_count(), leftovers()
    pids = []
    for number in range(20):
        with rocllm.load_model(demo_model, ctx_size=256) as model:
            if number % 2:
                assert model.generate("1, 2, 3,", max_tokens=2).read().text
            pids.append(model.info.pid)
    assert all(process_is_gone(pid) for pid in pids)
    assert open_files() <= files
    assert threading.active_count() <= threads
    assert leftovers() <= directories


def test_closing_ends_streams_and_is_idempotent(demo_model: Path) -> None:
    """A stream in another thread fails soon after close(), and closing twice is fine."""
    model = rocllm.load_model(demo_model, ctx_size=2048)
    stream = model.generate("Once upon a time", max_tokens=-1)
    next(iter(stream))
    failed: list[BaseException] = []

    def read_on() -> None:
        try:
            stream.read()
        except rocllm.RocllmError as exc:
            failed.append(exc)

    reader = threading.Thread(target=read_on)
    reader.start()
    model.close()
    model.close()
    reader.join(10)
    assert not reader.is_alive()
    assert failed
    assert process_is_gone(model.info.pid)


def test_a_model_nobody_closed_warns_and_is_closed(demo_model: Path) -> None:
    """Garbage collection ends the server, with a ResourceWarning."""
    model = rocllm.load_model(demo_model, ctx_size=256)
    pid = model.info.pid
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del model
        gc.collect()
    assert any(issubclass(each.category, ResourceWarning) for each in caught)
    assert process_is_gone(pid)


def test_a_killed_server_is_told_as_a_crash(demo_model: Path) -> None:
    """A stream whose server is killed raises ServerCrashed with the text so far."""
    with rocllm.load_model(demo_model, ctx_size=2048) as model:
        stream = model.generate("Once upon a time", max_tokens=-1)
        begun = [next(stream) for _ in range(4)]
        assert model.info.pid is not None
        os.kill(model.info.pid, signal.SIGKILL)
        with pytest.raises(ServerCrashed, match="SIGKILL") as caught:
            stream.read()
        assert caught.value.text.startswith("".join(token.text for token in begun))
        assert model.generate("1, 2,", max_tokens=2).read().text, (
            "the next call gets another server"
        )


def test_tcp_on_request(demo_model: Path) -> None:
    """With a host a free port of it is used, and a key is needed."""
    with rocllm.load_model(demo_model, ctx_size=256, host="127.0.0.1") as model:
        endpoint = model.info.endpoint
        assert endpoint is not None
        assert endpoint.host == "127.0.0.1"
        assert endpoint.port is not None
        assert model.generate("1, 2,", max_tokens=2).read().text
        with (
            Client(Endpoint.tcp(endpoint.host, endpoint.port)) as stranger,
            pytest.raises(RequestError),
        ):
            stranger.props()


def test_a_port_in_use(demo_model: Path) -> None:
    """The port is named, and no server is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=str(port)):
            rocllm.load_model(demo_model, port=port)


def test_loading_can_be_cancelled(demo_model: Path) -> None:
    """An event gives up loading; a cancelled task does the same; nothing is left."""
    before = leftovers()
    cancel = threading.Event()
    with pytest.raises(StartCancelled):
        rocllm.load_model(demo_model, cancel=cancel, on_progress=lambda _: cancel.set())

    async def cancelled() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_progress(_: object) -> None:
            loop.call_soon_threadsafe(started.set)

        async def load() -> None:
            async with rocllm.load_model_async(demo_model, on_progress=on_progress):
                pass

        task = asyncio.create_task(load())
        await asyncio.wait_for(started.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert leftovers() <= before


def test_wrong_files(tmp_path: Path, demo_model: Path) -> None:
    """Each says what is wrong with it, before a server is started."""
    with pytest.raises(ModelNotFound, match=r"nowhere\.gguf"):
        rocllm.load_model(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelFileError, match="directory"):
        rocllm.load_model(tmp_path)
    empty = tmp_path / "empty.gguf"
    empty.touch()
    with pytest.raises(InvalidGGUF, match="empty"):
        rocllm.load_model(empty)
    text = tmp_path / "text.gguf"
    text.write_text("This is not a model.\n" * 10)
    with pytest.raises(InvalidGGUF, match="not a GGUF"):
        rocllm.load_model(text)
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(demo_model.read_bytes()[:50_000_000])
    with pytest.raises(InvalidGGUF):
        rocllm.load_model(truncated)


def test_an_unknown_architecture(tmp_path: Path, demo_model: Path) -> None:
    """The engine's own words are turned into an error that names the architecture."""
    data = bytearray(demo_model.read_bytes())
    header = read_gguf(demo_model).data_offset
    changed = bytes(data[:header]).replace(b"llama", b"lxama")
    other = tmp_path / "other.gguf"
    other.write_bytes(changed + bytes(data[header:]))
    with pytest.raises(rocllm.RocllmError, match="lxama"):
        rocllm.load_model(other)


def test_options_that_the_model_cannot_have(demo_model: Path) -> None:
    """A context beyond the model's, layers without a GPU, an option that does not exist."""
    with pytest.raises(OptionsError, match="8192"):
        rocllm.load_model(demo_model, ctx_size=100_000)
    with pytest.raises(OptionsError, match="no GPU"):
        rocllm.load_model(demo_model, n_gpu_layers=10, device="cpu")
    with pytest.raises(OptionsError, match="did you mean 'ctx_size'"):
        rocllm.load_model(demo_model, ctx_sise=10)  # type: ignore[call-arg]


def test_a_home_that_cannot_be_written(demo_model: Path, tmp_path: Path) -> None:
    """Nothing that rocllm writes at home is needed to run a model."""
    file = tmp_path / "file"
    file.touch()
    environ = {**os.environ, "HOME": str(file / "home")}
    with rocllm.load_model(demo_model, ctx_size=256, environ=environ) as model:
        assert model.generate("1, 2,", max_tokens=1).read().tokens


def test_no_room_for_a_socket(demo_model: Path, tmp_path: Path) -> None:
    """A path that is too long is passed over for the next place."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(long), "TMPDIR": str(long)}
    with rocllm.load_model(demo_model, ctx_size=256, environ=environ) as model:
        assert model.info.endpoint is not None
        assert str(model.info.endpoint.socket_path).startswith("/tmp/")


def test_a_server_that_is_no_server(demo_model: Path, tmp_path: Path) -> None:
    """A program that is not a llama-server is refused by name."""
    script = tmp_path / "llama-server"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    with pytest.raises((StartFailed, FileNotFoundError), match="llama-server"):
        rocllm.load_model(demo_model, llama_server=script)


def test_ctrl_c_while_loading(demo_model: Path) -> None:
    """KeyboardInterrupt leaves load_model, and no process stays."""
    before = leftovers()

    def interrupt(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        rocllm.load_model(demo_model, on_progress=interrupt)
    deadline = time.monotonic() + 5
    while not leftovers() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("engine", ["embedded", "fake"])
def test_a_stop_takes_one_sigterm(
    demo_model: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that nobody reads would keep the server alive: it is ended before the signal."""
    if engine == "fake":
        engine = str(write_fake_llama_server(tmp_path / "llama-server"))
    sent = []
    stop, send = ServerProcess.stop, ServerProcess._signal

    def note(self: ServerProcess, number: signal.Signals) -> None:
        sent.append(number)
        send(self, number)

    monkeypatch.setattr(ServerProcess, "_signal", note)
    monkeypatch.setattr(ServerProcess, "stop", lambda self: stop(self, term_grace=STOP_DEADLINE))
    with rocllm.load_model(demo_model, llama_server=engine, threads=1, ctx_size=8192) as model:
        stream = model.generate("Once upon a time", max_tokens=-1)
        next(stream)
        model.stop()
        assert sent == [signal.SIGTERM]
        with pytest.raises(StreamClosed):
            list(stream)
