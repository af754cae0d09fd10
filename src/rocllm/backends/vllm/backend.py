"""The `vllm` backend: a vLLM server on the chosen AMD GPUs, or on the CPU."""

from __future__ import annotations

import os

from rocllm.backends.base import LoadRequest
from rocllm.backends.supervised import SupervisedModel
from rocllm.backends.vllm.client import AsyncVllmClient, VllmClient
from rocllm.backends.vllm.decide import require_device
from rocllm.backends.vllm.find import find_vllm
from rocllm.backends.vllm.launcher import VllmLauncher
from rocllm.errors import RocllmError


class VllmBackend:
    """Runs models in safetensors format with vLLM.

    It runs in the Python that `ROCM_VLLM_PYTHON` names, or in this one if it has vLLM.

    >>> with rocllm.load_model("/models/Qwen3-4B", backend="vllm") as model:  # doctest: +SKIP
    ...     print(model.generate("The capital of France is", max_tokens=8).read().text)
    """

    name = "vllm"

    def available(self) -> bool:
        """There is a vLLM that could run here."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """What is missing, in words; for a vLLM that is built for ROCm also a GPU."""
        try:
            require_device(find_vllm(os.environ), os.environ)
        except RocllmError as exc:
            return str(exc)
        return None

    def engine(self) -> str:
        """The vLLM that would run here; raises a `RocllmError` when there is none."""
        return find_vllm(os.environ).name

    def load(self, request: LoadRequest) -> VllmModel:
        """Choose engine, device and settings, start the server, and check what it uses."""
        return VllmModel(request).load(request.cancel)


class VllmModel(SupervisedModel[VllmLauncher]):
    """A model in a vLLM server that is looked after."""

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request, VllmLauncher(request, self._interrupt))

    def connect(self) -> VllmClient:
        """A client for blocking callers."""
        endpoint = self._launcher.endpoint
        return self._known(VllmClient(endpoint, stream_timeout=self._timeout, keeper=self._keeper))

    def connect_async(self) -> AsyncVllmClient:
        """A client for asyncio."""
        endpoint = self._launcher.endpoint
        return self._known(
            AsyncVllmClient(endpoint, stream_timeout=self._timeout, keeper=self._keeper)
        )
