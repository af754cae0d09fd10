"""The command line: `rocllm COMMAND …`. The only package that prints and exits.

Exit codes: 0 done; 1 something unexpected; 2 wrong usage or option; 3 the model file; 4 the GPUs;
5 the server did not start, or died; 6 a request failed; 7 a measurement is worse than allowed;
129 SIGHUP; 130 Ctrl-C; 143 SIGTERM.

A command is imported when it is used, so that `rocllm --help` is quick.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rocllm import __version__, errors
from rocllm.cli._terminal import visible

# The file of the command, and what `--help` says of it.
COMMANDS = {
    "run": "Answer one prompt.",
    "chat": "Talk with a model.",
    "devices": "Show the GPUs, which one would be used, and why.",
    "backends": "Show the engines, and what is missing of those that cannot run.",
    "doctor": "Check the machine, and say what to do about what is wrong.",
    "show": "Show what a model file says about itself.",
    "models": "List the models on this machine.",
    "plan": "Show where every byte of a model would go, and which context fits.",
    "pull": "Fetch a model.",
    "classify": "Say which label fits each row of a file.",
    "bench": "Measure models, and compare measurements.",
    "top": "Show the GPUs and the running models, live.",
}

EXIT_CODES: tuple[tuple[type[errors.RocllmError], int], ...] = (
    (errors.OptionsError, 2),
    (errors.ModelFileError, 3),
    (errors.DoesNotFit, 3),
    (errors.DeviceError, 4),
    (errors.BackendUnavailable, 5),
    (errors.ServerError, 5),
    (errors.RequestError, 6),
)


def exit_code(error: errors.RocllmError) -> int:
    """The exit code that tells what kind of error it was."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


class Commands(TyperGroup):
    """The commands by name, imported when used, with one place that turns errors into words."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of `--help`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; `None`: there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"rocllm.cli.{cmd_name}")
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(cmd_name, help=module.HELP)(getattr(module, cmd_name))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `--help`, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error ends as a message on stderr and an exit code."""
        with _errors_in_words(ctx.params.get("debug", False)):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rocllm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Run language models on AMD GPUs."""


@contextlib.contextmanager
def _errors_in_words(debug: bool) -> Iterator[None]:
    try:
        yield
    except errors.RocllmError as exc:
        _report(exc, debug)
        _leave(exit_code(exc))
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:
        # The reader has gone, as `head` does.
        _give_up_output()
        _leave(0)
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            typer.echo(f"error: the output cannot be written: {exc.strerror}", err=True)
            _give_up_output()
            _leave(1)
        if type(exc).__module__.startswith(("typer", "click")):
            raise  # wrong usage: typer says it in its own words
        _report(exc, debug)
        _leave(1)


def _give_up_output() -> None:
    """Nothing more can be said there, and Python would complain about it while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(exc: Exception, debug: bool) -> None:
    if debug:
        typer.echo(visible("".join(traceback.format_exception(exc))), err=True, nl=False)
    elif isinstance(exc, errors.RocllmError):
        # Names in files and the words of a server are in there.
        first, *rest = visible(str(exc)).splitlines()
        typer.echo("\n".join([f"error: {first}", *(f"  {line}" for line in rest)]), err=True)
    else:
        typer.echo(
            f"error: {type(exc).__name__}: {visible(str(exc))}\n"
            "  This is a fault of rocllm. Please report it with the output of: rocllm --debug …",
            err=True,
        )


def _leave(code: int) -> NoReturn:
    raise typer.Exit(code) from None
