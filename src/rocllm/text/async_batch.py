"""Many prompts through one model, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from types import TracebackType
from typing import Any, Self

from rocllm.results import BatchProgress, Prompt
from rocllm.text._window import R, Window, count
from rocllm.text.batch import BatchBase, Job


class AsyncBatch(BatchBase[R, Iterator[Prompt] | AsyncIterator[Prompt]]):
    """The results of many prompts, for asyncio: `Batch` with `async for`, `async with`, `aclose()`.

    The prompts may be an asynchronous iterable; waiting for one of them keeps no result back.

    >>> async for result in model.batch_generate(prompts):  # doctest: +SKIP
    ...     print(result.index, result.text)
    """

    def __init__(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        work: Callable[[int, Prompt], Awaitable[R]],
        *,
        in_flight: int,
        ordered: bool,
        prepare: Callable[[Sequence[Prompt]], Awaitable[None]] | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
    ) -> None:
        """See `Batch`. To cancel a task ends its work."""
        iterator = aiter(prompts) if isinstance(prompts, AsyncIterable) else iter(prompts)
        super().__init__(iterator, Window(in_flight, ordered, count(prompts)), on_progress)
        self._work = work
        self._prepare = prepare
        self._slots = asyncio.Semaphore(in_flight)
        # The tasks know the queue and not the batch, so that it can be collected while they run.
        self._tasks: dict[asyncio.Task[R], int] = {}
        self._taking: asyncio.Task[Prompt] | None = None
        self._done: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        try:
            while True:
                while not self._done.empty():
                    self._settle(self._done.get_nowait())
                if self._closed:
                    self._window.drop()
                else:
                    await self._fill()
                result = self._window.pop()
                if result is not None:
                    return result
                if not self._window.unfinished and self._taking is None:
                    break
                self._settle(await self._done.get())
        except asyncio.CancelledError:
            raise  # what is under way goes on: perhaps only this wait was too long
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        failure, self._failure = self._failure, None
        raise failure or StopAsyncIteration

    async def aclose(self) -> None:
        """End what is under way and keep what is done. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._prompts = None
        under_way = [*self._tasks, *([self._taking] if self._taking else [])]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        for task in (*self._tasks, *([self._taking] if self._taking else [])):
            loop = task.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

    async def _fill(self) -> None:
        """Take as many prompts as may be taken, and have them worked on."""
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            first = list(self._take())
            await prepare([prompt for _, prompt in first])
            for job in first:
                self._start(job)
        for job in self._take():
            self._start(job)
        prompts = self._prompts
        if isinstance(prompts, AsyncIterator) and self._taking is None and self._window.has_room:
            self._taking = self._task(_next(prompts))

    def _start(self, job: Job) -> None:
        task = self._task(_limited(self._slots, self._work, job))
        self._tasks[task] = job[0]

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._done.put_nowait)
        return task

    def _settle(self, task: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if task is not self._taking:
            self._put(self._tasks.pop(task), None if error else task.result(), error)
            return
        self._taking = None
        if isinstance(error, StopAsyncIteration):
            self._prompts = None
        elif error is not None:
            self._fail(error)
        elif not self._closed:
            self._start((self._window.take(), task.result()))


async def _next(prompts: AsyncIterator[Prompt]) -> Prompt:
    return await anext(prompts)


async def _limited(
    slots: asyncio.Semaphore, work: Callable[[int, Prompt], Awaitable[R]], job: Job
) -> R:
    async with slots:
        return await work(*job)
