"""`rocllm doctor`: what stands between this machine and a model on its GPU, and what to do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rocllm.catalog import resolve_model
from rocllm.cli._arguments import require_machine
from rocllm.cli._terminal import one_line
from rocllm.doctor import (
    Finding,
    Verdict,
    examine,
    fail,
    finding,
    in_one_line,
    ok,
    unknown,
    warn,
)
from rocllm.errors import ModelNotFound, OptionsError, RocllmError, RocllmWarning
from rocllm.text import load_model

HELP = "Check the machine, and say what to do about what is wrong."

# The exit code of errors about GPUs.
_FAILED = 4
_PROMPT = "The capital of France is"
_PROOF_TOKENS = 4
_PROOF_CTX = 512
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "dim"}
_WORDS = {"ok": "ok", "warn": "warn", "fail": "fail", "unknown": "?"}
# Columns: state, id, evidence.
_ID_AT, _EVIDENCE_AT = 8, 24
_WIDEST = 100


def doctor(
    root: Annotated[
        Path,
        typer.Option(help="Folder with another machine's /sys, /dev and so on."),
    ] = Path("/"),
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Offer to run the safe remedies; each is asked for.")
    ] = False,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="Leave out the generation with the demo model.")
    ] = False,
) -> None:
    """Check the machine, print what was found, and exit with 4 if a check failed."""
    here = os.path.realpath(root) == "/"
    require_machine(root)
    if fix and (json_output or not here):
        other = "--json" if json_output else "--root"
        raise OptionsError(
            f"--fix and {other} do not go together",
            why="a fix is asked for first, and changes this machine",
        )
    findings = examine(root, os.environ)
    findings = (*findings, finding("generation", "proof", _proof(findings, here, no_run)))
    if json_output:
        typer.echo(json.dumps(_as_json(findings), indent=2))
    else:
        _print(Console(highlight=False), findings)
    if fix:
        _offer_fixes(findings)
    if any(found.state == "fail" for found in findings):
        raise typer.Exit(_FAILED)


def _proof(findings: Sequence[Finding], here: bool, no_run: bool) -> Verdict:
    if not here:
        return unknown("it is not looked at on another machine")
    if no_run:
        return unknown("left out (--no-run)")
    if any(found.id == "llama-server" and found.state != "ok" for found in findings):
        return unknown("no llama-server to run")
    try:
        model = resolve_model("demo", os.environ)
    except ModelNotFound:
        return Verdict("unknown", "the demo model is not here", "fetch it", "rocllm pull demo")
    return _generate(model)


def _generate(path: Path) -> Verdict:
    """A few tokens from the demo model, as any user would get them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RocllmWarning)  # they are in `info`
            model = load_model(path, ctx_size=_PROOF_CTX)
        with model:
            answer = model.generate(_PROMPT, max_tokens=_PROOF_TOKENS).read()
            info = model.info
    except RocllmError as exc:
        return fail(in_one_line(exc), exc.remedy)
    where = ", ".join(device.label for device in info.devices) or "the CPU"
    speed = answer.timings.predicted_per_second
    rate = f" at {speed:.0f} tok/s" if speed is not None else ""
    said = f"{_PROMPT + answer.text!r}, {answer.usage.completion_tokens} tokens{rate} on {where}"
    return warn(f"{said}; {info.warnings[0]}") if info.warnings else ok(said)


def _as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    fields = ("id", "group", "state", "evidence", "remedy", "command", "fixes")
    return {
        "healthy": all(found.state != "fail" for found in findings),
        "counts": _counts(findings),
        "findings": [{name: getattr(found, name) for name in fields} for found in findings],
    }


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    counted = Counter(found.state for found in findings)
    return {state: counted[state] for state in ("ok", "warn", "fail", "unknown")}


def _print(console: Console, findings: Sequence[Finding]) -> None:
    width = min(console.width, _WIDEST)
    for group, members in groupby(findings, key=lambda found: found.group):
        console.print(Text(group, style="bold"))
        for line, style in _group_lines(list(members), width):
            console.print(Text(line, style=style), soft_wrap=True)
    console.print(Text(_summary(findings)), soft_wrap=True)


def _group_lines(findings: Sequence[Finding], width: int) -> Iterator[tuple[str, str]]:
    """What is known, in order; then what is not, together where the reason is the same."""
    reasons: dict[str, list[Finding]] = {}
    for found in findings:
        if found.state == "unknown":
            reasons.setdefault(found.evidence, []).append(found)
            continue
        yield from _lines(found, [found.id], width)
    for same in reasons.values():
        yield from _lines(same[0], [found.id for found in same], width)


def _lines(found: Finding, ids: Sequence[str], width: int) -> Iterator[tuple[str, str]]:
    head = f"  {_WORDS[found.state]}".ljust(_ID_AT)
    if len(ids) == 1:
        first, indent = f"{head}{ids[0]}".ljust(_EVIDENCE_AT - 1) + " ", _EVIDENCE_AT
        text = found.evidence
    else:
        first, indent = head, _ID_AT
        text = f"{', '.join(ids)}: {found.evidence}"
    style = _STYLES[found.state] if found.state != "ok" else ""
    for line in _wrapped(text, first, indent, width):
        yield line, style
    if found.remedy is not None:
        for line in _wrapped(found.remedy, " " * _ID_AT + "-> ", _ID_AT + 3, width):
            yield line, ""
    if found.command is not None:  # in one piece, so that it can be copied
        yield " " * _ID_AT + f"$ {one_line(found.command)}", "bold"


def _wrapped(text: str, first: str, indent: int, width: int) -> list[str]:
    return textwrap.wrap(
        one_line(" ".join(text.split())),
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(findings: Sequence[Finding]) -> str:
    counts = _counts(findings)
    failed = ", ".join(found.id for found in findings if found.state == "fail")
    warned = ", ".join(found.id for found in findings if found.state == "warn")
    parts = [f"{counts['fail']} failed ({failed})"] if failed else []
    parts += [f"{counts['warn']} warned ({warned})"] if warned else []
    parts += [f"{counts['ok']} ok"]
    parts += [f"{counts['unknown']} unknown"] if counts["unknown"] else []
    return f"{len(findings)} checks: {', '.join(parts)}"


def _offer_fixes(findings: Sequence[Finding]) -> None:
    commands = {found.command: found.remedy for found in findings if found.fixes and found.command}
    if not commands:
        typer.echo("nothing that --fix could run", err=True)
    for command, remedy in commands.items():
        _offer(command, remedy)


def _agreed() -> bool:
    """A yes at the terminal. Ctrl-C ends the program, as it does elsewhere; Ctrl-D is a no."""
    typer.echo("  run it? [y/N]: ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        typer.echo(err=True)
    return answer.strip().lower() in ("y", "yes")


def _offer(command: str, remedy: str | None) -> None:
    typer.echo(f"fix: {command}", err=True)
    if not sys.stdin.isatty():
        typer.echo("  not run: standard input is no terminal to ask at", err=True)
        return
    if not _agreed():
        return
    try:
        status = subprocess.run(shlex.split(command), check=False).returncode
    except OSError as exc:
        typer.echo(f"  not run: {exc}", err=True)
        return
    if status:
        typer.echo(f"  it ended with exit status {status}", err=True)
        return
    still = (remedy or "").partition(", then ")[2]  # what the command has not done
    typer.echo(f"  done; now {still}" if still else "  done", err=True)
