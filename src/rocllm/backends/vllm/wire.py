"""What a vLLM server is asked and what it answers. No I/O.

Names and meanings of the fields: vllm/entrypoints/openai/*/protocol.py, checked with vLLM 0.32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rocllm.backends.vllm.events import VllmEvents, in_our_words
from rocllm.client._wire import Call, StreamRequest, checked_ids, encode_json
from rocllm.errors import ContextOverflow, OptionsError, RequestError, RocllmError
from rocllm.options import SamplingOptions
from rocllm.results import Message, NextToken, Token, Usage

# Tokens that `logprob_token_ids` may hold (vllm/sampling_params.py, 0.32).
_MOST_CANDIDATES = 128
_TOKEN_ID = "token_id:"  # what stands before an id in the place of a token's text


@dataclass(frozen=True, slots=True)
class VllmCall(Call[Any]):
    """A call whose errors are vLLM's."""

    def answer(self, status: int, body: bytes) -> Any:
        """The answer in `body`; raises the error that it is, or `ProtocolError`."""
        try:
            return super(VllmCall, self).answer(status, body)
        except RequestError as exc:
            error = in_our_words(exc)
            if error is exc:
                raise
            raise error from exc


@dataclass(frozen=True, slots=True)
class VllmRequest(StreamRequest):
    """A request whose answer is a stream of tokens.

    bounded: the server ends the answer after `max_tokens`; otherwise we do.
    """

    bounded: bool = True

    def new_events(self) -> VllmEvents:
        """What reads the events of an answer."""
        return VllmEvents(self.what, self.sampling, chat=self.chat, reads_ids=self.reads_ids)

    def instead(self, error: RocllmError) -> StreamRequest | None:
        """The same without a bound, when prompt and answer together may be too long.

        vLLM refuses then, though the prompt fits, and llama-server ends the answer where the
        context is full. A prompt that does not fit is refused once more.
        """
        if self.bounded and self.sampling.max_tokens > 0 and isinstance(error, ContextOverflow):
            # Reassembled, as a stream may be that of a resumed request.
            make = _chat if self.chat else _completion
            return make(self, bounded=False)
        return None

    def whole_prompt(self) -> Call[Any] | None:
        """What asks for the prompt as token ids; `None`: it is `prompt`."""
        if self.chat:
            return tokenize_chat(self.messages)
        if isinstance(self.prompt, str):
            return tokenize(self.prompt, add_special=True)
        return None

    def resumed(
        self, prompt: str | list[int], tokens: Sequence[int], max_tokens: int
    ) -> StreamRequest:
        """Go on where a stream broke off: `prompt` and the `tokens` that came are the new prompt.

        vLLM takes text or ids, never both.
        """
        assert not isinstance(prompt, str), "whole_prompt() asks for ids"
        sampling = replace(self.sampling, max_tokens=max_tokens)
        return completion([*prompt, *tokens], sampling, resume=True)


def completion(
    prompt: str | Sequence[int], sampling: SamplingOptions, *, resume: bool = False
) -> VllmRequest:
    """Continue a prompt."""
    request = VllmRequest(
        "completion",
        "/v1/completions",
        b"",
        sampling,
        reads_ids=True,
        resume=_checked_resume(resume, sampling),
        prompt=prompt if isinstance(prompt, str) else checked_ids(prompt),
    )
    return _completion(request, bounded=True)


def chat(
    messages: Sequence[Message], sampling: SamplingOptions, *, resume: bool = False
) -> VllmRequest:
    """Answer a conversation."""
    request = VllmRequest(
        "chat",
        "/v1/chat/completions",
        b"",
        sampling,
        reads_ids=True,
        resume=_checked_resume(resume, sampling),
        messages=tuple(messages),
    )
    return _chat(request, bounded=True)


def _completion(request: VllmRequest, *, bounded: bool) -> VllmRequest:
    sampling = request.sampling
    body = {"prompt": request.prompt, **_sampling(sampling, bounded)}
    if sampling.logprobs or not bounded:  # where we end it, the texts of tokens are needed
        body["logprobs"] = 0  # of no token but the one that was chosen
    return replace(request, body=encode_json(body), bounded=bounded)


def _chat(request: VllmRequest, *, bounded: bool) -> VllmRequest:
    sampling = request.sampling
    body = {"messages": _messages(request.messages), **_sampling(sampling, bounded)}
    if sampling.logprobs or not bounded:
        body |= {"logprobs": True, "top_logprobs": 0}
    return replace(request, body=encode_json(body), bounded=bounded)


def _sampling(sampling: SamplingOptions, bounded: bool) -> dict[str, Any]:
    limit = sampling.max_tokens if bounded and sampling.max_tokens > 0 else None
    optional = {
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "stop_token_ids": list(sampling.stop_tokens) or None,
        "structured_outputs": _structure(sampling),
    }
    return {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": limit,
        "temperature": sampling.temperature,
        # Else that of the model's generation_config.json, and greedy would not be greedy.
        "repetition_penalty": sampling.repeat_penalty or 1.0,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _structure(sampling: SamplingOptions) -> dict[str, Any] | None:
    if sampling.grammar is not None:
        return {"grammar": sampling.grammar}
    if sampling.json_schema is None:
        return None
    schema = dict(sampling.json_schema)
    return {"json": schema} if schema else {"json_object": True}


def _checked_resume(resume: bool, sampling: SamplingOptions) -> bool:
    if resume and (sampling.json_schema is not None or sampling.grammar is not None):
        raise OptionsError(
            "resume=True together with json_schema or grammar",
            why="after a crash the server would begin the grammar anew, amid the answer",
            remedy="leave resume away, and make the call again after a ServerCrashed",
        )
    return resume


def tokenize(text: str, *, add_special: bool) -> VllmCall:
    """Text to token ids; `<|im_start|>` and the like are the tokens of that name."""
    body = {"prompt": text, "add_special_tokens": add_special}
    return VllmCall("tokenize", "POST", "/tokenize", _tokens, encode_json(body))


def check_parse_special(parse_special: bool) -> None:
    """Raise `OptionsError` for what vLLM cannot do."""
    if not parse_special:
        raise OptionsError(
            "parse_special=False",
            why="vLLM always takes the names of special tokens for these tokens",
            remedy="leave it away",
        )


def tokenize_chat(messages: Sequence[Message]) -> VllmCall:
    """A conversation to the token ids that the model's chat template makes of it."""
    body = {"messages": _messages(messages), "add_generation_prompt": True}
    return VllmCall("apply_template", "POST", "/tokenize", _tokens, encode_json(body))


def detokenize(tokens: Sequence[int]) -> VllmCall:
    """Token ids to text."""
    body = {"tokens": checked_ids(tokens)}
    return VllmCall("detokenize", "POST", "/detokenize", _text, encode_json(body))


def next_token(prompt: str | Sequence[int], among: Sequence[int], top_k: int) -> VllmCall:
    """The tokens that may follow `prompt`, with their log probabilities.

    vLLM tells them as the model gives them, before any sampler: of the `top_k` likeliest, of those
    in `among`, or of the whole vocabulary where these are many. Those in `among` are scaled here to
    add up to 1. The texts of all but the likeliest are left empty: vLLM tells either ids or texts,
    and texts are not unique.
    """
    body: dict[str, Any] = {
        "prompt": prompt if isinstance(prompt, str) else checked_ids(prompt),
        "max_tokens": 1,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "logprobs": (len(among) if len(among) <= _MOST_CANDIDATES else -1) or top_k,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
    }
    if 0 < len(among) <= _MOST_CANDIDATES:
        body["logprob_token_ids"] = checked_ids(among)
    return VllmCall(
        "next token",
        "POST",
        "/v1/completions",
        lambda answer: _next_token(answer, frozenset(among), top_k),
        encode_json(body),
        queued=True,
    )


def without_text(told: NextToken) -> tuple[int, ...]:
    """The tokens whose text nobody has told."""
    return tuple(token.id for token in told.top if token.id is not None and not token.text)


def with_texts(told: NextToken, texts: Mapping[int, str]) -> NextToken:
    """The same with these texts, by token id."""
    if not texts:
        return told
    top = (replace(token, text=texts.get(token.id or 0, token.text)) for token in told.top)
    return replace(told, top=tuple(top))


def _next_token(answer: Any, among: frozenset[int], top_k: int) -> NextToken:
    choice, told = answer["choices"][0], answer["usage"]
    (likely,) = choice["logprobs"]["top_logprobs"]
    found = {int(name.removeprefix(_TOKEN_ID)): float(value) for name, value in likely.items()}
    if among:
        # A vLLM that does not know `logprob_token_ids` leaves some out, and they must not be zero.
        found = {number: found[number] for number in among}
        most = max(found.values())
        total = most + math.log(math.fsum(math.exp(value - most) for value in found.values()))
        found = {number: value - total for number, value in found.items()}
    best = sorted(found.items(), key=lambda item: -item[1])
    (chosen,) = choice["logprobs"]["tokens"]
    texts = {int(chosen.removeprefix(_TOKEN_ID)): str(choice["text"])}
    top = tuple(Token(number, texts.get(number, ""), value) for number, value in best)
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return NextToken(top if among else top[:top_k], Usage(told["prompt_tokens"], 1, cached))


def _tokens(answer: Any) -> list[int]:
    tokens = answer["tokens"]
    if not all(type(token) is int for token in tokens):
        raise TypeError("not whole numbers")
    return list(tokens)


def _text(answer: Any) -> str:
    text = answer["prompt"]
    if not isinstance(text, str):
        raise TypeError("not a string")
    return text


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
