"""HTTP/1.1 as far as a llama-server speaks it: request to bytes, bytes to response. No I/O.

The framing rules are those of RFC 9112. What a llama-server never sends (content codings, upgrades)
is refused, not guessed at, and everything that is kept has a bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rocllm.errors import ProtocolError

# A llama-server's head has about 300 bytes; 64 KiB is what common servers and proxies allow.
MAX_HEAD = 64 * 1024
# Longest size line of a chunk, and longest trailer section.
MAX_CHUNK_LINE = 1024

# llama-server closes a connection after 100 requests or 5 idle seconds (CPPHTTPLIB_KEEPALIVE_*,
# vendor/cpp-httplib, b11434). Earlier than that a connection is not used again.
KEEP_ALIVE_REQUESTS = 95
KEEP_ALIVE_SECONDS = 4.0

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
# The line break that ends a chunk belongs to the size line of the next one: one match a chunk.
_FIRST_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?\r\n")
_NEXT_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,8})(?:[ \t]*;[^\r\n]*)?\r\n")


def encode_request(
    method: str, target: str, body: bytes | None = None, *, host: str, api_key: str | None = None
) -> bytes:
    """The bytes of a request; `body` is JSON, `target` the path with its query."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    if api_key is not None:
        lines.append(f"Authorization: Bearer {api_key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Response:
    """One response, decoded while its bytes arrive.

    status: `None` until the head is complete. headers: names in lower case.
    complete: the body has ended. reusable: the connection may carry another request after that.
    """

    __slots__ = ("_buffer", "_decode", "_left", "_size_line", "complete", "headers", "status")

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.complete = False
        self._buffer = b""
        self._left = 0
        self._size_line = _FIRST_SIZE
        self._decode: Callable[[bytes], bytes] = self._head

    @property
    def reusable(self) -> bool:
        """Complete, and neither side has said that the connection ends with it."""
        return self.complete and self.headers.get("connection", "keep-alive") == "keep-alive"

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the connection, return the bytes of the body among them.

        Raises `ProtocolError` for anything that is not an HTTP/1.1 response.
        """
        return self._decode(data)

    def feed_eof(self) -> bool:
        """The connection has ended; returns whether the response is complete."""
        if self._decode == self._until_eof:
            self.complete = True
        return self.complete

    def _head(self, data: bytes) -> bytes:
        data = self._buffer + data
        status = 100
        while status < 200:  # 100 Continue and the like: the response proper follows
            end = data.find(b"\r\n\r\n")
            if max(end, len(data) if end < 0 else 0) > MAX_HEAD:
                raise _not_http(f"its head is longer than {MAX_HEAD} bytes")
            if end < 0:
                if not data.startswith(b"HTTP/1."[: len(data)]):
                    raise _not_http(f"it begins with {data[:40]!r}")
                self._buffer = data
                return b""
            status = self._parse_head(data[:end])
            data = data[end + 4 :]
        self._buffer = b""
        self.status = status
        self._decode = self._framing()
        return self._decode(data)

    def _parse_head(self, head: bytes) -> int:
        first, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None:
            raise _not_http(f"it begins with {first[:40]!r}")
        headers = {"connection": "close"} if match[1] == b"0" else {}
        for line in lines:
            field = _HEADER.fullmatch(line)
            if field is None:
                raise _not_http(f"header line {line[:80]!r}")
            name, value = field[1].decode().lower(), field[2].decode("latin-1")
            if name in ("content-length", "transfer-encoding") and name in headers:
                raise _not_http(f"two headers {name!r}")
            headers[name] = value.lower() if name == "connection" else value
        self.headers = headers
        return int(match[2])

    def _framing(self) -> Callable[[bytes], bytes]:
        coding = self.headers.get("transfer-encoding")
        length = self.headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked":
                raise _not_http(f"transfer-encoding {coding!r}")
            return self._chunked
        if length is not None or self.status in (204, 304):
            if length is not None and not re.fullmatch(r"[0-9]{1,15}", length):
                raise _not_http(f"content-length {length!r}")
            self._left = int(length or 0)
            return self._counted
        self.headers["connection"] = "close"
        return self._until_eof

    def _until_eof(self, data: bytes) -> bytes:
        return data

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise _not_http("the body is longer than its content-length")
        self.complete = self._left == 0
        return data

    def _chunked(self, data: bytes) -> bytes:
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data
        pieces = [data[:left]] if left else []
        if self._buffer:  # part of a size line; never together with `left`
            data = self._buffer + data
        position, size_line = left, self._size_line
        end = len(data)
        self._left, self._buffer = 0, b""
        while position < end:
            match = size_line.match(data, position)
            if match is None:
                self._buffer = _partial_size_line(data[position:], size_line)
                break
            size_line = _NEXT_SIZE
            size = int(match[1], 16)
            start = match.end()
            if size == 0:
                self._decode = self._trailers
                self._trailers(data[start:])
                break
            position = start + size
            pieces.append(data[start:position])
            if position > end:
                self._left = position - end
        self._size_line = size_line
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _trailers(self, data: bytes) -> bytes:
        data = self._buffer + data
        # Nothing, or fields that end with an empty line of their own.
        end = 2 if data.startswith(b"\r\n") else data.find(b"\r\n\r\n") + 4
        if end < 4 and end != 2:
            if len(data) > MAX_CHUNK_LINE:
                raise _not_http(f"its trailers are longer than {MAX_CHUNK_LINE} bytes")
            self._buffer = data
            return b""
        self._buffer = b""
        self.complete = True
        self._decode = self._nothing
        return self._nothing(data[end:])

    def _nothing(self, data: bytes) -> bytes:
        if data:
            raise _not_http("bytes follow its end")
        return b""


def _partial_size_line(data: bytes, size_line: re.Pattern[bytes]) -> bytes:
    """`data`, if it may become a size line with more bytes."""
    prefix = b"" if size_line is _FIRST_SIZE else b"\r\n"
    line = data[len(prefix) :]
    if not data.startswith(prefix[: len(data)]) or b"\n" in line or len(data) > MAX_CHUNK_LINE:
        raise _not_http(f"chunk size {data[:40]!r}")
    return data


def _not_http(why: str) -> ProtocolError:
    return ProtocolError(
        "the server's answer is not a valid HTTP/1.1 response",
        why=why,
        remedy="check that the address is that of a llama-server",
    )
