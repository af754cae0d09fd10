"""Answer requests with llama.cpp's server code in this process.

`xllamacpp` gives Python the server's handlers for completions and chat. The others (tokenize,
templates, slots, ...) it has on its HTTP listener only, without which it cannot be made. So those
small questions are asked there, on a UNIX socket in the private directory of the model.

A handler is told to stop by the answer to what it tells, and by nothing else. So there are never
more requests in it than there are slots: one that is left while it waits has not begun, and those
in a slot tell something at every batch of their prompt and at every token.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias

from rocllm.frames import REQUEST_HEAD, read_request, write_frame

# Tells text or an error; answers whether to stop.
_Tell: TypeAlias = Callable[[str], bool]
_Handle: TypeAlias = Callable[[str, _Tell], object]

# The handler answers in OpenAI's words. `verbose` adds llama-server's own, under this name.
_NATIVE = '"__verbose":'
# `return_progress`: something is told at every batch of the prompt.
_ASKED = '{"verbose":true,"return_progress":true,'
# A request of ours is compact JSON, in which no text can look like this.
_STREAM = b'"stream":true'
# Seconds for what the listener is asked. It waits for the end of a batch, and not for a slot.
_LISTENER_TIMEOUT = 600.0

# As what an exception of C++ comes, but for `OSError`, after which nothing can be told.
_CPP_EXCEPTIONS = (
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

_decode_json = json.JSONDecoder().raw_decode


class Server(Protocol):
    """What is used of `xllamacpp.Server`."""

    def handle_completions(self, prompt: str, callback: _Tell) -> object:
        """Answer a completion; calls `callback` with every part."""

    def handle_chat_completions(self, prompt: str, callback: _Tell) -> object:
        """The same for a chat."""


class Engine:
    """A loaded model that answers on connections.

    socket_path: where the server's listener is. slots: how many requests it works on at once.
    """

    def __init__(self, server: Server, socket_path: str, slots: int) -> None:
        self._handlers: dict[str, tuple[_Handle, Callable[[str], str]]] = {
            "/completion": (server.handle_completions, _native),
            "/v1/chat/completions": (server.handle_chat_completions, lambda told: told),
        }
        self._socket_path = socket_path
        self._slots = threading.Semaphore(slots)

    def serve(self, connection: socket.socket) -> None:
        """Answer one request after another, until the other end is closed."""
        with connection, connection.makefile("rb") as requests, contextlib.suppress(OSError):
            while len(head := requests.read(REQUEST_HEAD.size)) == REQUEST_HEAD.size:
                (length,) = REQUEST_HEAD.unpack(head)
                method, target, body = read_request(requests.read(length))
                handler = self._handlers.get(target)
                if handler is None:
                    status, told = self._ask_listener(method, target, body)
                    connection.sendall(write_frame(status, told) + write_frame(status, b""))
                else:
                    self._generate(*handler, body, connection)

    def _generate(
        self, handle: _Handle, translate: Callable[[str], str], body: bytes, to: socket.socket
    ) -> None:
        answer = _Answer(to, translate, stream=_STREAM in body)
        with self._slots:
            if _is_closed(to):
                raise ConnectionAbortedError
            try:
                handle(_ASKED + body[1:].decode(), answer.take)
            except _CPP_EXCEPTIONS as exc:
                answer.take(json.dumps({"error": {"code": 500, "message": str(exc)}}))
        answer.end()

    def _ask_listener(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        listener = _UnixConnection(self._socket_path)
        try:
            listener.request(method, target, body or None, {"Content-Type": "application/json"})
            response = listener.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            return 500, json.dumps({"error": {"code": 500, "message": str(exc)}}).encode()
        finally:
            listener.close()


class _Answer:
    """The answer to one request, as far as it was told."""

    def __init__(self, to: socket.socket, translate: Callable[[str], str], *, stream: bool) -> None:
        self._to = to
        self._translate = translate
        self._stream = stream
        self._status: int | None = None

    def take(self, told: str) -> bool:
        """Pass on what was told; `True`, which ends the generation, when nobody reads it."""
        failed = told.startswith('{"error":')
        if self._status is None:
            self._status = int(json.loads(told)["error"].get("code", 500)) if failed else 200
        text = (told if failed else self._translate(told)).encode()
        if self._stream and self._status == 200:
            text = b"data: %b\n\n" % text
        return self._send(text)

    def end(self) -> None:
        """Nothing follows."""
        self._send(b"")

    def _send(self, body: bytes) -> bool:
        try:
            self._to.sendall(write_frame(self._status or 500, body))
        except OSError:
            return True
        return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_LISTENER_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _native(told: str) -> str:
    """What llama-server's own `/completion` would have told."""
    # In a text the quotation marks would be escaped, so this is the member of that name.
    start = told.index(_NATIVE) + len(_NATIVE)
    return told[start : _decode_json(told, start)[1]]


def _is_closed(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
