"""What several callers get together: tokens a second through rocllm and through a bare client.

    python benchmarks/batch.py [--model demo] [--callers 4 8] [--tokens 32] [--rounds 7]

As many slots as callers. In a round each contender answers prompts of the same length, greedily, in
an order that changes; no prompt comes twice, so that none is in a slot already. The rate is all
tokens over the time from the first request to the last answer:

ceiling          a thread for each caller, a socket for each answer, bytes read to the end of it;
                 of these only the last event is decoded
threads          a thread for each caller, `TextModel.generate(...).read()`
batch_generate   `TextModel.batch_generate`, as many requests at once as there are callers

Wanted: both at 0.98 of the ceiling or more. On a busy machine read the ratios only.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import rocllm
from figures import Figure, native_server, tell

WANTED = 0.98
# Answers of each caller in a round.
_ANSWERS = 2
_DEADLINE = 300.0

Contender = Callable[[rocllm.TextModel, Sequence[str], int, int], int]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a path, or a name")
    parser.add_argument("--callers", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--llama-server", default=native_server(), help="path, or embedded")
    arguments = parser.parse_args()
    for callers in arguments.callers:
        with rocllm.load_model(
            arguments.model,
            parallel=callers,
            ctx_size=512,
            threads=arguments.threads,
            llama_server=arguments.llama_server,
        ) as model:
            print(f"{callers} callers; {model.info.engine}, {model.info.path.name}")
            _print(callers, _measure(model, callers, arguments.tokens, arguments.rounds))


def _measure(
    model: rocllm.TextModel, callers: int, tokens: int, rounds: int
) -> dict[str, list[float]]:
    contenders: dict[str, Contender] = {
        "ceiling": _ceiling,
        "threads": _threads,
        "batch_generate": _batch,
    }
    names = list(contenders)
    rates: dict[str, list[float]] = {name: [] for name in names}
    wanted = callers * _ANSWERS * tokens
    for number in range(-1, rounds):
        for place, name in enumerate(names[number % 3 :] + names[: number % 3]):
            # Three digits each: all prompts have the same number of tokens.
            first = 100 + 3 * (number + 1) + place
            prompts = [f"{first}.{100 + n}: Once upon a time" for n in range(callers * _ANSWERS)]
            started = time.monotonic()
            count = contenders[name](model, prompts, callers, tokens)
            if number >= 0:  # the first one warms up
                rates[name].append(count / (time.monotonic() - started))
            if count < 0.9 * wanted:
                raise RuntimeError(f"{name} got {count} tokens instead of {wanted}")
    return rates


def _print(callers: int, rates: dict[str, list[float]]) -> None:
    print(f"{'':16}{'tok/s, median':>14}{'over the ceiling, median and span':>36}")
    middle = {name: statistics.median(found) for name, found in rates.items()}
    ratios = {}
    for name, found in rates.items():
        # Of each round by itself: all sides had the same neighbours.
        each = [rate / best for rate, best in zip(found, rates["ceiling"], strict=True)]
        ratios[name] = statistics.median(each)
        span = f"{ratios[name]:.3f} ({min(each):.3f} to {max(each):.3f})"
        print(f"{name:16}{middle[name]:14.1f}{span:>36}")
    ceiling = f"{middle['ceiling']:.1f} tok/s"
    for name, what in (("threads", "generate in threads"), ("batch_generate", "batch_generate")):
        mine = f"{middle[name]:.1f} tok/s"
        title = f"{callers} callers, {what}, over the ceiling"
        tell(Figure(title, mine, ceiling, ratios[name], least=WANTED))


def _threads(model: rocllm.TextModel, prompts: Sequence[str], callers: int, tokens: int) -> int:
    def ask(prompt: str) -> int:
        return model.generate(prompt, max_tokens=tokens).read().usage.completion_tokens

    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(ask, prompts))


def _batch(model: rocllm.TextModel, prompts: Sequence[str], callers: int, tokens: int) -> int:
    results = model.batch_generate(prompts, max_tokens=tokens, max_in_flight=callers)
    return sum(result.usage.completion_tokens for result in results if result.usage)


def _ceiling(model: rocllm.TextModel, prompts: Sequence[str], callers: int, tokens: int) -> int:
    assert model.info.endpoint is not None
    path = str(model.info.endpoint.socket_path)
    with ThreadPoolExecutor(callers) as pool:
        shares = [prompts[caller::callers] for caller in range(callers)]
        return sum(pool.map(functools.partial(_bare, path, tokens), shares))


def _bare(path: str, tokens: int, prompts: Sequence[str]) -> int:
    """One caller's prompts, a connection each, with as little work as an answer needs."""
    count = 0
    for prompt in prompts:
        body = json.dumps(
            {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": 0,
                "stream": True,
                "response_fields": ["tokens_predicted"],
            }
        ).encode()
        head = "POST /completion HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_DEADLINE)
            connection.connect(path)
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while received := connection.recv(65536):
                answer = answer[-4096:] + received
        last = answer.rpartition(b"data: ")[2].partition(b"\n")[0]
        count += json.loads(last)["tokens_predicted"]
    return count


if __name__ == "__main__":
    main()
