"""What a llama-server is asked and what it answers, apart from streams. No I/O.

Names and meanings of the fields: tools/server/README.md of llama.cpp, checked with b11434.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from rocllm.client._errors import http_error, unexpected
from rocllm.client._events import ChatEvents, CompletionEvents, Events
from rocllm.errors import OptionsError, RocllmError
from rocllm.options import SamplingOptions
from rocllm.results import Message

Health: TypeAlias = Literal["ready", "loading", "unreachable"]

# Tokens of the vocabulary asked for in one request: 1 MB of JSON, 10 ms to decode.
VOCABULARY_BATCH = 16384
# What the last event of a completion tells; without the list it repeats prompt and options.
_FINAL_FIELDS = ("stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Call(Generic[_Answer]):
    """A request with an answer in one piece.

    what: for messages. decode: makes the answer of the parsed JSON, with `KeyError`, `TypeError`
    or `IndexError` for an answer of another shape. queued: it waits for a slot, as a stream does.
    """

    what: str
    method: str
    target: str
    decode: Callable[[Any], _Answer]
    body: bytes | None = None
    queued: bool = False

    def answer(self, status: int, body: bytes) -> _Answer:
        """The answer in `body`; raises the error that it is, or `ProtocolError`."""
        if status != 200:
            raise http_error(self.what, status, body)
        try:
            return self.decode(json.loads(body))
        except (ValueError, KeyError, TypeError, IndexError) as exc:
            raise unexpected(self.what, f"{body[:200]!r}", status) from exc


def health() -> Call[dict[str, Any]]:
    """Whether the server is ready: it refuses as busy while it loads."""
    return Call("health", "GET", "/health", _object)


def props() -> Call[dict[str, Any]]:
    """What the server tells about itself and its model."""
    return Call("props", "GET", "/props", _object)


def slots() -> Call[list[dict[str, Any]]]:
    """What each slot is doing."""
    return Call("slots", "GET", "/slots", lambda answer: [_object(slot) for slot in answer])


def tokenize(text: str, *, add_special: bool, parse_special: bool) -> Call[list[int]]:
    """Text to token ids."""
    body = {"content": text, "add_special": add_special, "parse_special": parse_special}
    return Call(
        "tokenize",
        "POST",
        "/tokenize",
        lambda answer: [_whole(token) for token in answer["tokens"]],
        encode_json(body),
    )


def detokenize(tokens: Sequence[int]) -> Call[str]:
    """Token ids to text."""
    body = {"tokens": checked_ids(tokens)}
    return Call(
        "detokenize",
        "POST",
        "/detokenize",
        lambda answer: _string(answer["content"]),
        encode_json(body),
    )


def apply_template(messages: Sequence[Message]) -> Call[str]:
    """A conversation to the prompt that the model's chat template makes of it."""
    return Call(
        "apply_template",
        "POST",
        "/apply-template",
        lambda answer: _string(answer["prompt"]),
        encode_json({"messages": _messages(messages)}),
    )


def vocabulary_size() -> Call[int]:
    """How many tokens the model knows."""
    return Call(
        "vocabulary",
        "GET",
        "/v1/models",
        lambda answer: _whole(answer["data"][0]["meta"]["n_vocab"]),
    )


def vocabulary_pieces(first: int, size: int) -> Call[list[bytes]]:
    """The bytes of a batch of tokens, from token `first` on, of `size` in all.

    `/tokenize` takes ids in the place of text (`tokenize_mixed`, tools/server/server-common.cpp,
    b11434), and so tells the bytes of any token, without a slot.
    """
    tokens = list(range(first, min(size, first + VOCABULARY_BATCH)))
    return Call(
        "vocabulary",
        "POST",
        "/tokenize",
        lambda answer: [_piece(answer["tokens"], place) for place in range(len(tokens))],
        encode_json({"content": tokens, "with_pieces": True}),
    )


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request whose answer is a stream of tokens.

    what: for messages. prompt: `None` for a chat, which has messages. reads_ids: more than text and
    id of a token is asked for; in chat, ids too. resume: it goes on after a crash of the server.
    """

    what: str
    target: str
    body: bytes
    sampling: SamplingOptions
    reads_ids: bool
    resume: bool
    prompt: str | list[int] | None = None
    messages: tuple[Message, ...] = ()

    @property
    def chat(self) -> bool:
        """The answer comes in the form of a chat."""
        return self.prompt is None

    def new_events(self) -> Events:
        """What reads the events of an answer."""
        kind = ChatEvents if self.chat else CompletionEvents
        return kind(self.what, self.sampling, chat=self.chat, reads_ids=self.reads_ids)

    def instead(self, _error: RocllmError) -> StreamRequest | None:
        """Another request that may do where this one was refused with `error`; `None`: none."""
        return None

    def whole_prompt(self) -> Call[Any] | None:
        """What asks for the prompt, to go on from there; `None`: it is `prompt`."""
        return apply_template(self.messages) if self.chat else None

    def resumed(
        self, prompt: str | list[int], tokens: Sequence[int], max_tokens: int
    ) -> StreamRequest:
        """Go on where a stream broke off: `prompt` and the `tokens` that came are the new prompt.

        The server takes text and ids together (`tokenize_mixed`, tools/server/server-common.cpp,
        b11434), so the text becomes the same tokens as before.
        """
        parts: list[Any] = [prompt] if isinstance(prompt, str) else list(prompt)
        sampling = replace(self.sampling, max_tokens=max_tokens)
        return _completion(prompt, [*parts, *tokens], sampling, resume=True)


def completion(
    prompt: str | Sequence[int], sampling: SamplingOptions, *, resume: bool = False
) -> StreamRequest:
    """Continue a prompt."""
    if resume:
        _check_resumable(sampling)
    checked = prompt if isinstance(prompt, str) else checked_ids(prompt)
    return _completion(checked, checked, sampling, resume=resume)


def _completion(
    prompt: str | list[int], sent: object, sampling: SamplingOptions, *, resume: bool
) -> StreamRequest:
    body: dict[str, Any] = {
        "prompt": sent,
        "n_predict": sampling.max_tokens,
        "response_fields": _FINAL_FIELDS,
        **_sampling(sampling),
    }
    if sampling.logprobs:
        body["n_probs"] = 1
    if sampling.stop_tokens:
        body["timings_per_token"] = True  # the stream ends here, so its figures come from here
    return StreamRequest(
        "completion",
        "/completion",
        encode_json(body),
        sampling,
        reads_ids=sampling.logprobs or bool(sampling.stop_tokens),
        resume=resume,
        prompt=prompt,
    )


def chat(
    messages: Sequence[Message], sampling: SamplingOptions, *, resume: bool = False
) -> StreamRequest:
    """Answer a conversation."""
    if resume:
        _check_resumable(sampling)
    reads_ids = sampling.logprobs or bool(sampling.stop_tokens) or resume
    body: dict[str, Any] = {
        "messages": _messages(messages),
        "max_tokens": sampling.max_tokens,
        "stream_options": {"include_usage": True},
        **_sampling(sampling),
    }
    if reads_ids:
        # `timings_per_token` for `predicted_n`: chat has no other count of the tokens so far.
        body |= {"logprobs": True, "top_logprobs": 1, "timings_per_token": True}
    return StreamRequest(
        "chat",
        "/v1/chat/completions",
        encode_json(body),
        sampling,
        reads_ids=reads_ids,
        resume=resume,
        messages=tuple(messages),
    )


def _check_resumable(sampling: SamplingOptions) -> None:
    if sampling.json_schema is not None or sampling.grammar is not None:
        raise OptionsError(
            "resume=True together with json_schema or grammar",
            why="after a crash the server would begin the grammar anew, amid the answer",
            remedy="leave resume away, and make the call again after a ServerCrashed",
        )


def checked_ids(tokens: Sequence[int]) -> list[int]:
    """`tokens` as a list; raises `OptionsError` for what cannot be token ids."""
    for token in tokens:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise OptionsError(
                f"{token!r} is not a token id",
                why="token ids are whole numbers from 0 on",
                remedy="give one text, or a sequence of token ids",
            )
    return list(tokens)


def encode_json(value: object) -> bytes:
    """Compact JSON in UTF-8.

    Raises `OptionsError` for text that has no UTF-8 form (a lone surrogate), and for values in a
    JSON schema that JSON cannot say.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode()
    except (TypeError, ValueError) as exc:
        raise OptionsError("the request cannot be written as JSON", why=str(exc)) from exc


def _sampling(sampling: SamplingOptions) -> dict[str, Any]:
    optional = {
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "json_schema": None if sampling.json_schema is None else dict(sampling.json_schema),
        "grammar": sampling.grammar,
    }
    return {
        "stream": True,
        "cache_prompt": True,
        "temperature": sampling.temperature,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _piece(answers: Any, place: int) -> bytes:
    piece = answers[place]["piece"]
    return piece.encode() if isinstance(piece, str) else bytes(piece)
