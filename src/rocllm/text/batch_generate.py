"""Answers to many prompts."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

from rocllm.backends import AsyncConnection, LoadedModel
from rocllm.errors import RocllmError
from rocllm.options import SamplingOptions
from rocllm.results import BatchProgress, BatchResult, Prompt
from rocllm.text._prompts import checked_messages, checked_prompt, concerns_all, is_conversation
from rocllm.text._window import check_in_flight, check_prompts
from rocllm.text.async_batch import AsyncBatch
from rocllm.text.batch import Batch

# Requests beyond the slots: a slot that gets free finds the next one waiting at the server.
_SPARE_REQUESTS = 1


def batch_generate(
    loaded: LoadedModel,
    prompts: Iterable[Prompt],
    sampling: SamplingOptions,
    *,
    resume: bool,
    ordered: bool,
    max_in_flight: int | None,
    on_progress: Callable[[BatchProgress], None] | None,
) -> Batch[BatchResult]:
    """Answer every prompt, over a connection of its own."""
    check_prompts("batch_generate", prompts)
    in_flight = check_in_flight(max_in_flight, loaded.info.parallel + _SPARE_REQUESTS)
    connection = loaded.connect()

    def work(index: int, prompt: Prompt) -> BatchResult:
        try:
            completion = _ask(connection, prompt, sampling, resume=resume).read()
        except RocllmError as exc:
            if concerns_all(exc):
                raise
            return BatchResult(index, prompt, None, exc)
        return BatchResult(index, prompt, completion)

    return Batch(
        prompts,
        work,
        in_flight=in_flight,
        ordered=ordered,
        cancel=connection.close,
        on_progress=on_progress,
    )


def batch_generate_async(
    loaded: LoadedModel,
    connection: AsyncConnection,
    prompts: Iterable[Prompt] | AsyncIterable[Prompt],
    sampling: SamplingOptions,
    *,
    resume: bool,
    ordered: bool,
    max_in_flight: int | None,
    on_progress: Callable[[BatchProgress], None] | None,
) -> AsyncBatch[BatchResult]:
    """The same for asyncio; `connection` is left open."""
    check_prompts("batch_generate", prompts)
    in_flight = check_in_flight(max_in_flight, loaded.info.parallel + _SPARE_REQUESTS)

    async def work(index: int, prompt: Prompt) -> BatchResult:
        try:
            completion = await _ask(connection, prompt, sampling, resume=resume).read()
        except RocllmError as exc:
            if concerns_all(exc):
                raise
            return BatchResult(index, prompt, None, exc)
        return BatchResult(index, prompt, completion)

    return AsyncBatch(prompts, work, in_flight=in_flight, ordered=ordered, on_progress=on_progress)


def _ask(connection: Any, prompt: Prompt, sampling: SamplingOptions, *, resume: bool) -> Any:
    if is_conversation(prompt):
        return connection.chat(checked_messages(prompt), sampling, resume=resume)
    return connection.completion(checked_prompt(prompt), sampling, resume=resume)  # type: ignore[arg-type]
