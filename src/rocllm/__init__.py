"""Run GGUF language models on AMD GPUs, by starting and looking after llama-server.

>>> import rocllm
>>> with rocllm.load_model("demo") as model:  # doctest: +SKIP
...     for token in model.generate("The capital of France is", max_tokens=16):
...         print(token.text, end="", flush=True)

What is heavy is imported when it is first used: `import rocllm` by itself does no work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rocllm.backends import LoadedInfo
    from rocllm.catalog import DiscoveredModel, discover_models
    from rocllm.client import AsyncTokenStream, TokenStream
    from rocllm.devices import Device, DeviceSample, VramInfo, discover_devices, monitor, vram_info
    from rocllm.endpoint import Endpoint
    from rocllm.errors import RocllmError, RocllmWarning
    from rocllm.gguf import ModelInfo, read_gguf
    from rocllm.options import LoadOptions, RestartPolicy, SamplingOptions
    from rocllm.results import (
        BatchProgress,
        BatchResult,
        ClassifyResult,
        Completion,
        Message,
        Timings,
        Token,
        Usage,
    )
    from rocllm.server import Transition
    from rocllm.text import (
        AsyncBatch,
        AsyncTextModel,
        Batch,
        TextModel,
        load_model,
        load_model_async,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncBatch",
    "AsyncTextModel",
    "AsyncTokenStream",
    "Batch",
    "BatchProgress",
    "BatchResult",
    "ClassifyResult",
    "Completion",
    "Device",
    "DeviceSample",
    "DiscoveredModel",
    "Endpoint",
    "LoadOptions",
    "LoadedInfo",
    "Message",
    "ModelInfo",
    "RestartPolicy",
    "RocllmError",
    "RocllmWarning",
    "SamplingOptions",
    "TextModel",
    "Timings",
    "Token",
    "TokenStream",
    "Transition",
    "Usage",
    "VramInfo",
    "discover_devices",
    "discover_models",
    "load_model",
    "load_model_async",
    "monitor",
    "read_gguf",
    "vram_info",
]

_HOME = {
    "AsyncBatch": "text",
    "AsyncTextModel": "text",
    "AsyncTokenStream": "client",
    "Batch": "text",
    "BatchProgress": "results",
    "BatchResult": "results",
    "ClassifyResult": "results",
    "Completion": "results",
    "Device": "devices",
    "DeviceSample": "devices",
    "DiscoveredModel": "catalog",
    "Endpoint": "endpoint",
    "LoadOptions": "options",
    "LoadedInfo": "backends",
    "Message": "results",
    "ModelInfo": "gguf",
    "RestartPolicy": "options",
    "RocllmError": "errors",
    "RocllmWarning": "errors",
    "SamplingOptions": "options",
    "TextModel": "text",
    "Timings": "results",
    "Token": "results",
    "TokenStream": "client",
    "Transition": "server",
    "Usage": "results",
    "VramInfo": "devices",
    "discover_devices": "devices",
    "discover_models": "catalog",
    "load_model": "text",
    "load_model_async": "text",
    "monitor": "devices",
    "read_gguf": "gguf",
    "vram_info": "devices",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rocllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"rocllm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
