"""`rocllm models`: which models are on this machine."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rocllm.catalog import DiscoveredModel, Source, discover_models
from rocllm.cli._terminal import one_line
from rocllm.units import format_bytes, format_count

HELP = """List the models on this machine.

Looked through are the folders of ROCM_MODEL_DIR, rocllm's own, and the stores of the Hugging Face
Hub, llama.cpp, LM Studio and Ollama. Any of the names can be given to rocllm run, or its beginning.
"""

# In the order in which they are searched.
_STORES: dict[Source, str] = {
    "folder": "your folders",
    "rocllm": "rocllm",
    "huggingface": "Hugging Face cache",
    "llama.cpp": "llama.cpp cache",
    "lmstudio": "LM Studio",
    "ollama": "Ollama",
}


def models(
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="FOLDER", help="Further folders.", show_default=False),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models on this machine."""
    found = discover_models(os.environ, folders or ())
    if json_output:
        typer.echo(json.dumps({"models": [_as_json(model) for model in found]}, indent=2))
    else:
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNFOLDED
        _print(Console(highlight=False, width=width), found)


def _as_json(model: DiscoveredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "names": list(model.names),
        "path": str(model.path),
        "parts": [str(part) for part in model.parts],
        "source": model.source,
        "file_size": model.file_size,
        "architecture": model.architecture,
        "size_label": model.size_label,
        "parameter_count": model.parameter_count,
        "quantization": model.quantization,
        "context_length": model.context_length,
        "chat_template": model.chat_template,
        "mmproj": [str(path) for path in model.mmproj],
        "adapters": [str(path) for path in model.adapters],
        "problem": model.problem,
    }


# No terminal, so nothing is folded: names must be whole where they are searched for.
_UNFOLDED = 10_000


def _print(console: Console, found: tuple[DiscoveredModel, ...]) -> None:
    usable = [model for model in found if model.problem is None]
    if usable:
        console.print(_table(usable))
    else:
        console.print("no models; fetch one: rocllm pull demo")
    for model in found:
        if model.problem is not None:
            text = f"not usable: {one_line(str(model.path))}: {one_line(model.problem)}"
            console.print(Text(text, style="yellow"), soft_wrap=True)


def _table(models: list[DiscoveredModel]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold", min_width=20)
    table.add_column("arch", overflow="fold")
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("quant", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("context", justify="right", no_wrap=True)
    notes = [note for model in models for note in _notes(model)]
    table.add_column("notes", min_width=max(map(len, notes), default=0))
    for source, title in _STORES.items():
        there = [model for model in models if model.source == source]
        if there:
            table.add_row(Text(title, style="bold"))
        for model in there:
            table.add_row(*map(Text, _row(model)))
    return table


def _row(model: DiscoveredModel) -> tuple[str, ...]:
    return (
        f"  {one_line(model.name)}",
        one_line(model.architecture or "-"),
        "-" if model.parameter_count is None else format_count(model.parameter_count),
        model.quantization or "-",
        "-" if model.file_size is None else format_bytes(model.file_size),
        "-" if model.context_length is None else str(model.context_length),
        "\n".join(_notes(model)),
    )


def _notes(model: DiscoveredModel) -> list[str]:
    notes = []
    if len(model.parts) > 1:
        notes.append(f"{len(model.parts)} files")
    if model.mmproj:
        notes.append("mmproj")
    if model.adapters:
        notes.append(f"{len(model.adapters)} LoRA")
    if model.chat_template is False:
        notes.append("no template")
    return notes
