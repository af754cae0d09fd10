"""A way to an engine without HTTP: how requests and answers are written on it. No I/O.

What is asked and answered is what a llama-server is asked and answers; only the wrapping differs.
A request is its length and then `POST /completion`, a line feed and the body. An answer is any
number of frames: the status as in HTTP, a length, and so many bytes of the body; the last is empty.
"""

from __future__ import annotations

import socket
import struct
from abc import ABC, abstractmethod
from typing import TypeAlias

from rocllm.client._http import Response
from rocllm.endpoint import Endpoint

REQUEST_HEAD = struct.Struct("!I")
_FRAME_HEAD = struct.Struct("!HI")


class Channel(ABC):
    """Where connections to an engine come from that has no address."""

    @abstractmethod
    def connect(self) -> socket.socket:
        """A stream socket of its own to the engine, also after a fork.

        Raises `OSError` when there is no engine, or it is out of reach.
        """


Where: TypeAlias = Endpoint | Channel


def write_request(method: str, target: str, body: bytes | None) -> bytes:
    """The bytes of a request."""
    content = b"%b %b\n%b" % (method.encode(), target.encode(), body or b"")
    return REQUEST_HEAD.pack(len(content)) + content


def read_request(content: bytes) -> tuple[str, str, bytes]:
    """Method, target and body of what follows a `REQUEST_HEAD`."""
    line, _, body = content.partition(b"\n")
    method, _, target = line.decode().partition(" ")
    return method, target, body


def write_frame(status: int, body: bytes) -> bytes:
    """A part of an answer; without a body: its end."""
    return _FRAME_HEAD.pack(status, len(body)) + body


def response_from(where: object) -> Response:
    """What decodes the next answer that comes from there."""
    return ChannelResponse() if isinstance(where, Channel) else Response()


class ChannelResponse(Response):
    """One answer, decoded while its bytes arrive."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        # What is not a stream is not looked at as one, so the type need not be told.
        self.headers = {"content-type": "text/event-stream"}
        self._decode = self._frames

    def _frames(self, data: bytes) -> bytes:
        data = self._buffer + data if self._buffer else data
        position, pieces = 0, []
        while len(data) - position >= _FRAME_HEAD.size:
            self.status, length = _FRAME_HEAD.unpack_from(data, position)
            start = position + _FRAME_HEAD.size
            if not length:
                self.complete = True
                self._decode = self._nothing
                position = start
                break
            if len(data) - start < length:
                break
            position = start + length
            pieces.append(data[start:position])
        rest, self._buffer = data[position:], b""
        if self.complete:
            self._nothing(rest)
        else:
            self._buffer = rest
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
