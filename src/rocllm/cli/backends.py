"""`rocllm backends`: the engines, and what is missing of those that cannot run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocllm import backends as registry
from rocllm.cli._terminal import visible
from rocllm.errors import RocllmError

HELP = "Show the engines, and what is missing of those that cannot run."


@dataclass(frozen=True, slots=True)
class _Row:
    """A backend: its name, the engine that it would run, or why it has none."""

    name: str
    available: bool
    default: bool
    engine: str | None
    why_not: str | None


def backends(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the engines, and what is missing of those that cannot run."""
    default = registry.default().name
    rows = [_look_at(name, default) for name in registry.list()]
    rows.sort(key=lambda row: (not row.default, row.name))
    if json_output:
        typer.echo(json.dumps({"backends": [asdict(row) for row in rows]}, indent=2))
        return
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for title in ("BACKEND", "AVAILABLE", "ENGINE"):
        table.add_column(title, overflow="fold")
    for row in rows:
        available = ("yes, the default" if row.default else "yes") if row.available else "no"
        told = row.engine if row.available else row.why_not
        table.add_row(row.name, available, Text(visible(told or "")))
    console.print(table)


def _look_at(name: str, default: str) -> _Row:
    engine = None
    try:
        backend = registry.get(name)
        why_not = backend.why_not()
        if why_not is None and isinstance(backend, registry.NamesEngine):
            engine = backend.engine()
    except RocllmError as exc:  # its package is broken, or its engine was removed just now
        why_not = str(exc)
    return _Row(name, why_not is None, name == default, engine, why_not)
