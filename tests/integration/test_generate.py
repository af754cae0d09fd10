"""Generating with a real server and a real model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rocllm
from rocllm.client import Client
from rocllm.errors import BadRequest, ContextOverflow, OptionsError, StreamClosed

PROMPT = "The capital of France is"
QUESTION = [rocllm.Message("user", "Explain gravity in one sentence.")]
SYMBOLS = "Repeat exactly: 🦙 你好 龘龘 → 🦙 你好 龘龘 Repeat exactly: 🦙 你好 龘龘 →"


def idle_slots(model: rocllm.TextModel) -> int:
    """How many slots the server says are idle."""
    endpoint = model.info.endpoint
    assert endpoint is not None
    with Client(endpoint) as client:
        return sum(not slot["is_processing"] for slot in client.slots())


def test_generate_streams_tokens_with_ids(model: rocllm.TextModel) -> None:
    """Every token has an id, and text, usage and timings agree with the tokens."""
    with model.generate(PROMPT, max_tokens=8) as stream:
        tokens = list(stream)
    assert "Paris" in stream.text
    assert len(tokens) == 8
    assert all(token.id is not None for token in tokens)
    assert stream.text == "".join(token.text for token in tokens)
    assert stream.finish_reason == "length"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == 8
    assert stream.timings is not None
    assert stream.timings.predicted_n == 8
    assert stream.timings.time_to_first_token is not None


def test_chat_answers_to_its_end(model: rocllm.TextModel) -> None:
    """The model ends its answer by itself, and the template's marks are not in it."""
    reply = model.chat(QUESTION).read()
    assert reply.finish_reason == "stop"
    assert "gravity" in reply.text.lower()
    assert "<|im_" not in reply.text


def test_chat_knows_ids_when_asked(model: rocllm.TextModel) -> None:
    """Ids are unknown in chat, never 0, unless log probabilities are asked for."""
    plain = model.chat(QUESTION, max_tokens=6).read()
    asked = model.chat(QUESTION, max_tokens=6, logprobs=True).read()
    assert {token.id for token in plain.tokens} == {None}
    assert all(token.id is not None and token.logprob is not None for token in asked.tokens)
    assert asked.text == plain.text
    assert (
        model.detokenize([token.id for token in asked.tokens if token.id is not None]) == plain.text
    )


def test_greedy_output_is_the_same_every_way(model: rocllm.TextModel, demo_model: Path) -> None:
    """Sync and async, streamed and read, give the same text and the same ids."""
    whole = model.generate(PROMPT, max_tokens=24).read()
    streamed = list(model.generate(PROMPT, max_tokens=24))

    async def asynchronously() -> tuple[rocllm.Completion, list[rocllm.Token]]:
        async with rocllm.load_model_async(demo_model, parallel=3, ctx_size=1024) as other:
            read = await other.generate(PROMPT, max_tokens=24).read()
            return read, [token async for token in other.generate(PROMPT, max_tokens=24)]

    async_whole, async_streamed = asyncio.run(asynchronously())
    assert [token.id for token in streamed] == [token.id for token in whole.tokens]
    assert async_whole.text == whole.text == "".join(token.text for token in streamed)
    assert [t.id for t in async_streamed] == [t.id for t in whole.tokens]
    assert [t.id for t in async_whole.tokens] == [t.id for t in whole.tokens]


def test_ids_detokenize_to_exactly_the_text(model: rocllm.TextModel) -> None:
    """Characters made of several tokens keep all their ids."""
    reply = model.generate(SYMBOLS, max_tokens=40).read()
    assert {"🦙", "你", "龘"} <= set(reply.text)
    ids = [token.id for token in reply.tokens]
    assert None not in ids
    assert model.detokenize([token for token in ids if token is not None]) == reply.text
    assert len(ids) == reply.usage.completion_tokens


def test_token_ids_are_a_prompt_too(model: rocllm.TextModel) -> None:
    """A prompt given as ids is continued like the same prompt given as text."""
    ids = model.tokenize(PROMPT)
    assert model.generate(ids, max_tokens=8).read().text == (
        model.generate(PROMPT, max_tokens=8).read().text
    )


def test_leaving_a_stream_frees_its_slot(model: rocllm.TextModel) -> None:
    """A stream left early stops on the server, and the next request gets an answer."""
    with model.generate("Once upon a time", max_tokens=900) as stream:
        first = next(iter(stream))
    assert first.text
    deadline = time.monotonic() + 10
    while idle_slots(model) < 3:
        assert time.monotonic() < deadline, "the slot is still busy"
        time.sleep(0.02)
    assert "Paris" in model.generate(PROMPT, max_tokens=8).read().text
    with pytest.raises(StreamClosed):
        next(iter(stream))


def test_three_callers_at_once(model: rocllm.TextModel) -> None:
    """Three threads stream at the same time and get what they would get alone."""
    prompts = ["1, 2, 3, 4,", PROMPT, "def add(a, b):\n    return"]
    alone = [model.generate(prompt, max_tokens=32).read().text for prompt in prompts]
    barrier = threading.Barrier(3, timeout=30)

    def generate(prompt: str) -> tuple[str, float, float]:
        barrier.wait()
        stream = model.generate(prompt, max_tokens=32)
        next(iter(stream))
        first = time.monotonic()
        return stream.read().text, first, time.monotonic()

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(generate, prompts))
    assert [text for text, _, _ in answers] == alone
    assert max(first for _, first, _ in answers) < min(last for _, _, last in answers)


def test_stop_strings_and_stop_tokens(model: rocllm.TextModel) -> None:
    """Both end the answer, and neither is part of the text."""
    counting = "1, 2, 3, 4,"
    free = model.generate(counting, max_tokens=30).read()
    stopped = model.generate(counting, max_tokens=30, stop=[" 7"]).read()
    assert stopped.finish_reason == "stop"
    assert " 7" in free.text
    assert stopped.text == free.text.split(" 7")[0]
    token = free.tokens[5]
    assert token.id is not None
    by_id = model.generate(counting, max_tokens=30, stop_tokens=[token.id]).read()
    first = next(n for n, each in enumerate(free.tokens) if each.id == token.id)
    assert by_id.finish_reason == "stop"
    assert by_id.text == "".join(each.text for each in free.tokens[:first])


def test_sampling_options_reach_the_server(model: rocllm.TextModel) -> None:
    """The same seed gives the same text, another seed another, and a schema is obeyed."""
    wild = {"temperature": 1.5, "top_k": 200, "top_p": 0.99, "min_p": 0.0, "repeat_penalty": 1.1}
    sampling = rocllm.SamplingOptions(max_tokens=24, **wild)  # type: ignore[arg-type]
    one, same, other = (
        model.generate(PROMPT, sampling=sampling, seed=seed).read().text for seed in (7, 7, 8)
    )
    assert one == same != other
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = model.chat(QUESTION, json_schema=schema, max_tokens=60).read()
    assert isinstance(json.loads(answer.text)["n"], int)
    assert model.generate(PROMPT, grammar='root ::= " yes" | " no"').read().text in (" yes", " no")


def test_what_cannot_be_meant_is_refused(model: rocllm.TextModel) -> None:
    """Wrong options fail before anything is sent, with the option in the message."""
    with pytest.raises(OptionsError, match="max_tokens=0"):
        model.generate(PROMPT, max_tokens=0)
    with pytest.raises(OptionsError, match="did you mean 'temperature'"):
        model.generate(PROMPT, temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(OptionsError, match="prompt is empty"):
        model.generate("")
    with pytest.raises(OptionsError, match="conversation is empty"):
        model.chat([])
    with pytest.raises(BadRequest, match="grammar"):
        model.generate(PROMPT, grammar="this is not GBNF").read()


def test_a_prompt_longer_than_the_context(model: rocllm.TextModel) -> None:
    """It is refused with both lengths, in generate and chat, and the model goes on working."""
    long = "word " * 2000
    with pytest.raises(ContextOverflow) as caught:
        model.generate(long).read()
    assert caught.value.n_ctx == 1024
    assert caught.value.n_prompt_tokens is not None
    assert caught.value.n_prompt_tokens > 1900
    with pytest.raises(ContextOverflow):
        model.chat([rocllm.Message("user", long)]).read()
    assert model.generate(PROMPT, max_tokens=2).read().text


def test_an_answer_that_fills_the_context_ends(model: rocllm.TextModel) -> None:
    """max_tokens=-1 generates until the context is full, and says so."""
    prompt = "word " * 990
    reply = model.generate(prompt, max_tokens=-1, grammar='root ::= " a" root').read()
    assert reply.finish_reason == "length"
    assert reply.usage.total_tokens >= 1023
