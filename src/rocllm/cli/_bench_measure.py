"""From the parameters of `rocllm bench` to a report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import typer
from rich.console import Console

from rocllm import backends
from rocllm.bench import (
    QUICK,
    Report,
    Step,
    Suite,
    find_engines,
    fitting,
    keep_report,
    run_suite,
    setups,
)
from rocllm.catalog import resolve_model
from rocllm.cli._session import chosen, note
from rocllm.cli.pull import pull_demo
from rocllm.errors import OptionsError
from rocllm.options import LoadOptions

# What all setups are loaded with; `flash_attn` is a list here, and part of each setup.
_SHARED = ("ctx_size", "n_gpu_layers", "device", "threads")


def measure(given: Mapping[str, Any], names: Sequence[str]) -> Report:
    """Measure the models of these names as the parameters of the command say, and keep the run."""
    suite = _suite(given)
    load = chosen(LoadOptions, {name: given[name] for name in _SHARED})
    if "demo" in names:
        pull_demo()
    paths = [resolve_model(name, os.environ) for name in names]
    planned = fitting(
        setups(
            paths,
            find_engines(_engines(given), os.environ),
            cast(Any, _split(given["flash_attn"]) or (None,)),  # `Setup` refuses what there is not
            _split(given["cache_types"]) or (None,),
        )
    )
    with _progress(quiet=given["quiet"]) as on_step:
        report = run_suite(planned, suite, load, on_step=on_step)
    if report.measured:
        _keep(report, quiet=given["quiet"])
    return report


def _engines(given: Mapping[str, Any]) -> list[str]:
    engines, backend = _split(given["engines"]), given["backend"]
    if engines and backend:
        raise OptionsError(
            "--engines and --backend are both given",
            remedy=f"name the backend among the engines: --engines {given['engines']},{backend}",
        )
    # Without a name it is the default backend that looks for its engine.
    return [backend] if backend not in (None, backends.default().name) else engines


def _suite(given: Mapping[str, Any]) -> Suite:
    values: dict[str, Any] = {
        name: given[name]
        for name in ("decode_tokens", "repetitions", "warmups", "cell_seconds")
        if given[name] is not None
    }
    for name in ("callers", "prompt_lengths"):
        if given[name] is not None:
            values[name] = tuple(_numbers(name, given[name]))
    if given["only"] is not None:
        values["kinds"] = tuple(_split(given["only"]))
    return dataclasses.replace(QUICK if given["quick"] else Suite(), **values)


def _split(text: str | None) -> list[str]:
    return [part for part in map(str.strip, (text or "").split(",")) if part]


def _numbers(name: str, text: str) -> Iterator[int]:
    for part in _split(text):
        if not part.isdecimal():
            option = f"--{name.replace('_', '-')}"
            raise OptionsError(f"{option}: {part!r} is no whole number", remedy="for example: 1,4")
        yield int(part)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Step], None] | None]:
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield None
    elif console.is_terminal:
        with console.status("starting") as status:
            yield lambda step: status.update(_words(step))
    else:
        yield lambda step: note(_words(step)) if step.cell is not None else None


def _words(step: Step) -> str:
    where = f"setup {step.setup + 1} of {step.setups}, " if step.setups > 1 else ""
    if step.cell is None:
        return f"{where}{step.workload}: {step.repetition + 1} of {step.repetitions}"
    end = "failed" if step.cell.error else "skipped" if step.cell.skipped else "done"
    return f"{where}{step.workload}: {end}"


def _keep(report: Report, *, quiet: bool) -> None:
    try:
        path = keep_report(report, os.environ)
    except OSError as exc:
        typer.echo(f"warning: the run could not be kept: {exc}", err=True)
        return
    if not quiet:
        note(f"kept in {path}")
