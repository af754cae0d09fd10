"""Where classified rows go, and how a run that was ended finds the row to go on with.

Rows are written in the order of the input, each at once and whole, bad ones to a file of their own
together with the number of their line. So after a kill the two files say themselves how far the
run was: the input is read again from its beginning and each row is looked for, as a bad one by its
line, as a good one by its content. A record that broke off in the middle is cut away. What was
asked (template, labels, model) stands in a third file, and is not changed half way.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import itertools
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from rocllm.cli._rows import TEXT, Row, Rows
from rocllm.errors import OptionsError
from rocllm.results import ClassifyResult

# Seconds of work that a power failure may cost; a kill costs none.
_SYNC_INTERVAL = 1.0
# Digits that mean something: probabilities of two runs agree to 1e-5.
_DIGITS = 6


class Records:
    """What a row looks like in the output: the row as it was, and after it what the model said.

    labels: names. prefix: put before the names of what is added.
    """

    def __init__(self, rows: Rows, labels: tuple[str, ...], prefix: str) -> None:
        self._rows = rows
        self._labels = labels
        self._names = [prefix + name for name in ("label", "probability", "margin")]
        self._all = prefix + "probabilities"
        self._columns = [*self._names, *(f"{prefix}probability_{label}" for label in labels)]

    def clash(self, row: Row) -> str | None:
        """A field of the row that has the name of one that is added."""
        added = self._columns if self._rows.kind == "csv" else [*self._names, self._all]
        return next((name for name in added if name in row.values), None)

    def head(self) -> bytes:
        """What the output begins with."""
        if self._rows.kind != "csv":
            return b""
        return self._cells([*self._rows.header, *self._columns])

    def encode(self, row: Row, result: ClassifyResult) -> bytes:
        """The record of a row."""
        probabilities = {name: round(result.probabilities[name], _DIGITS) for name in self._labels}
        values = [
            result.label,
            round(result.probability or 0.0, _DIGITS),
            round(result.margin or 0.0, _DIGITS),
        ]
        if isinstance(row.source, list):
            return self._cells([*row.source, *values, *probabilities.values()])
        added = dict(zip(self._names, values, strict=True)) | {self._all: probabilities}
        return (self._beginning(row) + json.dumps(added, ensure_ascii=False)[1:] + "\n").encode()

    def is_whole(self, record: bytes) -> bool:
        """It did not break off; a line end may also be in a cell of CSV."""
        return record.endswith(b"\n") and (self._rows.kind != "csv" or record.count(b'"') % 2 == 0)

    def is_of(self, row: Row, record: bytes) -> bool:
        """The record is that of the row."""
        text = record.decode(errors="replace")
        if isinstance(row.source, list):
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=self._rows.delimiter))
            width = len(row.source)
            return cells[:width] == row.source and len(cells) == width + len(self._columns)
        return text.startswith(self._beginning(row)) and text.endswith("}\n")

    def _beginning(self, row: Row) -> str:
        """The row up to what is added; its numbers stay as they were written."""
        assert isinstance(row.source, str)
        if self._rows.kind == "lines":
            return json.dumps({TEXT: row.source}, ensure_ascii=False)[:-1] + ", "
        inner = row.source.strip().removesuffix("}").rstrip()
        return inner if inner == "{" else inner + ", "

    def _cells(self, cells: list[Any]) -> bytes:
        text = io.StringIO(newline="")
        # Python 3.11 leaves a lone \r without quotes, and reads it as the end of the row.
        risky = any("\r" in str(cell) for cell in cells)
        csv.writer(
            text,
            delimiter=self._rows.delimiter,
            lineterminator="\n",
            quoting=csv.QUOTE_ALL if risky else csv.QUOTE_MINIMAL,
        ).writerow(cells)
        return text.getvalue().encode()


class Ledger:
    """The output, the file of bad rows, and the file that says what was asked; a context manager.

    output: `None`: standard output, and nothing to go on from. rejects: where bad rows go; `None`:
    nowhere. job: what was asked, as JSON has it. overwrite: begin anew, whatever is there.

    Raises `OptionsError` for an output that is not of this job.
    """

    def __init__(
        self,
        records: Records,
        stdout: BinaryIO,
        output: Path | None,
        rejects: Path | None,
        job: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        self._records = records
        self._output_path = output
        self._rejects_path = rejects
        self._overwrite = overwrite
        self._open = contextlib.ExitStack()
        self._stdout = stdout
        self._out: BinaryIO = stdout
        self._bad: BinaryIO | None = None
        self._synced = time.monotonic()
        self._good, self._rejects = _Count(), _Count()
        self.last_error: str | None = None
        self._paths = [path for path in (output, rejects) if path is not None]
        for path in self._paths:
            if path.exists() and not path.is_file():
                raise OptionsError(
                    f"{path} is not a file",
                    why="it is read again by a run that goes on",
                    remedy="without --output the rows go to standard output",
                )
        with contextlib.ExitStack() as undo:
            undo.callback(self._open.close)
            if output is not None:
                # First of all: another run that has it loses neither its rows nor its job.
                self._out = self._open.enter_context(_writable(output))
                self._lock(output)
                if overwrite:
                    self._out.truncate(0)
            if overwrite and rejects is not None:
                rejects.unlink(missing_ok=True)
            self._check(job)
            undo.pop_all()

    @property
    def written(self) -> int:
        """Good rows that are written."""
        return self._good.value

    @property
    def rejected(self) -> int:
        """Bad rows that are."""
        return self._rejects.value

    @property
    def done(self) -> int:
        """Rows that are written, good and bad."""
        return self.written + self.rejected

    @property
    def again(self) -> str | None:
        """What goes on where this run ends, in words."""
        if self._output_path is None:
            return None
        return "the same command" + (" without --overwrite" if self._overwrite else "") + " goes on"

    def resume(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Pass over the rows that are done, and open the files for the others."""
        row = None
        if self._output_path is None:
            self._open_files(0, 0)
            return rows
        with contextlib.ExitStack() as files:
            done = _Reader(
                files.enter_context(_existing(self._output_path)), self._records.is_whole
            )
            bad = _Reader(files.enter_context(_existing(self._rejects_path)), _whole_line)
            self._pass_head(done)
            for row in rows:
                if bad.record is not None and _line_of(bad.record) == row.line:
                    self._rejects.add()
                    bad.advance()
                elif done.record is None:
                    break
                elif self._records.is_of(row, done.record):
                    self._good.add()
                    done.advance()
                else:
                    raise self._other_input(f"its row {self.written + 1} is not line {row.line}")
            else:
                row = None
                if done.record is not None:
                    raise self._other_input(f"it has more than the input's {self.written} rows")
        self._open_files(done.start, bad.start)
        return rows if row is None else itertools.chain((row,), rows)

    def write(self, row: Row, result: ClassifyResult) -> None:
        """A row that was classified."""
        record = self._records.encode(row, result)
        self._good.add(self._out, len(record))
        self._append(self._out, record)

    def reject(self, row: Row, error: str) -> None:
        """A row that could not be."""
        self.last_error = f"{row.line}: {error}"
        if self._rejects_path is None:
            self._rejects.add()
            return
        if self._bad is None:
            self._bad = self._open.enter_context(_writable(self._rejects_path))
        values = {"line": row.line, "error": error, "row": row.source}
        record = json.dumps(values).encode() + b"\n"
        self._rejects.add(self._bad, len(record))
        self._append(self._bad, record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sync()
        for count in (self._good, self._rejects):
            count.settle()
        self._open.close()

    def _append(self, file: BinaryIO, record: bytes) -> None:
        try:
            rest = memoryview(record)
            while rest:
                rest = rest[file.write(rest) :]
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OptionsError(
                f"the rows cannot be written: {exc.strerror}",
                remedy="make room" + (f"; {self.again} where this one ended" if self.again else ""),
            ) from exc
        if time.monotonic() - self._synced >= _SYNC_INTERVAL:
            self._sync()

    def _sync(self) -> None:
        for file in (self._out, self._bad):
            if file is not None and file is not self._stdout:
                os.fsync(file.fileno())
        self._synced = time.monotonic()

    def _check(self, job: Mapping[str, Any]) -> None:
        there = next((path for path in self._paths if path.exists() and path.stat().st_size), None)
        note = None
        if self._output_path is not None:
            note = self._output_path.with_name(self._output_path.name + ".job.json")
        if there is None:
            if note is not None:
                _write_whole(note, json.dumps(job, ensure_ascii=False, indent=2) + "\n")
            return
        before = None
        with contextlib.suppress(OSError, ValueError):
            before = json.loads(note.read_text()) if note is not None else None
        if before == job:
            return
        before = before if isinstance(before, dict) else {}
        changed = [
            f"{name} {before.get(name)!r:.80}, not {job[name]!r:.80}"
            for name in job
            if before and before.get(name) != job[name]
        ]
        raise OptionsError(
            f"{there} is there already",
            why=f"it was begun with {'; '.join(changed)}"
            if changed
            else "there is nothing beside it that says what it was made of",
            remedy="give another name, or --overwrite to begin anew",
        )

    def _lock(self, output: Path) -> None:
        """Rows of two runs must not be mixed. The lock ends with the process, however it ends."""
        try:
            fcntl.flock(self._out.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise OptionsError(
                f"{output} is being written by another run",
                why="two runs would each write every row",
                remedy="wait for it or end it, or give another --output",
            ) from exc
        except OSError:
            pass  # a file system without locks

    def _pass_head(self, done: _Reader) -> None:
        head = self._records.head()
        if head and done.record is not None:
            if done.record != head:
                raise self._other_input("its columns are not those of the input")
            done.advance()

    def _other_input(self, why: str) -> OptionsError:
        return OptionsError(
            f"{self._output_path} is not the output of this input",
            why=why,
            remedy="give another --output, or --overwrite to begin anew",
        )

    def _open_files(self, out_end: int, bad_end: int) -> None:
        if self._rejects_path is not None and self._rejects_path.exists():
            os.truncate(self._rejects_path, bad_end)
        if self._output_path is not None:
            self._out.truncate(out_end)
        if not out_end:
            self._append(self._out, self._records.head())


class _Count:
    """How many rows are in a file, also when Ctrl-C comes between one and its count.

    The row that is added counts once the file is so long that it is in it. One for a pipe, which
    has no length, counts at once.
    """

    def __init__(self) -> None:
        # Rows before the last one, its file, and how long that is with it: in one piece, because
        # the signal may come between two.
        self._last: tuple[int, BinaryIO | None, int] = (-1, None, 0)

    @property
    def value(self) -> int:
        before, file, end = self._last
        return before + (_length(file) >= end)

    def add(self, file: BinaryIO | None = None, n_bytes: int = 0) -> None:
        """A row is there already; or one of so many bytes is about to be written to `file`."""
        if file is not None and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            self._last = (self.value, file, _length(file) + n_bytes)
        else:
            self._last = (self.value, None, 0)

    def settle(self) -> None:
        """Nothing is added any more, and the file may be closed."""
        self._last = (self.value - 1, None, 0)


def _length(file: BinaryIO | None) -> int:
    return 0 if file is None else os.fstat(file.fileno()).st_size


class _Reader:
    """The whole records of a file, one after another.

    record: the one that is looked at, `None` at the end. start: where it begins.
    """

    def __init__(self, file: BinaryIO, is_whole: Callable[[bytes], bool]) -> None:
        self._file = file
        self._is_whole = is_whole
        self.start = 0
        self.record = self._read()

    def advance(self) -> None:
        self.start += len(self.record or b"")
        self.record = self._read()

    def _read(self) -> bytes | None:
        record = b""
        while line := self._file.readline():
            record += line
            if self._is_whole(record):
                return record
        return None


def _whole_line(record: bytes) -> bool:
    return record.endswith(b"\n")


def _line_of(record: bytes) -> int | None:
    try:
        line = json.loads(record)["line"]
    except (ValueError, KeyError, TypeError):
        return None
    return line if isinstance(line, int) else None


def _existing(path: Path | None) -> contextlib.AbstractContextManager[BinaryIO]:
    try:
        return open(os.devnull if path is None else path, "rb")
    except FileNotFoundError:
        return io.BytesIO()


def _writable(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, open(path, "ab", buffering=0))
    except OSError as exc:
        raise OptionsError(f"{path} cannot be written: {exc.strerror}") from exc


def _write_whole(path: Path, text: str) -> None:
    """All of it or nothing, also after a kill."""
    beside = path.with_name(path.name + ".new")
    try:
        with open(beside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as exc:
        raise OptionsError(f"{path} cannot be written: {exc.strerror}") from exc
