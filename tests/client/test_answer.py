"""A streamed answer, from the bytes of its response to tokens and figures."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client import wire
from tests.client.wire import chat_delta, chat_usage, chunk, event, final, stream, token

from rocllm.client._answer import Answer
from rocllm.client._events import ChatEvents, CompletionEvents
from rocllm.client._ids import Vocabulary
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
from rocllm.results import Timings, Token, Usage

VOCABULARY = Vocabulary([bytes([byte]) for byte in range(256)] + [b" \xf0\x9f", b"\xf0\x9f"])
SPACE_F09F, F09F = 256, 257
LLAMA = [token(0x99, "🦙", 3)]  # three tokens, of which the server tells the last


def read(
    *parts: bytes,
    chat: bool = False,
    vocabulary: Vocabulary | None = VOCABULARY,
    eof: bool = False,
    **options: Any,
) -> tuple[Answer, list[Token]]:
    """What an answer makes of these bytes."""
    sampling = SamplingOptions(**options)
    kind = ChatEvents if chat else CompletionEvents
    reads_ids = sampling.logprobs or bool(sampling.stop_tokens)
    answer = Answer(
        "completion",
        "unix:///s.sock",
        kind("completion", sampling, chat=chat, reads_ids=reads_ids),
        clock=itertools.count().__next__,
    )
    tokens: list[Token] = []
    for part in parts:
        if answer.failure is not None:
            break
        answer.feed(part)
        if answer.needs_vocabulary:
            answer.use_vocabulary(vocabulary)
        tokens += answer.ready
        answer.ready.clear()
    if eof:
        answer.feed_eof()
    return answer, tokens


def failure(*parts: bytes, **how: Any) -> RocllmError:
    """The error that an answer ends with."""
    answer, _ = read(*parts, **how)
    assert not answer.finished
    assert answer.failure is not None
    return answer.failure


def test_tokens_then_figures() -> None:
    """Every event is a token, the last one tells how it ended."""
    answer, tokens = read(
        wire.STREAM_HEAD,
        chunk(event(token(7, " Paris", 1))),
        chunk(event(token(8, ".", 2))),
        chunk(event(final(2, "limit"))) + wire.END,
    )
    assert tokens == [Token(7, " Paris"), Token(8, ".")]
    assert answer.finished
    assert answer.response.reusable
    assert answer.finish_reason == "length"
    assert answer.usage == Usage(5, 2, 2)
    # The clock ticks once each time that it is asked: sent at 0, first token at 1, end at 2.
    assert answer.timings == Timings(2, 3, 0.03, 2, 0.02, time_to_first_token=1, total_seconds=2)


EVENTS = [
    b": ping\n\n",
    b"data: null\n\n",
    {"prompt_progress": {"total": 5}, "tokens": [0], "content": "", "tokens_predicted": 0},
    token(1, "a\u2028b\x85", 1),
    token(0x99, " 🦙", 4),
    b":\n\n",
    token(3, "[DONE]", 5),
    token(4, "data: [DONE]\n\n", 6),
    final(8),
]


@given(st.lists(st.integers(0, 3000), max_size=40), st.booleans())
def test_any_pieces(at: list[int], carriage_returns: bool) -> None:
    """Pings, nulls, progress, odd text and split characters: the same in any pieces."""
    sent = [each if isinstance(each, bytes) else event(each) for each in EVENTS]
    if carriage_returns:
        sent = [each.replace(b"\n", b"\r\n") for each in sent]
    answer, tokens = read(*wire.pieces(stream(*sent), at))
    assert tokens == [
        Token(1, "a\u2028b\x85"),
        Token(SPACE_F09F, ""),
        Token(0xA6, ""),
        Token(0x99, " 🦙"),
        Token(3, "[DONE]"),
        Token(4, "data: [DONE]\n\n"),
        Token(None, ""),  # two tokens that were cut off inside a character
        Token(None, ""),
    ]
    assert answer.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens)


def test_without_vocabulary_ids_are_unknown() -> None:
    """A server that cannot tell its vocabulary leaves holes, never wrong ids."""
    _, tokens = read(stream(*LLAMA, final(3)), vocabulary=None)
    assert tokens == [Token(None, ""), Token(None, ""), Token(0x99, "🦙")]


def test_the_vocabulary_is_asked_for_once_and_only_when_needed() -> None:
    """Plain text needs none."""
    answer, _ = read(stream(token(1, "a", 1), final(1)), vocabulary=None)
    assert not answer.needs_vocabulary
    answer, _ = read(stream(*LLAMA)[:-5])
    answer.feed(chunk(event(token(0x98, "😘", 7))))
    assert not answer.needs_vocabulary
    assert [each.id for each in answer.ready] == [0xF0, 0x9F, 0x98, 0x98]


def test_text_withheld_for_a_stop_string() -> None:
    """Tokens wait for their text."""
    withheld = [
        token(ord("x"), "", 1),
        token(0x99, "", 4),
        token(ord("y"), "x🦙y", 5),
        token(0x99, " 🦙", 8),
        final(8),
    ]
    _, tokens = read(stream(*withheld), stop=["x🦙z"])
    assert [each.id for each in tokens] == [
        ord("x"), F09F, 0xA6, 0x99, ord("y"), SPACE_F09F, 0xA6, 0x99,
    ]  # fmt: skip
    assert "".join(each.text for each in tokens) == "x🦙y 🦙"


def test_text_still_withheld_at_the_end() -> None:
    """The tokens of a stop string are told, with ids where they are known."""
    _, tokens = read(stream(token(1, "a", 1), token(0x99, "", 4), final(4, "word")), stop=["🦙"])
    assert tokens == [Token(1, "a"), Token(None, ""), Token(None, ""), Token(0x99, "")]


def test_text_that_is_never_sent() -> None:
    """What is withheld when `max_tokens` is reached never comes; it is made of the ids."""
    data = stream(
        token(1, "a", 1), token(ord("E"), "", 2), token(ord("N"), "", 3), final(4, "limit")
    )
    _, tokens = read(data, stop=["END"])
    assert tokens == [Token(1, "a"), Token(ord("E"), ""), Token(ord("N"), "EN"), Token(None, "")]
    _, tokens = read(data, stop=["END"], vocabulary=None)
    assert [each.text for each in tokens] == ["a", "", "", ""]


def timed(number: int, text: str, count: int) -> dict[str, Any]:
    """A token's event with the figures so far."""
    return token(number, text, count, timings={**wire.TIMINGS, "predicted_n": count})


def test_a_stop_token_ends_the_answer() -> None:
    """It is counted, its text is not part of the answer, and nothing after it is."""
    answer, tokens = read(
        stream(timed(1, "a", 1), timed(2, "b", 2), timed(3, "c", 3), final(3)), stop_tokens=[2]
    )
    assert tokens == [Token(1, "a"), Token(2, "")]
    assert (answer.finished, answer.cut, answer.finish_reason) == (True, True, "stop")
    assert answer.usage == Usage(5, 2, 2)
    assert answer.timings is not None
    assert answer.timings.predicted_n == 2


def test_a_stop_token_inside_a_character() -> None:
    """An id that had to be recovered ends the answer like any other; half a character is none."""
    answer, tokens = read(stream(timed(0x99, " 🦙", 3), final(3)), stop_tokens=[0xA6])
    assert tokens == [Token(SPACE_F09F, ""), Token(0xA6, " ")]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_text_withheld_before_a_stop_token() -> None:
    """What a stop string held back still comes when a stop token ends the answer."""
    events = [timed(ord("E"), "", 1), timed(ord("N"), "", 2), timed(7, "EN\x07", 3), final(3)]
    _, tokens = read(stream(*events), stop=["END"], stop_tokens=[7])
    assert tokens[-1] == Token(7, "EN")


def test_log_probabilities() -> None:
    """`logprob` is that of the sampled token."""
    told = [{"id": 1, "logprob": -0.25, "top_logprobs": []}]
    _, tokens = read(
        stream(token(1, "a", 1, completion_probabilities=told), final(1)), logprobs=True
    )
    assert tokens == [Token(1, "a", -0.25)]


CHAT = [
    chat_delta({"role": "assistant", "content": None}),
    chat_delta({"reasoning_content": "Hm."}),
    chat_delta({"content": "Hello"}),
    chat_delta({"content": " [DONE]"}),
    chat_delta({}, "stop"),
    chat_usage(5, 4),
]


def test_chat() -> None:
    """Thinking and answer are told apart; ids are unknown; the end token has no event."""
    answer, tokens = read(stream(*CHAT, b"data: [DONE]\n\n"), chat=True)
    assert tokens == [
        Token(None, "Hm.", None, True),
        Token(None, "Hello"),
        Token(None, " [DONE]"),
        Token(None, ""),
    ]
    assert (answer.finished, answer.finish_reason) == (True, "stop")
    assert answer.usage == Usage(5, 4, 2)


def test_chat_without_done() -> None:
    """A server that leaves `[DONE]` out has ended all the same, once it has said how."""
    assert read(stream(*CHAT), chat=True)[0].finished
    assert isinstance(failure(stream(*CHAT[:4]), chat=True), ConnectionLost)


def told(number: int, text: str, count: int, field: str = "content") -> dict[str, Any]:
    """A chat event with id and count."""
    return chat_delta(
        {field: text},
        logprobs={"id": number, "logprob": -0.5},
        timings={**wire.TIMINGS, "predicted_n": count},
    )


def test_chat_with_ids() -> None:
    """Ids inside characters are found, but for a character with which the answer begins.

    The chat parser may have cut a space before that one.
    """
    end = [chat_delta({}, "length"), chat_usage(5, 8), b"data: [DONE]\n\n"]
    events = [told(0x99, "🦙", 3), told(ord("a"), "a", 4), told(0x99, " 🦙", 7), *end]
    _, tokens = read(stream(*events), chat=True, logprobs=True)
    ids = [each.id for each in tokens]
    assert ids == [None, None, 0x99, ord("a"), SPACE_F09F, 0xA6, 0x99, None]
    assert tokens[3].logprob == -0.5


def test_chat_stop_token() -> None:
    """A stop token ends a chat, too."""
    events = [told(1, "a", 1), told(2, "b", 2), told(3, "c", 3)]
    answer, tokens = read(stream(*events), chat=True, stop_tokens=[2])
    assert [each.text for each in tokens] == ["a", ""]
    assert answer.cut
    assert answer.usage == Usage(5, 2, 2)


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (wire.error(500, "Context size has been exceeded.", "server_error"), RequestError),
        (wire.error(503, "Loading model", "unavailable_error"), ServerBusy),
        (wire.error(400, "no", "invalid_request_error"), BadRequest),
        (
            wire.error(400, "long", "exceed_context_size_error", n_prompt_tokens=9, n_ctx=8),
            ContextOverflow,
        ),
        (b'error: {"code":500,"message":"old server"}\n\n', RequestError),
        ({"error": "text"}, RequestError),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_an_error_in_the_middle(sent: Any, kind: type[RequestError], chat: bool) -> None:
    """An error inside a stream ends it, after the tokens that came before."""
    first = chat_delta({"content": "a"}) if chat else token(1, "a", 1)
    answer, tokens = read(stream(first, sent), chat=chat)
    assert type(answer.failure) is kind
    assert [each.text for each in tokens] == ["a"]


@pytest.mark.parametrize("end", [wire.END, b""])
def test_a_stream_without_its_last_event(end: bytes) -> None:
    """The server died, and did not finish: an error, however clean the connection's end."""
    data = stream(token(1, "a", 1), end=end)
    assert isinstance(failure(data, eof=True), ConnectionLost)


@pytest.mark.parametrize("length", range(0, 400, 7))
def test_a_truncated_stream(length: int) -> None:
    """Cut off anywhere before its last event, an answer is not whole."""
    data = stream(token(1, "a", 1), token(2, "b", 2), final(2))
    end = data.index(b"stop_type")
    assert isinstance(failure(data[: min(length, end)], eof=True), ConnectionLost)


@pytest.mark.parametrize(
    "sent",
    [
        b"data: {\n\n",
        b'data: {"a":1} x\n\n',
        b"data: nonsense\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: "\xff"\n\n',
        token(1, "a", 10**9),
        {**token(1, "a", 1), "tokens": ["x"]},
        {**token(1, "a", 1), "content": None},
        {**token(1, "a", 1), "tokens": [1, 2]},
        {**token(1, "a", 1), "tokens_predicted": None},
        {"stop": True},
        {"stop": True, "stop_type": "eos"},
        {**final(1), "timings": {}},
        {**final(1), "timings": None},
        final(10**9),
    ],
)
def test_events_that_no_llama_server_sends(sent: Any) -> None:
    """Each ends as a `ProtocolError`, not as a traceback of ours."""
    assert isinstance(failure(stream(sent)), ProtocolError)


@pytest.mark.parametrize(
    "sent",
    [
        {"choices": [{}]},
        {"choices": [{"delta": {"content": 5}}]},
        {"choices": [{"delta": []}]},
        {"choices": 5},
        {**chat_usage(1, 1), "timings": None},
    ],
)
def test_chat_events_that_no_llama_server_sends(sent: Any) -> None:
    """The same for chat."""
    end = [chat_delta({}, "stop"), b"data: [DONE]\n\n"]
    assert isinstance(failure(stream(sent, *end), chat=True), ProtocolError)


@given(st.recursive(st.none() | st.integers() | st.text() | st.booleans(), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "delta", "content", "tokens", "stop", "timings", "usage",
                         "error", "tokens_predicted", "logprobs", "finish_reason"]),
        inner, max_size=5,
    )
)), st.booleans())  # fmt: skip
def test_any_json_ends_in_tokens_or_an_error(value: Any, chat: bool) -> None:
    """No JSON makes the decoder raise."""
    data = stream(b"data: " + json.dumps(value).encode() + b"\n\n")
    answer, _ = read(data, chat=chat, logprobs=True)
    assert answer.finished or isinstance(answer.failure, RocllmError)


def test_a_refusal_before_the_stream() -> None:
    """A plain error response is the error that it tells."""
    body = wire.error(400, "long", "exceed_context_size_error", n_prompt_tokens=901, n_ctx=512)
    refused = failure(wire.answer(body, "400 Bad Request"))
    assert isinstance(refused, ContextOverflow)
    assert (refused.n_prompt_tokens, refused.n_ctx, refused.status) == (901, 512, 400)


def test_an_answer_that_is_no_stream() -> None:
    """Another server's JSON, or page, is not an empty answer."""
    assert isinstance(failure(wire.answer({"content": "x"})), ProtocolError)
    assert isinstance(failure(b"HTTP/1.0 200 OK\r\n\r\n<html>", eof=True), ProtocolError)
