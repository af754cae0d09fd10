"""What the benchmarks found, next to what is wanted of it; imported by the others.

A script tells each figure with `tell`, which prints it. `benchmarks/all.py` collects the figures of
all of them through a file and prints them as the table of docs/performance.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rocllm import env
from rocllm.bench import MachineInfo
from rocllm.server import find_server

# The file into which figures go; without it they are only printed.
VARIABLE = "ROCLLM_BENCH_FIGURES"
# Packages that stand beside rocllm in one benchmark or another.
_PACKAGES = ("rocllm", "xllamacpp", "openai", "llm", "gguf")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. ours, beside: what it was made of, in words. least, most: what is wanted."""

    what: str
    ours: str
    beside: str
    value: float
    unit: str = ""
    digits: int = 3
    least: float | None = None
    most: float | None = None

    @property
    def wanted(self) -> str:
        """In words; nothing where nothing is."""
        if self.least is not None:
            return f"at least {self.least:g}{self.unit}"
        return "" if self.most is None else f"at most {self.most:g}{self.unit}"

    @property
    def missed(self) -> bool:
        """It is not as it is wanted."""
        return (self.least is not None and self.value < self.least) or (
            self.most is not None and self.value > self.most
        )

    @property
    def text(self) -> str:
        """The figure with its unit."""
        return f"{self.value:.{self.digits}f}{self.unit}"


def tell(figure: Figure) -> None:
    """Print a figure and what to think of it, and keep it for the table of all."""
    verdict = "missed" if figure.missed else "met"
    wanted = f", wanted {figure.wanted}: {verdict}" if figure.wanted else ""
    print(f"{figure.what}: {figure.text}{wanted}", flush=True)
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(asdict(figure)) + "\n")


def told(path: Path) -> tuple[Figure, ...]:
    """The figures in a file."""
    return tuple(Figure(**json.loads(line)) for line in path.read_text().splitlines())


def table(figures: Iterable[Figure]) -> str:
    """Markdown."""
    rows = ["| what | rocllm | beside it | figure | wanted | |", "|---|---|---|---|---|---|"]
    for one in figures:
        verdict = ("missed" if one.missed else "met") if one.wanted else ""
        rows.append(
            f"| {one.what} | {one.ours} | {one.beside} | {one.text} | {one.wanted} | {verdict} |"
        )
    return "\n".join(rows)


def conditions(machine: MachineInfo, date: str) -> str:
    """Machine, versions and date in a sentence."""
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    native = native_server()
    binary = find_server(str(native) if native else "embedded", os.environ)
    load = "" if machine.load_average is None else f", load average {machine.load_average:.1f}"
    return (
        f"Measured on {date}: {machine.name}, {machine.system}, kernel {machine.kernel}{load}; "
        f"Python {machine.python}, {binary.kind} llama-server {binary.version}, "
        f"{', '.join(versions)}."
    )


def native_server() -> Path | None:
    """The llama-server of `scripts/native`, where it was built."""
    built = env.cache_dir(os.environ) / "native/bin/llama-server"
    return built if built.exists() else None
