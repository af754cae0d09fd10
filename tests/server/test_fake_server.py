"""The stand-in for llama-server does what it is told, in llama-server's own shapes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rocllm.client import Client
from rocllm.endpoint import Endpoint
from rocllm.errors import ConnectionLost, RequestError, RequestTimeout
from rocllm.options import SamplingOptions
from rocllm.results import Message
from rocllm.server import LaunchCommand, ServerProcess, find_server
from rocllm.server.health import check_health
from rocllm.testing.fake_llama_server import write_fake_llama_server

Eventually = Callable[[Callable[[], Any]], Any]
Fake = Callable[..., LaunchCommand]
Serve = Callable[..., ServerProcess]
Started = Callable[..., ServerProcess]

DEADLINE = 20.0
PROMPT = "All work"


@pytest.fixture
def serve(fake: Fake, started: Started, endpoint: Endpoint, eventually: Eventually) -> Serve:
    """A fake server that is ready; the arguments are its switches."""

    def ready(*flags: str, **switches: Any) -> ServerProcess:
        process = started(fake(*flags, **switches))
        eventually(lambda: check_health(endpoint) == "ready")
        return process

    return ready


def test_a_completion(serve: Serve, endpoint: Endpoint) -> None:
    """Our own client understands it: text, ids, counts and the reason of the end."""
    serve()
    with Client(endpoint) as client:
        answer = client.completion(PROMPT, SamplingOptions(max_tokens=8)).read()
    assert answer.text == "All work"
    assert [token.id for token in answer.tokens] == list(b"All work")
    assert answer.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 8)


def test_a_chat(serve: Serve, endpoint: Endpoint) -> None:
    """The same through the other shape."""
    serve()
    with Client(endpoint) as client:
        answer = client.chat([Message("user", "Hi")], SamplingOptions(max_tokens=3)).read()
    assert answer.text == "All"
    assert answer.usage.completion_tokens == 3


def test_short_answers(serve: Serve, endpoint: Endpoint) -> None:
    """Properties, slots, tokens and text."""
    serve("--parallel", "2", "--ctx-size", "1024")
    with Client(endpoint) as client:
        assert client.props()["total_slots"] == 2
        assert [slot["is_processing"] for slot in client.slots()] == [False, False]
        assert client.tokenize("Hi") == [72, 105]
        assert client.detokenize([72, 105]) == "Hi"


def test_a_slot_is_busy_until_its_client_leaves(
    serve: Serve, endpoint: Endpoint, eventually: Eventually
) -> None:
    """As in the real server, at the next token."""
    serve(token_seconds=0.01)
    with Client(endpoint) as client:
        with client.completion(PROMPT, SamplingOptions(max_tokens=-1)) as stream:
            next(stream)
            assert client.slots()[0]["is_processing"]
        eventually(lambda: not client.slots()[0]["is_processing"])


@pytest.mark.parametrize(
    ("switches", "status"),
    [({"exit_status": 3}, 3), ({"signal": signal.SIGKILL}, -signal.SIGKILL)],
)
def test_dying_in_a_stream(
    serve: Serve, endpoint: Endpoint, switches: dict[str, int], status: int
) -> None:
    """The client has the tokens before, the process its last words."""
    process = serve(die_after_tokens=5, stderr="ROCm error: oops\n", **switches)
    assert "ROCm error: oops" not in process.output
    with Client(endpoint) as client, pytest.raises(ConnectionLost) as caught:
        client.completion(PROMPT).read()
    assert caught.value.text == "All w"
    assert process.wait(DEADLINE) == status
    assert process.output[-1] == "ROCm error: oops"


def test_hanging_in_a_stream(serve: Serve, endpoint: Endpoint) -> None:
    """The connection stays open and nothing comes."""
    serve(hang_after_tokens=2)
    with Client(endpoint, stream_timeout=0.3) as client, pytest.raises(RequestTimeout):
        client.completion(PROMPT).read()


def test_an_api_key(serve: Serve, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, as in the real server."""
    monkeypatch.setenv("LLAMA_API_KEY", "key")
    serve()
    keyed = Endpoint.unix(endpoint.socket_path or "", api_key="key")
    with Client(keyed) as client, Client(endpoint) as stranger:
        assert client.props()
        with pytest.raises(RequestError) as caught:
            stranger.props()
    assert caught.value.status == 401


def test_an_unknown_path(serve: Serve, endpoint: Endpoint) -> None:
    """There is no chat template to apply."""
    serve()
    with Client(endpoint) as client, pytest.raises(RequestError) as caught:
        client.apply_template([Message("user", "Hi")])
    assert caught.value.status == 404


def test_a_build_without_some_flags(tmp_path: Path) -> None:
    """They are not in its help, and it refuses them."""
    path = write_fake_llama_server(tmp_path / "llama-server", lacks=["--fit", "--no-ui"])
    flags = find_server(path, {"HOME": str(tmp_path)}).flags
    assert not {"--fit", "--no-ui", "--ui"} & set(flags)
    assert "--model" in flags
    refused = subprocess.run(
        [path, "--fit", "off"], check=False, capture_output=True, text=True, timeout=DEADLINE
    )
    assert (refused.returncode, refused.stderr) == (1, "error: invalid argument: --fit\n")


def test_switches_that_do_not_exist(tmp_path: Path) -> None:
    """A test with a misspelt switch must not pass."""
    with pytest.raises(TypeError, match="slient"):
        write_fake_llama_server(tmp_path / "llama-server", slient=True)


@pytest.mark.parametrize("how", ["environment", "flags"])
def test_switches_without_a_script(how: str) -> None:
    """As JSON in the environment, and as flags."""
    module = [sys.executable, "-m", "rocllm.testing.fake_llama_server", "--list-devices"]
    environ = dict(os.environ)
    if how == "flags":
        module.append('--fake-devices=["0000:03:00.0"]')
    else:
        environ["FAKE_LLAMA_SERVER"] = json.dumps({"devices": ["0000:03:00.0"]})
    answer = subprocess.run(
        module, check=True, env=environ, capture_output=True, text=True, timeout=DEADLINE
    )
    assert "ROCm0: AMD Radeon RX 7800 XT (16368 MiB, 16000 MiB free)" in answer.stdout
