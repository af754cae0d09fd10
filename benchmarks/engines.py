"""The same engine three ways: behind HTTP, in a worker without HTTP, in the calling process.

    python benchmarks/engines.py [--model demo] [--rounds 5] [--tokens 128] [--threads N] [--json]

All three run the llama.cpp of the xllamacpp wheel, so what differs is what lies between it and
the caller: `rocm` (a llama-server child, HTTP over a UNIX socket), `inprocess` (a worker process,
frames over a socket pair), `inprocess` with `worker=False` (the calling process). Each has a
program of its own, which does what it is told over its standard input; the three take turns, and
each round begins with another one, and with loading in programs that were started for it.

Start: from the call of `load_model` to the first token. First token: of a prompt of 100 tokens that
is not cached; beside it without the engine's own time for the prompt. Decode: tokens a second on
the caller's clock, and the caller's time for a token over the engine's own. CPU: processor time of
a token with its share of the prompt, of program and engine together. Classify: prompts a second, 4
slots, 2 labels. Tokenize: one call. Memory: what is not a mapped file, of program and engine.
Crash: from SIGKILL of the engine to the first token of the next answer; in the calling process it
is the end of the program.

Ratios are over `rocm`, round by round. On a busy machine read those only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rocllm

SUBJECTS: dict[str, dict[str, Any]] = {
    "rocm": {"backend": "rocm", "llama_server": "embedded"},
    "inprocess": {"backend": "inprocess"},
    "inprocess, worker=False": {"backend": "inprocess", "worker": False},
}
_BASE = "rocm"
# What is measured: its name in the table, the factor, the unit.
_FIGURES: dict[str, tuple[str, float, str]] = {
    "start": ("start to the first token", 1e3, "ms"),
    "first_token": ("first token", 1e3, "ms"),
    "first_token_outside": ("  of it outside the engine", 1e3, "ms"),
    "rate": ("decode", 1, "tok/s"),
    "per_token": ("time of a token over the engine's", 1e6, "µs"),
    "cpu": ("CPU of a token, all processes", 1e3, "ms"),
    "concurrent": ("4 callers, 4 slots", 1, "tok/s"),
    "classify": ("classify", 1, "prompts/s"),
    "tokenize": ("tokenize", 1e6, "µs"),
    "memory": ("memory, all processes", 1 / 2**20, "MiB"),
    "memory_program": ("  of it in the program", 1 / 2**20, "MiB"),
    "crash": ("crash to the next first token", 1e3, "ms"),
}
_SLOTS = 4
_CLASSIFIED = 64


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a path, or a name")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of the engine"
    )
    parser.add_argument("--json", action="store_true", help="every figure of every round")
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.subject is not None:
        _Subject(arguments).serve()
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in SUBJECTS}
    names = list(SUBJECTS)
    for number in range(arguments.rounds + 1):
        first = number % len(names)
        measured = _round(arguments, names[first:] + names[:first], number)
        if number:  # the first is not counted: files come from the disk
            for name in names:
                rounds[name].append(measured[name])
    if arguments.json:
        print(json.dumps(rounds, indent=2))
    else:
        _print(arguments, rounds)


def _round(
    arguments: argparse.Namespace, names: list[str], number: int
) -> dict[str, dict[str, float]]:
    programs = {}
    figures: dict[str, dict[str, float]] = {name: {} for name in names}
    try:
        for name in names:
            programs[name] = _Program(arguments, name)
            figures[name] |= programs[name].ask("start")
        for step in ("decode", "concurrent", "classify", "tokenize", "memory", "crash"):
            for name in names:
                figures[name] |= programs[name].ask(step, number)
    finally:
        for program in programs.values():
            program.close()
    return figures


class _Program:
    """A program that has one of the engines, as its user has."""

    def __init__(self, arguments: argparse.Namespace, name: str) -> None:
        passed = [f"--{key}={getattr(arguments, key)}" for key in ("model", "tokens", "threads")]
        self._process = subprocess.Popen(
            (sys.executable, __file__, "--subject", name, *passed),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, step: str, number: int = 0) -> dict[str, float]:
        """Do something, and what was measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{step} {number}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a program ended in {step!r}; what it said is above")
        told: dict[str, float] = json.loads(line)
        return told

    def close(self) -> None:
        """Let it end."""
        self._process.communicate(timeout=60)


class _Subject:
    """What runs in such a program."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._model: rocllm.TextModel | None = None

    def serve(self) -> None:
        """Do what standard input says, until it ends."""
        steps: dict[str, Callable[[int], dict[str, float]]] = {
            "start": self._start,
            "decode": self._decode,
            "concurrent": self._concurrent,
            "classify": self._classify,
            "tokenize": self._tokenize,
            "memory": self._memory,
            "crash": self._crash,
        }
        try:
            for line in sys.stdin:
                step, number = line.split()
                print(json.dumps(steps[step](int(number))), flush=True)
        finally:
            if self._model is not None:
                self._model.close()

    @property
    def model(self) -> rocllm.TextModel:
        """The model, after the start."""
        assert self._model is not None
        return self._model

    def _start(self, _number: int) -> dict[str, float]:
        arguments = self._arguments
        options = {"parallel": _SLOTS, "ctx_size": 512, "threads": arguments.threads}
        started = time.perf_counter()
        self._model = rocllm.load_model(
            arguments.model, **{**options, **SUBJECTS[arguments.subject]}
        )
        next(self.model.generate("1,", max_tokens=1))
        return {"start": time.perf_counter() - started}

    def _decode(self, number: int) -> dict[str, float]:
        prompt = self.model.tokenize(f"{number + 1}. A story of a lighthouse keeper. " * 20)[:100]
        before = self._cpu()
        reply = self.model.generate(prompt, max_tokens=self._arguments.tokens).read()
        cpu, timings = self._cpu() - before, reply.timings
        assert timings.time_to_first_token is not None
        tokens = len(reply.tokens)
        decoding = timings.total_seconds - timings.time_to_first_token
        return {
            "first_token": timings.time_to_first_token,
            "first_token_outside": timings.time_to_first_token - timings.prompt_seconds,
            "rate": (tokens - 1) / decoding,
            "per_token": (decoding - timings.predicted_seconds) / (tokens - 1),
            "cpu": cpu / tokens,
        }

    def _concurrent(self, number: int) -> dict[str, float]:
        prompts = [f"{number}.{caller}. A story of the sea:" for caller in range(_SLOTS)]
        started = time.perf_counter()
        results = list(self.model.batch_generate(prompts, max_tokens=32, max_in_flight=_SLOTS))
        tokens = sum(len(result.tokens) for result in results)
        return {"concurrent": tokens / (time.perf_counter() - started)}

    def _classify(self, number: int) -> dict[str, float]:
        prompts = [
            f"Say whether it is good or bad.\nReview: {number}.{row}\nSentiment:"
            for row in range(_CLASSIFIED)
        ]
        started = time.perf_counter()
        for result in self.model.classify(prompts, labels=[" good", " bad"]):
            assert result.error is None
        return {"classify": _CLASSIFIED / (time.perf_counter() - started)}

    def _tokenize(self, _number: int) -> dict[str, float]:
        times = []
        for _ in range(50):
            started = time.perf_counter()
            self.model.tokenize("The capital of France is")
            times.append(time.perf_counter() - started)
        return {"tokenize": statistics.median(times)}

    def _memory(self, _number: int) -> dict[str, float]:
        program = _anonymous(os.getpid())
        engine = _anonymous(self.model.info.pid)
        return {"memory": program + engine, "memory_program": program}

    def _crash(self, _number: int) -> dict[str, float]:
        if self.model.info.pid is None:
            return {}
        started = time.perf_counter()
        os.kill(self.model.info.pid, signal.SIGKILL)
        next(self.model.generate("1,", max_tokens=1))
        return {"crash": time.perf_counter() - started}

    def _cpu(self) -> float:
        """Seconds of processor time, of this program and of the engine."""
        return time.process_time() + _cpu_of(self.model.info.pid)


def _cpu_of(pid: int | None) -> float:
    if pid is None:
        return 0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _anonymous(pid: int | None) -> int:
    """Bytes of a process that are not pages of a file."""
    if pid is None:
        return 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell the memory of a process")


def _print(arguments: argparse.Namespace, rounds: Mapping[str, list[dict[str, float]]]) -> None:
    print(
        f"{arguments.model}, {arguments.threads} thread(s), {arguments.tokens} tokens, "
        f"{arguments.rounds} rounds, load average {os.getloadavg()[0]:.1f}\n"
    )
    print(f"{'':34}" + "".join(f"{name:>26}" for name in rounds))
    for key, (title, factor, unit) in _FIGURES.items():
        cells = []
        for name, each in rounds.items():
            values = [one[key] * factor for one in each if key in one]
            if not values:
                cells.append("-")
                continue
            cell = f"{statistics.median(values):.4g} {unit}"
            if name != _BASE and key != "per_token":
                pairs = zip(each, rounds[_BASE], strict=True)
                ratio = statistics.median(one[key] / other[key] for one, other in pairs)
                cell += f" ({ratio:.2f})"
            cells.append(cell)
        print(f"{title:34}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
