"""Whether a server is ready, over both kinds of endpoint."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import Endpoint
from rocllm.server import LaunchCommand, ServerProcess
from rocllm.server.health import check_health

Eventually = Callable[[Callable[[], Any]], Any]
Fake = Callable[..., LaunchCommand]
Started = Callable[..., ServerProcess]


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], Endpoint]]:
    """Makes a server that gives one fixed answer."""
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(server: socket.socket, answer: bytes) -> None:
        with server.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)

    def listen(answer: bytes) -> Endpoint:
        path = str(tmp_path / "fixed.sock")
        server = socket.socket(socket.AF_UNIX)
        servers.append(server)
        server.bind(path)
        server.listen()
        threads.append(threading.Thread(target=serve, args=(server, answer)))
        threads[-1].start()
        return Endpoint.unix(path)

    yield listen
    for thread in threads:
        thread.join(10)
    for server in servers:
        server.close()


def test_nobody_listens(tmp_path: Path, free_port: int) -> None:
    """No socket, a socket that nobody serves, a path too long, a closed port, no such host."""
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(stale))
    for endpoint in (
        Endpoint.unix(tmp_path / "missing.sock"),
        Endpoint.unix(stale),
        Endpoint(socket_path=str(tmp_path / ("x" * 200))),
        Endpoint.tcp("127.0.0.1", free_port),
        Endpoint.tcp("host.invalid", free_port),
    ):
        assert check_health(endpoint, timeout=5.0) == "unreachable"


def test_loading_and_ready_over_a_unix_socket(
    fake: Fake, started: Started, endpoint: Endpoint, eventually: Eventually
) -> None:
    """The life cycle of a start."""
    assert check_health(endpoint) == "unreachable"
    started(fake(load_seconds=0.5))
    eventually(lambda: check_health(endpoint) == "loading")
    eventually(lambda: check_health(endpoint) == "ready")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_over_tcp(
    fake: Fake, started: Started, free_port: int, eventually: Eventually, host: str, wrapped: bool
) -> None:
    """A server on every address is asked on the loopback one; it may be behind a wrapper."""
    argv = (fake().argv[0], "--host", host, "--port", str(free_port))
    if wrapped:
        argv = ("/bin/sh", "-c", '"$@" & wait', "sh", *argv)
    child = started(LaunchCommand(argv, dict(os.environ)))
    endpoint = Endpoint.tcp(host, free_port)
    eventually(lambda: check_health(endpoint, group=child.pid) == "ready")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_stranger_on_the_port(
    shell: Callable[[str], LaunchCommand], started: Started, family: socket.AddressFamily
) -> None:
    """Whoever else answers there is not taken for our server."""
    child = started(shell("exec sleep 1000"))
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        endpoint = Endpoint.tcp(host, server.getsockname()[1])

        def answer() -> None:
            for _ in range(2):
                with server.accept()[0] as connection:
                    connection.recv(1000)
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        stranger = threading.Thread(target=answer)
        stranger.start()
        assert check_health(endpoint) == "ready"
        assert check_health(endpoint, group=child.pid) == "unreachable"
        stranger.join(10)


def test_one_that_accepts_and_is_silent(tmp_path: Path) -> None:
    """The time limit ends the wait."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.sock"))
        server.listen()
        assert check_health(Endpoint.unix(tmp_path / "s.sock"), timeout=0.1) == "unreachable"


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "ready"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "loading"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "loading"),
        (b"", "loading"),
    ],
)
def test_answers(answering: Callable[[bytes], Endpoint], answer: bytes, health: str) -> None:
    """Only a 200 means ready."""
    assert check_health(answering(answer)) == health
