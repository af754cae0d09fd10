"""Connections to a server, for blocking callers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque

from rocllm.client._base import SETTLE, Timeout
from rocllm.client._errors import connection_lost, stream_closed, timed_out, unreachable
from rocllm.client._http import KEEP_ALIVE_REQUESTS, KEEP_ALIVE_SECONDS, Response
from rocllm.client.channel import Channel, Where
from rocllm.errors import ProtocolError, RequestError

_RECEIVE = 64 * 1024


class Pool:
    """The connections of one client: those in use, and those that wait for another request.

    Without a lock: each change is one operation that the interpreter makes atomic, so that the
    garbage collector may close a stream at any place.
    """

    def __init__(self, endpoint: Where, connect_timeout: float | None) -> None:
        self.endpoint = endpoint
        self.closed = False
        self._connect_timeout = connect_timeout
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()

    def take(self, what: str, *, fresh: bool) -> Connection:
        """An idle connection that the server will not close meanwhile, or a new one.

        Raises `RequestTimeout`, `ConnectionLost`, and `StreamClosed` when the pool is closed.
        """
        while self._idle and not fresh:
            with contextlib.suppress(IndexError):  # another thread was faster
                connection = self._idle.pop()
                if connection.usable(time.monotonic()) and not self.closed:
                    return connection
                self.discard(connection)
        self._check_open(what)
        try:
            connection = Connection(_connect(self.endpoint, self._connect_timeout))
        except TimeoutError as exc:
            timeout = ("connect_timeout", self._connect_timeout)
            raise timed_out(what, self.endpoint, timeout) from exc
        except (OSError, ValueError, OverflowError) as exc:
            raise unreachable(what, self.endpoint, exc) from exc
        self._open.add(connection)
        if self.closed:  # meanwhile
            self.discard(connection)
        self._check_open(what)
        return connection

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise stream_closed(what, "the client is closed")

    def keep(self, connection: Connection) -> None:
        """Take back a connection that can carry another request."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self.closed:
            self.close()

    def discard(self, connection: Connection) -> None:
        """Close a connection. Idempotent."""
        self._open.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close every connection; who reads from one gets its end. Idempotent."""
        self.closed = True
        self.interrupt()

    def interrupt(self) -> None:
        """End every connection; the next request gets a new one."""
        while self._idle:
            with contextlib.suppress(IndexError):
                self.discard(self._idle.pop())
        for connection in list(self._open):
            # Its reader wakes up and closes it.
            connection.shut_down()


class Connection:
    """A socket, and what decides whether it may be used again."""

    __slots__ = ("_pid", "idle_since", "requests", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.requests = 0
        self.idle_since = 0.0
        self._pid = os.getpid()

    def usable(self, now: float) -> bool:
        """Of this process, and neither so old nor so used that the server may be closing it."""
        return (
            self._pid == os.getpid()
            and self.requests < KEEP_ALIVE_REQUESTS
            and now - self.idle_since < KEEP_ALIVE_SECONDS
        )

    def shut_down(self) -> None:
        """End the connection and wake up who reads it; not that of the parent after a fork."""
        if self._pid == os.getpid():
            with contextlib.suppress(OSError):  # the server has ended it
                self.socket.shutdown(socket.SHUT_RDWR)

    def set_timeout(self, seconds: float | None) -> None:
        """Bound the silence; kept by the kernel, it costs no `poll` before each `recv`."""
        self.socket.settimeout(None)
        # 0 means for ever, and a timeout shorter than a microsecond would become that.
        microseconds = 0 if seconds is None else max(1, round(seconds * 1e6))
        bound = struct.pack("@ll", *divmod(microseconds, 1_000_000))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bound)

    def close(self) -> None:
        self.shut_down()
        self.socket.close()


class Exchange:
    """One request and its response, on a connection of the pool or on a new one.

    It opens with the first `receive`; any thread may close it. sent: the server may have got it.
    """

    def __init__(self, pool: Pool, what: str, request: bytes, timeout: Timeout) -> None:
        self._pool = pool
        self._what = what
        self._request = request
        self._timeout = timeout
        self._connection: Connection | None = None
        self._closed = False
        self.sent = False

    def receive(self) -> bytes:
        """The next bytes of the response, nothing at the end of the connection."""
        connection = self._connection
        if connection is None:
            return self._first()
        try:
            return connection.socket.recv(_RECEIVE)
        except OSError as exc:
            raise self._broken(exc) from exc

    def settle(self, response: Response) -> None:
        """Read the end of a response that says no more, and keep the connection for another."""
        connection = self._connection
        if connection is None:
            return
        try:
            connection.set_timeout(SETTLE)
            while not response.complete:
                data = connection.socket.recv(_RECEIVE)
                if not data:
                    return
                response.feed(data)
        except (OSError, ProtocolError):
            return  # the answer is whole all the same
        self.release(response)

    def release(self, response: Response) -> None:
        """Keep the connection for another request, if it can carry one."""
        connection = self._connection
        if connection is not None and response.reusable:
            self._connection = None
            self._pool.keep(connection)

    def close(self) -> None:
        """End the connection, unless it was released. Idempotent."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.discard(connection)

    def _first(self) -> bytes:
        connection = self._open(fresh=False)
        data = self._ask(connection)
        if not data and connection.requests > 1:
            # The server closed it while it was idle, or is another one by now. Not a byte of an
            # answer has come, so the request can be sent again; once.
            self._pool.discard(connection)
            connection = self._open(fresh=True)
            data = self._ask(connection)
        return data

    def _open(self, *, fresh: bool) -> Connection:
        self._check_open()
        connection = self._pool.take(self._what, fresh=fresh)
        self._connection = connection
        if self._closed:  # meanwhile
            self.close()
        self._check_open()
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise stream_closed(self._what, "the stream is closed")

    def _ask(self, connection: Connection) -> bytes:
        connection.requests += 1
        self.sent = True
        try:
            connection.set_timeout(self._timeout[1])
            # A server that refuses a long request may answer and close before it has read it all.
            with contextlib.suppress(BrokenPipeError):
                connection.socket.sendall(self._request)
            return connection.socket.recv(_RECEIVE)
        except OSError as exc:
            if connection.requests > 1 and isinstance(exc, ConnectionError):
                return b""
            raise self._broken(exc) from exc

    def _broken(self, exc: OSError) -> RequestError:
        if isinstance(exc, BlockingIOError):  # what SO_RCVTIMEO ends with
            return timed_out(self._what, self._pool.endpoint, self._timeout)
        return connection_lost(self._what, self._pool.endpoint, exc.strerror)


def _connect(endpoint: Where, timeout: float | None) -> socket.socket:
    if isinstance(endpoint, Channel):
        return endpoint.connect()
    if endpoint.socket_path is None:
        connected = socket.create_connection((endpoint.host, endpoint.port), timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout)
        connected.connect(endpoint.socket_path)
    except BaseException:
        connected.close()
        raise
    return connected
