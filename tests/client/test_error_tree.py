"""Whatever happens to a request ends in exactly one of our classes."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client import wire
from tests.client.both import KINDS, Kind, call, consume
from tests.client.scripted import Caller, ScriptedServer

from rocllm import errors
from rocllm.client._answer import Answer
from rocllm.client._errors import http_error
from rocllm.client._events import CompletionEvents
from rocllm.endpoint import Endpoint
from rocllm.errors import (
    BadRequest,
    ConnectionLost,
    ContextOverflow,
    ProtocolError,
    RequestError,
    RequestTimeout,
    ServerBusy,
)
from rocllm.options import SamplingOptions

OURS = {cls for cls in vars(errors).values() if isinstance(cls, type)}
# What is called in each phase, by blocking callers or by asyncio.
CALLED = {"connect": ("connect",), "send": ("send", "sendall"), "receive": ("recv", "recv_into")}


@pytest.fixture
def chatty(tmp_path: Path) -> Iterator[Endpoint]:
    """A server that speaks first, so that there is something to receive."""

    def script(caller: Caller) -> None:
        caller.send(b"H")
        caller.is_gone()

    with ScriptedServer(script, path=tmp_path / "s.sock") as server:
        yield server.endpoint


def one_of_ours(error: BaseException | None) -> RequestError:
    """`error`, if it is what a request may end with."""
    assert type(error) in OURS, repr(error)
    assert isinstance(error, RequestError)
    assert error.what
    return error


def error_of(kind: Kind, endpoint: Endpoint, timeout: float) -> BaseException:
    """What a call ends with."""
    options = {"connect_timeout": timeout, "read_timeout": timeout}
    with pytest.raises(BaseException) as caught:  # noqa: PT011  which one is the question
        call(kind, endpoint, lambda client: client.props(), **options)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", CALLED)
def test_every_error_of_the_system(
    kind: Kind, phase: str, chatty: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number, while connecting, sending and receiving."""
    number = 0

    def failing(original: Any) -> Any:
        def fail(*arguments: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return original(*arguments)  # it is the server's
            raise OSError(number, os.strerror(number))

        return fail

    for name in CALLED[phase]:
        monkeypatch.setattr(socket.socket, name, failing(getattr(socket.socket, name)))
    for number in sorted(errno.errorcode):  # noqa: B007  `fail` reads it
        error = one_of_ours(error_of(kind, chatty, 0.05))
        assert isinstance(error, (ConnectionLost, RequestTimeout))
        assert error.retryable
        assert error.remedy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint.tcp("127.0.0.1", 1),
        Endpoint.tcp("nowhere.invalid", 80),
        Endpoint.tcp("a" * 64 + ".invalid", 80),
        Endpoint.tcp("bad host", 80),
        Endpoint.tcp("", 1),
        Endpoint.tcp("a\0b", 80),
        Endpoint.tcp("127.0.0.1", 70000),
        Endpoint.tcp("127.0.0.1", -1),
        Endpoint.unix("/nowhere/s.sock"),
        Endpoint.unix("/etc/passwd"),
        Endpoint.unix("/"),
        Endpoint(socket_path="/" + "x" * 200),
        Endpoint(socket_path=""),
        Endpoint(socket_path="/a\0b"),
    ],
    ids=str,
)
def test_an_address_where_nobody_is(kind: Kind, endpoint: Endpoint) -> None:
    """A name that cannot be resolved, no listener, no socket, a path that cannot be one."""
    error = one_of_ours(error_of(kind, endpoint, 5.0))
    assert isinstance(error, (ConnectionLost, RequestTimeout))


KINDS_OF_BODY = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"error": null}',
    b'{"error": "text"}',
    b'{"error": {"message": 7, "type": [], "code": "x"}}',
    b"<html>nginx</html>",
    b"\xff\xfe\x00",
    json.dumps(wire.error(400, "no", "invalid_request_error")).encode(),
]


@pytest.mark.parametrize("body", KINDS_OF_BODY)
def test_every_status(body: bytes) -> None:
    """With any body: who is to blame decides the class."""
    for status in range(100, 1000):
        error = one_of_ours(http_error("props", status, body))
        assert error.status == status
        if status in (429, 503):
            assert type(error) is ServerBusy
        elif status == 404:
            assert type(error) is ProtocolError
        elif status < 500 or status == 501:
            assert type(error) is BadRequest
        else:
            assert type(error) is RequestError
            assert error.remedy


def test_a_prompt_that_is_too_long() -> None:
    """Its kind counts more than its status."""
    body = json.dumps(wire.error(400, "long", "exceed_context_size_error")).encode()
    assert type(http_error("completion", 400, body)) is ContextOverflow


@pytest.mark.parametrize("status", [400, 500])
def test_a_server_without_memory(status: int) -> None:
    """It answers so to a prompt of some megabytes: nothing is wrong with the request."""
    body = json.dumps(wire.error(status, "std::bad_alloc", "invalid_request_error")).encode()
    error = http_error("completion", status, body)
    assert type(error) is RequestError
    assert error.cause == "out_of_host_memory"
    assert error.remedy


@pytest.mark.parametrize("kind", KINDS)
def test_statuses_over_a_connection(kind: Kind) -> None:
    """Plain calls and streams end alike."""
    statuses = (201, 204, 206, 300, 302, 304, 400, 401, 403, 404, 405, 413, 418, 429, 500, 502, 503)
    for status in statuses:

        def script(caller: Caller, status: int = status) -> None:
            caller.read_request()
            caller.send(wire.answer({"error": {"message": "no"}}, f"{status} x"))

        with ScriptedServer(script) as server:
            plain = one_of_ours(error_of(kind, server.endpoint, 5.0))
            streamed = one_of_ours(
                consume(kind, server.endpoint, lambda client: client.completion("a")).error
            )
        if status >= 300 and status != 304:
            assert type(plain) is type(streamed)
            assert plain.status == streamed.status == status


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 1000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n\xff\xff",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n7]",
        wire.STREAM_HEAD + b"zz\r\n",
        wire.STREAM_HEAD + wire.chunk(b"data: {\n\n") + wire.END,
        wire.STREAM_HEAD + wire.chunk(b"data: \xff\n\n") + wire.END,
        wire.STREAM_HEAD + wire.END,
    ],
)
def test_garbage(kind: Kind, data: bytes) -> None:
    """What another program says, or half of an answer."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(data)

    with ScriptedServer(script) as server:
        plain = one_of_ours(error_of(kind, server.endpoint, 5.0))
        streamed = one_of_ours(
            consume(kind, server.endpoint, lambda client: client.completion("a")).error
        )
    for error in (plain, streamed):
        assert isinstance(error, (ConnectionLost, ProtocolError))


@given(st.binary(max_size=200), st.booleans())
def test_a_stream_of_any_bytes(data: bytes, framed: bool) -> None:
    """It ends in tokens or in one of our errors, and never by raising."""
    sampling = SamplingOptions()
    events = CompletionEvents("x", sampling, chat=False, reads_ids=False)
    answer = Answer("x", "y", events, clock=lambda: 0.0)
    answer.start()
    answer.feed(wire.STREAM_HEAD)
    answer.feed(wire.chunk(data) if framed and data else data)
    answer.feed_eof()
    assert answer.finished or answer.needs_vocabulary or one_of_ours(answer.failure)
