"""`rocllm classify MODEL [FILE]`."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from rocllm.catalog import resolve_model
from rocllm.cli import _arguments as arguments
from rocllm.cli._classifying import Bar, Task, classify_rows
from rocllm.cli._ledger import Ledger, Records
from rocllm.cli._rows import TEXT, Format, Row, Rows, Template
from rocllm.cli._session import chosen, note, opened
from rocllm.cli.pull import pull_demo
from rocllm.errors import OptionsError, RocllmError
from rocllm.gguf import read_model_info
from rocllm.options import LoadOptions
from rocllm.safetensors import find_directory
from rocllm.text import checked_labels

HELP = """Say which label fits each row of a file.

FILE holds JSON objects, one a line (.jsonl), a table (.csv, .tsv) or plain lines; - or nothing:
standard input. The rows go to --output as they were, with the label and the probabilities added.
Bad rows go to --rejects. When it was ended, the same command goes on where it stopped.
"""

# Slots, and tokens of each: rows are short, and many of them make one pass.
_PARALLEL = 8
_CTX_SIZE = 2048
_KINDS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
_STDIN = "-"
_FORMATS: tuple[Format, ...] = ("jsonl", "csv", "lines")


def classify(
    ctx: typer.Context,
    model: arguments.Model,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="The rows; -: standard input.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels, with commas between them.", show_default=False)
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option(help="A file with a label on each line.", show_default=False)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="The prompt, with columns in braces; without it: {text}.", show_default=False
        ),
    ] = None,
    template_file: Annotated[
        Path | None, typer.Option(help="A file with the template.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the rows go.", show_default=False)
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="Where bad rows go; OUTPUT.rejects.jsonl.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever is in OUTPUT.")
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt through the model's chat template.")
    ] = False,
    system: arguments.System = None,
    label_prefix: Annotated[
        str | None,
        typer.Option(
            help="What stands before each label; without it: a space, where none is.",
            show_default=False,
        ),
    ] = None,
    field_prefix: Annotated[
        str, typer.Option(help="Put before the names of the columns that are added.")
    ] = "",
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option(help="jsonl, csv or lines; without it: by FILE's name.", show_default=False),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="What separates the cells of CSV.", show_default=False)
    ] = None,
    encoding: Annotated[str, typer.Option(help="The encoding of FILE.")] = "utf-8",
    quiet: arguments.Quiet = False,
    parallel: Annotated[
        int, typer.Option("--parallel", "-np", help="Slots: prompts of one pass.")
    ] = _PARALLEL,
    backend: arguments.Backend = None,
    ctx_size: arguments.CtxSize = None,
    n_gpu_layers: arguments.NGpuLayers = None,
    device: arguments.Device = None,
    cache_type_k: arguments.CacheTypeK = None,
    cache_type_v: arguments.CacheTypeV = None,
    flash_attn: arguments.FlashAttn = None,
    threads: arguments.Threads = None,
    llama_server: arguments.LlamaServer = None,
    host: arguments.Host = None,
    port: arguments.Port = None,
) -> None:
    """Read, check and resume before the model is loaded, then classify."""
    load = chosen(LoadOptions, ctx.params)
    text = _text_of("template", template, template_file)
    wanted = Template("{text}" if text is None else text)
    prefix = label_prefix
    if prefix is None:
        prefix = "" if chat or wanted.ends_in_space else " "
    names = checked_labels(_labels(labels, labels_file))
    texts = {name: prefix + name for name in names}
    if system is not None and not chat:
        raise OptionsError(
            "--system without --chat",
            why="only a conversation has a system message",
            remedy="add --chat, or write it into the template",
        )
    if output == Path(_STDIN):
        output = None
    if rejects is None and output is not None:
        rejects = output.with_name(output.name + ".rejects.jsonl")
    _check_paths(file, output, rejects)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_source(file))
        rows = Rows(source, _kind(format, file), encoding, _delimiter(delimiter, file))
        records = Records(rows, tuple(texts), field_prefix)
        first = _first_row(rows, wanted, records)
        job = {
            "model": Path(model).name,
            "template": wanted.text,
            "labels": texts,
            "chat": chat,
            "system message": system,
            "format": rows.kind,
            "field prefix": field_prefix,
            "file of bad rows": rejects.name if rejects is not None else None,
        }
        ledger = stack.enter_context(
            Ledger(records, sys.stdout.buffer, output, rejects, job, overwrite=overwrite)
        )
        left = ledger.resume(itertools.chain((first,), rows))
        following = next(left, None)
        bar = Bar(source, rejects, quiet=quiet)
        if following is not None:
            if ledger.done and not quiet:
                note(f"{ledger.done:,} rows are done already")
            task = Task(wanted, records, chat=chat, system=system)
            with opened(model, _for_rows(load, model), quiet=quiet, backend=backend) as loaded:
                rest = itertools.chain((following,), left)
                try:
                    classify_rows(loaded, rest, texts, task, ledger, bar)
                except (KeyboardInterrupt, RocllmError):
                    if ledger.again and not quiet:
                        note(f"{ledger.done:,} rows are done; {ledger.again} after them")
                    raise
    if not ledger.written:
        raise OptionsError(
            f"not one of {ledger.rejected:,} rows could be classified",
            why=f"the last one, line {ledger.last_error}" if ledger.last_error else None,
            remedy=f"see {rejects}" if rejects else None,
        )
    if not quiet:
        words = f"{ledger.written:,} rows classified, {ledger.rejected:,} rejected"
        if bar.rows:
            words += f"; {bar.rows:,} rows at {bar.rate:,.1f} rows/s"
        note(words + (f"; see {rejects}" if ledger.rejected and rejects else ""))


def _text_of(name: str, text: str | None, file: Path | None) -> str | None:
    if text is not None and file is not None:
        raise OptionsError(f"--{name} and --{name}-file are both given", remedy="give one of them")
    if file is None:
        return text
    try:
        # Neither the newline with which an editor ends a file nor the mark that Windows puts before
        # it is part of what the user means.
        return file.read_text("utf-8-sig").removesuffix("\n")
    except OSError as exc:
        raise OptionsError(f"{file} cannot be read: {exc.strerror}") from exc
    except UnicodeError as exc:
        raise OptionsError(f"{file} is not UTF-8: {exc}") from exc


def _labels(labels: str | None, file: Path | None) -> list[str]:
    text = _text_of("labels", labels, file)
    if text is None:
        raise OptionsError(
            "there are no labels", remedy="give --labels a,b,c or --labels-file with one a line"
        )
    parts = text.split("," if file is None else "\n")
    return [part.strip() for part in parts if part.strip()]


def _kind(name: str | None, file: str | None) -> Format:
    if name is None:
        return _KINDS.get(Path(file or "").suffix.lower(), "lines")
    for kind in _FORMATS:
        if name == kind:
            return kind
    raise OptionsError(f"unknown --format {name!r}", remedy=f"one of: {', '.join(_FORMATS)}")


def _delimiter(delimiter: str | None, file: str | None) -> str:
    if delimiter is None:
        return "\t" if Path(file or "").suffix.lower() == ".tsv" else ","
    delimiter = delimiter.replace("\\t", "\t")
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise OptionsError(f"--delimiter must be one character, got {delimiter!r}")
    return delimiter


@contextlib.contextmanager
def _source(file: str | None) -> Iterator[BinaryIO]:
    if file in (None, _STDIN):
        if sys.stdin.isatty():
            note("reading rows from standard input; end them with Ctrl-D")
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(open(file, "rb"))
        except OSError as exc:
            raise OptionsError(f"{file} cannot be read: {exc.strerror}") from exc
        yield source


def _check_paths(file: str | None, output: Path | None, rejects: Path | None) -> None:
    if rejects == Path(_STDIN):
        raise OptionsError(
            "--rejects must be a file, got '-'",
            why="a run that goes on looks there for the bad rows that are done",
            remedy="give it a name; bad rows are told on standard error, too",
        )
    paths = [Path(path).resolve() for path in (file, output, rejects) if path not in (None, _STDIN)]
    if len(set(paths)) < len(paths):
        raise OptionsError(
            "FILE, --output and --rejects must be different files",
            why="the rows would be written over what is read",
            remedy="give another --output",
        )


def _first_row(rows: Rows, template: Template, records: Records) -> Row:
    """The first row; what would be wrong with every row is told by it, before a model is loaded."""
    first = next(iter(rows), None)
    if first is None:
        raise OptionsError(
            "there is no row in the input",
            why="it has a header, and nothing else" if rows.header else "it is empty",
        )
    columns = rows.header or [TEXT]
    missing = [name for name in template.fields if name not in columns]
    if missing and rows.kind != "jsonl":
        raise OptionsError(
            f"there is no column {missing[0]!r}, of which the template speaks",
            why=f"the columns are: {', '.join(columns)}",
            remedy="name a column of these, or see --format and --delimiter",
        )
    clash = records.clash(first)
    if clash is not None:
        raise OptionsError(
            f"the rows have a field {clash!r} already",
            remedy="give the new ones another name: --field-prefix model_",
        )
    return first


def _for_rows(load: LoadOptions, model: str) -> LoadOptions:
    """With what pays for many short prompts; measured in docs/classify.md."""
    load = replace(load, swa_full=True)
    if load.ctx_size is not None:
        return load
    if model == "demo":
        pull_demo()
    path = resolve_model(model, os.environ)
    if find_directory(path) is not None:
        return load
    longest = read_model_info(path).context_length
    return replace(load, ctx_size=min(_CTX_SIZE, longest or _CTX_SIZE))
