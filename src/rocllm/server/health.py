"""Is the server ready? One `GET /health` over a connection of its own."""

from __future__ import annotations

import socket
from typing import Literal, TypeAlias

from rocllm.endpoint import Endpoint
from rocllm.server._listener import answers_for

Health: TypeAlias = Literal["ready", "loading", "unreachable"]

_REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def check_health(endpoint: Endpoint, timeout: float = 1.0, *, group: int | None = None) -> Health:
    """Ask once; `timeout` in seconds bounds connecting and the answer, each.

    group: on TCP the answer counts only when a process of this group gives it.
    """
    try:
        with connect(endpoint, timeout) as connection:
            connection.sendall(_REQUEST)
            status = connection.recv(64)
            if not status.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                return "loading"
            if endpoint.socket_path is None and group is not None:
                return "ready" if answers_for(connection, group) else "unreachable"
            return "ready"
    except OSError:
        return "unreachable"


def connect(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connection whose operations take at most `timeout` seconds each; raises `OSError`."""
    if endpoint.socket_path is None:
        # A server that listens on every address is reached on the loopback one.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(endpoint.host or "", endpoint.host)
        return socket.create_connection((host, endpoint.port), timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(endpoint.socket_path)
    except BaseException:  # Ctrl-C included
        connection.close()
        raise
    return connection
