"""Rows through a model: prompts out of them, results into the ledger, word of it to the user."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rocllm.cli._ledger import Ledger, Records
from rocllm.cli._rows import Row, Template
from rocllm.cli._terminal import one_line
from rocllm.results import Message, Prompt
from rocllm.text import TextModel

# Bad rows that are told one by one.
_TOLD = 10
# Seconds between two movements of the progress bar.
_STEP = 0.1


class Task:
    """What is made of each row.

    system: the system message of a conversation; only with `chat`.
    """

    def __init__(
        self, template: Template, records: Records, *, chat: bool, system: str | None
    ) -> None:
        self._template = template
        self._records = records
        self._chat = chat
        self._opening = [] if system is None else [Message("system", system)]

    def prompt(self, row: Row) -> Prompt:
        """The prompt of a row. Raises `ValueError` for a row that cannot be one."""
        if row.error is not None:
            raise ValueError(row.error)
        clash = self._records.clash(row)
        if clash is not None:
            raise ValueError(f"it has a field {clash!r} already; see --field-prefix")
        text = self._template.render(row.values)
        if not text:
            raise ValueError("the prompt is empty")
        return [*self._opening, Message("user", text)] if self._chat else text


def classify_rows(
    model: TextModel,
    rows: Iterator[Row],
    labels: Mapping[str, str],
    task: Task,
    ledger: Ledger,
    bar: Bar,
) -> None:
    """Classify every row and write it, or what is wrong with it, in the order of the rows."""
    # The rows under way, each with its error; as many as the batch has taken and not given back.
    under_way: deque[tuple[Row, str | None]] = deque()

    def prompts() -> Iterator[Prompt]:
        for row in rows:
            try:
                prompt, error = task.prompt(row), None
            except ValueError as exc:
                # It goes through as an empty prompt, which costs nothing, and so keeps its place.
                prompt, error = "", str(exc)
            under_way.append((row, error))
            yield prompt

    with bar, model.classify(prompts(), labels=labels) as results:
        for result in results:
            row, error = under_way.popleft()
            if error is None and result.error is not None:
                error = "; ".join(str(result.error).splitlines())
            if error is None:
                ledger.write(row, result)
            else:
                ledger.reject(row, error)
                bar.tell(row, error)
            bar.move(row)


class Bar:
    """A progress bar on a terminal, with rate and time left; bad rows are told above it."""

    def __init__(self, source: BinaryIO, rejects: Path | None, *, quiet: bool) -> None:
        self._console = Console(stderr=True)
        self._rejects = rejects
        self._quiet = quiet
        self._progress: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._progress = Progress(
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
        self._size = _size(source)
        self._rows = 0
        self._told = 0
        self._began = self._moved = time.monotonic()

    def __enter__(self) -> None:
        self._began = time.monotonic()
        if self._progress is not None:
            self._progress.start()

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self._rows / max(time.monotonic() - self._began, 1e-9)

    @property
    def rows(self) -> int:
        """Rows of this run."""
        return self._rows

    def move(self, row: Row) -> None:
        """A row is done."""
        self._rows += 1
        now = time.monotonic()
        if self._progress is None or now - self._moved < _STEP:
            return
        self._moved = now
        rate = f"{self._rows:,} rows, {self.rate:,.1f} rows/s"
        if not self._progress.tasks:
            # It begins where an earlier run stopped, so that the rate is that of this one.
            self._progress.add_task("", total=self._size, completed=row.end, rate=rate)
        self._progress.update(self._progress.tasks[0].id, completed=row.end, rate=rate)

    def tell(self, row: Row, error: str) -> None:
        """A bad row; of many only the first are told."""
        self._told += 1
        if self._told <= _TOLD:
            self._console.print(
                f"line {row.line}: {one_line(error)}", markup=False, highlight=False, soft_wrap=True
            )
        elif self._told == _TOLD + 1:
            where = f"are in {self._rejects}" if self._rejects else "are kept with --rejects FILE"
            self._console.print(f"more bad rows {where}", markup=False, soft_wrap=True)


def _size(source: BinaryIO) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # it is no file of the system's
        status = os.fstat(source.fileno())
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None
