"""Programs that are no llama-server, and llama-servers that misbehave as the real one does not."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.engine import load, tiny

import rocllm
from rocllm.devices import discover_devices
from rocllm.errors import (
    BinaryNotFound,
    ConnectionLost,
    OffloadFailed,
    OutOfMemory,
    ProtocolError,
    RocllmError,
    ServerCrashed,
    StartFailed,
    StartTimeout,
)
from rocllm.options import RestartPolicy
from rocllm.testing.fake_llama_server import write_fake_llama_server
from rocllm.testing.fake_sysfs import DESKTOP, write_tree

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]

# What the dynamic loader says of a library that is not there.
NO_SUCH_LIBRARY = "cannot open shared object file: No such file or directory"
# Seconds for what must not take long, on a machine that is busy with other things.
SOON = 20.0


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return tiny(tmp_path / "model.gguf")


def load_fake(path: Path, options: dict[str, Any] | None = None, **switches: Any) -> Any:
    """A model on a fake server with these switches."""
    server = write_fake_llama_server(path.with_name("llama-server"), **switches)
    return load(path, llama_server=server, **(options or {}))


def elf(machine: int) -> bytes:
    """The head of a program for another machine: 0xB7 is AArch64 (System V ABI, e_machine)."""
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)


def a_directory(path: Path) -> None:
    path.mkdir()


def not_executable(path: Path) -> None:
    path.write_text("#!/bin/sh\n")


def a_script(path: Path) -> None:
    path.write_text("#!/bin/sh\necho I am a script\n")
    path.chmod(0o755)


def for_another_machine(path: Path) -> None:
    path.write_bytes(elf(0xB7))
    path.chmod(0o755)


def garbage(path: Path) -> None:
    path.write_bytes(b"\0\1\2\3" * 100)
    path.chmod(0o755)


def without_its_interpreter(path: Path) -> None:
    path.write_text("#!/nowhere/bash\n")
    path.chmod(0o755)


def without_a_library(path: Path) -> None:
    program = Path("/usr/bin/env").read_bytes()
    assert b"libc.so.6" in program
    path.write_bytes(program.replace(b"libc.so.6", b"libx.so.6"))
    path.chmod(0o755)


def one_that_fails(path: Path) -> None:
    path.write_text("#!/bin/sh\necho no luck today >&2\nexit 3\n")
    path.chmod(0o755)


def one_for_another_processor(path: Path) -> None:
    path.write_text("#!/bin/sh\nkill -ILL $$\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("make", "error", "cause"),
    [
        (lambda _path: None, BinaryNotFound, "missing_program"),
        (a_directory, BinaryNotFound, "missing_program"),
        (not_executable, BinaryNotFound, "not_executable"),
        (a_script, BinaryNotFound, "missing_program"),
        (for_another_machine, StartFailed, "wrong_machine"),
        (garbage, StartFailed, "wrong_machine"),
        (without_its_interpreter, StartFailed, "missing_program"),
        (without_a_library, StartFailed, "missing_library"),
        (one_that_fails, StartFailed, None),
        (one_for_another_processor, StartFailed, "illegal_instruction"),
    ],
)
def test_a_program_that_is_no_llama_server(
    model_file: Path, make: Any, error: type[RocllmError], cause: str | None
) -> None:
    """Each is told by its path, before anything is loaded."""
    program = model_file.with_name("llama-server")
    make(program)
    with pytest.raises(error) as caught:
        load(model_file, llama_server=program)
    assert type(caught.value) is error
    assert caught.value.cause == cause
    assert str(program) in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("then", "error", "cause"),
    [
        (lambda path: path.unlink(), StartFailed, "missing_program"),
        (lambda path: path.chmod(0o644), StartFailed, "not_executable"),
        (lambda path: (path.unlink(), path.mkdir()), StartFailed, "not_executable"),
        (lambda path: path.write_bytes(elf(0xB7)), StartFailed, "wrong_machine"),
    ],
)
def test_a_program_that_changes_before_the_next_start(
    model_file: Path, then: Any, error: type[RocllmError], cause: str
) -> None:
    """It was asked for its version before, and is not asked again."""
    with load_fake(model_file) as model:
        model.generate("a", max_tokens=1).read()
        model.stop()
        then(model_file.with_name("llama-server"))
        with pytest.raises(error) as caught:
            model.generate("a", max_tokens=1).read()
    assert caught.value.cause == cause


def test_one_that_never_becomes_ready(model_file: Path) -> None:
    """Neither one that says so, nor one that says nothing at all."""
    for switches in ({"never_ready": True}, {"silent": True}):
        with pytest.raises(StartTimeout) as caught:
            load_fake(model_file, {"start_timeout": 0.5}, **switches)
        assert caught.value.cause == "stalled"


def test_one_that_does_not_want_to_end(model_file: Path) -> None:
    """It ignores SIGTERM, writes as fast as it can, and its child keeps the output open."""
    switches = {"ignore_sigterm": True, "flood_for_ever": True, "grandchild": True}
    with load_fake(model_file, **switches) as model:
        assert model.generate("a", max_tokens=20).read().usage.completion_tokens == 20
        pid = model.info.pid
        begun = time.monotonic()
    assert time.monotonic() - begun < SOON
    assert not Path(f"/proc/{pid}").exists()


def test_a_flood_of_output(model_file: Path) -> None:
    """As fast as it comes: all is read, little is kept, and the load goes on."""
    with load_fake(model_file, flood=50_000_000) as model:
        assert model.generate("a", max_tokens=2).read().usage.completion_tokens == 2


def test_output_that_is_no_text(model_file: Path) -> None:
    """It does no harm, and does not hide the cause."""
    with load_fake(model_file, invalid_utf8=True, long_line=1_000_000) as model:
        assert model.generate("a", max_tokens=2).read().usage.completion_tokens == 2
    said = "\n\nROCm error: out of memory\n"
    with pytest.raises(OutOfMemory) as caught:
        load_fake(model_file, invalid_utf8=True, stderr=said, exit_status=1)
    assert caught.value.cause == "out_of_device_memory"


@pytest.mark.parametrize(
    ("said", "number", "error", "cause", "retryable"),
    [
        ("Memory access fault by GPU node-2 ...", signal.SIGABRT, ServerCrashed, "gpu_fault", True),
        ("HW Exception by GPU node-1 ...", signal.SIGABRT, ServerCrashed, "gpu_reset", False),
        ("ROCm error: out of memory", signal.SIGABRT, OutOfMemory, "out_of_device_memory", False),
        ("", signal.SIGSEGV, ServerCrashed, "segfault", True),
        ("", signal.SIGILL, ServerCrashed, "illegal_instruction", False),
        ("", signal.SIGABRT, ServerCrashed, "aborted", True),
    ],
)
def test_a_crash_in_an_answer(
    model_file: Path,
    said: str,
    number: signal.Signals,
    error: type[RocllmError],
    cause: str,
    retryable: bool,
) -> None:
    """As a GPU makes it: the cause, and the text so far."""
    with load_fake(model_file, die_after_tokens=5, signal=number, stderr=f"{said}\n") as model:
        with pytest.raises(error) as caught:
            model.generate("a", max_tokens=20).read()
        assert type(caught.value) is error
        assert (caught.value.cause, caught.value.retryable) == (cause, retryable)
        assert caught.value.text == "All w"


@pytest.mark.parametrize("node", [1, 2])
def test_the_gpu_that_failed_is_named(model_file: Path, node: int) -> None:
    """ROCm tells the number of a node; the second of a desktop is the processor's own GPU."""
    desktop = write_tree(model_file.with_name("root"), DESKTOP)
    gpu = next(gpu for gpu in discover_devices(desktop, {}).devices if gpu.kfd_node == node)
    said = f"Memory access fault by GPU node-{node} (Agent handle: 0x1) on address 0x2."
    switches = {"devices": ["0000:03:00.0"], "die_after_tokens": 2, "signal": signal.SIGABRT}
    with load_fake(model_file, {"root": desktop}, stderr=f"{said}\n", **switches) as model:
        with pytest.raises(ServerCrashed) as caught:
            model.generate("a", max_tokens=4).read()
        assert caught.value.cause == "gpu_fault"
        assert f"GPU {gpu.label} accessed memory" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "cause", "words"),
    [
        ("", "no_gpu_visible", "sees no GPU"),
        (
            "ggml_cuda_init: failed to initialize ROCm: no ROCm-capable device is detected",
            "no_gpu_visible",
            "ROCm shows no GPU",
        ),
        (
            f"load_backend: failed to load /x.so: libhipblas.so.3: {NO_SUCH_LIBRARY}",
            "missing_library",
            "libhipblas.so.3 is missing",
        ),
        (
            "load_backend: failed to load /opt/libggml-hip.so: undefined symbol: rocblas_sgbmv_64",
            "mixed_libraries",
            "rocblas_sgbmv_64",
        ),
        ("Unable to open /dev/kfd read-write: Permission denied", "gpu_access_denied", "may not"),
    ],
)
def test_a_build_that_sees_no_gpu(model_file: Path, said: str, cause: str, words: str) -> None:
    """`Available devices: (none)`, with exit status 0: what it says beside that is the cause."""
    desktop = write_tree(model_file.with_name("root"), DESKTOP)
    with pytest.raises(OffloadFailed, match="was chosen, and native llama-server") as caught:
        load_fake(model_file, {"root": desktop}, no_devices_because=f"{said}\n")
    assert caught.value.cause == cause
    assert words in str(caught.value)
    assert said in str(caught.value)


def test_a_connection_that_ends_in_an_answer(model_file: Path) -> None:
    """The server is well, so it is not a crash; the text so far is there."""
    with load_fake(model_file, close_after_tokens=5) as model:
        with pytest.raises(ConnectionLost) as caught:
            model.generate("a", max_tokens=20).read()
        assert caught.value.text == "All w"
        assert model.state == "ready"


@pytest.mark.parametrize("said", ["I am a teapot\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nnonsense"])
def test_garbage_in_the_place_of_an_answer(model_file: Path, said: str) -> None:
    """From a server that is ready, by what its health check says."""
    with load_fake(model_file, garbage=said) as model:
        with pytest.raises(ProtocolError):
            model.generate("a", max_tokens=2).read()
        with pytest.raises(ProtocolError):
            model.tokenize("a")


def test_a_socket_that_vanishes(model_file: Path) -> None:
    """Some cleaner of temporary files took it: the server is replaced, as nobody can reach it."""
    with load(model_file, restart=RestartPolicy(backoff=0.0)) as model:
        pid = model.info.pid
        os.unlink(socket_path(model))
        assert model.generate("a", max_tokens=2).read().usage.completion_tokens == 2
        assert model.info.pid != pid
    with load(model_file) as model:
        os.unlink(socket_path(model))
        with pytest.raises(ServerCrashed, match="is gone") as caught:
            model.generate("a", max_tokens=2).read()
        # By itself it would be worth another start, which is not allowed here.
        assert (caught.value.cause, caught.value.retryable) == ("socket_gone", False)


def test_a_directory_that_vanishes(model_file: Path) -> None:
    """There is no place for another socket, which is said; closing does not mind."""
    with load(model_file, restart=RestartPolicy(backoff=0.0)) as model:
        shutil.rmtree(Path(socket_path(model)).parent)
        with pytest.raises(StartFailed) as caught:
            model.generate("a", max_tokens=2).read()
        assert (caught.value.cause, caught.value.retryable) == ("socket_failed", False)


def socket_path(model: rocllm.TextModel) -> str:
    assert model.info.endpoint is not None
    assert model.info.endpoint.socket_path is not None
    return model.info.endpoint.socket_path
