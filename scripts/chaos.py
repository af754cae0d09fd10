"""Sixteen callers, one model, and a server that is killed, hung and stopped all the time.

    make chaos                      200 blows, a few minutes
    make chaos ARGS='--blows 1000 --seed 7'

Every call must end in time, with an answer or with one of rocllm's errors; every whole greedy
answer must be that of an undisturbed server; and nothing may be left behind. Prints what happened;
the exit status is 1 if any of this did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import rocllm
from rocllm.errors import (
    ConnectionLost,
    RequestTimeout,
    ServerCrashed,
    StartCancelled,
    StreamClosed,
)
from rocllm.options import RestartPolicy

CALLERS = 16
# Longest silence of the server that a call bears, and the longest that a call may take: it may wait
# for others in the queue, for several restarts, and then for its own answer, on two busy cores.
TIMEOUT = 10.0
DEADLINE = 120.0
PROMPTS = (
    "The capital of France is",
    "1, 2, 3, 4, 5,",
    "Monday, Tuesday, Wednesday,",
    "The five largest countries of the world are",
    "def factorial(n):",
    "Once upon a time there was",
)
MESSAGES = [rocllm.Message("user", "Name three colours.")]
# What may happen to a call here; another error, though typed, would be a wrong one.
EXPECTED = (ServerCrashed, StreamClosed, StartCancelled, RequestTimeout, ConnectionLost)


@dataclass
class Tally:
    """What happened, counted by many threads."""

    calls: int = 0
    whole: int = 0
    resumed: int = 0
    tokens: int = 0
    longest: float = 0.0
    typed: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, began: float, tokens: int, answer: rocllm.Completion | None) -> None:
        """A call is over."""
        with self.lock:
            self.calls += 1
            self.tokens += tokens
            self.longest = max(self.longest, time.monotonic() - began)
            if answer is not None:
                self.whole += 1
                self.resumed += bool(answer.resumed)

    def add_error(self, began: float, error: rocllm.RocllmError) -> None:
        """A call has ended with an error that it may end with."""
        with self.lock:
            self.calls += 1
            self.typed[type(error).__name__] += 1
            self.longest = max(self.longest, time.monotonic() - began)

    def fault(self, what: str) -> None:
        """Something that must not be."""
        with self.lock:
            self.faults.append(what)


class Caller:
    """One of those who use the model; each has kinds of call of his own."""

    def __init__(
        self, number: int, model: rocllm.TextModel, expected: dict[str, str], tally: Tally
    ) -> None:
        self.chance = random.Random(number)
        self.model = model
        self.expected = expected
        self.tally = tally

    def run(self, over: threading.Event) -> None:
        """Call until it is over."""
        kinds: list[Callable[[], None]] = [
            self.plain,
            self.plain,
            self.resume,
            self.leave,
            self.chat,
        ]
        while not over.is_set():
            began = time.monotonic()
            try:
                self.chance.choice(kinds)()
            except EXPECTED as exc:
                self.tally.add_error(began, exc)
            except Exception as exc:  # noqa: BLE001  to be shown
                self.tally.fault(f"{type(exc).__name__}: {exc}")

    def plain(self) -> None:
        """An answer read to its end."""
        self._read(resume=False)

    def resume(self) -> None:
        """One that goes on after a crash."""
        self._read(resume=True)

    def leave(self) -> None:
        """A stream that its reader leaves."""
        began = time.monotonic()
        with self.model.generate(self.chance.choice(PROMPTS), max_tokens=-1) as stream:
            for _ in zip(range(self.chance.randrange(8)), stream, strict=False):
                pass
        self.tally.add(began, len(stream.tokens), None)

    def chat(self) -> None:
        """A conversation."""
        began = time.monotonic()
        answer = self.model.chat(MESSAGES, max_tokens=12).read()
        self._check("chat", answer)
        self.tally.add(began, len(answer.tokens), answer)

    def _read(self, *, resume: bool) -> None:
        began = time.monotonic()
        prompt = self.chance.choice(PROMPTS)
        answer = self.model.generate(prompt, max_tokens=12, resume=resume).read()
        self._check(prompt, answer)
        self.tally.add(began, len(answer.tokens), answer)

    def _check(self, prompt: str, answer: rocllm.Completion) -> None:
        if answer.text != self.expected[prompt]:
            self.tally.fault(
                f"{prompt!r} gave {answer.text!r} instead of {self.expected[prompt]!r}"
            )


def strike(model: rocllm.TextModel, chance: random.Random) -> str:
    """One blow, and what it was."""
    kinds = [signal.SIGKILL] * 6 + [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM]
    throw = chance.random()
    if throw < 0.15:
        model.stop()
        return "stop"
    number = signal.SIGSTOP if throw < 0.17 else chance.choice(kinds)
    pid = model.info.pid
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    return number.name


async def few_async_callers(model: rocllm.TextModel, over: threading.Event, tally: Tally) -> None:
    """The same server, from asyncio: tasks that are cancelled at any moment."""
    chance = random.Random(0)
    client = rocllm.AsyncTextModel(model._loaded)
    try:
        while not over.is_set():
            began = time.monotonic()
            call = asyncio.ensure_future(client.generate(PROMPTS[0], max_tokens=12).read())
            await asyncio.wait({call}, timeout=chance.uniform(0, 1))
            call.cancel()
            try:
                answer = await call
                tally.add(began, len(answer.tokens), answer)
            except asyncio.CancelledError:
                tally.add(began, 0, None)
            except EXPECTED as exc:
                tally.add_error(began, exc)
            except Exception as exc:  # noqa: BLE001  to be shown
                tally.fault(f"asyncio: {type(exc).__name__}: {exc}")
    finally:
        client._abandoned.detach()
        await client._connection.aclose()


def open_files() -> dict[str, str]:
    """This process's descriptors, and what they are."""

    def entries() -> Iterator[tuple[str, str]]:
        for each in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                yield each.name, os.readlink(each)

    return dict(entries())


def processes_in(folder: str) -> list[int]:
    """Processes that were started with a path below `folder` in their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(folder) in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def main() -> int:
    """Run it and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--limit", type=float, default=540.0, help="most seconds")
    options = parser.parse_args()
    chance, tally, blows = random.Random(options.seed), Tally(), collections.Counter[str]()
    over = threading.Event()
    before, threads_before = open_files(), threading.active_count()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        environ = {**os.environ, "XDG_RUNTIME_DIR": folder}
        with rocllm.load_model(
            options.model,
            environ=environ,
            ctx_size=512,
            parallel=4,
            threads=1,
            timeout=TIMEOUT,
            restart=RestartPolicy(max_restarts=10 * options.blows, backoff=0.01, backoff_max=0.1),
        ) as model:
            expected = {p: model.generate(p, max_tokens=12).read().text for p in PROMPTS}
            expected["chat"] = model.chat(MESSAGES, max_tokens=12).read().text
            callers = [
                threading.Thread(target=Caller(n, model, expected, tally).run, args=(over,))
                for n in range(CALLERS)
            ]
            callers.append(
                threading.Thread(target=asyncio.run, args=(few_async_callers(model, over, tally),))
            )
            for caller in callers:
                caller.start()
            while sum(blows.values()) < options.blows and time.monotonic() - began < options.limit:
                time.sleep(chance.expovariate(0.8))
                blows[strike(model, chance)] += 1
            over.set()
            for caller in callers:
                caller.join(DEADLINE)
            hanging = sum(caller.is_alive() for caller in callers)
        left = os.listdir(folder)
        orphans = processes_in(folder)
    leaked = {n: what for n, what in open_files().items() if before.get(n) != what}
    threads = threading.active_count() - threads_before
    print(f"blows                  {sum(blows.values())}: {dict(blows)}")
    print(f"seconds                {time.monotonic() - began:.0f}")
    left_early = tally.calls - tally.whole - tally.typed.total()
    print(f"calls made             {tally.calls}, of which whole {tally.whole} "
          f"({tally.resumed} of them resumed), left or cancelled {left_early}")  # fmt: skip
    print(f"tokens                 {tally.tokens}")
    print(f"typed errors           {dict(tally.typed)}")
    print(f"longest wait           {tally.longest:.1f} s (deadline {DEADLINE:.0f} s)")
    print(f"callers that hang      {hanging}")
    print(f"orphans                {len(orphans)}")
    print(f"leaked descriptors     {len(leaked)} {sorted(leaked.values())}")
    print(f"leaked sockets, directories {len(left)} {left}")
    print(f"leaked threads         {threads}")
    print(f"wrong answers and untyped errors {len(tally.faults)}")
    for fault in collections.Counter(tally.faults).most_common(20):
        print(f"    {fault[1]} times: {fault[0]}")
    few = sum(blows.values()) < options.blows
    if few:
        print(f"only {sum(blows.values())} of {options.blows} blows in {options.limit:.0f} s")
    bad = [hanging, orphans, leaked, left, threads, tally.faults, few, tally.longest > DEADLINE]
    return 1 if any(bad) or not tally.whole else 0


if __name__ == "__main__":
    sys.exit(main())
