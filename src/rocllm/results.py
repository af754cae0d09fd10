"""What a model answers, and what is said to it: plain values that every layer above speaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rocllm.errors import RocllmError

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
        """Tokens generated a second (`tg` of llama-bench); `None` when fewer than two were.

        llama-server's time begins with the first token, so one alone has no rate.
        """
        if self.predicted_n < 2 or not self.predicted_seconds:
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


# What a prompt of many can be: a text, token ids, or a conversation.
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class NextToken:
    """What may follow a prompt: the likeliest tokens with their log probabilities, best first."""

    top: tuple[Token, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is: results that are there, failed ones among them, and prompts in all.

    `total` is `None` while nobody knows.
    """

    done: int
    failed: int
    total: int | None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one prompt of a batch.

    index: its place among the prompts, from 0 on. prompt: the prompt itself. completion: the whole
    answer; `None` when it failed. error: why it failed; its `text`, where it has one, is what came
    before.
    """

    index: int
    prompt: Prompt = field(repr=False)
    completion: Completion | None
    error: RocllmError | None = None

    @property
    def text(self) -> str:
        """The answer; what there is of it when it failed."""
        if self.completion is not None:
            return self.completion.text
        return str(getattr(self.error, "text", ""))

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of the answer; none when it failed."""
        return () if self.completion is None else self.completion.tokens

    @property
    def usage(self) -> Usage | None:
        """The tokens counted; `None` when it failed."""
        return None if self.completion is None else self.completion.usage

    @property
    def timings(self) -> Timings | None:
        """Where the time went; `None` when it failed."""
        return None if self.completion is None else self.completion.timings


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """What a model says comes next after a prompt, or why it could not.

    index: the prompt's place among the prompts, from 0 on. prompt: the prompt itself.
    label: the likeliest label. probabilities: of every label, in the order given; they add up to 1.
    token: without labels, the likeliest next token. top: the likeliest ones, best first, as many
    as were asked for. logprobs: the natural logarithm of every token's probability, by its id, when
    asked for. usage: tokens of the prompt, and passes in `completion_tokens`. error: why it failed.
    """

    index: int
    prompt: Prompt = field(repr=False)
    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    token: Token | None = None
    top: tuple[Token, ...] = ()
    logprobs: Sequence[float] | None = field(default=None, repr=False)
    usage: Usage | None = None
    error: RocllmError | None = None

    @property
    def probability(self) -> float | None:
        """That of `label`, or of `token`."""
        if self.label is not None:
            return self.probabilities[self.label]
        if self.token is None or self.token.logprob is None:
            return None
        return math.exp(self.token.logprob)

    @property
    def margin(self) -> float | None:
        """How much more probable the best label is than the second; `None` without labels."""
        if self.label is None:
            return None
        best, second = sorted(self.probabilities.values(), reverse=True)[:2]
        return best - second
