"""`rocllm top`: the GPUs and the running models, live."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from rocllm.cli._arguments import require_machine
from rocllm.cli._top_look import ANSWER_TIMEOUT, Look, Watch, as_json
from rocllm.cli._top_view import frame
from rocllm.errors import OptionsError

HELP = "Show the GPUs and the running models, live."

# Shorter ones would mostly measure rocllm itself.
_SHORTEST = 0.1
# Seconds between drawings, so that a window that is resized looks right soon.
_REDRAW = 0.25
# Seconds that a look which will not be followed by another waits for servers.
_PATIENCE = ANSWER_TIMEOUT + 0.25


def top(
    root: Annotated[
        Path,
        typer.Option(help="Folder with another machine's /sys and /dev, as of a bug report."),
    ] = Path("/"),
    interval: Annotated[float, typer.Option("--interval", "-i", help="Seconds between looks.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="Look once, print it, and end.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON; without --once a line for each look.")
    ] = False,
) -> None:
    """Show the GPUs and the running models, live. Ctrl-C ends it."""
    require_machine(root)
    if not _SHORTEST <= interval < float("inf"):
        raise OptionsError(
            f"--interval is {interval} s", remedy=f"give {_SHORTEST} or more; the usual is 1"
        )
    watch = Watch(root)
    try:
        console = Console(highlight=False)
        if console.options.ascii_only and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # models are called what they are called
        if once:
            _once(watch, interval, console, json_output)
        elif json_output:
            _repeat(watch, interval, lambda look: typer.echo(json.dumps(as_json(look))))
        elif console.is_terminal and not console.is_dumb_terminal:
            _live(watch, interval, console)
        else:
            _repeat(watch, interval, lambda look: _print(look, console, end="\n\n"))
    finally:
        watch.close()


def _once(watch: Watch, interval: float, console: Console, json_output: bool) -> None:
    look = watch.look(_PATIENCE)
    if look.models:  # tokens per second are a difference
        time.sleep(interval)
        look = watch.look(_PATIENCE)
    if json_output:
        typer.echo(json.dumps(as_json(look), indent=2))
    else:
        _print(look, console)


def _live(watch: Watch, interval: float, console: Console) -> None:
    """Draw on the terminal's second screen, so that the first one is as it was afterwards."""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            due = time.monotonic() + interval
            look = watch.look(_REDRAW)
            while True:
                live.update(frame(look, console, console.height, "Ctrl-C ends"), refresh=True)
                left = due - time.monotonic()
                if left <= 0:
                    break
                time.sleep(min(left, _REDRAW))


def _repeat(watch: Watch, interval: float, show: Callable[[Look], None]) -> None:
    """One frame after the other, for a pipe, a file or a terminal that cannot do more."""
    while True:
        due = time.monotonic() + interval
        show(watch.look(min(interval, _PATIENCE)))
        time.sleep(max(0.0, due - time.monotonic()))


def _print(look: Look, console: Console, end: str = "\n") -> None:
    with console.capture() as capture:
        console.print(frame(look, console))
    # Not by rich, which ends with an error when the reader of a pipe has gone.
    lines = (line.rstrip() for line in capture.get().splitlines())
    print("\n".join(lines), end=end, flush=True)
