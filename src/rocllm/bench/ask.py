"""One measurement: a request, or several at once, and what the clocks say."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rocllm.bench.record import Tally
from rocllm.bench.report import Metric
from rocllm.results import Completion
from rocllm.text import TextModel

# Seconds for all callers to stand at the line.
_ALL_READY = 30.0
_GREEDY = 0.0


def decode(model: TextModel, prompt: str, tally: Tally) -> dict[Metric, float]:
    answer = _answer(model, prompt, tally)
    ours, server = _decode_rates(answer)
    if ours is None or server is None:
        return {}
    return {"decode": ours, "server_decode": server, "client_ratio": ours / server}


def first_token(model: TextModel, prompt: list[int], tally: Tally) -> dict[Metric, float]:
    timings = model.generate(prompt, max_tokens=1, temperature=_GREEDY).read().timings
    sample: dict[Metric, float] = {}
    if timings.cache_n:
        tally.note(f"{timings.cache_n} tokens of a prompt came from the cache")
    if timings.time_to_first_token is not None:
        sample["ttft"] = timings.time_to_first_token
    if timings.prompt_per_second is not None:
        sample["prefill"] = timings.prompt_per_second
    return sample


def concurrent(model: TextModel, prompts: Sequence[str], tally: Tally) -> dict[Metric, float]:
    line = threading.Barrier(len(prompts))

    def call(prompt: str) -> tuple[float, float, Completion]:
        line.wait(_ALL_READY)
        started = time.perf_counter()
        answer = _answer(model, prompt, tally)
        return started, time.perf_counter(), answer

    with ThreadPoolExecutor(len(prompts)) as threads:
        try:
            calls = list(threads.map(call, prompts))
        except BaseException:
            # Ctrl-C, or an error of one: the others must not be waited for.
            line.abort()
            model.close()
            raise
    starts, ends, answers = zip(*calls, strict=True)
    sample: dict[Metric, float] = {
        "aggregate": sum(one.usage.completion_tokens for one in answers) / (max(ends) - min(starts))
    }
    rates = [rate for rate, _ in map(_decode_rates, answers) if rate is not None]
    first = [one.timings.time_to_first_token for one in answers]
    if rates:
        sample["caller"] = statistics.median(rates)
    if known := [seconds for seconds in first if seconds is not None]:
        sample["ttft"] = statistics.median(known)
    return sample


def _answer(model: TextModel, prompt: str, tally: Tally) -> Completion:
    wanted = tally.workload.tokens
    answer = model.generate(prompt, max_tokens=wanted, temperature=_GREEDY).read()
    if answer.usage.completion_tokens < wanted:
        tally.note(f"some answers ended before {wanted} tokens")
    return answer


def _decode_rates(answer: Completion) -> tuple[float | None, float | None]:
    """Tokens a second on our clock and on the server's.

    Both clocks run from the first token, so the first is not counted. (llama-server's own
    `predicted_per_second` counts it, which makes an answer of 128 tokens 0.8 % faster.)
    """
    timings, tokens = answer.timings, answer.usage.completion_tokens - 1
    first = timings.time_to_first_token
    ours = timings.total_seconds - first if first is not None else 0.0
    server = timings.predicted_seconds
    if tokens < 1 or ours <= 0 or server <= 0:
        return None, None
    return tokens / ours, tokens / server
