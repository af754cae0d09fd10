"""One streamed answer: the bytes of the response in, tokens and figures out. No I/O."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from rocllm.client._errors import connection_lost, http_error, unexpected
from rocllm.client._events import Events
from rocllm.client._ids import Vocabulary
from rocllm.client._sse import EventDecoder
from rocllm.client.channel import response_from
from rocllm.errors import RocllmError
from rocllm.results import FinishReason, Timings, Token, Usage

# An error's JSON has a few hundred bytes.
_MAX_ERROR_BODY = 64 * 1024
# `json.loads` without its checks of arguments and encoding, which cost a quarter of its time.
_decode_json = json.JSONDecoder().raw_decode


class Answer:
    """The state of one streamed answer.

    ready: tokens that can be handed out. failure: the error that ended the answer, to be raised
    when `ready` is empty. finished: the answer is whole. needs_vocabulary: nothing goes on before
    `use_vocabulary`. usage, timings, finish_reason: `None` until `finished`.

    One that `follows` another, which broke off, tells the figures of both; `known` tokens of the
    first are part of its prompt.
    """

    __slots__ = (
        "_clock",
        "_decoder",
        "_endpoint",
        "_error_body",
        "_events",
        "_first_here_at",
        "_first_token_at",
        "_sent_at",
        "_started",
        "_started_at",
        "_waiting",
        "_what",
        "failure",
        "finish_reason",
        "finished",
        "known",
        "needs_vocabulary",
        "ready",
        "response",
        "timings",
        "usage",
    )

    def __init__(
        self,
        what: str,
        endpoint: object,
        events: Events,
        *,
        clock: Callable[[], float],
        follows: Answer | None = None,
        known: int = 0,
    ) -> None:
        self.response = response_from(endpoint)
        self.failure: RocllmError | None = None
        self.finished = False
        self.needs_vocabulary = False
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self._what = what
        self._endpoint = endpoint
        self._clock = clock
        self._started_at: float = follows._started_at if follows else clock()
        self._started: bool = follows is not None and follows._started
        self._first_token_at: float | None = follows._first_token_at if follows else None
        # The same of this part, when it follows another.
        self._first_here_at: float | None = None
        self.known = known
        self._sent_at = clock() if follows else self._started_at
        self._events = events
        self._decoder = EventDecoder()
        self.ready: deque[Token] = self._events.assembler.ready
        self._waiting: list[str] = []
        self._error_body = b""

    def start(self) -> None:
        """The request is about to be sent; for the whole, the first time counts."""
        self._sent_at = self._clock()
        if not self._started:
            self._started, self._started_at = True, self._sent_at

    @property
    def cut(self) -> bool:
        """The answer was ended from our side: the connection cannot be used again."""
        return self._events.cut

    @property
    def refused(self) -> bool:
        """The server has answered with something else than a stream."""
        return self.response.status not in (None, 200)

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        response = self.response
        try:
            body = response.feed(data)
            if response.status == 200:
                if body and not self.finished:
                    self._decode(self._decoder.feed(body))
            elif response.status is not None:
                self._error_body = (self._error_body + body)[:_MAX_ERROR_BODY]
            if response.complete:
                self._end()
        except RocllmError as exc:
            self._fail(exc)

    def feed_eof(self) -> None:
        """The connection has ended."""
        try:
            if not self.response.feed_eof() and not self.finished:
                raise connection_lost(self._what, self._endpoint)
            self._end()
        except RocllmError as exc:
            self._fail(exc)

    def use_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """Go on, with the vocabulary or, when there is none, without it."""
        self.needs_vocabulary = False
        self._events.assembler.vocabulary = vocabulary
        self._events.assembler.vocabulary_wanted = False
        waiting, self._waiting = self._waiting, []
        try:
            self._decode(waiting)
            if self.response.complete:
                self._end()
        except RocllmError as exc:
            self._fail(exc)

    def _fail(self, error: RocllmError) -> None:
        if not self.finished:  # a whole answer stays whole, whatever follows it
            self.failure = error

    def _end(self) -> None:
        """No byte follows."""
        if self.finished or self.needs_vocabulary:
            return
        if self.refused:
            error = http_error(self._what, self.response.status or 0, self._error_body)
            raise self._events.explained(error)
        kind = self.response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise unexpected(self._what, f"content-type {kind!r} in the place of events")
        if self._events.finish_reason is not None:
            self._complete()  # a chat without its `[DONE]`
            return
        why = "the stream ended without its last event"
        raise connection_lost(self._what, self._endpoint, why)

    def _decode(self, payloads: Iterable[str]) -> None:
        events = self._events
        take = events.take
        payloads = iter(payloads)
        for data in payloads:
            try:
                event, end = _decode_json(data)
            except (ValueError, RecursionError):
                event, end = self._unusual(data), len(data)
            if end != len(data) and data[end:].strip(" "):
                raise unexpected(self._what, f"{data[:200]!r} is not JSON")
            try:
                taken = take(event)
            except RocllmError:  # some of them are a `ValueError` too
                raise
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as exc:
                raise unexpected(self._what, f"{data[:200]!r}") from exc
            if not taken:
                self.needs_vocabulary = True
                self._waiting = [data, *payloads]
                return
            if events.done:
                self._complete()
                return
        if self._first_here_at is None and self.ready:
            self._first_here_at = self._clock()
            if self._first_token_at is None:
                self._first_token_at = self._first_here_at

    def _unusual(self, data: str) -> Any:
        """What does not begin with JSON."""
        if data == "[DONE]":
            self._events.take_done()
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise unexpected(self._what, f"{data[:200]!r} is not JSON") from exc

    def _complete(self) -> None:
        """The answer is whole: work out usage and timings."""
        figures, assembler = self._events.figures, self._events.assembler
        reason = self._events.finish_reason or "stop"
        try:
            timings = figures["timings"] if self._events.tells_timings else self._measured(figures)
            computed = int(timings["prompt_n"])
            if usage := figures.get("usage"):
                prompt, generated = usage["prompt_tokens"], usage["completion_tokens"]
            elif self._events.cut:
                prompt = figures.get("tokens_evaluated", timings["cache_n"] + computed)
                generated = assembler.count
            else:
                prompt, generated = figures["tokens_evaluated"], figures["tokens_predicted"]
            cached = int(timings.get("cache_n", prompt - computed))
            self.usage = Usage(int(prompt) - self.known, int(generated) + self.known, cached)
            self._events.missing(generated)
            assembler.end(generated, cut_off=reason == "length")
            self.timings = self._timings(timings, cached, computed)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise unexpected(self._what, "the last event has no usage or no timings") from exc
        self.finish_reason = reason
        self.finished = True

    def _measured(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The timings of a server that tells none. The first token counts to the prompt."""
        usage, now = figures["usage"], self._clock()
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        first = now if self._first_here_at is None else self._first_here_at
        return {
            "cache_n": cached,
            "prompt_n": usage["prompt_tokens"] - cached,
            "prompt_ms": 1000 * (first - self._sent_at),
            "predicted_n": max(0, usage["completion_tokens"] - 1),
            "predicted_ms": 1000 * (now - first),
        }

    def _timings(self, told: dict[str, Any], cached: int, computed: int) -> Timings:
        now, started = self._clock(), self._started_at
        if self._first_token_at is None and self.ready:
            self._first_token_at = now
        first = self._first_token_at
        return Timings(
            cache_n=cached,
            prompt_n=computed,
            prompt_seconds=told["prompt_ms"] / 1000,
            predicted_n=int(told["predicted_n"]),
            predicted_seconds=told["predicted_ms"] / 1000,
            time_to_first_token=None if first is None else first - started,
            total_seconds=now - started,
        )
