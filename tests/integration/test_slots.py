"""Several callers and one model with four slots: each gets its answer, in turn, and may go away."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import rocllm
from rocllm.client import Client
from rocllm.errors import ContextOverflow, OptionsError, StreamClosed

SLOTS = 4
DEADLINE = 120.0
PROMPTS = [f"{start}, {start + 1}, {start + 2}," for start in range(10, 19)]


@pytest.fixture(scope="module")
def model(demo_model: Path) -> Iterator[rocllm.TextModel]:
    """The demo model with four slots."""
    with rocllm.load_model(demo_model, parallel=SLOTS, ctx_size=512, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(model: rocllm.TextModel) -> list[str]:
    """What each prompt gets when nobody else asks."""
    return [model.generate(prompt, max_tokens=8).read().text for prompt in PROMPTS]


def metric(model: rocllm.TextModel, name: str) -> int:
    """A figure of the server's."""
    endpoint = model.info.endpoint
    assert endpoint is not None
    assert endpoint.socket_path is not None
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(endpoint.socket_path)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = re.search(rf"^llamacpp:{name} (\d+)", text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def nothing_runs(model: rocllm.TextModel) -> bool:
    return metric(model, "requests_processing") == metric(model, "requests_deferred") == 0


def test_slots_and_their_context_are_told(model: rocllm.TextModel) -> None:
    """In `info`, and in the error of a prompt that is too long for one slot."""
    assert (model.info.parallel, model.info.ctx_size) == (SLOTS, 512)
    with pytest.raises(ContextOverflow, match="the context of a slot 512"):
        model.generate("word " * 600).read()


def test_more_callers_than_slots(model: rocllm.TextModel, alone: list[str]) -> None:
    """Nine threads without a lock of their own get what each would get alone."""

    def ask(prompt: str) -> str:
        return model.generate(prompt, max_tokens=8).read().text

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(ask, PROMPTS)) == alone


@pytest.fixture
def roomy(demo_model: Path) -> Iterator[rocllm.TextModel]:
    """One in which an answer may be so long that it lasts as long as any test."""
    with rocllm.load_model(demo_model, parallel=SLOTS, ctx_size=8192, threads=1) as loaded:
        yield loaded


def test_who_waits_is_served_in_turn_and_may_go_away(roomy: rocllm.TextModel) -> None:
    """First come, first served; one that is closed while it waits leaves the others their turn."""
    endless = 'root ::= " a" root'  # the model must not end them by itself
    holders = [roomy.generate(f"{n}:", max_tokens=8000, grammar=endless) for n in range(SLOTS)]
    for stream in holders:
        next(stream)
    waiting = [roomy.generate(f"{n},", max_tokens=2) for n in range(6)]
    served: list[int] = []
    closed: list[int] = []

    def read(number: int) -> None:
        try:
            next(waiting[number])
            served.append(number)
        except StreamClosed:
            closed.append(number)

    readers = []
    for number in range(len(waiting)):
        reader = threading.Thread(target=read, args=(number,))
        reader.start()
        readers.append(reader)
        wait_for(lambda: metric(roomy, "requests_deferred") == len(readers))
    for number in (1, 4):
        waiting[number].close()
        readers[number].join(DEADLINE)
    assert (closed, served) == ([1, 4], [])
    holders[2].close()  # the others keep their slots, so all go through this one
    for reader in readers:
        reader.join(DEADLINE)
    assert served == [0, 2, 3, 5]
    for stream in (*holders, *waiting):
        stream.close()
    wait_for(lambda: nothing_runs(roomy))


def test_batch_generate(model: rocllm.TextModel, alone: list[str]) -> None:
    """In order and as they are done, the answers are those of `generate`; failures are results."""
    results = list(model.batch_generate(PROMPTS, max_tokens=8))
    assert [result.text for result in results] == alone
    assert [result.index for result in results] == list(range(len(PROMPTS)))
    assert all(result.usage and result.usage.completion_tokens == 8 for result in results)
    assert all(result.timings and len(result.tokens) == 8 for result in results)
    prompts: list[Any] = [
        PROMPTS[0],
        "word " * 600,
        "",
        model.tokenize(PROMPTS[1]),
        [rocllm.Message("user", "Say hello.")],
    ]
    mixed = sorted(
        model.batch_generate(prompts, max_tokens=8, ordered=False), key=lambda each: each.index
    )
    kinds = [type(result.error) for result in mixed]
    assert kinds == [type(None), ContextOverflow, OptionsError, type(None), type(None)]
    assert [mixed[0].text, mixed[3].text] == alone[:2]
    assert mixed[4].text == model.chat(prompts[4], max_tokens=8).read().text


def test_leaving_a_batch_frees_the_slots(model: rocllm.TextModel) -> None:
    """Of prompts without end; what was done can still be read, and the model goes on."""
    before = threading.active_count()
    batch = model.batch_generate((f"{n}," for n in itertools.count()), max_tokens=6)
    first = [next(batch) for _ in range(3)]
    batch.close()
    assert [result.index for result in first] == [0, 1, 2]
    assert all(result.error is None for result in batch)
    assert threading.active_count() == before
    wait_for(lambda: nothing_runs(model))
    assert model.generate(PROMPTS[0], max_tokens=2).read().text


def test_closing_the_model_ends_a_batch(demo_model: Path) -> None:
    """Its reader is told so, and not once for each prompt that is left."""
    with rocllm.load_model(demo_model, parallel=2, ctx_size=256, threads=1) as model:
        batch = model.batch_generate((f"{n}," for n in itertools.count()), max_tokens=4)
        next(batch)
        model.close()
        with pytest.raises(StreamClosed, match="closed"):
            list(itertools.islice(batch, 100))


def test_asyncio(demo_model: Path) -> None:
    """Nine tasks on two slots, and a batch of an asynchronous iterable."""

    async def main() -> tuple[list[str], list[str]]:
        async def prompts() -> Any:
            for prompt in PROMPTS:
                yield prompt

        async with rocllm.load_model_async(
            demo_model, parallel=2, ctx_size=256, threads=1
        ) as model:
            asked = [model.generate(prompt, max_tokens=4).read() for prompt in PROMPTS]
            at_once = [completion.text for completion in await asyncio.gather(*asked)]
            batch = model.batch_generate(prompts(), max_tokens=4)
            return at_once, [result.text async for result in batch]

    at_once, batch = asyncio.run(main())
    assert at_once == batch
    assert all(batch)


def test_a_client_of_its_own_sees_the_slots(model: rocllm.TextModel) -> None:
    """As many as `info` says, each with the context that it says."""
    assert model.info.endpoint is not None
    with Client(model.info.endpoint) as client:
        assert [slot["n_ctx"] for slot in client.slots()] == [model.info.ctx_size] * SLOTS
