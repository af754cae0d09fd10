"""One forward pass a prompt: which label fits, or which token comes next."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from array import array
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rocllm.backends import AsyncConnection, Connection, LoadedInfo, LoadedModel
from rocllm.errors import OptionsError, RequestError, RocllmError, ServerCrashed
from rocllm.results import BatchProgress, ClassifyResult, NextToken, Prompt, Usage
from rocllm.text._labels import (
    AskNext,
    Node,
    Steps,
    T,
    checked_labels,
    measure,
    read_labels,
    score,
)
from rocllm.text._prompts import checked_messages, checked_prompt, concerns_all, is_conversation
from rocllm.text._window import check_in_flight, check_prompts
from rocllm.text.async_batch import AsyncBatch
from rocllm.text.batch import Batch

# Tokens of the vocabulary asked for in one request: 1.5 MB of JSON.
_VOCABULARY_BATCH = 16384
# For more than so many there is `logprobs`.
MAX_TOP_K = 4096
# Requests for each slot: when all slots end in the same pass, which is the rule here, the next pass
# finds all of them taken again. (Measured: docs/classify.md.)
_REQUESTS_A_SLOT = 2

# Prompts that are looked at for what all begin with, and how much of it is worth the detour.
_SAMPLE = 8
_LONG_TEXT = 128
_LONG_TOKENS = 32


@dataclass(slots=True)
class Question:
    """What is asked of every prompt.

    labels: text by name. top_k: of the likeliest tokens. n_vocab: tokens, when the log probability
    of each is wanted; 0: it is not. tree: the labels as tokens, after `read`.
    """

    labels: Mapping[str, str]
    top_k: int | None
    n_vocab: int
    tree: Node = field(default_factory=Node)

    def read(self) -> Steps[None]:
        """Cut the labels into tokens."""
        if self.labels:
            self.tree = yield from read_labels(self.labels)

    def answer(self, index: int, prompt: Prompt) -> Steps[ClassifyResult]:
        """What the model says of one prompt."""
        text = yield from _as_text(prompt)

        def ask(path: tuple[int, ...], among: Sequence[int]) -> Any:
            top_k = self.top_k or 1
            return lambda connection: connection.next_token(
                text, then=path, among=among, top_k=1 if path else top_k
            )

        seen: list[Usage] = []
        steps = self._choose(ask) if self.labels else self._foresee(ask)
        result = yield from _counted(steps, seen)
        usage = replace(seen[0], completion_tokens=len(seen))
        return replace(result, index=index, prompt=prompt, usage=usage)

    def _choose(self, ask: AskNext) -> Steps[ClassifyResult]:
        scores = yield from score(self.tree, ask)
        probabilities = {name: scores[name] for name in self.labels}
        best = max(probabilities, key=probabilities.__getitem__)
        return ClassifyResult(0, "", label=best, probabilities=probabilities)

    def _foresee(self, ask: AskNext) -> Steps[ClassifyResult]:
        told: NextToken = yield ask((), ())
        logprobs: array[float] | None = None
        if self.n_vocab:
            logprobs = array("d", [-math.inf]) * self.n_vocab
            for first in range(0, self.n_vocab, _VOCABULARY_BATCH):
                piece = range(first, min(first + _VOCABULARY_BATCH, self.n_vocab))
                measured = yield from measure(ask, (), piece, told)
                for token, logprob in measured.items():
                    logprobs[token] = logprob
        top = told.top if self.top_k is not None else ()
        return ClassifyResult(0, "", token=told.top[0], top=top, logprobs=logprobs)


def share(first: Sequence[Prompt], slots: int) -> Steps[None]:
    """Give every slot what the first prompts have in common at their beginning.

    Not more than saves time: it is no error of theirs when it fails.
    """
    texts: list[str | Sequence[int]] = []
    for prompt in first[:_SAMPLE] if slots > 1 else ():
        with contextlib.suppress(OptionsError):  # its result will tell
            texts += [(yield from _as_text(prompt))]
    prefix = common_prefix(texts)
    if len(prefix) >= (_LONG_TEXT if isinstance(prefix, str) else _LONG_TOKENS):
        yield lambda connection: connection.share_prefix(prefix)


def common_prefix(texts: Sequence[str | Sequence[int]]) -> str | Sequence[int]:
    """What all of several texts, or lists of token ids, begin with.

    >>> common_prefix(["Review: good", "Review: bad"])
    'Review: '
    """
    if len(texts) < 2 or len({isinstance(text, str) for text in texts}) > 1:
        return ""
    first, length = texts[0], len(texts[0])
    for other in texts[1:]:
        pairs = enumerate(zip(first[:length], other, strict=False))
        length = next((place for place, (a, b) in pairs if a != b), min(length, len(other)))
    return first[:length]


def checked_question(
    info: LoadedInfo,
    labels: Sequence[str] | Mapping[str, str] | None,
    top_k: int | None,
    logprobs: bool,
) -> Question:
    """The question that these options are. Raises `OptionsError` for what cannot be meant."""
    if labels is not None and (top_k is not None or logprobs):
        raise OptionsError(
            "labels together with top_k or logprobs",
            why="with labels nothing is asked but which of them it is",
            remedy="make two calls, one with labels and one without",
        )
    whole = isinstance(top_k, int) and not isinstance(top_k, bool)
    if top_k is not None and not (whole and 1 <= top_k <= MAX_TOP_K):
        raise OptionsError(
            f"top_k must be a whole number from 1 to {MAX_TOP_K}; got {top_k!r}",
            remedy="for every token of the vocabulary there is logprobs=True",
        )
    n_vocab = info.model.vocab_size if logprobs else 0
    if n_vocab is None:
        raise OptionsError(
            "logprobs=True, and the model file does not say how many tokens it knows",
            remedy=f"ask for the likeliest tokens: top_k, up to {MAX_TOP_K}",
        )
    return Question({} if labels is None else checked_labels(labels), top_k, n_vocab)


def classify(
    loaded: LoadedModel,
    prompts: Iterable[Prompt],
    question: Question,
    *,
    ordered: bool,
    max_in_flight: int | None,
    on_progress: Callable[[BatchProgress], None] | None,
) -> Batch[ClassifyResult]:
    """Ask `question` of every prompt, over a connection of its own."""
    check_prompts("classify", prompts)
    in_flight = check_in_flight(max_in_flight, _REQUESTS_A_SLOT * loaded.info.parallel)
    connection = loaded.connect()
    alone = threading.Lock()

    def work(index: int, prompt: Prompt) -> ClassifyResult:
        try:
            try:
                return _run(connection, question.answer(index, prompt))
            except ServerCrashed as exc:
                if not exc.retryable:
                    raise
            # Once more. Alone, for if it is this prompt that the server dies of, the others that
            # were under way must not die of it twice.
            with alone:
                return _run(connection, question.answer(index, prompt))
        except RocllmError as exc:
            if concerns_all(exc):
                raise
            return ClassifyResult(index, prompt, error=exc)

    def prepare(first: Sequence[Prompt]) -> None:
        _run(connection, question.read())
        with contextlib.suppress(RequestError):
            _run(connection, share(first, loaded.info.parallel))

    return Batch(
        prompts,
        work,
        in_flight=in_flight,
        ordered=ordered,
        cancel=connection.close,
        prepare=prepare,
        on_progress=on_progress,
    )


def classify_async(
    loaded: LoadedModel,
    connection: AsyncConnection,
    prompts: Iterable[Prompt] | AsyncIterable[Prompt],
    question: Question,
    *,
    ordered: bool,
    max_in_flight: int | None,
    on_progress: Callable[[BatchProgress], None] | None,
) -> AsyncBatch[ClassifyResult]:
    """The same for asyncio; `connection` is left open."""
    check_prompts("classify", prompts)
    in_flight = check_in_flight(max_in_flight, _REQUESTS_A_SLOT * loaded.info.parallel)
    alone = asyncio.Lock()

    async def work(index: int, prompt: Prompt) -> ClassifyResult:
        try:
            try:
                return await _run_async(connection, question.answer(index, prompt))
            except ServerCrashed as exc:
                if not exc.retryable:
                    raise
            async with alone:
                return await _run_async(connection, question.answer(index, prompt))
        except RocllmError as exc:
            if concerns_all(exc):
                raise
            return ClassifyResult(index, prompt, error=exc)

    async def prepare(first: Sequence[Prompt]) -> None:
        await _run_async(connection, question.read())
        with contextlib.suppress(RequestError):
            await _run_async(connection, share(first, loaded.info.parallel))

    return AsyncBatch(
        prompts,
        work,
        in_flight=in_flight,
        ordered=ordered,
        prepare=prepare,
        on_progress=on_progress,
    )


def _as_text(prompt: Prompt) -> Steps[str | Sequence[int]]:
    if is_conversation(prompt):
        messages = checked_messages(prompt)
        text: str = yield lambda connection: connection.apply_template(messages)
        return text
    return checked_prompt(prompt)  # type: ignore[arg-type]


def _counted(steps: Steps[T], seen: list[Usage]) -> Steps[T]:
    """Do the steps, and keep the usage of every pass."""
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = yield step
        if isinstance(answer, NextToken):
            seen.append(answer.usage)


def _run(connection: Connection, steps: Steps[T]) -> T:
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = step(connection)


async def _run_async(connection: AsyncConnection, steps: Steps[T]) -> T:
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = await step(connection)
