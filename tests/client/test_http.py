"""HTTP/1.1 responses: framing, in any pieces, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.wire import chunk, pieces

from rocllm.client._http import MAX_CHUNK_LINE, MAX_HEAD, Response, encode_request
from rocllm.errors import ProtocolError

BODY = bytes(range(256)) + b"\r\n0\r\n\r\n data"
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nX-One:  a b \r\ntransfer-encoding: Chunked\r\n\r\n"
    + chunk(BODY[:7])
    + b"00A;name=value\r\n"
    + BODY[7:17]
    + b"\r\n"
    + chunk(BODY[17:])
    + b"0\r\nTrailer: x\r\n\r\n"
)
COUNTED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
TO_THE_END = b"HTTP/1.0 200 OK\r\n\r\n" + BODY

cuts = st.lists(st.integers(0, 600), max_size=30)


def receive(data: bytes, at: list[int]) -> tuple[Response, bytes]:
    """Feed a response in pieces."""
    response = Response()
    body = b"".join(response.feed(piece) for piece in pieces(data, at))
    return response, body


@given(cuts)
def test_chunks_in_any_pieces(at: list[int]) -> None:
    """The body of a chunked response does not depend on how its bytes arrive."""
    response, body = receive(CHUNKED, at)
    assert (response.status, response.complete, response.reusable) == (200, True, True)
    assert response.headers["x-one"] == "a b"
    assert body == BODY


@given(cuts)
def test_counted_body_in_any_pieces(at: list[int]) -> None:
    """A body with a length ends there."""
    response, body = receive(COUNTED, at)
    assert (response.status, response.complete, body) == (400, True, BODY)


@given(cuts)
def test_body_to_the_end_of_the_connection(at: list[int]) -> None:
    """Without a length the body ends with the connection, which is then used up."""
    response, body = receive(TO_THE_END, at)
    assert not response.complete
    assert response.feed_eof()
    assert (body, response.reusable) == (BODY, False)


def test_byte_by_byte() -> None:
    """One byte at a time is a way for bytes to arrive, too."""
    assert receive(CHUNKED, list(range(len(CHUNKED))))[1] == BODY


@pytest.mark.parametrize("data", [CHUNKED, COUNTED])
def test_the_end_too_early_is_noticed(data: bytes) -> None:
    """A connection that ends inside a framed body leaves the response incomplete."""
    for length in range(len(data)):
        response, _ = receive(data[:length], [])
        assert not response.feed_eof()


def test_no_content() -> None:
    """204 has no body, whatever its headers say."""
    assert receive(b"HTTP/1.1 204 No Content\r\n\r\n", [])[0].complete


def test_connection_close_is_kept() -> None:
    """A server that closes the connection says so in a header, in any case of letters."""
    data = b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n"
    response, _ = receive(data, [])
    assert response.complete
    assert not response.reusable


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n",
        HEAD + b"xyz\r\n",
        HEAD + b"-1\r\n",
        HEAD + b"0x5\r\n",
        HEAD + b"fffffffff\r\n",
        HEAD + b"1" * (MAX_CHUNK_LINE + 1),
        HEAD + b"2\r\nabc\r\n",
        HEAD + b"2\r\nab3\r\n",
        HEAD + b"0\r\n\r\nmore",
        HEAD + b"0\r\nT: " + b"x" * MAX_CHUNK_LINE,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    """Garbage ends as an error, at once or byte by byte, and never as a body."""
    with pytest.raises(ProtocolError, match="not a valid HTTP"):
        receive(data, [])
    with pytest.raises(ProtocolError):
        receive(data, list(range(len(data))) if len(data) < 100 else [len(data) // 2])


@given(st.binary(max_size=300), cuts)
def test_any_bytes_end_in_an_answer_or_an_error(data: bytes, at: list[int]) -> None:
    """No sequence of bytes raises anything but `ProtocolError`."""
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", HEAD):
        try:
            receive(prefix + data, at)
        except ProtocolError:
            continue


def test_a_request() -> None:
    """Method, target, host, key and body are in their places."""
    data = encode_request("POST", "/x", b"{}", host="localhost", api_key="secret")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /x HTTP/1.1",
        b"Host: localhost",
        b"Authorization: Bearer secret",
        b"Content-Type: application/json",
        b"Content-Length: 2",
    ]
    assert body == b"{}"
    assert encode_request("GET", "/y", host="h") == b"GET /y HTTP/1.1\r\nHost: h\r\n\r\n"
