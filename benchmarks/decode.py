"""What lies between the model and the caller: tokens a second through different clients.

    python benchmarks/decode.py [--model demo] [--tokens 128] [--rounds 7] [--threads N]

One server, one prompt, greedy; the clients take turns, and each round begins with another one.
Compared: `TextModel.generate`, a bare client (`http.client` and `json.loads`, the ceiling of what
Python does over HTTP), the `openai` package where it is installed, `xllamacpp` in this process, and
`llama-bench` where a native build has it. A rate counts the tokens after the first over the time
from the first to the last, on the client's clock; `server` is the server's own figure for the same
answer, counted the same way. The two engines beside the server have no such figure (xllamacpp: its
own timings).

Wanted: rocllm at least at 0.99 of the server's own figure. On a busy machine read the ratios only.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import importlib.util
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rocllm
from figures import Figure, native_server, tell

WANTED = 0.99
_PROMPT = "A long story about a lighthouse keeper, told in full.\n\nChapter 1\n\nIt was late in"
_CTX_SIZE = 1024
_DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds from the first token to the last: on the client's clock, on the server's."""

    client: float
    server: float | None
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens a second on the client's clock."""
        return (self.tokens - 1) / self.client

    @property
    def ratio(self) -> float | None:
        """The client's rate over the server's own."""
        return None if self.server is None else self.server / self.client


Client = Callable[[int], Answer]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a path, or a name")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median counts")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of the engines"
    )
    parser.add_argument("--llama-server", default=native_server(), help="path, or embedded")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        model = stack.enter_context(
            rocllm.load_model(
                arguments.model,
                ctx_size=_CTX_SIZE,
                parallel=1,
                threads=arguments.threads,
                llama_server=arguments.llama_server,
                host="127.0.0.1",
            )
        )
        print(
            f"{model.info.path.name}, {model.info.engine}, {arguments.threads} thread(s), "
            f"{arguments.tokens} tokens, {arguments.rounds} rounds, load average "
            f"{os.getloadavg()[0]:.1f}"
        )
        clients = dict(_clients(model, stack, arguments.threads))
        answers = _rounds(clients, arguments.tokens, arguments.rounds)
    _print(answers)


def _rounds(clients: Mapping[str, Client], tokens: int, rounds: int) -> dict[str, list[Answer]]:
    names = list(clients)
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    for name in names:  # not counted
        clients[name](tokens)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            answers[name].append(clients[name](tokens))
    return answers


def _print(answers: Mapping[str, list[Answer]]) -> None:
    base = [answer.rate for answer in answers["bare http.client"]]
    print(f"{'':24}{'tok/s':>8}{'±':>7}{'over server':>13}{'over bare client':>18}")
    for name, each in answers.items():
        rates = [answer.rate for answer in each]
        middle = statistics.median(rates)
        spread = statistics.median(abs(rate - middle) for rate in rates)
        own = [answer.ratio for answer in each if answer.ratio is not None]
        over_server = f"{statistics.median(own):.4f}" if own else "–"
        # Of each round by itself: both sides had the same neighbours.
        over_bare = statistics.median(one / two for one, two in zip(rates, base, strict=True))
        print(f"{name:24}{middle:8.1f}{spread:7.1f}{over_server:>13}{over_bare:18.4f}")
    middles = {
        name: statistics.median(answer.rate for answer in each) for name, each in answers.items()
    }
    mine = f"{middles['rocllm']:.1f} tok/s"
    own = [(one.tokens - 1) / one.server for one in answers["rocllm"] if one.server]
    ratio = statistics.median(one.ratio for one in answers["rocllm"] if one.ratio is not None)
    print()
    tell(
        Figure(
            "decoding, over the server's own figure",
            mine,
            f"{statistics.median(own):.1f} tok/s",
            ratio,
            digits=4,
            least=WANTED,
        )
    )
    for name in answers:
        if name != "rocllm":
            pairs = zip(answers["rocllm"], answers[name], strict=True)
            over = statistics.median(one.rate / other.rate for one, other in pairs)
            tell(Figure(f"decoding, over {name}", mine, f"{middles[name]:.1f} tok/s", over))


def _clients(
    model: rocllm.TextModel, stack: ExitStack, threads: int
) -> Iterator[tuple[str, Client]]:
    endpoint = model.info.endpoint
    assert endpoint is not None
    yield "rocllm", functools.partial(_rocllm, model)
    yield "bare http.client", functools.partial(_bare, endpoint)
    if importlib.util.find_spec("openai") is not None:
        import openai

        url = f"http://{endpoint.host}:{endpoint.port}/v1"
        client = stack.enter_context(openai.OpenAI(base_url=url, api_key=endpoint.api_key))
        yield "openai", functools.partial(_openai, client)
    if importlib.util.find_spec("xllamacpp") is not None:
        yield "xllamacpp in process", _InProcess(model.info.path, threads)
    native = native_server()
    bench = native.with_name("llama-bench") if native else None
    if bench is not None and bench.exists():
        yield "llama-bench", functools.partial(_llama_bench, bench, model.info.path, threads)


def _rocllm(model: rocllm.TextModel, tokens: int) -> Answer:
    stamps: list[float] = []
    with model.generate(_PROMPT, max_tokens=tokens) as stream:
        for _ in stream:
            stamps.append(time.perf_counter())  # noqa: PERF401 - the clock runs meanwhile
    assert stream.timings is not None
    return _answer(stamps, stream.timings.predicted_seconds, stream.timings.predicted_n)


def _bare(endpoint: rocllm.Endpoint, tokens: int) -> Answer:
    body = {
        "prompt": _PROMPT,
        "n_predict": tokens,
        "temperature": 0,
        "stream": True,
        "response_fields": ["timings", "stop"],
    }
    stamps: list[float] = []
    connection = http.client.HTTPConnection(str(endpoint.host), endpoint.port, timeout=_DEADLINE)
    try:
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        connection.request("POST", "/completion", json.dumps(body), headers)
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if event["stop"]:
                    break
                stamps.append(time.perf_counter())
    finally:
        connection.close()
    timings = event["timings"]
    return _answer(stamps, timings["predicted_ms"] / 1000, timings["predicted_n"])


def _openai(client: Any, tokens: int) -> Answer:
    stamps: list[float] = []
    timings: dict[str, float] = {}
    stream = client.completions.create(
        model="-", prompt=_PROMPT, max_tokens=tokens, temperature=0, stream=True
    )
    for chunk in stream:
        timings = (chunk.model_extra or {}).get("timings") or timings
        if chunk.choices and chunk.choices[0].text:
            stamps.append(time.perf_counter())
    return _answer(stamps, timings["predicted_ms"] / 1000, int(timings["predicted_n"]))


class _InProcess:
    """The engine of the wheel, in this process; a process cannot run two servers of it."""

    def __init__(self, path: Path, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = _CTX_SIZE
        params.n_parallel = 1
        params.cpuparams.n_threads = threads
        params.verbosity = 0
        self._server = xllamacpp.Server(params)

    def __call__(self, tokens: int) -> Answer:
        stamps: list[float] = []
        timings: dict[str, float] = {}

        def on_chunk(chunk: dict[str, Any]) -> bool:
            if chunk["choices"] and chunk["choices"][0]["text"]:
                stamps.append(time.perf_counter())
            timings.update(chunk.get("timings") or {})
            return False

        asks = {"prompt": _PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True}
        self._server.handle_completions(asks, on_chunk)
        return _answer(stamps, timings["predicted_ms"] / 1000, int(timings["predicted_n"]))


def _llama_bench(program: Path, path: Path, threads: int, tokens: int) -> Answer:
    flags = ["-m", str(path), "-p", "0", "-n", str(tokens), "-t", str(threads), "-r", "1"]
    done = subprocess.run(
        [str(program), *flags, "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=_DEADLINE,
    )
    (result,) = json.loads(done.stdout)
    # It measures the time of all its tokens, the first one included.
    seconds = result["avg_ns"] / 1e9 * (tokens - 1) / tokens
    return Answer(seconds, None, tokens)


def _answer(stamps: list[float], server: float, tokens: int) -> Answer:
    # Not counted by chunks: a token within a character has none of its own.
    return Answer(stamps[-1] - stamps[0], server, tokens)


if __name__ == "__main__":
    main()
