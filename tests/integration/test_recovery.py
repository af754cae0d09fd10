"""Servers that crash, hang and are stopped, and what becomes of the calls to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rocllm
from rocllm.errors import OptionsError, ServerCrashed, StreamClosed
from rocllm.options import RestartPolicy

PROMPT = "The five largest countries of the world are"
QUICK = RestartPolicy(max_restarts=1000, backoff=0.0)


@pytest.fixture(scope="module")
def model(demo_model: Path) -> Iterator[rocllm.TextModel]:
    """A model whose server is started again at once."""
    with rocllm.load_model(demo_model, ctx_size=512, threads=1, restart=QUICK) as model:
        yield model


def kill(model: rocllm.TextModel | rocllm.AsyncTextModel, number: int = signal.SIGKILL) -> int:
    """End the model's server from outside; its process id."""
    pid = model.info.pid
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):  # it is just being replaced
        os.kill(pid, number)
    return pid


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGSEGV, "SIGSEGV"),
        (signal.SIGABRT, "SIGABRT"),
        (signal.SIGTERM, "exit status 0"),
    ],
)
def test_a_crash_while_a_stream_is_read(
    model: rocllm.TextModel, number: signal.Signals, says: str
) -> None:
    """`ServerCrashed` at once, with the text so far; the next call gets another server."""
    stream = model.generate(PROMPT, max_tokens=-1)
    begun = "".join(next(stream).text for _ in range(3))
    pid = kill(model, number)
    with pytest.raises(ServerCrashed, match=says) as caught:
        stream.read()
    assert caught.value.retryable
    assert caught.value.text.startswith(begun)
    assert model.generate(PROMPT, max_tokens=4).read().text
    assert model.info.pid != pid


def test_a_call_right_after_a_crash(model: rocllm.TextModel) -> None:
    """Nothing of it had come, so it is made again, of the next server."""
    expected = model.generate(PROMPT, max_tokens=4).read().text
    for _ in range(3):
        kill(model)
        assert model.generate(PROMPT, max_tokens=4).read().text == expected
        assert model.tokenize("a") == model.tokenize("a")


@pytest.mark.timeout(900)
def test_greedy_answers_go_on_as_if_nothing_had_happened(model: rocllm.TextModel) -> None:
    """Broken off at 50 random places, some more than once: text, ids and counts are the same."""
    expected = model.generate(PROMPT, max_tokens=24).read()
    chance = random.Random(1)
    broken_off = answers = 0
    while broken_off < 50:
        stream = model.generate(PROMPT, max_tokens=24, resume=True)
        for _ in range(chance.randrange(1, 16)):
            next(stream)
        # Some time later, so that it is not always just after a token.
        time.sleep(chance.uniform(0, 0.01))
        kill(model)
        if chance.random() < 0.2:
            for _ in range(3):
                next(stream)
            kill(model)
        answer = stream.read()
        assert answer.text == expected.text, stream.resumed
        assert [token.id for token in answer.tokens] == [token.id for token in expected.tokens]
        assert answer.usage.completion_tokens == expected.usage.completion_tokens
        assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
        assert answer.finish_reason == expected.finish_reason
        # On a machine that is busy the server may be done before it is killed.
        broken_off += answer.resumed
        answers += 1
        assert answers < 300, f"only {broken_off} were broken off"


def broken_off(model: rocllm.TextModel, start: Callable[[], rocllm.TokenStream], times: int) -> str:
    """The text of an answer that was broken off so many times.

    On a machine that is busy a server may be done before it is killed: then it begins anew.
    """
    for _ in range(50):
        stream, kills = start(), 0
        for _token in stream:
            if kills < times and stream.resumed == kills:
                kill(model)
                kills += 1
        if stream.resumed == times:
            return stream.text
    pytest.fail(f"none of 50 answers was broken off {times} times")


def test_a_chat_goes_on(model: rocllm.TextModel) -> None:
    """Through the prompt that the model's template makes."""
    messages = [rocllm.Message("user", "Name three colours.")]
    expected = model.chat(messages, max_tokens=24, resume=True).read()
    text = broken_off(model, lambda: model.chat(messages, max_tokens=24, resume=True), 1)
    assert text == expected.text


def test_a_prompt_of_ids_goes_on(model: rocllm.TextModel) -> None:
    """And more than once in the same answer."""
    ids = model.tokenize(PROMPT)
    expected = model.generate(ids, max_tokens=32).read()
    text = broken_off(model, lambda: model.generate(ids, max_tokens=32, resume=True), 3)
    assert text == expected.text


def test_what_cannot_be_resumed(model: rocllm.TextModel) -> None:
    """A grammar would begin anew in the middle of the answer."""
    for constraint in ({"json_schema": {}}, {"grammar": 'root ::= "a"'}):
        with pytest.raises(OptionsError, match="resume"):
            model.generate(PROMPT, resume=True, **constraint)  # type: ignore[arg-type]


def test_a_server_that_hangs_is_replaced(demo_model: Path) -> None:
    """A stopped process answers nothing: it is killed, and the call that waited says so."""
    with rocllm.load_model(
        demo_model, ctx_size=512, threads=1, restart=QUICK, timeout=3.0
    ) as model:
        stream = model.generate(PROMPT, max_tokens=-1)
        begun = next(stream).text
        kill(model, signal.SIGSTOP)
        with pytest.raises(ServerCrashed, match="hung") as caught:
            stream.read()
        assert caught.value.cause == "hang"
        assert caught.value.text.startswith(begun)
        assert model.generate(PROMPT, max_tokens=2).read().text


def test_stop_and_start_again(model: rocllm.TextModel) -> None:
    """Streams end with `StreamClosed`, memory is given back, the next call starts the server."""
    stream = model.generate(PROMPT, max_tokens=-1)
    next(stream)
    pid = model.info.pid
    model.stop()
    with pytest.raises(StreamClosed, match="stopped"):
        stream.read()
    assert model.state == "stopped"
    assert not Path(f"/proc/{pid}").exists()
    assert model.generate(PROMPT, max_tokens=2).read().text
    assert model.state == "ready"


def test_a_model_that_was_deleted_cannot_come_back(demo_model: Path, tmp_path: Path) -> None:
    """The restart fails with the reason, for every call; `stop` forgets it."""
    path = tmp_path / "model.gguf"
    os.link(demo_model, path) if demo_model.stat().st_dev == tmp_path.stat().st_dev else (
        path.write_bytes(demo_model.read_bytes())
    )
    with rocllm.load_model(path, ctx_size=512, threads=1, restart=QUICK) as model:
        path.rename(tmp_path / "gone.gguf")
        kill(model)
        for _ in range(2):
            with pytest.raises(rocllm.RocllmError) as caught:
                model.generate(PROMPT).read()
            assert "model.gguf" in str(caught.value)
        assert model.state == "failed"
        (tmp_path / "gone.gguf").rename(path)
        model.stop()
        assert model.generate(PROMPT, max_tokens=2).read().text


def test_with_asyncio(demo_model: Path) -> None:
    """The same: a crash, a resumed answer, calls that wait for the next server, a stop."""

    async def run() -> None:
        async with rocllm.load_model_async(
            demo_model, ctx_size=512, threads=1, parallel=2, restart=QUICK
        ) as model:
            expected = await model.generate(PROMPT, max_tokens=8).read()
            whole = await model.generate(PROMPT, max_tokens=32).read()
            for _ in range(50):
                stream = model.generate(PROMPT, max_tokens=32, resume=True)
                await anext(stream)
                kill(model)
                assert (await stream.read()).text == whole.text
                if stream.resumed:  # else it was done before it was killed
                    break
            assert stream.resumed == 1
            broken = model.generate(PROMPT, max_tokens=-1)
            await anext(broken)
            kill(model)
            with pytest.raises(ServerCrashed):
                await broken.read()
            calls = [model.generate(PROMPT, max_tokens=8).read() for _ in range(8)]
            for answer in await asyncio.gather(*calls):
                assert answer.text == expected.text
            stopped = model.generate(PROMPT, max_tokens=-1)
            await anext(stopped)
            await model.stop()
            with pytest.raises(StreamClosed, match="stopped"):
                await stopped.read()

    asyncio.run(run())
