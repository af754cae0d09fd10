"""What a connection that breaks means: the server's end, which the kernel knows first."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rocllm.backends.launcher import LlamaServer
from rocllm.endpoint import Endpoint
from rocllm.errors import ConnectionLost, ServerCrashed
from rocllm.server import LaunchCommand, Names, ServerProcess

DEADLINE = 20.0


def server_of(process: ServerProcess) -> LlamaServer:
    """A server that gets no time to be seen dead."""
    info: Any = SimpleNamespace(path=Path("model.gguf"))
    endpoint = Endpoint.tcp("127.0.0.1", 1, api_key="")
    return LlamaServer(process, info, endpoint, lambda: None, Names(), crash_notice=0.0)


def test_a_dead_server_whose_thread_gets_no_time() -> None:
    """It is told as a crash, with its diagnosis, however late its thread comes to reap it."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(line: str) -> None:
        reached.set()
        go_on.wait(DEADLINE)

    command = LaunchCommand(("/bin/sh", "-c", "echo here; exec sleep 1000"), dict(os.environ))
    process = ServerProcess(command, on_line=hold)
    process.start()
    with ThreadPoolExecutor(1) as pool:
        try:
            assert reached.wait(DEADLINE)
            server = server_of(process)
            lost = ConnectionLost("the connection broke")
            assert server.explain(lost) is lost
            assert process.pid is not None
            os.kill(process.pid, signal.SIGILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            told = pool.submit(server.explain, lost)
            wait([told], 0.5)  # an answer by now would come before the thread can go on
        finally:
            go_on.set()
            process.stop()
        crash = told.result(DEADLINE)
    assert isinstance(crash, ServerCrashed)
    assert "SIGILL" in str(crash)
