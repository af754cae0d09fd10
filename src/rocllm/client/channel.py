"""A way to an engine without HTTP: where its connections come from, how its answers are read."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from typing import TypeAlias

from rocllm.client._http import Response
from rocllm.endpoint import Endpoint
from rocllm.frames import FRAME_HEAD


class Channel(ABC):
    """Where connections to an engine come from that has no address."""

    @abstractmethod
    def connect(self) -> socket.socket:
        """A stream socket of its own to the engine, also after a fork.

        Raises `OSError` when there is no engine, or it is out of reach.
        """


Where: TypeAlias = Endpoint | Channel


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
        while len(data) - position >= FRAME_HEAD.size:
            self.status, length = FRAME_HEAD.unpack_from(data, position)
            start = position + FRAME_HEAD.size
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
