"""The events of a stream, as a llama-server sends them, to tokens and figures. No I/O."""

from __future__ import annotations

from typing import Any

from rocllm.client._errors import server_error, unexpected
from rocllm.client._tokens import TokenAssembler
from rocllm.errors import RequestError
from rocllm.options import SamplingOptions
from rocllm.results import FinishReason, Token

# More tokens than any context holds: the server's count is wrong.
_MAX_MISSING = 1 << 20


class Events:
    """What the two kinds of stream have in common.

    assembler: gets the tokens. finish_reason: `None` until the server has told. figures: the last
    usage and timings that came. done: the answer is whole. cut: it is whole because of a stop
    token, while the server goes on. tells_timings: the figures have the server's timings.
    """

    __slots__ = ("_reads_ids", "_what", "assembler", "cut", "done", "figures", "finish_reason")

    tells_timings = True

    def __init__(
        self, what: str, sampling: SamplingOptions, *, chat: bool, reads_ids: bool
    ) -> None:
        self.assembler = TokenAssembler(sampling, chat=chat)
        self.finish_reason: FinishReason | None = None
        self.figures: dict[str, Any] = {}
        self.done = False
        self.cut = False
        self._what = what
        self._reads_ids = reads_ids

    def take(self, event: Any) -> bool:
        """Take an event; `False`, with nothing taken, when the vocabulary is needed first.

        Raises the error that the event is, `ProtocolError`, and `KeyError`, `TypeError`,
        `ValueError`, `IndexError` or `AttributeError` for an event of another shape.
        """
        raise NotImplementedError

    def take_done(self) -> None:
        """Take the `[DONE]` with which OpenAI's streams end; the others have none."""

    def explained(self, error: RequestError) -> RequestError:
        """The error as which an answer is told that is no stream."""
        return error

    def missing(self, count: int) -> int:
        """How many tokens were generated between the last one and the `count`th."""
        missing = count - self.assembler.count - 1
        if missing > _MAX_MISSING:
            why = f"it counts {count} tokens after {self.assembler.count}"
            raise unexpected(self._what, why)
        return max(0, missing)

    def _add(self, token: Token, count: int | None = None) -> bool:
        missing = 0 if count is None else self.missing(count)
        if not self.assembler.add(token, missing):
            return False
        if self.assembler.stopped:
            self.finish_reason = "stop"
            self.done = self.cut = True
        return True


class CompletionEvents(Events):
    """The stream of `/completion`."""

    __slots__ = ()

    def take(self, event: Any) -> bool:
        if type(event) is not dict:
            return True  # null: the server has begun, or passes over another prompt
        if "tokens" not in event or event.get("stop") or "prompt_progress" in event:
            return self._take_other(event)
        text, (number,) = event["content"], event["tokens"]
        count = event["tokens_predicted"]
        if type(text) is not str or type(number) is not int or type(count) is not int:
            raise TypeError("a field of another type")
        if self._reads_ids:
            return self._take_rich(event, text, number, count)
        assembler = self.assembler
        if text and assembler.plain and count == assembler.count + 1:
            assembler.count = count
            assembler.ready.append(Token(number, text))
            return True
        return self._add(Token(number, text), count)

    def _take_rich(self, event: dict[str, Any], text: str, number: int, count: int) -> bool:
        probabilities = event.get("completion_probabilities")
        logprob = float(probabilities[0]["logprob"]) if probabilities else None
        if "timings" in event:
            self.figures = event
        return self._add(Token(number, text, logprob), count)

    def _take_other(self, event: dict[str, Any]) -> bool:
        """The last event, an error, or progress of the prompt."""
        if "error" in event:
            raise server_error(self._what, event["error"])
        if event.get("stop"):
            self.finish_reason = "length" if event["stop_type"] == "limit" else "stop"
            if self.finish_reason == "length" and self.assembler.lacks_text:
                return False
            self.figures = event
            self.done = True
        return True


class ChatEvents(Events):
    """The stream of `/v1/chat/completions`."""

    __slots__ = ()

    def take_done(self) -> None:
        self.done = True

    def take(self, event: Any) -> bool:
        if type(event) is not dict:
            return True
        if "error" in event:
            raise server_error(self._what, event["error"])
        figures = self.figures
        if "timings" in event or event.get("usage"):
            self.figures = {**figures, **event}
        choices = event.get("choices")
        return not choices or self._take_choice(choices[0], event)

    def _take_choice(self, choice: dict[str, Any], event: dict[str, Any]) -> bool:
        reason = choice.get("finish_reason")
        if reason is not None:
            self.finish_reason = "length" if reason == "length" else "stop"
            return True
        delta = choice["delta"]
        text, thought = delta.get("content") or "", delta.get("reasoning_content") or ""
        number, logprob, count = None, None, None
        if self._reads_ids and choice.get("logprobs"):
            told = choice["logprobs"]["content"][0]
            number, logprob = int(told["id"]), float(told["logprob"])
            if "timings" in event:
                count = int(event["timings"]["predicted_n"])
        elif not (text or thought):
            return True  # the role
        if text and thought:
            # The token that ends the thinking begins the answer. Its id goes with the answer.
            return self._add(Token(None, thought, None, True), count) and (
                self._add(Token(number, text, logprob))
            )
        return self._add(Token(number, text or thought, logprob, bool(thought)), count)
