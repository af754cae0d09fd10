"""Many prompts: bounded, in order or not, and nothing left, in both worlds."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from rocllm.errors import RocllmError
from rocllm.results import BatchProgress, Prompt
from rocllm.text import AsyncBatch, Batch

DEADLINE = 20.0


@dataclass(frozen=True)
class Result:
    """What became of a prompt."""

    index: int
    prompt: Prompt
    error: RocllmError | None = None


class Model:
    """Works when it is told to; counts what it is doing. `hold` makes prompts wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.at_work = self.most = 0
        self.held: set[Prompt] = set()
        self.released = threading.Event()
        self.cancelled = threading.Event()

    def __call__(self, index: int, prompt: Prompt) -> Result:
        with self.lock:
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        try:
            if prompt in self.held:
                while not self.released.wait(0.005):
                    if self.cancelled.is_set():
                        raise RocllmError("cancelled")
            if prompt == "fatal":
                raise RocllmError("the server is gone")
            bad = prompt == "bad"
            return Result(index, prompt, RocllmError("a bad prompt") if bad else None)
        finally:
            with self.lock:
                self.at_work -= 1

    def batch(self, prompts: Any, **options: Any) -> Batch[Result]:
        options = {"in_flight": 2, "ordered": True, "cancel": self.cancelled.set, **options}
        return Batch(prompts, self, **options)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_for(lambda: set(threading.enumerate()) <= before)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("in_flight", [1, 3, 8])
def test_each_prompt_once(in_flight: int, ordered: bool) -> None:
    """Every prompt has its result, with its index; no more are under way than may be."""
    model = Model()
    prompts = [f"p{number}" for number in range(100)]
    results = list(model.batch(iter(prompts), in_flight=in_flight, ordered=ordered))
    assert sorted((r.index, r.prompt) for r in results) == list(enumerate(prompts))
    assert not ordered or [r.index for r in results] == list(range(100))
    assert model.most <= in_flight


def test_a_bad_prompt_is_one_result() -> None:
    """The others go on."""
    results = list(Model().batch(["a", "bad", "b"]))
    assert [result.error is None for result in results] == [True, False, True]


def test_results_come_while_a_slow_one_is_waited_for() -> None:
    """Without order the others overtake it; in order they wait, and are not without end."""
    model = Model()
    model.held = {"0"}
    taken: list[int] = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            taken.append(number)
            yield str(number)

    with model.batch(endless(), ordered=False) as batch:
        assert [next(batch).index for _ in range(50)] == list(range(1, 51))
    model = Model()
    model.held = {"0"}
    taken.clear()
    batch = model.batch(endless())
    reader = threading.Thread(target=next, args=(batch,))
    reader.start()
    wait_for(lambda: len(taken) == 8)
    wait_for(lambda: model.at_work == 1)
    assert len(taken) == 8
    model.released.set()
    reader.join(DEADLINE)
    assert next(batch).index == 1
    batch.close()


def test_an_error_of_the_prompts_comes_after_what_is_done() -> None:
    """Nothing that was taken before it is lost."""

    def broken() -> Iterator[str]:
        yield from ("a", "b", "c")
        raise OSError("the disk is gone")

    batch = Model().batch(broken())
    assert [next(batch).prompt for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(OSError, match="disk is gone"):
        next(batch)
    with pytest.raises(StopIteration):
        next(batch)


def test_what_concerns_all_ends_the_batch() -> None:
    """The results that are there come first; no further prompt is taken."""
    taken = []

    def prompts() -> Iterator[str]:
        for prompt in ("a", "fatal", *map(str, range(100))):
            taken.append(prompt)
            yield prompt

    batch = Model().batch(prompts(), in_flight=1)
    found = []
    try:
        for result in batch:
            found.append(result.prompt)  # noqa: PERF401 - those before the error count
    except RocllmError as exc:
        assert exc.what == "the server is gone"  # noqa: PT017
    else:
        pytest.fail("the error did not come")
    assert found[0] == "a"
    assert found == [prompt for prompt in taken if prompt != "fatal"]
    assert len(taken) <= 4


def test_closing_keeps_what_is_done() -> None:
    """What is under way is ended, at once; in order the gap is passed over."""
    model = Model()
    model.held = {"1"}
    batch = model.batch(["0", "1", "2", "3"])
    assert next(batch).index == 0
    wait_for(lambda: batch._window.progress.done + batch._done.qsize() == 3)
    batch.close()
    batch.close()
    assert [result.index for result in batch] == [2, 3]


def test_closing_from_another_thread_ends_the_wait() -> None:
    """Who waits for a result gets the end."""
    model = Model()
    model.held = {"0"}
    batch = model.batch(map(str, itertools.count()), ordered=False, in_flight=1)
    found: list[Result] = []
    reader = threading.Thread(target=lambda: found.extend(batch))
    reader.start()
    wait_for(lambda: model.at_work == 1)
    batch.close()
    reader.join(DEADLINE)
    assert not reader.is_alive()
    assert found == []


def test_a_batch_that_is_dropped_ends() -> None:
    """Nobody has to close it."""
    model = Model()
    model.held = {"1"}
    batch = model.batch(map(str, itertools.count()))
    next(batch)
    del batch
    gc.collect()
    assert model.cancelled.is_set()


def test_one_that_was_not_begun_takes_nothing() -> None:
    """Neither prompt nor thread."""
    prompts = iter(["a"])
    batch = Model().batch(prompts)
    batch.close()
    assert list(batch) == []
    assert next(prompts) == "a"


def test_progress() -> None:
    """With every result, failures counted; the total where it is known."""
    told: list[BatchProgress] = []
    list(Model().batch(["a", "bad", "b"], in_flight=1, on_progress=told.append))
    assert [(each.done, each.failed, each.total) for each in told] == [
        (1, 0, 3),
        (2, 1, 3),
        (3, 1, 3),
    ]
    told.clear()
    list(Model().batch(iter(["a"]), on_progress=told.append))
    assert told == [BatchProgress(1, 0, None)]


def test_an_error_of_the_callback_ends_the_batch() -> None:
    """It is the caller's own, and reaches him."""

    def broken(progress: BatchProgress) -> None:
        raise ZeroDivisionError

    batch = Model().batch(["a", "b"], on_progress=broken)
    with pytest.raises(ZeroDivisionError):
        next(batch)


def test_preparing_sees_the_first_prompts() -> None:
    """Once, before any work; its error ends the batch."""
    seen: list[list[Prompt]] = []
    model = Model()

    def prepare(first: Any) -> None:
        assert model.most == 0
        seen.append(list(first))

    assert len(list(model.batch(map(str, range(50)), prepare=prepare))) == 50
    assert seen == [["0", "1", "2", "3"]]

    def refuse(first: Any) -> None:
        raise RocllmError("no such labels")

    with pytest.raises(RocllmError, match="no such labels"):
        next(Model().batch(["a"], prepare=refuse))


class AsyncModel:
    """The same for asyncio."""

    def __init__(self) -> None:
        self.at_work = self.most = 0
        self.held: set[Prompt] = set()
        self.cancelled: list[Prompt] = []
        self.released = asyncio.Event()

    async def __call__(self, index: int, prompt: Prompt) -> Result:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            await asyncio.sleep(0)
            if prompt in self.held:
                await self.released.wait()
            if prompt == "fatal":
                raise RocllmError("the server is gone")
            return Result(index, prompt, RocllmError("bad") if prompt == "bad" else None)
        except asyncio.CancelledError:
            self.cancelled.append(prompt)
            raise
        finally:
            self.at_work -= 1

    def batch(self, prompts: Any, **options: Any) -> AsyncBatch[Result]:
        return AsyncBatch(prompts, self, **{"in_flight": 2, "ordered": True, **options})


async def slowly(prompts: Any) -> AsyncIterator[Prompt]:
    """An asynchronous iterable."""
    for prompt in prompts:
        await asyncio.sleep(0)
        yield prompt


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kind", [iter, slowly])
def test_async_each_prompt_once(kind: Any, ordered: bool) -> None:
    """Of any iterable."""

    async def main() -> None:
        model = AsyncModel()
        prompts = [f"p{number}" for number in range(60)]
        results = [result async for result in model.batch(kind(prompts), ordered=ordered)]
        assert sorted((r.index, r.prompt) for r in results) == list(enumerate(prompts))
        assert not ordered or [r.index for r in results] == list(range(60))
        assert model.most <= 2
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_async_a_slow_source_keeps_no_result_back() -> None:
    """A result comes although the next prompt does not."""

    async def main() -> None:
        more = asyncio.Event()

        async def source() -> AsyncIterator[Prompt]:
            yield "a"
            await more.wait()
            yield "b"

        batch = AsyncModel().batch(source())
        assert (await asyncio.wait_for(anext(batch), DEADLINE)).prompt == "a"
        more.set()
        assert [result.prompt async for result in batch] == ["b"]

    asyncio.run(main())


def test_async_a_wait_that_is_given_up_loses_nothing() -> None:
    """`wait_for` may be used to look whether there is something."""

    async def main() -> None:
        model = AsyncModel()
        model.held = {"a"}
        batch = model.batch(["a", "b"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(batch), 0.01)
        model.released.set()
        assert [result.prompt async for result in batch] == ["a", "b"]
        assert model.cancelled == []

    asyncio.run(main())


def test_async_closing_keeps_what_is_done() -> None:
    """What is under way is cancelled, and its task has ended."""

    async def main() -> None:
        model = AsyncModel()
        model.held = {"1"}
        async with model.batch("0123") as batch:
            assert (await anext(batch)).index == 0
            await until(lambda: batch._window.progress.done + batch._done.qsize() == 3)
        assert model.cancelled == ["1"]
        assert [result.index async for result in batch] == [2, 3]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_async_a_batch_that_is_dropped_ends() -> None:
    """Nobody has to close it."""

    async def main() -> None:
        model = AsyncModel()
        model.held = {"1"}
        batch = model.batch(map(str, itertools.count()))
        await anext(batch)
        await until(lambda: model.at_work == 1)
        del batch
        gc.collect()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert "1" in model.cancelled

    asyncio.run(main())


@pytest.mark.parametrize("kind", [iter, slowly])
def test_async_errors_that_concern_all(kind: Any) -> None:
    """Of the prompts, and of the server, after what is done."""

    def broken() -> Iterator[Prompt]:
        yield "a"
        raise OSError("the disk is gone")

    async def read(prompts: Any) -> list[Prompt]:
        found = []
        try:
            async for result in AsyncModel().batch(kind(prompts)):
                found.append(result.prompt)  # noqa: PERF401 - those before the error count
        except (OSError, RocllmError) as exc:
            found.append(str(exc))
        return found

    assert asyncio.run(read(broken())) == ["a", "the disk is gone"]
    found = asyncio.run(read(["a", "fatal", *map(str, range(100))]))
    assert found[0] == "a"
    assert found[-1] == "the server is gone"
    assert len(found) < 10
