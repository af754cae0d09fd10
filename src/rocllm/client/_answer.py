"""One streamed answer: the bytes of the response in, tokens and figures out. No I/O."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from rocllm.client._errors import connection_lost, http_error, server_error
from rocllm.client._http import Response
from rocllm.client._ids import Vocabulary
from rocllm.client._sse import EventDecoder
from rocllm.client._tokens import TokenAssembler
from rocllm.errors import ProtocolError, RocllmError
from rocllm.options import SamplingOptions
from rocllm.results import FinishReason, Timings, Token, Usage

# An error's JSON has a few hundred bytes.
_MAX_ERROR_BODY = 64 * 1024
# More tokens than any context holds: the server's count is wrong.
_MAX_MISSING = 1 << 20

# `json.loads` without its checks of arguments and encoding, which cost a quarter of its time.
_decode_json = json.JSONDecoder().raw_decode


class Answer:
    """The state of one streamed answer.

    ready: tokens that can be handed out. failure: the error that ended the answer, to be raised
    when `ready` is empty. finished: the answer is whole. cut: it was ended from our side, and the
    connection cannot be used again. needs_vocabulary: nothing goes on before `use_vocabulary`.
    usage, timings, finish_reason: `None` until `finished`.
    """

    __slots__ = (
        "_assembler",
        "_chat",
        "_clock",
        "_decoder",
        "_endpoint",
        "_error_body",
        "_finish",
        "_first_token_at",
        "_last",
        "_reads_ids",
        "_started_at",
        "_take",
        "_waiting",
        "_what",
        "cut",
        "failure",
        "finish_reason",
        "finished",
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
        sampling: SamplingOptions,
        *,
        chat: bool,
        reads_ids: bool,
        clock: Callable[[], float],
    ) -> None:
        self.response = Response()
        self.failure: RocllmError | None = None
        self.finished = False
        self.cut = False
        self.needs_vocabulary = False
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self._what = what
        self._endpoint = endpoint
        self._clock = clock
        self._started_at = clock()
        self._first_token_at: float | None = None
        self._chat = chat
        self._reads_ids = reads_ids
        self._take = self._take_chat if chat else self._take_completion
        self._decoder = EventDecoder()
        self._assembler = TokenAssembler(sampling, chat=chat)
        self.ready: deque[Token] = self._assembler.ready
        self._waiting: list[str] = []
        self._error_body = b""
        # The last figures that came, and the finish reason: they count when the stream is whole.
        self._last: dict[str, Any] = {}
        self._finish: FinishReason | None = None

    def start(self) -> None:
        """The request is about to be sent."""
        self._started_at = self._clock()

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
                if body:
                    self._decode(self._decoder.feed(body))
            elif response.status is not None:
                self._error_body = (self._error_body + body)[:_MAX_ERROR_BODY]
            if response.complete:
                self._end()
        except RocllmError as exc:
            self.failure = exc

    def feed_eof(self) -> None:
        """The connection has ended."""
        try:
            if not self.response.feed_eof() and not self.finished:
                raise connection_lost(self._what, self._endpoint)
            self._end()
        except RocllmError as exc:
            self.failure = exc

    def use_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """Go on, with the vocabulary or, when there is none, without it."""
        self.needs_vocabulary = False
        self._assembler.vocabulary = vocabulary
        self._assembler.vocabulary_wanted = False
        waiting, self._waiting = self._waiting, []
        try:
            self._decode(waiting)
            if self.response.complete:
                self._end()
        except RocllmError as exc:
            self.failure = exc

    def _end(self) -> None:
        """No byte follows."""
        if self.finished or self.needs_vocabulary:
            return
        if self.refused:
            raise http_error(self._what, self.response.status or 0, self._error_body)
        kind = self.response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            raise self._unexpected(f"content-type {kind!r} in the place of a stream of events")
        if self._chat and self._finish is not None:
            self._complete()
            return
        why = "the stream ended without its last event"
        raise connection_lost(self._what, self._endpoint, why)

    def _decode(self, events: Iterable[str]) -> None:
        take = self._take
        events = iter(events)
        for data in events:
            try:
                event, end = _decode_json(data)
            except (ValueError, RecursionError):
                event, end = self._unusual(data), len(data)
            if end != len(data) and data[end:].strip(" "):
                raise self._unexpected(f"{data[:200]!r} is not JSON")
            if self.finished:
                return
            try:
                taken = take(event)
            except RocllmError:  # some of them are a `ValueError` too
                raise
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as exc:
                raise self._unexpected(f"{data[:200]!r}") from exc
            if not taken:
                self.needs_vocabulary = True
                self._waiting = [data, *events]
                return
            if self._assembler.stopped:
                self._cut()
        if self._first_token_at is None and self.ready:
            self._first_token_at = self._clock()

    def _unusual(self, data: str) -> Any:
        """An event that does not begin with JSON; `None` for one that says nothing."""
        if data == "[DONE]":
            if self._chat:
                self._complete()
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise self._unexpected(f"{data[:200]!r} is not JSON") from exc

    def _take_completion(self, event: Any) -> bool:
        """Take an event of `/completion`; `False` when the vocabulary is needed first."""
        if type(event) is not dict:
            return True  # null: the server has begun, or passes over another prompt
        if "tokens" not in event or event.get("stop") or "prompt_progress" in event:
            return self._take_other(event)
        text, (number,) = event["content"], event["tokens"]
        count = event["tokens_predicted"]
        if type(text) is not str or type(number) is not int or type(count) is not int:
            raise TypeError("a field of another type")
        assembler = self._assembler
        if self._reads_ids:
            return self._take_rich(event, text, number, count)
        missing = count - assembler.count - 1
        if missing == 0 and text and assembler.plain:
            assembler.count = count
            self.ready.append(Token(number, text))
            return True
        return assembler.add(Token(number, text), self._missing(count))

    def _take_rich(self, event: dict[str, Any], text: str, number: int, count: int) -> bool:
        probabilities = event.get("completion_probabilities")
        logprob = float(probabilities[0]["logprob"]) if probabilities else None
        if "timings" in event:
            self._last = event
        return self._assembler.add(Token(number, text, logprob), self._missing(count))

    def _take_other(self, event: dict[str, Any]) -> bool:
        """The last event of `/completion`, an error, or progress of the prompt."""
        if "error" in event:
            raise server_error(self._what, event["error"])
        if event.get("stop"):
            self._finish = "length" if event["stop_type"] == "limit" else "stop"
            assembler = self._assembler
            if self._finish == "length" and assembler.withheld and assembler.vocabulary_wanted:
                return False
            self._last = event
            self._complete()
        return True

    def _take_chat(self, event: Any) -> bool:
        """Take an event of `/v1/chat/completions`; `False` when the vocabulary is needed first."""
        if type(event) is not dict:
            return True
        if "error" in event:
            raise server_error(self._what, event["error"])
        choices = event.get("choices")
        if choices and not self._take_choice(choices[0], event):
            return False
        if "timings" in event or event.get("usage"):
            self._last = {**self._last, **event}
        return True

    def _take_choice(self, choice: dict[str, Any], event: dict[str, Any]) -> bool:
        reason = choice.get("finish_reason")
        if reason is not None:
            self._finish = "length" if reason == "length" else "stop"
            return True
        delta = choice["delta"]
        text, thought = delta.get("content") or "", delta.get("reasoning_content") or ""
        number, logprob, missing = None, None, 0
        if self._reads_ids and choice.get("logprobs"):
            told = choice["logprobs"]["content"][0]
            number, logprob = int(told["id"]), float(told["logprob"])
            if "timings" in event:
                missing = self._missing(event["timings"]["predicted_n"])
        elif not (text or thought):
            return True  # the role
        if text and thought:
            return self._assembler.add(Token(None, thought, None, True), missing) and (
                self._assembler.add(Token(number, text, logprob))
            )
        return self._assembler.add(Token(number, text or thought, logprob, bool(thought)), missing)

    def _missing(self, count: int) -> int:
        """How many tokens were generated between the last one and the `count`th."""
        missing = count - self._assembler.count - 1
        if missing > _MAX_MISSING:
            raise self._unexpected(f"it counts {count} tokens after {self._assembler.count}")
        return max(0, missing)

    def _cut(self) -> None:
        """A stop token was generated: the rest is not wanted."""
        self.cut = True
        self._finish = "stop"
        timings = self._last["timings"]
        prompt = self._last.get("tokens_evaluated", timings["cache_n"] + timings["prompt_n"])
        self._last = {
            "tokens_evaluated": prompt,
            "tokens_predicted": self._assembler.count,
            "timings": timings,
        }
        self._complete()

    def _complete(self) -> None:
        if self.finished:
            return
        last = self._last
        try:
            timings = last["timings"]
            if usage := last.get("usage"):
                prompt, generated = usage["prompt_tokens"], usage["completion_tokens"]
            else:
                prompt, generated = last["tokens_evaluated"], last["tokens_predicted"]
            computed = int(timings["prompt_n"])
            cached = int(timings.get("cache_n", prompt - computed))
            self.usage = Usage(int(prompt), int(generated), cached)
            self._missing(generated)
            self._assembler.end(generated, cut_off=self._finish == "length")
            self.timings = self._figures(timings, cached, computed)
        except (KeyError, TypeError, ValueError) as exc:
            raise self._unexpected("the last event has no usage or no timings") from exc
        self.finish_reason = self._finish or "stop"
        self.finished = True

    def _figures(self, timings: dict[str, Any], cached: int, computed: int) -> Timings:
        now, started = self._clock(), self._started_at
        if self._first_token_at is None and self.ready:
            self._first_token_at = now
        first = self._first_token_at
        return Timings(
            cache_n=cached,
            prompt_n=computed,
            prompt_seconds=timings["prompt_ms"] / 1000,
            predicted_n=int(timings["predicted_n"]),
            predicted_seconds=timings["predicted_ms"] / 1000,
            time_to_first_token=None if first is None else first - started,
            total_seconds=now - started,
        )

    def _unexpected(self, why: str) -> ProtocolError:
        return ProtocolError(
            f"{self._what}: the server's answer is not what a llama-server says",
            why=why,
            remedy="check that the address is that of a llama-server",
            status=self.response.status,
        )
