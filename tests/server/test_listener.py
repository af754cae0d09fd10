"""Whose socket listens on a TCP port, as the kernel tells it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from rocllm.server._listener import answers_for


@pytest.mark.parametrize(
    ("listens", "called"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
    ],
)
def test_it_is_found(listens: str, called: str) -> None:
    """On one address or on all, over either version of IP; as a socket of its group only."""
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    both = listens == "::"
    with (
        socket.create_server((listens, 0), family=family, dualstack_ipv6=both) as server,
        socket.create_connection((called, server.getsockname()[1])) as connection,
    ):
        assert answers_for(connection, os.getpgid(0))
        assert not answers_for(connection, 2**22 + 1)  # nobody has that number


def test_the_same_port_of_another_address_is_another_socket() -> None:
    """What counts is what the connection reached."""
    code = "import socket, time\nserver = socket.create_server(('127.0.0.2', 0))\n"
    code += "print(server.getsockname()[1], flush=True)\ntime.sleep(1000)"
    argv = [sys.executable, "-c", code]
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(
            subprocess.Popen(argv, stdout=subprocess.PIPE, process_group=0)
        )
        stack.callback(stranger.kill)
        assert stranger.stdout is not None
        port = int(stranger.stdout.readline())
        stack.enter_context(socket.create_server(("127.0.0.1", port)))
        ours = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        theirs = stack.enter_context(socket.create_connection(("127.0.0.2", port)))
        assert answers_for(ours, os.getpgid(0))
        assert not answers_for(theirs, os.getpgid(0))
        assert answers_for(theirs, stranger.pid)
