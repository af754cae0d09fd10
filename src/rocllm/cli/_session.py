"""What `run` and `chat` share: loading with progress, the notes around an answer."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rocllm.backends import LoadedInfo
from rocllm.catalog import resolve_model
from rocllm.cli._terminal import for_stream, one_line
from rocllm.cli.pull import pull_demo
from rocllm.errors import RocllmWarning
from rocllm.options import LoadOptions, Options, build_options
from rocllm.results import Timings, Token, Usage
from rocllm.server import LoadProgress
from rocllm.text import TextModel, load_model
from rocllm.units import format_seconds


def chosen(cls: type[Options], parameters: Mapping[str, Any]) -> Options:
    """The options of `cls` among a command's parameters; what the user left away stays decided."""
    names = {field.name for field in fields(cls)}
    values = {name: value for name, value in parameters.items() if name in names}
    return build_options(cls, {name: v for name, v in values.items() if v not in (None, [], ())})


@contextlib.contextmanager
def opened(
    model: str, options: LoadOptions, *, quiet: bool, backend: str | None = None
) -> Iterator[TextModel]:
    """The model, loaded with a progress bar and a word on what was chosen and why."""
    if model == "demo":
        pull_demo()
    path = resolve_model(model, os.environ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RocllmWarning)  # said by `_announce`
        with _progress_bar(path.name, quiet) as on_progress:
            loaded = load_model(path, backend=backend, options=options, on_progress=on_progress)
    with loaded:
        if not quiet:
            _announce(loaded.info)
        yield loaded


def has_template(model: TextModel) -> bool:
    """Whether the model's file says how a conversation is written."""
    return bool(model.info.model.chat_template)


def timings_line(usage: Usage | None, timings: Timings | None) -> str:
    """One line about how fast it went: `16 tokens, 118.2 tok/s; first token after 48 ms; …`."""
    if usage is None or timings is None:
        return "stopped"
    count = usage.completion_tokens
    parts = ["1 token" if count == 1 else f"{count} tokens"]
    if timings.predicted_per_second is not None:
        parts[0] += f", {timings.predicted_per_second:.1f} tok/s"
    if timings.time_to_first_token is not None:
        parts.append(f"first token after {format_seconds(timings.time_to_first_token)}")
    prompt = f"prompt {usage.prompt_tokens} tokens"
    if timings.prompt_per_second is not None:
        prompt += f", {timings.prompt_per_second:.1f} tok/s"
    return "; ".join([*parts, prompt, f"{format_seconds(timings.total_seconds)} in all"])


def say(token: Token, *, quiet: bool = False, raw: bool = False) -> None:
    """A token of the answer to standard output, one of the thinking before it to standard error.

    raw: a terminal obeys what is in it.
    """
    if token.reasoning and quiet:
        return
    stream = sys.stderr if token.reasoning else sys.stdout
    stream.write(for_stream(token.text, stream, raw=raw))
    stream.flush()


def note(text: str) -> None:
    """A remark beside the answer: on stderr, grey where that is a terminal."""
    typer.secho(one_line(text), err=True, dim=sys.stderr.isatty())


def _announce(info: LoadedInfo) -> None:
    devices = ", ".join(device.label for device in info.devices) or "CPU"
    note(f"device: {devices}, because {'; '.join(info.device_because)}")
    note(f"engine: {info.engine}, because {'; '.join(info.engine_because)}")
    note(f"model: {info.path.name}, {'; '.join(info.plan_because)}")
    for warning in info.warnings:
        typer.secho(f"warning: {one_line(warning)}", err=True)


@contextlib.contextmanager
def _progress_bar(name: str, quiet: bool) -> Iterator[Any]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("loading {task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(one_line(name), total=None)

        def on_progress(state: LoadProgress) -> None:
            progress.update(task, completed=state.loaded, total=state.total)

        yield on_progress
