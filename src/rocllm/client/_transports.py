"""Connections to a server, for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque

from rocllm.client._base import SETTLE, Timeout
from rocllm.client._errors import connection_lost, stream_closed, timed_out, unreachable
from rocllm.client._http import KEEP_ALIVE_REQUESTS, KEEP_ALIVE_SECONDS, Response
from rocllm.client.channel import Channel, Where
from rocllm.errors import ProtocolError, RequestError

_RECEIVE = 64 * 1024
# Bytes that may wait for a slow reader before the server is made to wait; some 10,000 tokens.
_HIGH_WATER = 1024 * 1024


class Pool:
    """The connections of one client: those in use, and those that wait for another request."""

    def __init__(self, endpoint: Where, connect_timeout: float | None) -> None:
        self.endpoint = endpoint
        self.closed = False
        self._connect_timeout = connect_timeout
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()

    async def take(self, what: str, *, fresh: bool) -> Connection:
        """An idle connection that the server will not close meanwhile, or a new one.

        Raises `RequestTimeout`, `ConnectionLost`, and `StreamClosed` when the pool is closed.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            self.discard(connection)
        self._check_open(what)
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await _connect(self.endpoint)
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
        connection.rest()
        self._idle.append(connection)

    def discard(self, connection: Connection) -> None:
        """Close a connection. Idempotent."""
        self._open.discard(connection)
        connection.close()

    def drop(self, connection: Connection) -> None:
        """`discard` from any thread, by the garbage collector."""
        self._open.discard(connection)
        connection.drop()

    def interrupt(self) -> None:
        """End every connection, from any thread; the next request gets a new one."""
        self._idle.clear()
        for connection in list(self._open):
            self.drop(connection)

    async def aclose(self) -> None:
        """Close every connection; who reads from one gets its end. Idempotent."""
        self.closed = True
        self._idle.clear()
        closing, self._open = self._open, set()
        for connection in closing:
            connection.close()
        for connection in closing:
            await connection.closed()


class Connection(asyncio.BufferedProtocol):
    """A transport, what came over it, and what decides whether it may be used again."""

    def __init__(self) -> None:
        self.requests = 0
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_RECEIVE)
        self._view = memoryview(self._buffer)
        self._received = b""
        self._at_eof = False
        self._failure: OSError | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._timeout: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since = 0.0
        self._idle_since = 0.0
        self._gone = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        data = self._view[:nbytes].tobytes()
        self._received = self._received + data if self._received else data
        if len(self._received) > _HIGH_WATER:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._at_eof = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._at_eof = True
        if isinstance(exc, OSError):
            self._failure = exc
        if self._timer is not None:
            self._timer.cancel()
        if not self._gone.done():
            self._gone.set_result(None)
        self._wake()

    def send(self, data: bytes, timeout: float | None) -> None:
        """Send a request; from now on a silence of `timeout` seconds is an error."""
        self.requests += 1
        self._timeout = timeout
        self._transport.write(data)

    async def receive(self) -> bytes:
        """The next bytes, nothing at the end; raises `OSError`, `TimeoutError` among them."""
        if not self._received and not self._at_eof:
            self._waiter = self._loop.create_future()
            self._waiting_since = self._loop.time()
            if self._timer is None and self._timeout is not None:
                self._timer = self._loop.call_later(self._timeout, self._look_at_time)
            try:
                await self._waiter
            finally:
                self._waiter = None
        data, self._received = self._received, b""
        if not data and self._failure is not None:
            raise self._failure
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def usable(self) -> bool:
        """Of this loop, and neither so old nor so used that the server may be closing it."""
        return (
            self._loop is asyncio.get_running_loop()
            and not self._at_eof
            and self.requests < KEEP_ALIVE_REQUESTS
            and self._loop.time() - self._idle_since < KEEP_ALIVE_SECONDS
        )

    def rest(self) -> None:
        """No request is under way."""
        self._idle_since = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """End the connection; whoever waits for bytes gets the end."""
        if not self._loop.is_closed():
            self._transport.abort()

    def drop(self) -> None:
        """`close` from any thread, by the garbage collector."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._transport.abort)

    async def closed(self) -> None:
        """Wait until the socket is closed."""
        if self._loop is asyncio.get_running_loop():
            await self._gone

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look_at_time(self) -> None:
        # One timer for the whole stream: it looks when the last wait began and starts anew.
        assert self._timeout is not None
        waiting = self._waiter is not None
        silent = self._loop.time() - self._waiting_since if waiting else 0.0
        if waiting and silent >= self._timeout:
            self._timer = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_later(self._timeout - silent, self._look_at_time)


class Exchange:
    """One request and its response, on a connection of the pool or on a new one.

    It opens with the first `receive`. sent: the server may have got it.
    """

    def __init__(self, pool: Pool, what: str, request: bytes, timeout: Timeout) -> None:
        self._pool = pool
        self._what = what
        self._request = request
        self._timeout = timeout
        self._connection: Connection | None = None
        self._closed = False
        self.sent = False

    async def receive(self) -> bytes:
        """The next bytes of the response, nothing at the end of the connection."""
        connection = self._connection
        if connection is None:
            return await self._first()
        try:
            return await connection.receive()
        except OSError as exc:
            raise self._broken(exc) from exc

    async def settle(self, response: Response) -> None:
        """Read the end of a response that says no more, and keep the connection for another."""
        connection = self._connection
        if connection is None:
            return
        try:
            async with asyncio.timeout(SETTLE):
                while not response.complete:
                    data = await connection.receive()
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

    def drop(self) -> None:
        """`close` from any thread, by the garbage collector."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.drop(connection)

    async def _first(self) -> bytes:
        connection = await self._open(fresh=False)
        data = await self._ask(connection)
        if not data and connection.requests > 1:
            # The server closed it while it was idle, or is another one by now. Not a byte of an
            # answer has come, so the request can be sent again; once.
            self._pool.discard(connection)
            connection = await self._open(fresh=True)
            data = await self._ask(connection)
        return data

    async def _open(self, *, fresh: bool) -> Connection:
        self._check_open()
        connection = await self._pool.take(self._what, fresh=fresh)
        self._connection = connection
        if self._closed:  # meanwhile
            self.close()
        self._check_open()
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise stream_closed(self._what, "the stream is closed")

    async def _ask(self, connection: Connection) -> bytes:
        self.sent = True
        connection.send(self._request, self._timeout[1])
        try:
            return await connection.receive()
        except OSError as exc:
            if connection.requests > 1 and isinstance(exc, ConnectionError):
                return b""
            raise self._broken(exc) from exc

    def _broken(self, exc: OSError) -> RequestError:
        if isinstance(exc, TimeoutError):
            return timed_out(self._what, self._pool.endpoint, self._timeout)
        return connection_lost(self._what, self._pool.endpoint, exc.strerror)


async def _connect(endpoint: Where) -> Connection:
    loop = asyncio.get_running_loop()
    if isinstance(endpoint, Channel):
        _, connection = await loop.create_unix_connection(Connection, sock=endpoint.connect())
    elif endpoint.socket_path is None:
        where = endpoint.host or "", endpoint.port or 0
        _, connection = await loop.create_connection(Connection, *where)
    else:
        _, connection = await loop.create_unix_connection(Connection, endpoint.socket_path)
    return connection
