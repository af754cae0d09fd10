"""How many prompts a second are classified: rocllm next to what a user would write instead.

    python benchmarks/classify.py [--model demo] [--prompts 2000] [--parallel 8] [--threads N]

One server; the contenders take turns with a part of the prompts each, in an order that changes, and
rates are of the whole. Compared with `TextModel.classify`:

hand-written, a request each   two `http.client` connections a slot, one prompt a request, the label
                               recipe (a common bias on the labels, `top_k`, probabilities after)
hand-written, arrays           two connections, as many prompts a request as there are slots
one after another              one connection, and the likeliest token instead of probabilities; a
                               tenth of the prompts

All get the same prompts, each at another time, and all prompts have the same beginning. `passes`
and `tokens` are what the server computed (`llamacpp:n_decode_total`, `prompt_tokens_total`): on a
GPU the passes decide, on a CPU the tokens. Ratios are medians of those of the parts.

With --command the same prompts go through `rocllm classify`, too, model load and all.

Wanted: rocllm at 0.95 or more of the better hand-written one. On a busy machine read ratios only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rocllm
from figures import Figure, native_server, tell

WANTED = 0.95
LABELS = {"positive": " positive", "negative": " negative"}
# Words for the reviews; no two prompts share more than the head.
_THINGS = ("film", "plot", "cast", "music", "ending", "script", "camera", "story", "dialogue")
_MOODS = ("wonderful", "terrible", "boring", "brilliant", "clumsy", "moving", "flat", "lovely")
_HEAD = (
    "Classify the sentiment of each review as positive or negative.\n"
    "Review: I loved every minute of it, and so did my parents.\nSentiment: positive\n"
    "Review: Two hours of my life that nobody will give back to me.\nSentiment: negative\n"
)
# Parts into which the prompts are cut, so that a busy minute hits all contenders.
_PARTS = 10
# Of the prompts of a part, one in so many goes through the loop, which takes turns like the others.
_SEQUENTIAL = 10
# A connection carries 100 requests, then the server closes it.
_REQUESTS = 95
_DEADLINE = 300.0

Contender = Callable[[rocllm.TextModel, Sequence[str]], list[str]]


@dataclass
class Score:
    """What a contender needed so far."""

    seconds: float = 0.0
    cpu: float = 0.0
    passes: int = 0
    tokens: int = 0
    prompts: int = 0
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Prompts a second, in all."""
        return self.prompts / self.seconds

    def over(self, other: Score) -> float:
        """How many times the rate of another one; each part by itself had the same neighbours."""
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a path, or a name")
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--parallel", type=int, default=8, help="slots")
    parser.add_argument("--ctx-size", type=int, default=512, help="tokens of a slot")
    # All cores: the client's work is a fiftieth of the engine's, and half of the time is saved.
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--llama-server", default=native_server(), help="path, or embedded")
    parser.add_argument("--command", action="store_true", help="time rocllm classify, too")
    arguments = parser.parse_args()
    prompts = [_prompt(number) for number in range(arguments.prompts)]
    contenders: dict[str, Contender] = {
        "TextModel.classify": _ours,
        "hand-written, a request each": _each,
        "hand-written, arrays": _arrays,
        "one after another": _sequential,
    }
    with rocllm.load_model(
        arguments.model,
        parallel=arguments.parallel,
        ctx_size=arguments.ctx_size,
        threads=arguments.threads,
        llama_server=arguments.llama_server,
        swa_full=True,
    ) as model:
        print(f"{model.info.engine}, {model.info.path.name}, {arguments.parallel} slots")
        _ours(model, prompts[: 2 * arguments.parallel])  # warms up, and fills every slot
        scores = _measure(model, contenders, prompts)
    _print(scores)
    if arguments.command:
        _command(arguments, prompts)


def _prompt(number: int) -> str:
    # The number first: no two prompts share more than the head, in whatever slot they come.
    text = f"{number * 7 % 10_000:04}: {_MOODS[number % 8]} {_THINGS[number // 8 % 9]}."
    return f"{_HEAD}Review: {text}\nSentiment:"


def _measure(
    model: rocllm.TextModel, contenders: dict[str, Contender], prompts: Sequence[str]
) -> dict[str, Score]:
    scores = {name: Score() for name in contenders}
    answers: dict[str, dict[str, str]] = {name: {} for name in contenders}
    names = list(contenders)
    for part in range(_PARTS):
        for name in names[part % len(names) :] + names[: part % len(names)]:
            # Never what the one before had: its last prompts are still in the slots.
            chunk = prompts[(part + 3 * names.index(name)) % _PARTS :: _PARTS]
            if name == names[-1]:
                chunk = chunk[::_SEQUENTIAL]
            score, before = scores[name], _counts(model)
            cpu, started = time.process_time(), time.monotonic()
            labels = contenders[name](model, chunk)
            seconds = time.monotonic() - started
            score.seconds += seconds
            score.rates.append(len(chunk) / seconds)
            score.cpu += time.process_time() - cpu
            after = _counts(model)
            score.passes += after[0] - before[0]
            score.tokens += after[1] - before[1]
            score.prompts += len(chunk)
            answers[name] |= dict(zip(chunk, labels, strict=True))
    # Two labels may be so close that it matters which prompts shared a pass.
    differ = [p for p in prompts if len({answers[name][p] for name in names[:-1]}) != 1]
    if len(differ) > len(prompts) // 100:
        raise RuntimeError(f"the contenders do not agree on the label of {differ[0]!r}")
    return scores


def _ours(model: rocllm.TextModel, prompts: Sequence[str]) -> list[str]:
    labels = []
    for result in model.classify(prompts, labels=LABELS):
        if result.error is not None or result.label is None:
            raise RuntimeError(str(result.error))
        labels.append(result.label)
    return labels


def _each(model: rocllm.TextModel, prompts: Sequence[str]) -> list[str]:
    return _hand_written(model, prompts, size=1, workers=2 * model.info.parallel)


def _arrays(model: rocllm.TextModel, prompts: Sequence[str]) -> list[str]:
    return _hand_written(model, prompts, size=model.info.parallel, workers=2)


def _sequential(model: rocllm.TextModel, prompts: Sequence[str]) -> list[str]:
    connection = _Connection(model)
    bodies = ({"prompt": prompt, "n_predict": 1, "temperature": 0} for prompt in prompts)
    return [connection.post(body)["content"].strip() for body in bodies]


def _hand_written(
    model: rocllm.TextModel, prompts: Sequence[str], *, size: int, workers: int
) -> list[str]:
    names = {model.tokenize(text)[0]: name for name, text in LABELS.items()}
    recipe = {
        "n_predict": 1,
        "temperature": 1,
        "samplers": ["top_k"],
        "top_k": len(names),
        "n_probs": len(names),
        "post_sampling_probs": True,
        "logit_bias": [[token, 100] for token in names],
        "response_fields": ["completion_probabilities"],
    }
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for first in range(0, len(prompts), size):
        jobs.put(first)
    labels = [""] * len(prompts)

    def work() -> None:
        connection = _Connection(model)
        while True:
            try:
                first = jobs.get_nowait()
            except queue.Empty:
                return
            some = list(prompts[first : first + size])
            answer = connection.post({"prompt": some if size > 1 else some[0], **recipe})
            for place, one in enumerate(answer if isinstance(answer, list) else [answer], first):
                best = one["completion_probabilities"][0]["top_probs"][0]
                labels[place] = names[best["id"]]

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return labels


class _Connection:
    """`http.client` on the server's socket, with a new connection before the server closes it."""

    def __init__(self, model: rocllm.TextModel) -> None:
        assert model.info.endpoint is not None
        self._path = model.info.endpoint.socket_path
        self._http: http.client.HTTPConnection | None = None
        self._requests = 0

    def post(self, body: dict[str, Any]) -> Any:
        return json.loads(self.ask("POST", "/completion", json.dumps(body)))

    def ask(self, method: str, target: str, body: str | None = None) -> bytes:
        if self._http is None or self._requests >= _REQUESTS:
            self._http = http.client.HTTPConnection("localhost")
            self._http.sock = socket.socket(socket.AF_UNIX)
            self._http.sock.settimeout(_DEADLINE)
            self._http.sock.connect(str(self._path))
            self._requests = 0
        self._requests += 1
        self._http.request(method, target, body)
        return self._http.getresponse().read()


def _counts(model: rocllm.TextModel) -> tuple[int, int]:
    """Passes and prompt tokens computed so far, as the server counts them."""
    text = _Connection(model).ask("GET", "/metrics").decode()
    names = ("n_decode_total", "prompt_tokens_total")
    found = [re.search(rf"^llamacpp:{name} (\d+)", text, re.MULTILINE) for name in names]
    passes, tokens = (int(each[1]) if each else 0 for each in found)
    return passes, tokens


def _print(scores: dict[str, Score]) -> None:
    ours = scores["TextModel.classify"]
    heads = ("prompts/s", "ours over it", "passes", "tokens", "CPU/prompt")
    print(f"{'':30}{heads[0]:>10}{heads[1]:>14}{heads[2]:>8}{heads[3]:>8}{heads[4]:>12}")
    for name, score in scores.items():
        cpu = f"{score.cpu / score.prompts * 1e6:.0f} µs"
        row = f"{name:30}{score.rate:10.1f}{ours.over(score):13.3f}x"
        print(f"{row}{score.passes:8}{score.tokens:8}{cpu:>12}")
    hand = {name: score for name, score in scores.items() if name.startswith("hand")}
    best = max(hand.values(), key=lambda score: score.rate)
    mine, naive = f"{ours.rate:.1f} prompts/s", scores["one after another"]
    print()
    for what, other, least in (
        ("the best hand-written client", best, WANTED),
        ("a loop, one after another", naive, None),
    ):
        title = f"classification, over {what}"
        rate = f"{other.rate:.1f} prompts/s"
        tell(Figure(title, mine, rate, ours.over(other), least=least))


def _command(arguments: argparse.Namespace, prompts: Sequence[str]) -> None:
    """The same prompts through the command line, model load and all."""
    with tempfile.TemporaryDirectory() as folder:
        rows, out = Path(folder, "rows.jsonl"), Path(folder, "out.jsonl")
        rows.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
        command = [sys.executable, "-m", "rocllm", "classify", arguments.model, str(rows)]
        command += ["-o", str(out), "--labels", ",".join(LABELS), "--threads"]
        command += [str(arguments.threads), "--parallel", str(arguments.parallel)]
        command += ["--ctx-size", str(arguments.ctx_size)]
        if arguments.llama_server:
            command += ["--llama-server", arguments.llama_server]
        started = time.monotonic()
        done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        seconds = time.monotonic() - started
        print(f"rocllm classify: {seconds:.1f} s in all; {done.stderr.splitlines()[-1]}")


if __name__ == "__main__":
    main()
