"""What a model answers, and what is said to it: plain values that every layer above speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: `Message("user", "Explain gravity.")`.

    `role` is one that the model's chat template knows, usually `system`, `user` or `assistant`.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    id: the token's number in the model's vocabulary; `None` when the server did not tell.
    text: the text that became complete with this token; empty while a character is unfinished.
    logprob: natural logarithm of its probability before sampling, when asked for with `logprobs`.
    reasoning: the text belongs to the model's thinking, not to its answer (chat only).
    """

    id: int | None
    text: str
    logprob: float | None = None
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted by the server; `cached_tokens` of the prompt needed no computation."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went; all durations in seconds.

    cache_n, prompt_n, prompt_seconds, predicted_n, predicted_seconds: the server's own figures
    (`timings` of llama-server; tokens taken from the cache, computed for the prompt, generated).
    time_to_first_token, total_seconds: measured by the client from sending the request;
    `time_to_first_token` is `None` when no token came.
    """

    cache_n: int
    prompt_n: int
    prompt_seconds: float
    predicted_n: int
    predicted_seconds: float
    time_to_first_token: float | None
    total_seconds: float

    @property
    def prompt_per_second(self) -> float | None:
        """Prompt tokens computed a second (`pp` of llama-bench); `None` when none were."""
        if not self.prompt_n or not self.prompt_seconds:
            return None
        return self.prompt_n / self.prompt_seconds

    @property
    def predicted_per_second(self) -> float | None:
        """Tokens generated a second (`tg` of llama-bench); `None` when none were."""
        if not self.predicted_n or not self.predicted_seconds:
            return None
        return self.predicted_n / self.predicted_seconds


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    text: the answer. reasoning: the model's thinking, where the chat template separates it.
    tokens: every token, in order. finish_reason: `stop` (the model, a stop string or a stop token
    ended it) or `length` (`max_tokens` or the context was reached). resumed: how often it went on
    after a crash of the server; `timings` then tell of the last server's part, but for
    `time_to_first_token` and `total_seconds`, which are those of the whole.
    """

    text: str
    reasoning: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    resumed: int = 0
