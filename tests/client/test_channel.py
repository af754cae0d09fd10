"""The way to an engine without HTTP: its frames, and both clients on it."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.wire import final, token

from rocllm.client import AsyncClient, Channel, Client
from rocllm.client.channel import ChannelResponse
from rocllm.errors import (
    BadRequest,
    ConnectionLost,
    ProtocolError,
    RequestTimeout,
    StreamClosed,
)
from rocllm.frames import REQUEST_HEAD, read_request, write_frame, write_request
from rocllm.options import SamplingOptions

Answerer = Callable[[str, bytes, socket.socket], None]


class FakeEngine(Channel):
    """Answers each request by calling `answer` with target, body and the connection."""

    def __init__(self, answer: Answerer) -> None:
        self._answer = answer
        self.connections = 0

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.connections += 1
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            while head := file.read(REQUEST_HEAD.size):
                (length,) = REQUEST_HEAD.unpack(head)
                _, target, body = read_request(file.read(length))
                self._answer(target, body, connection)

    def __str__(self) -> str:
        return "the fake engine"


def events(*payloads: object) -> bytes:
    """The frames of a stream."""
    told = [b"data: %b\n\n" % json.dumps(payload).encode() for payload in payloads]
    return b"".join(write_frame(200, one) for one in (*told, b""))


def whole(status: int, answer: object) -> bytes:
    """The frames of an answer in one piece."""
    return write_frame(status, json.dumps(answer).encode()) + write_frame(status, b"")


def counting(target: str, body: bytes, connection: socket.socket) -> None:
    """Answers a completion with two tokens."""
    assert target == "/completion"
    assert json.loads(body)["prompt"] == "1,"
    connection.sendall(events(token(5, " 2", 1), token(6, ",", 2), final(2)))


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    ends = sorted({*(cut % (len(data) + 1) for cut in cuts), len(data)})
    return (data[start:end] for start, end in itertools.pairwise([0, *ends]))


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 500)))
def test_frames_come_through_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """Any division of the bytes gives the same body, status and end."""
    data = b"".join(write_frame(207, body) for body in (*bodies, b""))
    response = ChannelResponse()
    got = b"".join(response.feed(piece) for piece in pieces(data, cuts))
    assert got == b"".join(bodies)
    assert (response.status, response.complete, response.reusable) == (207, True, True)


def test_bytes_after_the_end_are_an_error() -> None:
    """A frame that belongs to nothing is refused."""
    with pytest.raises(ProtocolError):
        ChannelResponse().feed(write_frame(200, b"") + b"more")


def test_requests_come_through() -> None:
    """Method, target and body, also without a body and with line feeds in it."""
    for body in (b"", b'{"a":\n1}'):
        data = write_request("POST", "/x?y=1", body or None)
        (length,) = REQUEST_HEAD.unpack_from(data)
        assert length == len(data) - REQUEST_HEAD.size
        assert read_request(data[REQUEST_HEAD.size :]) == ("POST", "/x?y=1", body)


def test_a_stream_over_a_channel() -> None:
    """Both clients read it, and use the connection again."""
    engine = FakeEngine(counting)
    with Client(engine) as client:
        for _ in range(3):
            reply = client.completion("1,", SamplingOptions(max_tokens=2)).read()
            assert (reply.text, [one.id for one in reply.tokens]) == (" 2,", [5, 6])
    assert engine.connections == 1

    async def ask() -> None:
        async with AsyncClient(engine) as other:
            for _ in range(3):
                read = await other.completion("1,", SamplingOptions(max_tokens=2)).read()
                assert read.text == " 2,"

    asyncio.run(ask())
    assert engine.connections == 2


def test_a_refusal_and_a_call() -> None:
    """An error has its status, a call its answer; in front of a stream and without one."""

    def answer(target: str, _body: bytes, connection: socket.socket) -> None:
        if target == "/tokenize":
            connection.sendall(whole(200, {"tokens": [1, 2]}))
        else:
            connection.sendall(whole(400, {"error": {"code": 400, "message": "no grammar"}}))

    with Client(FakeEngine(answer)) as client:
        assert client.tokenize("ab") == [1, 2]
        with pytest.raises(BadRequest, match="no grammar") as caught:
            client.completion("1,").read()
        assert caught.value.status == 400


def test_what_breaks_is_told() -> None:
    """An engine that goes away, is silent, or is not there."""

    def goes(_target: str, _body: bytes, connection: socket.socket) -> None:
        connection.sendall(events(token(5, " 2", 1))[:-8])
        connection.shutdown(socket.SHUT_RDWR)

    with Client(FakeEngine(goes)) as client, pytest.raises(ConnectionLost, match="fake engine"):
        client.completion("1,").read()

    with (
        Client(FakeEngine(lambda *_: None), stream_timeout=0.05) as client,
        pytest.raises(RequestTimeout, match=r"stream_timeout=0\.05"),
    ):
        client.completion("1,").read()

    class Gone(Channel):
        def connect(self) -> socket.socket:
            raise ConnectionRefusedError(111, "it has ended")

    with Client(Gone()) as client, pytest.raises(ConnectionLost, match="it has ended"):
        client.tokenize("ab")


def test_leaving_a_stream_closes_its_connection() -> None:
    """The engine sees the end of the connection, and that is how it knows."""
    left = threading.Event()

    def endless(_target: str, _body: bytes, connection: socket.socket) -> None:
        connection.sendall(events(token(5, " 2", 1))[:-6])
        assert connection.recv(1) == b""
        left.set()

    with Client(FakeEngine(endless)) as client:
        with client.completion("1,") as stream:
            assert next(stream).text == " 2"
        assert left.wait(10)
        with pytest.raises(StreamClosed):
            next(stream)
