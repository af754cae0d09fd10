"""Many prompts through one model, for blocking callers."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

from rocllm.results import BatchProgress, Prompt
from rocllm.text._window import R, Window, count

# Seconds that close() waits for its threads. They end at once, unless one of them waits for a
# server that is being started again; that one ends when the server is there.
_CLOSE_TIMEOUT = 5.0

Job: TypeAlias = tuple[int, Prompt]
# What became of a job: its index, the result, or what went wrong.
_Done: TypeAlias = tuple[int | None, R | None, BaseException | None]
_P = TypeVar("_P", Iterator[Prompt], Iterator[Prompt] | AsyncIterator[Prompt])


class BatchBase(Generic[R, _P]):
    """What both kinds of batch have in common."""

    def __init__(
        self,
        prompts: _P,
        window: Window[R],
        on_progress: Callable[[BatchProgress], None] | None,
    ) -> None:
        # `None` when there are no more.
        self._prompts: _P | None = prompts
        self._window = window
        self._on_progress = on_progress
        self._failure: BaseException | None = None
        self._closed = False

    def _take(self) -> Iterator[Job]:
        """As many prompts as may be taken."""
        while self._window.has_room:
            prompts = self._prompts
            if not isinstance(prompts, Iterator):
                return
            try:
                prompt = next(prompts)
            except StopIteration:
                self._prompts = None
            except Exception as exc:  # noqa: BLE001 - raised after the results that are there
                self._fail(exc)
            else:
                yield self._window.take(), prompt

    def _put(self, index: int, result: R | None, error: BaseException | None) -> None:
        self._window.put(index, result)
        if self._closed:
            return
        if error is not None:
            self._fail(error)
        elif self._on_progress is not None:
            self._on_progress(self._window.progress)

    def _fail(self, error: BaseException) -> None:
        """No prompt is taken any more, and the first error is raised in the end."""
        self._prompts = None
        self._failure = self._failure or error


class Batch(BatchBase[R, Iterator[Prompt]]):
    """The results of many prompts, while the model works on them; an iterator.

    Prompts are taken as they are needed, by the thread that reads the results, and never more than
    four for each request that may be under way. So the iterable of prompts may be endless, and one
    that makes its reader wait keeps results back, too.

    `close`, leaving the `with` statement or dropping the last reference ends what is under way.
    What was done before can still be read. No thread is left.

    What is wrong with one prompt is in its result. Reading raises what concerns all of them, after
    the results that are there: an error of the iterable of prompts, and the end of the server or of
    the model.

    >>> for result in model.batch_generate(prompts):  # doctest: +SKIP
    ...     print(result.index, result.text)
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        work: Callable[[int, Prompt], R],
        *,
        in_flight: int,
        ordered: bool,
        cancel: Callable[[], None],
        prepare: Callable[[Sequence[Prompt]], None] | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
    ) -> None:
        """work: makes a result, in any thread; raises only what concerns all prompts. cancel: ends
        all work, from any thread. prepare: gets the first prompts, before any work.
        """
        super().__init__(iter(prompts), Window(in_flight, ordered, count(prompts)), on_progress)
        self._in_flight = in_flight
        self._work = work
        self._cancel = cancel
        self._prepare = prepare
        # The threads know these and not the batch, so that it can be collected while they run.
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._done: SimpleQueue[_Done[R]] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        try:
            while True:
                self._collect()
                if self._closed:
                    self._window.drop()
                else:
                    self._fill()
                result = self._window.pop()
                if result is not None:
                    return result
                if not self._window.unfinished:
                    break
                self._settle(self._done.get())
        except BaseException:  # Ctrl-C, or an error of a function of the caller's
            self.close()
            raise
        self.close()
        failure, self._failure = self._failure, None
        raise failure or StopIteration

    def close(self) -> None:
        """End what is under way and keep what is done; any thread may do it. Idempotent."""
        if self._closed:
            return
        self._end()
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._done.put((None, None, None))  # a thread that waits for a result looks again

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._end()

    def _end(self) -> None:
        self._closed = True
        self._prompts = None
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        self._cancel()

    def _fill(self) -> None:
        """Take as many prompts as may be taken, and have them worked on."""
        prepare, self._prepare = self._prepare, None
        if prepare is not None:
            first = list(self._take())
            prepare([prompt for _, prompt in first])
            for job in first:
                self._start(job)
        for job in self._take():
            self._start(job)

    def _start(self, job: Job) -> None:
        if len(self._threads) < min(self._in_flight, self._window.unfinished):
            arguments = (self._jobs, self._done, self._work)
            thread = threading.Thread(target=_run, args=arguments, daemon=True)
            self._threads.append(thread)
            thread.start()
            if self._closed:  # meanwhile
                self._jobs.put(None)
        self._jobs.put(job)

    def _collect(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._settle(self._done.get_nowait())

    def _settle(self, done: _Done[R]) -> None:
        index, result, error = done
        if index is not None:
            self._put(index, result, error)


def _run(
    jobs: SimpleQueue[Job | None], done: SimpleQueue[_Done[R]], work: Callable[[int, Prompt], R]
) -> None:
    while (job := jobs.get()) is not None:
        index, prompt = job
        try:
            done.put((index, work(index, prompt), None))
        except BaseException as exc:  # noqa: BLE001 - the reader raises it
            done.put((index, None, exc))
