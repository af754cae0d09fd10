"""What rocllm adds to the start: of a model, of a Python program, of the command line.

    python benchmarks/startup.py [--model demo] [--rounds 11] [--threads N]

Loading: from the call of `load_model` to the first token, beside a bare spawn: the very process
that rocllm started (its command line and its environment, read from /proc, with another socket),
asked for its health every millisecond and then for a token. What rocllm does before, that is
finding GPUs, reading the model file, planning, is part of its side. Wanted: at most 1.05.

Importing: `python -c 'import rocllm'` beside `python -c pass`; wanted: at most 60 ms more. The help
text: `rocllm --help` beside `llm --help` of the package `llm`, where it is installed; wanted: at
most a quarter.

Both sides of a comparison take turns. The table has medians, and the best beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import rocllm
from figures import Figure, native_server, tell

WANTED_LOAD = 1.05
WANTED_IMPORT = 60  # milliseconds
WANTED_HELP = 0.25
_PROMPT = "The capital of France is"
_POLL = 0.001
_DEADLINE = 120.0


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="a path, or a name")
    parser.add_argument("--rounds", type=int, default=11, help="of each comparison")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of the engine"
    )
    parser.add_argument("--llama-server", default=native_server(), help="path, or embedded")
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    _loading(arguments.model, arguments.threads, arguments.llama_server, arguments.rounds)
    _programs(arguments.rounds)


def _loading(name: str, threads: int, llama_server: Path | str | None, rounds: int) -> None:
    def load() -> rocllm.TextModel:
        return rocllm.load_model(
            name, ctx_size=1024, parallel=1, threads=threads, llama_server=llama_server
        )

    with load() as model:
        pid = model.info.pid
        argv = _words(Path(f"/proc/{pid}/cmdline"))
        environ = dict(word.split("=", 1) for word in _words(Path(f"/proc/{pid}/environ")))
        print(f"\n{model.info.path.name}, {model.info.engine}, {threads} thread(s)")

    def through_rocllm() -> float:
        started = time.perf_counter()
        with load() as model, model.generate(_PROMPT, max_tokens=1) as stream:
            next(iter(stream))
            return time.perf_counter() - started

    times = _take_turns(
        {"rocllm": through_rocllm, "bare spawn": lambda: _bare_spawn(argv, environ)}, rounds
    )
    _print("seconds to the first token", times, 1)
    # Of each round by itself: both sides had the same neighbours.
    ratio = statistics.median(
        one / two for one, two in zip(times["rocllm"], times["bare spawn"], strict=True)
    )
    mine, bare = (f"{statistics.median(each):.3f} s" for each in times.values())
    what = "from load_model to the first token, over a bare spawn"
    tell(Figure(what, mine, bare, ratio, most=WANTED_LOAD))


def _words(path: Path) -> list[str]:
    return [word.decode() for word in path.read_bytes().split(b"\0") if word]


def _bare_spawn(argv: Sequence[str], environ: Mapping[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/s.sock"
        theirs = str(Path(argv[argv.index("--host") + 1]).parent)
        command = [word.replace(theirs, folder) for word in argv]
        command[command.index("--host") + 1] = address
        os.mkdir(f"{folder}/slots")  # where rocllm's own directory has one, too
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**environ, "XDG_CONFIG_HOME": folder},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not _healthy(address):
                if process.poll() is not None or time.perf_counter() - started > _DEADLINE:
                    raise RuntimeError(f"the bare server did not start: {' '.join(command)}")
                time.sleep(_POLL)
            _first_token(address)
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def _healthy(address: str) -> bool:
    try:
        with _connected(address) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _first_token(address: str) -> None:
    asks = {"prompt": _PROMPT, "n_predict": 1, "temperature": 0, "stream": True}
    body = json.dumps(asks).encode()
    with _connected(address) as connection:
        connection.sendall(
            b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        received = b""
        while b"data: " not in received:
            data = connection.recv(65536)
            if not data:
                raise RuntimeError(f"the bare server hung up after {received!r}")
            received += data


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_DEADLINE)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _programs(rounds: int) -> None:
    python = sys.executable
    folder = str(Path(python).parent)
    commands = {
        "python -c pass": [python, "-c", "pass"],
        "import rocllm": [python, "-c", "import rocllm"],
        "import, and load_model": [python, "-c", "import rocllm; rocllm.load_model"],
    }
    for program in ("rocllm", "llm"):
        found = shutil.which(program, path=folder)
        if found is not None:
            commands[f"{program} --help"] = [found, "--help"]
    runs = {name: _runner(command) for name, command in commands.items()}
    times = _take_turns(runs, rounds)
    print()
    _print("milliseconds of a program", times, 1000)
    middle = {name: statistics.median(each) for name, each in times.items()}
    words = {name: f"{seconds * 1000:.0f} ms" for name, seconds in middle.items()}
    bare, ours, theirs = "python -c pass", "rocllm --help", "llm --help"
    more = (middle["import rocllm"] - middle[bare]) * 1000
    what = "import rocllm, more than bare Python"
    tell(Figure(what, words["import rocllm"], words[bare], more, " ms", 0, most=WANTED_IMPORT))
    if ours not in middle or theirs not in middle:
        print(f"not both are installed in {folder}: rocllm and llm (pip install 'rocllm[bench]')")
        return
    ratio = middle[ours] / middle[theirs]
    what = f"{ours}, over {theirs}"
    tell(Figure(what, words[ours], words[theirs], ratio, most=WANTED_HELP))


def _runner(command: Sequence[str]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_DEADLINE)
        return time.perf_counter() - started

    return run


def _take_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each in every round, and another one first each time; one round before is not counted."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = runs[name]()
            if number:
                times[name].append(seconds)
    return times


def _print(what: str, times: Mapping[str, list[float]], factor: float) -> None:
    digits = 3 if factor == 1 else 0
    print(f"{what:28}{'median':>9}{'best':>9}")
    for name, each in times.items():
        middle, best = statistics.median(each) * factor, min(each) * factor
        print(f"{name:28}{middle:9.{digits}f}{best:9.{digits}f}")


if __name__ == "__main__":
    main()
