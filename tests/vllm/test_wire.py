"""What vLLM is asked, and what its whole answers mean."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rocllm.backends.vllm import wire
from rocllm.errors import BadRequest, ConnectionLost, ContextOverflow, OptionsError, ProtocolError
from rocllm.options import SamplingOptions
from rocllm.results import Message, Token, Usage

MESSAGES = [Message("user", "Hi")]


def body(request: Any) -> dict[str, Any]:
    """The JSON that is sent."""
    sent = json.loads(request.body)
    assert isinstance(sent, dict)
    return sent


def test_what_every_stream_asks_for() -> None:
    """Ids and usage; greedy stays greedy, whatever the model's own configuration says."""
    sent = body(wire.completion("a", SamplingOptions(max_tokens=8)))
    assert sent == {
        "prompt": "a",
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": 8,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
    }
    assert body(wire.completion([1, 2], SamplingOptions(max_tokens=-1)))["max_tokens"] is None
    chat = body(wire.chat(MESSAGES, SamplingOptions(max_tokens=8)))
    assert chat["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.7, "top_k": 40, "top_p": 0.9}, {"top_k": 40, "top_p": 0.9}),
        ({"min_p": 0.05, "seed": 7}, {"min_p": 0.05, "seed": 7}),
        ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_tokens": [2]}, {"stop_token_ids": [2]}),
        ({"json_schema": {"type": "object"}}, {"structured_outputs": {"json": {"type": "object"}}}),
        ({"json_schema": {}}, {"structured_outputs": {"json_object": True}}),
        ({"grammar": "root ::= [0-9]"}, {"structured_outputs": {"grammar": "root ::= [0-9]"}}),
    ],
)
def test_options_have_vllms_names(options: dict[str, Any], expected: dict[str, Any]) -> None:
    """In both kinds of request."""
    sampling = SamplingOptions(**options)
    for request in (wire.completion("a", sampling), wire.chat(MESSAGES, sampling)):
        assert expected.items() <= body(request).items()


def test_log_probabilities() -> None:
    """Of the chosen token alone."""
    sampling = SamplingOptions(logprobs=True)
    assert body(wire.completion("a", sampling))["logprobs"] == 0
    chat = body(wire.chat(MESSAGES, sampling))
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 0)


def test_what_cannot_be_resumed_is_refused() -> None:
    """As for llama-server."""
    with pytest.raises(OptionsError, match="resume"):
        wire.completion("a", SamplingOptions(grammar="root ::= [0-9]"), resume=True)
    with pytest.raises(OptionsError, match="resume"):
        wire.chat(MESSAGES, SamplingOptions(json_schema={}), resume=True)


def test_prompt_and_answer_that_are_too_long_together() -> None:
    """Asked once more without a bound, and not a third time; other errors stay what they are."""
    request = wire.completion("a", SamplingOptions(max_tokens=8))
    error = ContextOverflow("too long")
    again = request.instead(error)
    assert isinstance(again, wire.VllmRequest)
    assert body(again)["max_tokens"] is None
    assert body(again)["logprobs"] == 0
    assert again.sampling.max_tokens == 8
    assert again.instead(error) is None
    assert request.instead(BadRequest("no")) is None
    assert wire.completion("a", SamplingOptions(max_tokens=-1)).instead(error) is None
    chat = wire.chat(MESSAGES, SamplingOptions(max_tokens=8)).instead(error)
    assert chat is not None
    assert "messages" in body(chat)


def test_an_answer_goes_on_from_ids() -> None:
    """vLLM takes no text and ids together, so the prompt is asked for as ids."""
    chat = wire.chat(MESSAGES, SamplingOptions(max_tokens=8), resume=True)
    call = chat.whole_prompt()
    assert call is not None
    assert (call.target, body(call)["add_generation_prompt"]) == ("/tokenize", True)
    text = wire.completion("a", SamplingOptions(), resume=True).whole_prompt()
    assert text is not None
    assert body(text) == {"prompt": "a", "add_special_tokens": True}
    assert wire.completion([1], SamplingOptions(), resume=True).whole_prompt() is None
    resumed = chat.resumed([1, 2], [3, 4], 6)
    assert resumed.target == "/v1/completions"
    assert (body(resumed)["prompt"], body(resumed)["max_tokens"]) == ([1, 2, 3, 4], 6)
    assert resumed.resume


def test_tokens_and_text() -> None:
    """With the shapes that vLLM has; another is said to be none of its."""
    call = wire.tokenize("a", add_special=True)
    assert call.answer(200, b'{"count":1,"max_model_len":8,"tokens":[5]}') == [5]
    for wrong in (b'{"tokens":["a"]}', b"[]", b"nonsense"):
        with pytest.raises(ProtocolError):
            call.answer(200, wrong)
    assert wire.detokenize([5]).answer(200, b'{"prompt":"a"}') == "a"
    with pytest.raises(ProtocolError):
        wire.detokenize([5]).answer(200, b'{"prompt":5}')
    with pytest.raises(OptionsError, match="token id"):
        wire.detokenize([-1])
    with pytest.raises(ConnectionLost):
        call.answer(500, b'{"error":{"message":"EngineCore encountered an issue."}}')
    with pytest.raises(OptionsError, match="parse_special"):
        wire.check_parse_special(parse_special=False)


def answer(likely: dict[int, float], chosen: int = 5, text: str = " a") -> bytes:
    """A whole answer of `/v1/completions`."""
    logprobs = {
        "tokens": [f"token_id:{chosen}"],
        "token_logprobs": [likely.get(chosen, -1.0)],
        "top_logprobs": [{f"token_id:{number}": value for number, value in likely.items()}],
    }
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": "length"}
    details = {"cached_tokens": 4}
    told = {"prompt_tokens": 6, "completion_tokens": 1, "prompt_tokens_details": details}
    return json.dumps({"choices": [choice], "usage": told}).encode()


def test_the_likeliest_tokens() -> None:
    """Best first, no more than were asked for; the text of the chosen one is known."""
    call = wire.next_token("a", (), 2)
    assert body(call)["logprobs"] == 2
    told = call.answer(200, answer({7: -2.0, 5: -0.5, 9: -3.0}))
    assert told.top == (Token(5, " a", -0.5), Token(7, "", -2.0))
    assert told.usage == Usage(6, 1, 4)
    assert wire.without_text(told) == (7,)
    assert wire.with_texts(told, {7: "b"}).top[1] == Token(7, "b", -2.0)


def test_candidates_add_up_to_one() -> None:
    """The chosen token is none of them, unless it is; one that is not told is no zero."""
    call = wire.next_token([1, 2], (7, 9), 1)
    assert body(call)["logprob_token_ids"] == [7, 9]
    told = call.answer(200, answer({5: -0.1, 9: -800.0, 7: -800.0 + math.log(3)}))
    assert [token.id for token in told.top] == [7, 9]
    chances = [math.exp(token.logprob or 0) for token in told.top]
    assert chances == pytest.approx([0.75, 0.25])
    with pytest.raises(ProtocolError):
        call.answer(200, answer({5: -0.1, 7: -1.0}))


def test_many_candidates() -> None:
    """More than vLLM takes: the whole vocabulary is asked for, and they are picked out."""
    many = range(129)
    call = wire.next_token("a", many, 1)
    assert body(call)["logprobs"] == -1
    assert "logprob_token_ids" not in body(call)
    told = call.answer(200, answer(dict.fromkeys(range(200), -5.0)))
    assert len(told.top) == 129
    assert math.exp(told.top[0].logprob) == pytest.approx(1 / 129)
