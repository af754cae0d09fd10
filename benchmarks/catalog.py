"""What it costs to list the models on a machine.

    python benchmarks/catalog.py [--files 1000] [--rounds 5]

The files are generated: 24 layers, a vocabulary of 2,000 tokens, holes for data; a real vocabulary
of 32,000 to 262,000 tokens adds 5 to 20 ms to the first time. Listed are they for the first time
(nothing in the index, but the operating system has the files in memory), again with the index, and
by name as `rocllm run NAME` does it. The table shows the best round, for load from outside only
ever adds; the goals for 1,000 files are 3 s and 0.1 s.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rocllm import env
from rocllm.catalog import discover_models, resolve_model
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.tiny_models import tiny_llama, tiny_vocabulary


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000, help="models in the folder")
    parser.add_argument("--rounds", type=int, default=5, help="of which the best counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environ = {"HOME": folder, env.MODEL_DIR: f"{folder}/models", "OLLAMA_MODELS": folder}
        _write(Path(folder, "models"), arguments.files)
        print(f"{arguments.files} files of {Path(folder, 'models/7.gguf').stat().st_size} bytes")
        rows: dict[str, Callable[[], object]] = {
            "list, first time": lambda: _list_anew(environ),
            "list, with index": lambda: discover_models(environ),
            "find by name": lambda: resolve_model("7", environ),
        }
        print(f"{'seconds':20}{'elapsed':>9}{'CPU':>9}")
        for name, run in rows.items():
            rounds = [_seconds(run) for _ in range(arguments.rounds)]
            elapsed, cpu = (min(times) for times in zip(*rounds, strict=True))
            print(f"{name:20}{elapsed:9.3f}{cpu:9.3f}")


def _write(folder: Path, count: int) -> None:
    folder.mkdir()
    metadata, tensors = tiny_llama(n_layers=24)
    metadata |= tiny_vocabulary(n_words=1741)  # and 259 special tokens
    for number in range(count):
        write_gguf(folder / f"{number}.gguf", metadata, tensors, data="hole")


def _list_anew(environ: Mapping[str, str]) -> object:
    (env.cache_dir(environ) / "models.json").unlink(missing_ok=True)
    return discover_models(environ)


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


if __name__ == "__main__":
    main()
