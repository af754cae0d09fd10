"""Start workers for one model, one after another."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from rocllm.backends.base import LoadRequest
from rocllm.backends.decide import Decision
from rocllm.backends.inprocess.channels import WorkerChannel
from rocllm.backends.launcher import LlamaServerLauncher
from rocllm.backends.recovery import Situation
from rocllm.backends.supervised import ServingChild
from rocllm.endpoint import Endpoint
from rocllm.server import LaunchCommand, RunDir, ServerBinary

_WORKER = "rocllm.server.worker"


class WorkerLauncher(LlamaServerLauncher):
    """Decides how a model is run, as for a llama-server, and starts workers for it."""

    backend = "inprocess"

    def __init__(self, request: LoadRequest, interrupt: Callable[[], None]) -> None:
        super().__init__(request, interrupt)
        self._channel = WorkerChannel()
        self._passed: socket.socket | None = None

    @property
    def endpoint(self) -> WorkerChannel:
        """Where the worker is reached; it is the same for all that follow each other."""
        return self._channel

    def remove(self) -> None:
        """Leave nothing behind, after the last worker has ended."""
        self._channel.use(None)
        super().remove()

    def _situation(self) -> Situation:
        return replace(super()._situation(), vulkan_server=None)

    def _start(
        self, decision: Decision, cancel: threading.Event, on_exit: Callable[[], None]
    ) -> ServingChild:
        ours, passed = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with passed:
            self._passed = passed
            try:
                worker = super()._start(decision, cancel, on_exit)
            except BaseException:
                ours.close()
                raise
        self._channel.use(ours)
        return worker

    def _command(self, decision: Decision, endpoint: Endpoint, run_dir: RunDir) -> LaunchCommand:
        assert self._passed is not None
        command = super()._command(decision, endpoint, run_dir)
        flags = command.argv[len(decision.binary.argv) :]
        passed = self._passed.fileno()
        argv = (sys.executable, "-m", _WORKER, str(passed), *flags)
        return replace(command, argv=argv, pass_fds=(passed,))

    def _engine(self, binary: ServerBinary) -> str:
        return f"llama.cpp in a worker process, xllamacpp {binary.version}"
