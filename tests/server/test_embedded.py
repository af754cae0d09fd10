"""The embedded server: a llama-server like any other, on the command line and as a process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.client import Client
from rocllm.endpoint import Endpoint
from rocllm.errors import InvalidGGUF, RequestError
from rocllm.memory import Settings
from rocllm.server import (
    LaunchCommand,
    LaunchOptions,
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
Serve = Callable[..., tuple[ServerProcess, LoadReport]]
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


def command(binary: ServerBinary, model: Path, run_dir: RunDir, key: str | None) -> LaunchCommand:
    """What rocllm would run for a model on the CPU."""
    launch = LaunchOptions(
        model_path=model,
        alias="demo",
        settings=Settings(ctx_size=512, parallel=2, batch_size=512),
        threads=1,
    )
    endpoint = Endpoint.unix(run_dir.socket_path, api_key=key)
    return build_command(
        binary, launch, endpoint, environ=os.environ, config_home=run_dir.config_home
    )


@pytest.fixture
def serve(
    embedded: ServerBinary, demo_model: Path, run_dir: RunDir, endpoint: Endpoint
) -> Iterator[Callable[..., tuple[ServerProcess, LoadReport]]]:
    """Loads the demo model, or another file, with a key or without."""
    with contextlib.ExitStack() as stack:

        def load(
            model: Path = demo_model, key: str | None = None
        ) -> tuple[ServerProcess, LoadReport]:
            process, report = start_server(
                command(embedded, model, run_dir, key),
                endpoint,
                model_path=model,
                start_timeout=DEADLINE,
            )
            stack.callback(process.stop, 1.0, 1.0)
            return process, report

        yield load


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
    assert list_devices(embedded, os.environ).devices == ()


def test_a_load(serve: Serve, endpoint: Endpoint) -> None:
    """The whole command line is taken, the log tells what a native one would, the key is wanted."""
    process, report = serve(key=KEY)
    assert (report.n_slots, report.n_ctx_slot) == (2, 512)
    assert {buffer.kind for buffer in report.buffers} >= {"model", "KV", "compute", "output"}
    assert report.devices == ()
    assert not any(KEY in argument for argument in process.command.argv)
    with Client(Endpoint.unix(endpoint.socket_path or "", api_key=KEY)) as client:
        assert len(client.slots()) == 2
        assert client.tokenize("Hello")
    with Client(endpoint) as stranger, pytest.raises(RequestError) as caught:
        stranger.props()
    assert caught.value.status == 401


def wait_until_caught(pid: int | None, number: signal.Signals) -> None:
    """Wait until the process handles the signal: it does a moment after it answers."""
    deadline = time.monotonic() + DEADLINE
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
        if int(caught, 16) >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline, f"{number} is not handled"
        time.sleep(0.01)


def test_it_stops(serve: Serve, endpoint: Endpoint) -> None:
    """SIGTERM ends an idle server with status 0, and its socket is removed."""
    process, _ = serve()
    wait_until_caught(process.pid, signal.SIGTERM)
    assert endpoint.socket_path is not None
    assert Path(endpoint.socket_path).exists()
    assert process.stop(term_grace=DEADLINE) == 0
    assert not Path(endpoint.socket_path).exists()
    assert check_health(endpoint) == "unreachable"


def test_the_second_sigterm_ends_it_at_once(serve: Serve, endpoint: Endpoint) -> None:
    """Also while a client is connected that reads nothing."""
    process, _ = serve()
    assert endpoint.socket_path is not None
    body = b'{"prompt": "Once", "n_predict": -1, "stream": true}'
    head = b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(endpoint.socket_path)
        client.sendall(head + body)
        client.settimeout(DEADLINE)
        assert client.recv(20).startswith(b"HTTP/1.1 200")
        assert process.stop(term_grace=0.2, kill_grace=DEADLINE) in (0, -signal.SIGTERM)


def test_sigterm_while_loading(
    embedded: ServerBinary,
    demo_model: Path,
    run_dir: RunDir,
    started: Started,
    eventually: Eventually,
) -> None:
    """It ends at once, by the signal."""
    process = started(command(embedded, demo_model, run_dir, None))
    eventually(lambda: any("loading model" in line for line in process.output))
    assert process.stop(term_grace=DEADLINE) == -signal.SIGTERM


def test_a_file_that_is_no_model(serve: Serve, tmp_path: Path) -> None:
    """The cause is told, as from a native server."""
    text = tmp_path / "text.gguf"
    text.write_text("no model at all\n" * 100)
    with pytest.raises(InvalidGGUF, match="not a GGUF file"):
        serve(model=text)
