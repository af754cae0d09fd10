"""The `inprocess` backend: llama.cpp's server code without HTTP."""

from __future__ import annotations

import os
from dataclasses import replace

from rocllm.backends.base import LoadRequest
from rocllm.backends.inprocess.caller import CallerLauncher
from rocllm.backends.inprocess.launcher import WorkerLauncher
from rocllm.backends.llama_server import LlamaServerModel
from rocllm.errors import OptionsError, RocllmError
from rocllm.options import LoadOptions
from rocllm.server import find_server
from rocllm.server.binary import EMBEDDED


class InProcessBackend:
    """Runs GGUF models with the llama.cpp of the `xllamacpp` wheel, without HTTP.

    In a worker process that is looked after like a llama-server, or with `worker=False` in the
    calling process, which a crash of the engine then ends.

    >>> with rocllm.load_model("demo", backend="inprocess") as model:  # doctest: +SKIP
    ...     print(model.generate("The capital of France is", max_tokens=8).read().text)
    """

    name = "inprocess"

    def available(self) -> bool:
        """The wheel is installed, and runs here."""
        return self.why_not() is None

    def why_not(self) -> str | None:
        """What is missing, in words."""
        try:
            find_server(EMBEDDED, os.environ)
        except RocllmError as exc:
            return str(exc)
        return None

    def engine(self) -> str:
        """The llama.cpp of the wheel; raises a `RocllmError` when there is none."""
        return f"llama.cpp without HTTP, xllamacpp {find_server(EMBEDDED, os.environ).version}"

    def load(self, request: LoadRequest) -> LlamaServerModel:
        """Choose device and plan, load the model, and check what it uses."""
        options = request.options
        _check(options)
        request = replace(request, options=replace(options, llama_server=EMBEDDED))
        launcher = CallerLauncher if options.worker is False else WorkerLauncher
        return LlamaServerModel(request, launcher).load(request.cancel)


def _check(options: LoadOptions) -> None:
    """Raise `OptionsError` for what this backend has not."""
    if options.llama_server not in (None, EMBEDDED):
        raise OptionsError(
            f"llama_server={os.fspath(options.llama_server)!r} with backend 'inprocess'",
            why="it runs the llama.cpp of the xllamacpp wheel",
            remedy="leave llama_server away, or use backend='rocm'",
        )
    if options.tcp:
        raise OptionsError(
            f"host={options.host!r}, port={options.port} with backend 'inprocess'",
            why="it does not listen: it is asked over a channel of its own",
            remedy="leave them away, or use backend='rocm'",
        )
