"""A server that sends exactly what a test writes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from rocllm.endpoint import Endpoint

# No wait in these tests may take longer.
DEADLINE = 20.0

Script = Callable[["Caller"], None]


class Caller:
    """One connection to a `ScriptedServer`, seen from the server."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(DEADLINE)

    def read_request(self) -> bytes:
        """Head and body of the next request; nothing when the client has gone."""
        data = b""
        while b"\r\n\r\n" not in data:
            received = self.connection.recv(65536)
            if not received:
                return b""
            data += received
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(
            (head.lower() + b"\r\n").partition(b"content-length: ")[2].split(b"\r\n")[0] or 0
        )
        while len(body) < length:
            body += self.connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def is_gone(self) -> bool:
        """Wait until the client has closed its end."""
        try:
            while self.connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True


class ScriptedServer:
    """Plays one script for each connection, in a thread; the last one is played again and again."""

    def __init__(self, *scripts: Script, path: Path | None = None) -> None:
        self._scripts = scripts
        self._failures: list[BaseException] = []
        self.requests: list[bytes] = []
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.endpoint = Endpoint.tcp("127.0.0.1", self._listener.getsockname()[1])
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
            self.endpoint = Endpoint.unix(path)
        self._thread = threading.Thread(target=self._run)
        self._players: list[threading.Thread] = []
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._listener.close()
        for player in self._players:
            player.join(DEADLINE)
        assert not any(player.is_alive() for player in self._players)
        assert not self._failures, self._failures

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            player = threading.Thread(target=self._play, args=(connection, script))
            self._players.append(player)
            player.start()

    def _play(self, connection: socket.socket, script: Script) -> None:
        with connection:
            try:
                script(Caller(connection))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has closed its end, as some tests want
            except (OSError, AssertionError) as exc:
                self._failures.append(exc)
