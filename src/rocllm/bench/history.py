"""Every run is kept, so that an upgrade can be judged: one JSON file each, in the state directory.

A file is written beside its place and then moved there: it is whole, or it is not there.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rocllm import env
from rocllm.bench.report import Report, Subject, decode_report, encode_report
from rocllm.errors import OptionsError


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept run."""

    path: Path
    report: Report


@dataclass(frozen=True, slots=True)
class History:
    """Kept runs, the oldest first. unreadable: why a file could not be used, by its path."""

    entries: tuple[Entry, ...]
    unreadable: Mapping[Path, str]


def history_dir(environ: Mapping[str, str]) -> Path:
    """Where runs are kept: `$XDG_STATE_HOME/rocllm/bench`."""
    return env.state_dir(environ) / "bench"


def keep_report(report: Report, environ: Mapping[str, str]) -> Path:
    """Add a run to the history; the file that holds it. Raises `OSError` when it cannot be kept."""
    folder = history_dir(environ)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{re.sub(r'[^0-9T]', '', report.started[:19])}-{secrets.token_hex(4)}.json"
    write_whole(folder / name, encode_report(report))
    return folder / name


def write_whole(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it. Raises `OSError`.

    A device or a pipe is written to and never replaced; a link stays, and its file is written.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_report(path: Path) -> Report:
    """A report from its file. Raises `OptionsError` when that is none, or cannot be read."""
    try:
        text = path.read_bytes()
    except OSError as exc:
        raise OptionsError(
            f"cannot read {str(path)!r}: {exc.strerror}",
            remedy="give a file that `rocllm bench --json FILE` wrote",
        ) from exc
    return decode_report(text, str(path))


def read_history(environ: Mapping[str, str], model: str | None = None) -> History:
    """The kept runs.

    model: only those of a model that has this in the name of its file, or in its title.

    >>> len(read_history({"HOME": "/nowhere"}).entries)
    0
    """
    entries: list[Entry] = []
    unreadable: dict[Path, str] = {}
    for path in sorted(history_dir(environ).glob("[0-9]*.json")):
        try:
            report = read_report(path)
        except OptionsError as exc:
            unreadable[path] = str(exc)
            continue
        if model is None or any(is_of(subject, model) for subject in report.subjects):
            entries.append(Entry(path, report))
    entries.sort(key=lambda entry: (entry.report.started, entry.path))
    return History(tuple(entries), unreadable)


def is_of(subject: Subject, model: str) -> bool:
    """The subject is the model that is meant."""
    wanted = model.casefold()
    return wanted in subject.file.casefold() or wanted in subject.title.casefold()
