"""Request bodies, plain answers, and what the server's errors become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.client.wire import error

from rocllm.client import _wire
from rocllm.client._errors import http_error
from rocllm.errors import (
    BadRequest,
    ContextOverflow,
    OptionsError,
    ProtocolError,
    RequestError,
    ServerBusy,
)
from rocllm.options import SamplingOptions
from rocllm.results import Message


def completion_body(prompt: str | list[int] = "x", **options: Any) -> dict[str, Any]:
    """The parsed body of a completion."""
    body: dict[str, Any] = json.loads(_wire.completion(prompt, SamplingOptions(**options)).body)
    return body


def chat_body(**options: Any) -> dict[str, Any]:
    """The parsed body of a chat."""
    messages = [Message("user", "Hi"), Message("assistant", "Ho")]
    body: dict[str, Any] = json.loads(_wire.chat(messages, SamplingOptions(**options)).body)
    return body


def test_a_plain_completion() -> None:
    """Greedy, streamed, cached; what was not asked for is left to the server."""
    assert completion_body() == {
        "prompt": "x",
        "n_predict": 256,
        "temperature": 0.0,
        "stream": True,
        "cache_prompt": True,
        "response_fields": ["stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"],
    }


def test_every_option_is_passed() -> None:
    """Options have llama-server's names, and 0 is a value."""
    options: dict[str, Any] = {
        "temperature": 0.7,
        "top_k": 0,
        "top_p": 0.9,
        "min_p": 0.0,
        "repeat_penalty": 1.1,
        "seed": 0,
        "stop": ["\n", "END"],
        "json_schema": {},
    }
    completion, chat = completion_body(max_tokens=-1, **options), chat_body(max_tokens=7, **options)
    assert options.items() <= completion.items()
    assert options.items() <= chat.items()
    assert (completion["n_predict"], chat["max_tokens"]) == (-1, 7)
    assert chat["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
    ]
    assert completion_body(grammar='root ::= "a"')["grammar"] == 'root ::= "a"'
    assert completion_body([1, 2])["prompt"] == [1, 2]


def test_ids_and_probabilities_are_asked_for_where_they_cost() -> None:
    """Nothing that slows the server is switched on unasked."""
    assert "n_probs" not in completion_body()
    assert completion_body(logprobs=True)["n_probs"] == 1
    assert completion_body(stop_tokens=[2])["timings_per_token"] is True
    assert not {"logprobs", "timings_per_token"} & chat_body().keys()
    for options in ({"logprobs": True}, {"stop_tokens": [2]}):
        body = chat_body(**options)
        assert (body["logprobs"], body["top_logprobs"], body["timings_per_token"]) == (
            True,
            1,
            True,
        )


@pytest.mark.parametrize("ids", [["a"], [-1], [True], [1.5], [[1]]])
def test_what_cannot_be_token_ids(ids: list[Any]) -> None:
    """A list of something else is refused before it is sent."""
    with pytest.raises(OptionsError, match="is not a token id"):
        _wire.completion(ids, SamplingOptions())
    with pytest.raises(OptionsError):
        _wire.detokenize(ids)


def test_text_without_utf8_form() -> None:
    """A lone surrogate cannot be sent, and that is said before sending."""
    with pytest.raises(OptionsError, match="cannot be written as JSON"):
        _wire.completion("\ud800", SamplingOptions())


@pytest.mark.parametrize(
    ("status", "body", "kind", "why"),
    [
        (400, error(400, "bad grammar", "invalid_request_error"), BadRequest, "bad grammar"),
        (401, error(401, "Invalid API Key", "authentication_error"), BadRequest, "Invalid API Key"),
        (404, error(404, "File Not Found", "not_found_error"), ProtocolError, "File Not Found"),
        (500, error(500, "compute", "server_error"), RequestError, "compute"),
        (501, error(501, "no slots", "not_supported_error"), BadRequest, "no slots"),
        (503, error(503, "Loading model", "unavailable_error"), ServerBusy, "Loading model"),
        (429, {"error": "slow down"}, ServerBusy, "slow down"),
        (502, b"<html>Bad Gateway</html>", RequestError, "<html>Bad Gateway</html>"),
        (413, b"", BadRequest, None),
        (400, [1], BadRequest, "[1]"),
        (400, {"error": {"message": None}}, BadRequest, None),
    ],
)
def test_a_refusal_is_a_typed_error(
    status: int, body: Any, kind: type[RequestError], why: str | None
) -> None:
    """The class tells what to do, `why` what the server said."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    failure = http_error("completion", status, data)
    assert type(failure) is kind
    assert (failure.status, failure.why) == (status, why)
    assert failure.what.startswith("completion: ")


def test_a_prompt_that_is_too_long_carries_its_numbers() -> None:
    """The server's own counts are in the error."""
    body = error(400, "too long", "exceed_context_size_error", n_prompt_tokens=901, n_ctx=512)
    failure = http_error("completion", 400, json.dumps(body).encode())
    assert isinstance(failure, ContextOverflow)
    assert (failure.n_prompt_tokens, failure.n_ctx, failure.status) == (901, 512, 400)
    assert "901 tokens" in str(failure)


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (_wire.tokenize("x", add_special=False, parse_special=True), b'{"tokens":["a"]}'),
        (_wire.tokenize("x", add_special=False, parse_special=True), b'{"tokens":7}'),
        (_wire.detokenize([1]), b'{"content":null}'),
        (_wire.apply_template([]), b"{}"),
        (_wire.props(), b"[]"),
        (_wire.props(), b"{"),
        (_wire.props(), b"\xff"),
        (_wire.slots(), b"[1]"),
        (_wire.vocabulary_size(), b'{"data":[]}'),
        (_wire.vocabulary_pieces(0, 1), b'{"tokens":[{"id":0}]}'),
        (_wire.vocabulary_pieces(0, 1), b'{"tokens":[{"id":0,"piece":[300]}]}'),
    ],
)
def test_an_answer_of_another_shape(call: _wire.Call[Any], body: bytes) -> None:
    """What no llama-server says is a `ProtocolError` that shows it."""
    with pytest.raises(ProtocolError, match="not what a llama-server says"):
        call.answer(200, body)


def test_the_vocabulary_is_asked_for_in_batches() -> None:
    """Every token once, and pieces that are no text as bytes."""
    size = _wire.VOCABULARY_BATCH + 3
    bodies = [
        json.loads(_wire.vocabulary_pieces(first, size).body or b"")["content"]
        for first in range(0, size, _wire.VOCABULARY_BATCH)
    ]
    assert [token for body in bodies for token in body] == list(range(size))
    answer = b'{"tokens":[{"id":0,"piece":"\xc3\xa9"},{"id":1,"piece":[240,159]}]}'
    assert _wire.vocabulary_pieces(0, 2).answer(200, answer) == ["é".encode(), b"\xf0\x9f"]
