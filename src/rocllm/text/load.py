"""From a name or a path to a loaded model."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from rocllm import backends
from rocllm.backends import LoadedModel, LoadRequest
from rocllm.catalog import resolve_companions, resolve_model
from rocllm.options import LoadArguments, LoadOptions, build_options
from rocllm.server import LoadProgress, Transition
from rocllm.text.model import AsyncTextModel, TextModel


def load_model(
    model: str | os.PathLike[str],
    *,
    backend: str | None = None,
    options: LoadOptions | None = None,
    environ: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] = "/",
    cancel: threading.Event | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    on_transition: Callable[[Transition], None] | None = None,
    **fields: Unpack[LoadArguments],
) -> TextModel:
    """Load a model and return it ready for use.

    model: a path to a GGUF file, or a name. backend: its name; `None`: `rocm`. options: how to
    load. fields: its fields one by one, over those of `options`. environ: the environment to read;
    `None`: the process's own. root: where to look for the machine's devices. cancel: set it from
    another thread to give up. on_progress: is called from time to time while loading.
    on_transition: is told whenever the server starts, serves, crashes or ends. Both are called from
    another thread.

    Raises `ModelNotFound`, `InvalidGGUF`, `OptionsError`, `DeviceError`, `ServerError` and what
    else `rocllm.errors` lists; no process is left then.

    >>> with load_model("demo", ctx_size=2048) as model:  # doctest: +SKIP
    ...     print(model.info.engine)
    """
    request = _request(model, options, fields, environ, root, cancel, on_progress, on_transition)
    return TextModel(_load(backend, request))


def load_model_async(
    model: str | os.PathLike[str],
    *,
    backend: str | None = None,
    options: LoadOptions | None = None,
    environ: Mapping[str, str] | None = None,
    root: str | os.PathLike[str] = "/",
    on_progress: Callable[[LoadProgress], None] | None = None,
    on_transition: Callable[[Transition], None] | None = None,
    **fields: Unpack[LoadArguments],
) -> Loading:
    """The same for asyncio: `async with load_model_async(…) as model`, or `await` it.

    Cancelling the task that waits gives up loading.
    """
    cancel = threading.Event()
    request = _request(model, options, fields, environ, root, cancel, on_progress, on_transition)
    return Loading(backend, request, cancel)


class Loading:
    """A model that is going to be loaded: await it, or use it in an `async with` statement."""

    def __init__(self, backend: str | None, request: LoadRequest, cancel: threading.Event) -> None:
        self._backend = backend
        self._request = request
        self._cancel = cancel
        self._model: AsyncTextModel | None = None

    def __await__(self) -> Generator[Any, None, AsyncTextModel]:
        return self._load().__await__()

    async def __aenter__(self) -> AsyncTextModel:
        self._model = await self._load()
        return self._model

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._model is not None:
            await self._model.aclose()

    async def _load(self) -> AsyncTextModel:
        work = asyncio.ensure_future(asyncio.to_thread(_load, self._backend, self._request))
        try:
            loaded = await asyncio.shield(work)
        except asyncio.CancelledError:
            self._cancel.set()
            # The thread gives up within a poll interval; what it may have finished is closed.
            (outcome,) = await asyncio.gather(work, return_exceptions=True)
            if not isinstance(outcome, BaseException):
                await asyncio.to_thread(outcome.close)
            raise
        return AsyncTextModel(loaded)


def _request(
    model: str | os.PathLike[str],
    options: LoadOptions | None,
    fields: LoadArguments,
    environ: Mapping[str, str] | None,
    root: str | os.PathLike[str],
    cancel: threading.Event | None,
    on_progress: Callable[[LoadProgress], None] | None,
    on_transition: Callable[[Transition], None] | None,
) -> LoadRequest:
    environment = dict(os.environ if environ is None else environ)
    path = resolve_model(model, environment)
    return LoadRequest(
        path=path,
        options=resolve_companions(path, build_options(LoadOptions, fields, options), environment),
        environ=environment,
        root=Path(root),
        cancel=cancel,
        on_progress=on_progress,
        on_transition=on_transition,
    )


def _load(backend: str | None, request: LoadRequest) -> LoadedModel:
    chosen = backends.default() if backend is None else backends.get(backend)
    return chosen.load(request)
