"""Classification on the real server, next to probabilities computed from its whole vocabulary."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.engine import load, tiny

import rocllm
from rocllm import env
from rocllm.errors import ContextOverflow, OptionsError
from rocllm.results import ClassifyResult
from rocllm.testing.gguf_writer import Tensor, Value

# Set aside before a test has a home of its own.
_NATIVE = env.cache_dir(os.environ) / "native" / "bin" / "llama-server"
ENGINES = ["embedded", *([str(_NATIVE)] if _NATIVE.exists() else [])]
REVIEWS = ["I loved it", "A waste of time", "So so, and too long", "Great fun for the whole family"]
PROMPTS = [f"Review: {review}.\nSentiment:" for review in REVIEWS]
SENTIMENTS = [" positive", " negative", " neutral"]


@pytest.fixture(scope="module", params=ENGINES, ids=lambda path: Path(path).name)
def model(request: pytest.FixtureRequest, demo_model: Path) -> Iterator[rocllm.TextModel]:
    """The demo model with four slots, on each engine that is there."""
    with rocllm.load_model(
        demo_model, parallel=4, ctx_size=512, threads=1, llama_server=request.param
    ) as loaded:
        yield loaded


def vocabulary_logprobs(
    model: rocllm.TextModel, prompt: str, then: tuple[int, ...] = (), drawn: int | None = None
) -> dict[int, float]:
    """The server's raw log probability of every token, by another client than ours.

    drawn: the token to draw, where the likeliest is held back; it changes none of them.
    """
    endpoint = model.info.endpoint
    assert endpoint is not None
    assert endpoint.socket_path is not None
    body = {
        "prompt": [prompt, *then],
        "n_predict": 1,
        "temperature": 0,
        "n_probs": model.info.model.vocab_size,
        "logit_bias": [] if drawn is None else [[drawn, 1000]],
        "cache_prompt": False,
        "response_fields": ["completion_probabilities"],
    }
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(endpoint.socket_path)
    try:
        connection.request("POST", "/completion", json.dumps(body))
        (told,) = json.loads(connection.getresponse().read())["completion_probabilities"]
    finally:
        connection.close()
    return {entry["id"]: entry["logprob"] for entry in told["top_logprobs"]}


def test_labels_of_one_token_agree_with_the_vocabulary(model: rocllm.TextModel) -> None:
    """Within 1e-4, four at once; and each took one pass."""
    tokens = [model.tokenize(label) for label in SENTIMENTS]
    assert [len(each) for each in tokens] == [1, 1, 1]
    results = list(model.classify(PROMPTS, labels=SENTIMENTS))
    for prompt, result in zip(PROMPTS, results, strict=True):
        raw = vocabulary_logprobs(model, prompt)
        total = math.fsum(math.exp(raw[token]) for (token,) in tokens)
        right = [math.exp(raw[token]) / total for (token,) in tokens]
        assert list(result.probabilities.values()) == pytest.approx(right, abs=1e-4)
        assert result.label == SENTIMENTS[right.index(max(right))]
        assert result.usage is not None
        assert result.usage.completion_tokens == 1
    assert [result.label for result in results[:2]] == [" positive", " negative"]


def test_labels_of_several_tokens_agree_with_the_vocabulary(model: rocllm.TextModel) -> None:
    """Labels that share their first tokens, and one that is the beginning of another."""
    prompt = "The Statue of Liberty stands in"
    labels = [" New York", " New York City", " New Jersey", " Boston", " Paris"]
    new, york, city, jersey = (model.tokenize(t)[0] for t in (" New", " York", " City", " Jersey"))
    assert [model.tokenize(label)[0] for label in labels] == [
        *[new] * 3,
        model.tokenize(" Boston")[0],
        model.tokenize(" Paris")[0],
    ]
    first = vocabulary_logprobs(model, prompt)
    second = vocabulary_logprobs(model, prompt, (new,))
    third = vocabulary_logprobs(model, prompt, (new, york))
    ways = {token: math.exp(first[token]) for token in {model.tokenize(la)[0] for la in labels}}
    total = math.fsum(ways.values())
    in_new = ways[new] / total
    in_york = in_new / (1 + math.exp(second[jersey] - second[york]))
    going_on = math.exp(third[city])
    (result,) = model.classify([prompt], labels=labels)
    assert result.error is None
    assert result.probabilities == pytest.approx(
        {
            " New York": in_york * (1 - going_on),
            " New York City": in_york * going_on,
            " New Jersey": in_new - in_york,
            " Boston": ways[model.tokenize(" Boston")[0]] / total,
            " Paris": ways[model.tokenize(" Paris")[0]] / total,
        },
        abs=1e-4,
    )
    assert result.label == " New York City"


def test_tokens_that_are_part_of_a_character(model: rocllm.TextModel) -> None:
    """The server holds them back; their probabilities are told all the same."""
    prompt, labels = "The weather is", [" 😀", "国"]
    tokens = [model.tokenize("\n" + label)[1] for label in labels]
    raw = vocabulary_logprobs(model, prompt)
    ways = [math.exp(raw[token]) for token in tokens]
    (result,) = model.classify([prompt], labels=labels)
    assert result.error is None
    right = [way / math.fsum(ways) for way in ways]
    assert list(result.probabilities.values()) == pytest.approx(right, abs=1e-4)
    # And without labels, where it is the likeliest of all.
    (likely,) = model.classify(["A 😀 B 😀 C 😀 D 😀 E"], top_k=3)
    assert likely.error is None
    assert likely.token is not None
    assert likely.token.id == tokens[0]
    assert len(likely.top) == 3


def test_parts_of_characters_where_a_text_gets_a_space_before_it(tmp_path: Path) -> None:
    """Then what is drawn instead is two tokens, and takes the place of no candidate."""

    def with_space(metadata: dict[str, Value], _tensors: list[Tensor]) -> None:
        words = metadata["tokenizer.ggml.tokens"]
        assert isinstance(words, list)
        words[-1] = "\u2581"

    with load(tiny(tmp_path / "tiny.gguf", with_space)) as loaded:
        assert len(loaded.tokenize("\n")) == 2
        labels = ["😀", "国", "ä"]
        raw = vocabulary_logprobs(loaded, "a", drawn=3 + ord("a"))
        ways = [math.exp(raw[3 + label.encode()[0]]) for label in labels]
        (result,) = loaded.classify(["a"], labels=labels)
    assert result.error is None
    right = [way / math.fsum(ways) for way in ways]
    assert list(result.probabilities.values()) == pytest.approx(right, abs=1e-4)


def test_a_candidate_that_would_be_drawn_instead(tmp_path: Path) -> None:
    """Another text is: whichever candidate the server draws first, all get an answer."""

    def with_spaces(metadata: dict[str, Value], _tensors: list[Tensor]) -> None:
        words = metadata["tokenizer.ggml.tokens"]
        assert isinstance(words, list)
        words[-2:] = ["\u2581a", "\u2581"]

    with load(tiny(tmp_path / "tiny.gguf", with_spaces)) as loaded:
        space = loaded.info.model.vocab_size - 1
        assert loaded.tokenize("\n") == [space, 3 + 10]
        raw = vocabulary_logprobs(loaded, "b", drawn=3 + 256)
        results = list(loaded.classify(["b"] * 16, labels=[" 😀", "国"]))
    ways = [math.exp(raw[token]) for token in (space, 3 + 0xE5)]
    right = [way / math.fsum(ways) for way in ways]
    for result in results:
        assert result.error is None
        assert list(result.probabilities.values()) == pytest.approx(right, abs=1e-4)


def test_next_token_and_every_token_agree_with_the_vocabulary(model: rocllm.TextModel) -> None:
    """The likeliest, the first ten, and all of them."""
    prompt = "The capital of France is"
    raw = vocabulary_logprobs(model, prompt)
    (top,) = model.classify([prompt], top_k=10)
    assert [token.id for token in top.top] == sorted(raw, key=lambda t: -raw[t])[:10]
    assert [t.logprob for t in top.top] == pytest.approx(
        [raw[t.id or 0] for t in top.top], abs=1e-4
    )
    assert top.token is not None
    assert top.token.text == " Paris"
    assert top.probability == pytest.approx(math.exp(raw[top.token.id or 0]), abs=1e-4)
    (whole,) = model.classify([prompt], logprobs=True)
    assert whole.logprobs is not None
    assert len(whole.logprobs) == len(raw) == 49152
    assert max(abs(whole.logprobs[token] - raw[token]) for token in raw) < 1e-4


def test_what_prompts_begin_with_is_computed_once(model: rocllm.TextModel) -> None:
    """Every slot has it before the first prompt, also those that never saw it."""
    head = "Classify each review as positive or negative.\n" + "".join(
        f"Review: This is example number {number}.\nSentiment: positive\n" for number in range(8)
    )
    prompts = [f"{head}Review: film {number}\nSentiment:" for number in range(8)]
    results = list(model.classify(prompts, labels=SENTIMENTS))
    shared = len(model.tokenize(head))
    assert shared > 100
    for result in results:
        assert result.usage is not None
        assert result.usage.cached_tokens >= shared - 2
    alone = [next(model.classify([prompt], labels=SENTIMENTS)) for prompt in prompts[:2]]
    for one, result in zip(alone, results, strict=False):
        assert one.probabilities == pytest.approx(result.probabilities, abs=1e-4)


def test_bad_prompts_and_labels(model: rocllm.TextModel) -> None:
    """A prompt over the context is one result; labels are refused when their tokens are known."""
    prompts = [PROMPTS[0], "word " * 600, "", PROMPTS[1]]
    results = list(model.classify(prompts, labels=SENTIMENTS))
    assert [type(result.error) for result in results] == [
        type(None),
        ContextOverflow,
        OptionsError,
        type(None),
    ]
    assert isinstance(results[1].error, ContextOverflow)
    assert results[1].error.n_ctx == model.info.ctx_size == 512
    assert "context of a slot" in results[1].error.what
    with pytest.raises(OptionsError, match="has no token"):
        next(model.classify(prompts, labels=[" yes", ""]))


def test_conversations_and_tokens(model: rocllm.TextModel) -> None:
    """A conversation goes through the template; token ids are taken as they are."""
    question = [rocllm.Message("user", "Is fire hot? Answer yes or no.")]
    prompts: list[Any] = [
        question,
        model.apply_template(question),
        model.tokenize(PROMPTS[0]),
        PROMPTS[0],
    ]
    results = list(model.classify(prompts, labels={"yes": "Yes", "no": "No"}))
    assert results[0].probabilities == pytest.approx(results[1].probabilities, abs=1e-4)
    assert results[2].probabilities == pytest.approx(results[3].probabilities, abs=1e-4)


def test_a_crash_in_the_middle_loses_nothing(demo_model: Path) -> None:
    """The server is killed, started again, and every prompt has its result."""
    prompts = [f"Review: film number {number}.\nSentiment:" for number in range(16)]
    with rocllm.load_model(demo_model, parallel=4, ctx_size=256, threads=1) as model:
        undisturbed = list(model.classify(prompts, labels=SENTIMENTS))
        results: list[ClassifyResult] = []
        for result in model.classify(prompts, labels=SENTIMENTS):
            results.append(result)
            if len(results) == 5:
                assert model.info.pid is not None
                os.kill(model.info.pid, signal.SIGKILL)
    assert [result.error for result in results] == [None] * 16
    for result, right in zip(results, undisturbed, strict=True):
        assert result.probabilities == pytest.approx(right.probabilities, abs=1e-4)


def test_asyncio(demo_model: Path) -> None:
    """The same results, of an asynchronous iterable; closing in the middle leaves no task."""

    async def main() -> tuple[list[ClassifyResult], int]:
        async def prompts() -> Any:
            for prompt in PROMPTS:
                yield prompt

        async with rocllm.load_model_async(
            demo_model, parallel=2, ctx_size=256, threads=1
        ) as model:
            results = [each async for each in model.classify(prompts(), labels=SENTIMENTS)]
            async with model.classify(PROMPTS * 10, labels=SENTIMENTS) as batch:
                await anext(batch)
            return results, len(asyncio.all_tasks())

    results, tasks = asyncio.run(main())
    assert [result.label for result in results[:2]] == [" positive", " negative"]
    assert tasks == 1
