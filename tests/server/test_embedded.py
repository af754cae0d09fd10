"""The embedded server: a llama-server like any other, on the command line and as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.client import Client
from rocllm.endpoint import Endpoint
from rocllm.errors import InvalidGGUF, RequestError, StartFailed
from rocllm.server import (
    LaunchCommand,
    LoadReport,
    RunDir,
    ServerBinary,
    ServerProcess,
    build_command,
    find_server,
    list_devices,
    start_server,
)
from rocllm.server.health import check_health
from rocllm.server.help_text import parse_help

Eventually = Callable[[Callable[[], Any]], Any]
Started = Callable[..., ServerProcess]

DEADLINE = 30.0
KEY = "a-secret-key"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The module, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rocllm.server.embedded", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


@pytest.fixture(scope="module")
def embedded() -> ServerBinary:
    """The engine in the wheel."""
    return find_server("embedded", os.environ)


@pytest.fixture
def command(
    embedded: ServerBinary, demo_model: Path, endpoint: Endpoint, run_dir: RunDir
) -> Callable[..., LaunchCommand]:
    """The command that rocllm would run for the demo model on the CPU."""

    def build(model: Path = demo_model, at: Endpoint = endpoint) -> LaunchCommand:
        return build_command(
            embedded,
            model_path=model,
            alias="demo",
            endpoint=at,
            ctx_size=512,
            parallel=2,
            n_gpu_layers=0,
            device_names=(),
            batch_size=512,
            ubatch_size=512,
            cache_type_k="f16",
            cache_type_v="f16",
            flash_attn="auto",
            threads=2,
            environ=os.environ,
            config_home=run_dir.config_home,
        )

    return build


@pytest.fixture
def loaded(
    command: Callable[..., LaunchCommand], endpoint: Endpoint, demo_model: Path
) -> Iterator[tuple[ServerProcess, LoadReport]]:
    """A server with the demo model."""
    process, report = start_server(
        command(), endpoint, model_path=demo_model, start_timeout=DEADLINE
    )
    yield process, report
    process.stop(term_grace=1.0, kill_grace=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nope",), "invalid argument: --nope"),
        (("--model", "m.gguf", "--temp", "0"), "invalid argument: --temp"),
        (("m.gguf",), "invalid argument: m.gguf"),
        (("--ctx-size",), "expected value for argument --ctx-size"),
        (("--fit", "maybe"), 'error while handling argument "--fit"'),
        (("--flash-attn", "yes"), "one of on, off, auto is expected"),
        (("--cache-type-k", "q3"), "one of f32, f16"),
        (("--split-mode", "both"), "one of none, layer, row, tensor"),
        (("--ctx-size", "many"), 'error while handling argument "--ctx-size"'),
        (("--ctx-size", "9" * 30), 'error while handling argument "--ctx-size"'),
        (("--device", "ROCm7"), "invalid device: ROCm7"),
        (("--host", "/tmp/x.sock"), "--model"),
    ],
)
def test_a_wrong_command_line(arguments: tuple[str, ...], message: str) -> None:
    """Refused in llama-server's words, on one line, with exit status 1."""
    answer = run(*arguments)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_questions(embedded: ServerBinary) -> None:
    """Version, flags and devices, each where llama-server writes it."""
    version = run("--version")
    assert (version.returncode, version.stdout) == (0, "")
    assert f"version: {embedded.version}" in version.stderr
    help_text = run("--help")
    assert (help_text.returncode, help_text.stderr) == (0, "")
    assert parse_help(help_text.stdout) == embedded.flags
    assert embedded.flags["--flash-attn"] == "[on|off|auto]"
    assert embedded.flags["--split-mode"] == "{none,layer,row,tensor}"
    assert embedded.flags["--no-kv-unified"] == ""
    assert list_devices(embedded, os.environ) == ()


def test_a_load(loaded: tuple[ServerProcess, LoadReport], endpoint: Endpoint) -> None:
    """The whole command line of rocllm is taken, and the log tells what a native one would."""
    _, report = loaded
    assert (report.n_slots, report.n_ctx_slot) == (2, 512)
    assert {buffer.kind for buffer in report.buffers} >= {"model", "KV", "compute", "output"}
    assert report.devices == ()
    with Client(endpoint) as client:
        assert len(client.slots()) == 2
        assert client.tokenize("Hello")


def test_it_stops(loaded: tuple[ServerProcess, LoadReport], endpoint: Endpoint) -> None:
    """SIGTERM ends an idle server with status 0, and its socket is removed."""
    process, _ = loaded
    assert endpoint.socket_path is not None
    assert Path(endpoint.socket_path).exists()
    assert process.stop(term_grace=DEADLINE) == 0
    assert not Path(endpoint.socket_path).exists()
    assert check_health(endpoint) == "unreachable"


def test_the_second_sigterm_ends_it_at_once(
    loaded: tuple[ServerProcess, LoadReport], endpoint: Endpoint
) -> None:
    """Also while a client is connected that reads nothing."""
    process, _ = loaded
    assert endpoint.socket_path is not None
    body = b'{"prompt": "Once", "n_predict": -1, "stream": true}'
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(endpoint.socket_path)
        head = b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(body) + body)
        client.settimeout(DEADLINE)
        assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert process.stop(term_grace=0.2, kill_grace=DEADLINE) in (0, -signal.SIGTERM)


def test_sigterm_while_loading(
    command: Callable[..., LaunchCommand], started: Started, eventually: Eventually
) -> None:
    """It ends at once, by the signal."""
    process = started(command())
    eventually(lambda: any("loading model" in line for line in process.output))
    assert process.stop(term_grace=DEADLINE) in (0, -signal.SIGTERM)


def test_the_key_comes_from_the_environment(
    command: Callable[..., LaunchCommand], demo_model: Path, endpoint: Endpoint
) -> None:
    """Without it nothing but health is answered, and it is not on the command line."""
    keyed = Endpoint.unix(endpoint.socket_path or "", api_key=KEY)
    launch = command(at=keyed)
    assert not any(KEY in argument for argument in launch.argv)
    process, _ = start_server(launch, keyed, model_path=demo_model, start_timeout=DEADLINE)
    try:
        with Client(keyed) as client:
            assert client.props()["total_slots"] == 2
        with Client(endpoint) as stranger, pytest.raises(RequestError) as caught:
            stranger.props()
        assert caught.value.status == 401
    finally:
        process.stop(term_grace=1.0, kill_grace=1.0)


def test_a_file_that_is_no_model(
    command: Callable[..., LaunchCommand], endpoint: Endpoint, tmp_path: Path
) -> None:
    """The cause is told, as from a native server."""
    text = tmp_path / "text.gguf"
    text.write_text("no model at all\n" * 100)
    with pytest.raises((StartFailed, InvalidGGUF), match="not a GGUF file"):
        start_server(command(text), endpoint, model_path=text, start_timeout=DEADLINE)
