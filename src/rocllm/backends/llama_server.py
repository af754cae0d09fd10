"""The `rocm` backend: a llama-server child on the chosen AMD GPU, or on the CPU."""

from __future__ import annotations

import os

from rocllm.backends.base import LoadRequest
from rocllm.backends.decide import engine_name
from rocllm.backends.launcher import LlamaServerLauncher
from rocllm.backends.supervised import SupervisedModel
from rocllm.client import AsyncClient, Client
from rocllm.errors import OptionsError, RocllmError
from rocllm.server import find_server


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

    def engine(self) -> str:
        """The llama-server that would run here; raises a `RocllmError` when there is none."""
        return engine_name(find_server(None, os.environ))

    def load(self, request: LoadRequest) -> LlamaServerModel:
        """Choose device, engine and plan, start the server, and check what it uses."""
        if request.options.worker is not None:
            raise OptionsError(
                f"worker={request.options.worker} with backend {self.name!r}",
                why="it always starts a llama-server",
                remedy="use backend='inprocess', or leave worker away",
            )
        return LlamaServerModel(request).load(request.cancel)


class LlamaServerModel(SupervisedModel[LlamaServerLauncher]):
    """A model in a llama-server that is looked after, or in what `launcher` starts instead."""

    def __init__(
        self, request: LoadRequest, launcher: type[LlamaServerLauncher] = LlamaServerLauncher
    ) -> None:
        super().__init__(request, launcher(request, self._interrupt))

    def connect(self) -> Client:
        """A client for blocking callers."""
        return self._known(
            Client(
                self._launcher.endpoint,
                stream_timeout=self._timeout,
                keeper=self._keeper,
                slot_save_path=self._launcher.slot_save_path,
            )
        )

    def connect_async(self) -> AsyncClient:
        """A client for asyncio."""
        return self._known(
            AsyncClient(
                self._launcher.endpoint,
                stream_timeout=self._timeout,
                keeper=self._keeper,
                slot_save_path=self._launcher.slot_save_path,
            )
        )
