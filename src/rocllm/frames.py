"""How requests and answers are written where there is no HTTP. No I/O.

What is asked and answered is what a llama-server is asked and answers; only the wrapping differs.
A request is its length and then `POST /completion`, a line feed and the body. An answer is any
number of frames: the status as in HTTP, a length, and so many bytes of the body; the last is empty.
"""

from __future__ import annotations

import struct

REQUEST_HEAD = struct.Struct("!I")
FRAME_HEAD = struct.Struct("!HI")


def write_request(method: str, target: str, body: bytes | None) -> bytes:
    """The bytes of a request."""
    content = b"%b %b\n%b" % (method.encode(), target.encode(), body or b"")
    return REQUEST_HEAD.pack(len(content)) + content


def read_request(content: bytes) -> tuple[str, str, bytes]:
    """Method, target and body of what follows a `REQUEST_HEAD`.

    >>> read_request(write_request("GET", "/slots", None)[REQUEST_HEAD.size:])
    ('GET', '/slots', b'')
    """
    line, _, body = content.partition(b"\n")
    method, _, target = line.decode().partition(" ")
    return method, target, body


def write_frame(status: int, body: bytes) -> bytes:
    """A part of an answer; without a body: its end."""
    return FRAME_HEAD.pack(status, len(body)) + body
