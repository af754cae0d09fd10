"""A stream of vLLM's, as recorded from 0.32, to tokens, figures and errors."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.wire import chunk, event

from rocllm.backends.vllm import wire
from rocllm.client._answer import Answer
from rocllm.errors import (
    BadRequest,
    ConnectionLost,
    ContextOverflow,
    ProtocolError,
    RequestError,
    RocllmError,
    ServerBusy,
)
from rocllm.options import SamplingOptions
from rocllm.results import Message, Timings, Token, Usage

HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
TOO_LONG = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least "
    "2049 input tokens, which exceeds this limit even without any output tokens. Please reduce the "
    "length of the input prompt. (parameter=input_tokens, value=2049)"
)


def choice(text: str, ids: list[int], reason: str | None = None, **more: Any) -> dict[str, Any]:
    """An event of `/v1/completions`."""
    first = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {"id": "cmpl-1", "choices": [{**first, "token_ids": ids, **more}]}


def delta(text: str, ids: list[int], reason: str | None = None, **more: Any) -> dict[str, Any]:
    """An event of `/v1/chat/completions`."""
    first = {"index": 0, "delta": {"content": text}, "finish_reason": reason, "token_ids": ids}
    return {"id": "chatcmpl-1", "choices": [{**first, **more}]}


def usage(prompt: int, generated: int, **more: Any) -> dict[str, Any]:
    """The event after the last token."""
    told = {"prompt_tokens": prompt, "completion_tokens": generated, **more}
    return {"id": "cmpl-1", "choices": [], "usage": told}


def read(*events: Any, bounded: bool = True, chat: bool = False, **options: Any) -> Answer:
    """What an answer of these events is."""
    sampling = SamplingOptions(**options)
    request: Any = wire.completion("a", sampling)
    if chat:
        request = wire.chat([Message("user", "a")], sampling)
    if not bounded:
        request = request.instead(ContextOverflow("too long"))
    answer = Answer("completion", "x", request.new_events(), clock=itertools.count().__next__)
    answer.start()
    data = [event(one) if isinstance(one, dict) else one for one in events]
    for part in (HEAD, *map(chunk, data), END):
        if answer.failure is None:
            answer.feed(part)
    return answer


def refused(status: int, body: object) -> RocllmError | None:
    """What an answer is that is no stream."""
    data = json.dumps(body).encode()
    answer = Answer(
        "completion", "x", wire.completion("a", SamplingOptions()).new_events(), clock=lambda: 0.0
    )
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n\r\n"
    answer.feed(head.encode() + data)
    return answer.failure


def test_tokens_with_their_ids_and_the_figures() -> None:
    """Each token has its id; usage is the server's, times are measured here."""
    answer = read(
        choice(" Paris", [7042], prompt_token_ids=[504, 3575]),
        choice(".", [30]),
        choice("\n", [198], "length"),
        usage(2, 3, prompt_tokens_details={"cached_tokens": 1}),
        DONE,
        max_tokens=3,
    )
    assert list(answer.ready) == [Token(7042, " Paris"), Token(30, "."), Token(198, "\n")]
    assert (answer.finish_reason, answer.finished, answer.cut) == ("length", True, False)
    assert answer.usage == Usage(2, 3, 1)
    # The clock ticks when it is asked: at the start, after the first token, twice at the end.
    assert answer.timings == Timings(
        cache_n=1,
        prompt_n=1,
        prompt_seconds=1,
        predicted_n=2,
        predicted_seconds=1,
        time_to_first_token=1,
        total_seconds=3,
    )


def test_tokens_that_come_together() -> None:
    """The last of them has the text."""
    answer = read(choice("1, 2", [33, 28, 34]), choice("", [2], "stop"), usage(1, 4), DONE)
    assert list(answer.ready) == [Token(33, ""), Token(28, ""), Token(34, "1, 2"), Token(2, "")]
    assert answer.finish_reason == "stop"


def test_log_probabilities_when_asked_for() -> None:
    """In both forms."""
    told = {"tokens": [" a", "b"], "token_logprobs": [-0.5, -1.5], "top_logprobs": [{}, {}]}
    answer = read(choice(" ab", [1, 2], "stop", logprobs=told), usage(1, 2), DONE, logprobs=True)
    assert [token.logprob for token in answer.ready] == [-0.5, -1.5]
    content = [{"token": "I", "logprob": -2.5, "bytes": [73], "top_logprobs": []}]
    chat = read(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        delta("I", [57], "stop", logprobs={"content": content}),
        usage(3, 1),
        DONE,
        chat=True,
        logprobs=True,
    )
    assert list(chat.ready) == [Token(57, "I", -2.5)]


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_thinking_is_told_apart(key: str) -> None:
    """Where a parser of vLLM's separates it."""
    thought = {"choices": [{"index": 0, "delta": {key: "hm"}, "token_ids": [5]}]}
    answer = read(thought, delta("Yes", [6], "stop"), usage(1, 2), DONE, chat=True)
    assert list(answer.ready) == [Token(5, "hm", None, True), Token(6, "Yes")]
    both = {"choices": [{"index": 0, "delta": {key: "so", "content": "No"}, "token_ids": [7, 8]}]}
    answer = read(both, delta("", [2], "stop"), usage(1, 3), DONE, chat=True)
    said = [(token.text, token.reasoning) for token in answer.ready if token.text]
    assert said == [("so", True), ("No", False)]


def test_an_answer_that_we_end() -> None:
    """After `max_tokens`, with the text of these tokens alone, and figures counted here."""
    two = {"tokens": ["b", "c"], "token_logprobs": [-1.0, -1.0], "top_logprobs": [{}, {}]}
    one = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{}]}
    answer = read(
        choice("a", [1], prompt_token_ids=[7, 8, 9], logprobs=one),
        choice("bc", [2, 3], logprobs=two),
        max_tokens=2,
        bounded=False,
    )
    assert list(answer.ready) == [Token(1, "a"), Token(2, "b")]
    assert (answer.finish_reason, answer.cut) == ("length", True)
    assert answer.usage == Usage(3, 2, 0)


def test_a_stream_that_breaks_off_is_an_error() -> None:
    """Also between two events."""
    answer = read(choice("a", [1]))
    assert isinstance(answer.failure, ConnectionLost)
    assert not answer.finished


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": TOO_LONG, "code": 400}}, ContextOverflow),
        (
            400,
            {
                "error": {
                    "message": "max_tokens=3000 cannot be greater than max_model_len=2048. Please "
                    "request fewer output tokens. (parameter=max_tokens, value=3000)",
                    "type": "BadRequestError",
                }
            },
            ContextOverflow,
        ),
        (
            400,
            {
                "error": {
                    "message": "The decoder prompt (length 3001) is longer than the maximum model "
                    "length of 2048. Make sure that `max_model_len` is no smaller",
                }
            },
            ContextOverflow,
        ),
        (400, {"error": {"message": "temperature must be non-negative, got -1.0"}}, BadRequest),
        (401, {"error": "Unauthorized"}, BadRequest),
        (404, {"error": {"message": "The model `nope` does not exist."}}, ProtocolError),
        (404, {"detail": "Not Found"}, ProtocolError),
        (503, {"error": {"message": "overloaded"}}, ServerBusy),
        (500, {"error": {"message": "something", "code": 500}}, RequestError),
        (
            500,
            {"error": {"message": "EngineCore encountered an issue. See stack trace (above)"}},
            ConnectionLost,
        ),
    ],
)
def test_what_is_refused(status: int, body: object, kind: type[RocllmError]) -> None:
    """Each refusal is the error that a llama-server's would be."""
    error = refused(status, body)
    assert type(error) is kind


def test_the_numbers_of_a_prompt_that_is_too_long() -> None:
    """vLLM stops counting at the limit; then nobody knows the length."""
    stopped = refused(400, {"error": {"message": TOO_LONG}})
    assert isinstance(stopped, ContextOverflow)
    assert (stopped.n_prompt_tokens, stopped.n_ctx) == (None, 2048)
    counted = TOO_LONG.replace("at least 2049", "3001")
    known = refused(400, {"error": {"message": counted}})
    assert isinstance(known, ContextOverflow)
    assert (known.n_prompt_tokens, known.n_ctx) == (3001, 2048)
    assert "3001 tokens" in str(known)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "Invalid grammar", "type": "BadRequestError", "code": 400}, BadRequest),
        ({"message": "EngineCore encountered an issue.", "code": 500}, ConnectionLost),
        ({"message": TOO_LONG, "code": 400}, ContextOverflow),
    ],
)
def test_an_error_inside_a_stream(error: dict[str, Any], kind: type[RocllmError]) -> None:
    """It ends the stream; the death of the engine is a lost connection, which is looked into."""
    answer = read(choice("a", [1]), {"error": error}, DONE)
    assert type(answer.failure) is kind


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "usage", "error", "text", "token_ids", "delta", "logprobs"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(st.lists(_JSON, max_size=4))
def test_any_events_end_in_an_answer_or_an_error_of_ours(events: list[object]) -> None:
    """Whatever a server sends."""
    answer = read(*(event(one) for one in events), DONE)
    assert answer.finished or isinstance(answer.failure, RocllmError)
