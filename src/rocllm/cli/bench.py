"""`rocllm bench`: measure models, compare measurements, look at earlier ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from rocllm.bench import (
    Comparison,
    History,
    Report,
    compare_reports,
    encode_report,
    need_charts,
    read_history,
    read_report,
    to_markdown,
    write_charts,
    write_whole,
)
from rocllm.catalog import resolve_model
from rocllm.cli import _arguments as arguments
from rocllm.cli._bench_measure import measure
from rocllm.cli._bench_tables import print_comparison, print_history, print_report
from rocllm.cli._session import note
from rocllm.errors import ModelFileError, OptionsError

HELP = """Measure models, and compare measurements.

Measured are loading, the decoding of 128 tokens, the first token after prompts of several lengths,
and several callers at once, each with a slot of its own. With lists for --engines, --flash-attn or
--cache-types every combination is measured. A run is kept, so that later ones can be compared.

\b
    rocllm bench model.gguf --charts charts --markdown report.md
    rocllm bench model.gguf --flash-attn on,off
    rocllm bench model.gguf --engines native,embedded,vulkan=/opt/vulkan/llama-server
    rocllm bench model.gguf --compare last --max-regression 10
    rocllm bench --compare A.json B.json
    rocllm bench --history

A report (a file, or `last` for the newest that is kept) in the place of MODEL is shown again.
"""

# What ends the program when a figure became worse than allowed.
_REGRESSED = 7
_LAST = "last"
_STDOUT = "-"


def bench(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Models, or a report to show again.", show_default=False
        ),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="native, embedded, PATH, NAME=PATH, or a backend.",
            show_default=False,
        ),
    ] = None,
    flash_attn: Annotated[
        str | None, typer.Option(metavar="LIST", help="on, off, auto.", show_default=False)
    ] = None,
    cache_types: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Types of the KV cache: f16,q8_0.", show_default=False),
    ] = None,
    callers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="How many at once: 1,2,4,8.", show_default=False),
    ] = None,
    prompt_lengths: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="In tokens: 128,512,2048.", show_default=False),
    ] = None,
    decode_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer: 128.", show_default=False)
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(help="Measurements of a cell: 5.", show_default=False)
    ] = None,
    warmups: Annotated[
        int | None, typer.Option(help="Before them, not counted: 1.", show_default=False)
    ] = None,
    cell_seconds: Annotated[
        float | None, typer.Option(help="After so long, a cell has enough: 60.", show_default=False)
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="load, decode, prompt, concurrent.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, to try it out.")] = False,
    json_output: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON.", show_default=False)
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Write Markdown.", show_default=False)
    ] = None,
    charts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw charts, as PNG and SVG.", show_default=False),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="OLD", help="An earlier report, or last.", show_default=False),
    ] = None,
    max_regression: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT", help="Fail if a figure is worse by more.", show_default=False
        ),
    ] = None,
    history: Annotated[bool, typer.Option("--history", help="List earlier runs.")] = False,
    quiet: arguments.Quiet = False,
    backend: arguments.Backend = None,
    ctx_size: arguments.CtxSize = None,
    n_gpu_layers: arguments.NGpuLayers = None,
    device: arguments.Device = None,
    threads: arguments.Threads = None,
) -> None:
    """Measure or read, write what was asked for, compare, and keep."""
    names = models or []
    _check(json_output, markdown, charts, compare, max_regression)
    if history:
        _list(names, json_output)
        return
    if not names and compare is None:
        raise OptionsError(
            "there is nothing to measure",
            remedy="give a model: rocllm bench MODEL; or list earlier runs: rocllm bench --history",
        )
    # The one to compare with is read first: it is not to be found missing after an hour.
    reports = [name for name in names if name == _LAST or name.endswith(".json")]
    measured = not reports and bool(names)
    old = _old(compare, names if measured else [], newest_too=bool(names))
    report = measure(ctx.params, names) if measured else _read(names, reports)
    if measured or old is None:
        _write(report, json_output, markdown, charts, quiet=quiet)
    if measured:
        _leave_if_incomplete(report)
    if old is not None:
        comparison = compare_reports(old, report)
        _write_comparison(comparison, None if measured else json_output)
        _judge(comparison, max_regression)


def _check(
    json_output: str | None,
    markdown: str | None,
    charts: Path | None,
    compare: str | None,
    max_regression: float | None,
) -> None:
    """Refuse what could not be done at the end."""
    if json_output == markdown == _STDOUT:
        raise OptionsError(
            "--json and --markdown both go to standard output", remedy="give one of them a file"
        )
    for option, target in (("--json", json_output), ("--markdown", markdown)):
        folder = Path(target or _STDOUT).parent
        if target not in (None, _STDOUT) and not folder.is_dir():
            raise OptionsError(
                f"{option} {target}: there is no folder {str(folder)!r}",
                remedy=f"mkdir -p {folder}",
            )
    if charts is not None:
        need_charts()
    if max_regression is not None and compare is None:
        raise OptionsError(
            "--max-regression needs something to compare with", remedy="give --compare, too"
        )


def _list(names: Sequence[str], json_output: str | None) -> None:
    if len(names) > 1:
        raise OptionsError("--history takes one model at most")
    found = _history(names[0] if names else None)
    if json_output is not None:
        listed = [
            {"path": str(entry.path), **json.loads(encode_report(entry.report))}
            for entry in found.entries
        ]
        _put(json_output, json.dumps(listed, indent=2, ensure_ascii=False))
    elif found.entries:
        print_history(_console(), found.entries)
    else:
        typer.echo("no run is kept" + (f" of a model like {names[0]!r}" if names else ""))
    for path, why in found.unreadable.items():
        typer.echo(f"warning: {path} was left out: {' '.join(why.splitlines())}", err=True)


def _history(name: str | None) -> History:
    """The kept runs of a model, which may be given as in any other command."""
    if name is None:
        return read_history(os.environ)
    with contextlib.suppress(ModelFileError):
        name = resolve_model(name, os.environ).name
    return read_history(os.environ, name)


def _old(compare: str | None, models: Sequence[str], *, newest_too: bool) -> Report | None:
    """What to compare with. newest_too: the newest that is kept, and not the one before it."""
    if compare is None:
        return None
    if compare != _LAST:
        return read_report(Path(compare))
    kept = _history(models[0] if models else None).entries
    wanted = 1 if newest_too else 2
    if len(kept) < wanted:
        raise OptionsError(
            f"there {'is no earlier run' if wanted == 1 else 'are no two runs'} to compare",
            why=f"{len(kept)} {'are' if len(kept) != 1 else 'is'} kept"
            + (f" of {models[0]}" if models else ""),
            remedy="measure first: rocllm bench MODEL; see rocllm bench --history",
        )
    return kept[-wanted].report


def _read(names: Sequence[str], reports: Sequence[str]) -> Report:
    """The report that was named; without a name the newest that is kept."""
    if len(names) > 1:
        raise OptionsError(
            f"{' '.join(names)}: one report at a time",
            why="names that end in .json are reports, and so is `last`",
            remedy="compare two with: rocllm bench --compare A.json B.json",
        )
    if reports and reports[0] != _LAST:
        return read_report(Path(reports[0]))
    kept = read_history(os.environ).entries
    if not kept:
        raise OptionsError("no run is kept", remedy="measure first: rocllm bench MODEL")
    return kept[-1].report


def _write(
    report: Report,
    json_output: str | None,
    markdown: str | None,
    charts: Path | None,
    *,
    quiet: bool,
) -> None:
    # The tables stay visible when standard output belongs to a file format.
    console = _console(stderr=_STDOUT in (json_output, markdown))
    print_report(console, report)
    if json_output is not None:
        _put(json_output, encode_report(report))
    if markdown is not None:
        _put(markdown, to_markdown(report))
    if charts is not None:
        try:
            drawn = write_charts(report, charts)
        except OSError as exc:
            raise _unwritable(str(charts), exc) from exc
        if not quiet:
            note("drawn: " + ", ".join(map(str, drawn)))


def _write_comparison(comparison: Comparison, json_output: str | None) -> None:
    print_comparison(_console(stderr=json_output == _STDOUT), comparison)
    if json_output is not None:
        _put(json_output, json.dumps(dataclasses.asdict(comparison), indent=2, ensure_ascii=False))


def _put(target: str, text: str) -> None:
    if target == _STDOUT:
        typer.echo(text)
        return
    try:
        write_whole(Path(target), text if text.endswith("\n") else text + "\n")
    except OSError as exc:
        raise _unwritable(target, exc) from exc


def _unwritable(target: str, exc: OSError) -> OptionsError:
    return OptionsError(
        f"cannot write {target!r}: {exc.strerror}",
        remedy="the run is kept all the same: rocllm bench last --json FILE",
    )


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=not sys.stdout.isatty())


def _leave_if_incomplete(report: Report) -> None:
    if report.interrupted:
        typer.echo("interrupted: what was measured before is kept", err=True)
        _leave(130)
    if not report.measured:
        typer.echo("error: nothing could be measured", err=True)
        _leave(5)


def _judge(comparison: Comparison, max_regression: float | None) -> None:
    if max_regression is None:
        return
    unknown = [one for one in comparison.changes if one.verdict == "too few samples"]
    if unknown:
        typer.echo(f"{len(unknown)} figures have too few samples to be judged", err=True)
    worse = comparison.regressions(max_regression)
    if worse:
        figures = "; ".join(comparison.name(one) for one in worse)
        typer.echo(f"worse by more than {max_regression:g} %: {figures}", err=True)
        _leave(_REGRESSED)


def _leave(code: int) -> NoReturn:
    raise typer.Exit(code)
