"""The `rocm` backend: a llama-server child on the chosen AMD GPU, or on the CPU."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable

from rocllm.backends.base import LoadedInfo, LoadRequest
from rocllm.backends.launcher import LlamaServer, LlamaServerLauncher
from rocllm.client import AsyncClient, Client, Explain
from rocllm.errors import RocllmError, RocllmWarning
from rocllm.server import State, Supervisor, find_server


class LlamaServerBackend:
    """Runs GGUF models with llama.cpp's server."""

    name = "rocm"

    def available(self) -> bool:
        """A llama-server is there, a binary of its own or the embedded one."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """What is missing, in words."""
        try:
            find_server(None, os.environ)
        except RocllmError as exc:
            return str(exc)
        return None

    def load(self, request: LoadRequest) -> LlamaServerModel:
        """Choose device, engine and plan, start the server, and check what it uses."""
        model = LlamaServerModel(request)
        try:
            model.start(request.cancel)
            for note in (*model.info.warnings, *model.info.recovered):
                warnings.warn(note, RocllmWarning, stacklevel=2)
        except BaseException:  # a warning is an error where the user says so
            model.close()
            raise
        return model


class LlamaServerModel:
    """A model in a llama-server that is looked after."""

    def __init__(self, request: LoadRequest) -> None:
        self._clients: weakref.WeakSet[Client | AsyncClient] = weakref.WeakSet()
        self._timeout = request.options.timeout
        self._launcher = LlamaServerLauncher(request, self._interrupt)
        self._supervisor = Supervisor(
            self._launcher, request.options.restart, on_transition=request.on_transition
        )

    @property
    def info(self) -> LoadedInfo:
        """What was loaded, where and how; of the last server, when there were several."""
        return self._launcher.info

    @property
    def state(self) -> State:
        """Where the server stands."""
        return self._supervisor.state

    def start(self, cancel: threading.Event | None = None) -> None:
        """Have a server running. Raises why there is none."""
        self._supervisor.ensure_ready(cancel)

    def connect(self) -> Client:
        """A client for blocking callers."""
        client = Client(
            self._launcher.endpoint,
            stream_timeout=self._timeout,
            keeper=_Keeper(self._supervisor),
            slot_save_path=self._launcher.slot_save_path,
        )
        self._clients.add(client)
        return client

    def connect_async(self) -> AsyncClient:
        """A client for asyncio."""
        client = AsyncClient(
            self._launcher.endpoint,
            stream_timeout=self._timeout,
            keeper=_Keeper(self._supervisor),
            slot_save_path=self._launcher.slot_save_path,
        )
        self._clients.add(client)
        return client

    def stop(self) -> None:
        """Stop the server and give its memory back; the next request starts another."""
        self._supervisor.stop()

    def close(self) -> None:
        """Stop the server and remove its directory."""
        try:
            self._supervisor.close()
        finally:  # after a second Ctrl-C, too
            self._launcher.remove()

    def _interrupt(self) -> None:
        for client in list(self._clients):
            client.interrupt()


class _Keeper:
    """What a client asks of the supervisor."""

    def __init__(self, supervisor: Supervisor[LlamaServer]) -> None:
        self._supervisor = supervisor

    def ask(self) -> Callable[[], Explain | None]:
        look = self._supervisor.ask()

        def explain() -> Explain | None:
            server = look()
            return None if server is None else server.explain

        return explain

    def wait(self) -> Explain:
        return self._supervisor.ensure_ready().explain
