"""The events of a stream, as vLLM sends them, to tokens and figures. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rocllm.client._errors import server_error
from rocllm.client._events import Events
from rocllm.errors import ConnectionLost, ContextOverflow, RequestError
from rocllm.options import SamplingOptions
from rocllm.results import Token

# What vLLM says of a prompt that is too long: `TokenizeParams`, vllm/renderers/params.py, and
# `_validate_model_input`, vllm/v1/engine/input_processor.py.
_TOO_LONG = re.compile(r"maximum (?:context|model) length (?:is|of) (?P<n_ctx>\d+)")
_BEYOND = re.compile(r"max_tokens=\d+ cannot be greater than max_model_len=(?P<n_ctx>\d+)")
_LENGTH = re.compile(r"\(length (\d+)\)|(?<!at least )(?<!\d)(\d+) input tokens")
# What it says when its engine, a process of its own, has ended: vllm/v1/engine/exceptions.py.
_ENGINE_DEAD = re.compile(r"EngineCore encountered an issue|EngineDeadError|Engine is not running")


class VllmEvents(Events):
    """The stream of `/v1/completions` or `/v1/chat/completions`.

    vLLM tells the id of every token, but several at once where it generates faster than we read;
    then the last of them has the text. With a stop string it withholds text that may begin one.
    """

    __slots__ = ("_limit", "_wants_logprobs")

    tells_timings = False

    def __init__(
        self, what: str, sampling: SamplingOptions, *, chat: bool, reads_ids: bool
    ) -> None:
        super().__init__(what, sampling, chat=chat, reads_ids=reads_ids)
        self._limit = sampling.max_tokens
        self._wants_logprobs = sampling.logprobs

    def explained(self, error: RequestError) -> RequestError:
        """The error as which an answer is told that is no stream."""
        return in_our_words(error)

    def take(self, event: Any) -> bool:
        """Take an event; it never needs the vocabulary."""
        if type(event) is not dict:
            return True  # the end
        if "error" in event:
            raise self.explained(server_error(self._what, event["error"]))
        if usage := event.get("usage"):
            self.figures = {"usage": dict(usage)}
        for choice in event["choices"]:
            self._note_prompt(event.get("prompt_token_ids") or choice.get("prompt_token_ids"))
            self._take_choice(choice)
        return True

    def take_done(self) -> None:
        """Take the `[DONE]` at the end."""
        self.done = True

    def _note_prompt(self, prompt: list[int] | None) -> None:
        # For an answer that we end ourselves; the server tells the figures at its own end only.
        if prompt:
            self.figures = {"usage": {"prompt_tokens": len(prompt)}}

    def _take_choice(self, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = "length" if reason == "length" else "stop"
        delta = choice.get("delta")
        text = choice["text"] if delta is None else delta.get("content") or ""
        thought = "" if delta is None else _thought(delta)
        reasoning = bool(thought) and not text
        if thought and text:
            # The end of the thinking and the beginning of the answer, whose tokens follow.
            self.assembler.ready.append(Token(None, thought, None, True))
        ids, told = choice.get("token_ids") or (), _told(choice.get("logprobs"))
        room = self._limit - self.assembler.count
        if self._limit > 0 and len(ids) > room:
            # Tokens that came together, some of them after the last that was asked for.
            ids, text = ids[:room], "".join(piece for piece, _ in told[:room])
        self._add_tokens(ids, text or thought, reasoning, told)
        count = self.assembler.count
        if 0 < self._limit <= count and self.finish_reason is None:
            self.finish_reason = "length"
            self.done = self.cut = True
            self.figures["usage"]["completion_tokens"] = count

    def _add_tokens(
        self, ids: Sequence[int], text: str, reasoning: bool, told: list[tuple[str, float]]
    ) -> None:
        ready, last = self.assembler.ready, len(ids) - 1
        if not ids and text:  # it was withheld; its tokens were told before
            ready.append(Token(None, text, None, reasoning))
        for place, number in enumerate(ids):
            logprob = told[place][1] if self._wants_logprobs else None
            ready.append(Token(number, text if place == last else "", logprob, reasoning))
        self.assembler.count += len(ids)


def in_our_words(error: RequestError) -> RequestError:
    """The error that one of vLLM's is; the same if it is no special one.

    An engine that died is told by the server that is about to end for it: the connection is lost.
    """
    why = error.why or ""
    if _ENGINE_DEAD.search(why):
        return ConnectionLost(error.what, why=why, remedy=error.remedy, status=error.status)
    found = _TOO_LONG.search(why) or _BEYOND.search(why)
    if found is None or error.status != 400:
        return error
    length = _LENGTH.search(why)
    n_prompt = int(length[1] or length[2]) if length else None
    n_ctx = int(found["n_ctx"])
    prompt = "more tokens than fit" if n_prompt is None else f"{n_prompt} tokens"
    return ContextOverflow(
        f"{error.what.partition(':')[0]}: the prompt has {prompt}, the context {n_ctx}",
        why=why,
        remedy="shorten the prompt, or load the model with a larger ctx_size",
        status=error.status,
        n_prompt_tokens=n_prompt,
        n_ctx=n_ctx,
    )


def _thought(delta: dict[str, Any]) -> str:
    # `reasoning_content` before vLLM 0.12.
    return delta.get("reasoning") or delta.get("reasoning_content") or ""


def _told(logprobs: dict[str, Any] | None) -> list[tuple[str, float]]:
    """Text and log probability of each token of an event, as far as they were asked for."""
    if logprobs is None:
        return []
    if "content" in logprobs:
        return [(entry["token"], float(entry["logprob"])) for entry in logprobs["content"]]
    return [
        (text, float(value))
        for text, value in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)
    ]
