"""Rows of a JSONL, CSV or text file, one at a time, and the template that makes prompts of them."""

from __future__ import annotations

import csv
import io
import json
import string
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, TypeAlias

from rocllm.errors import OptionsError

Format: TypeAlias = Literal["jsonl", "csv", "lines"]
# Characters of a line, or of a cell. What is longer is no row; it is passed over, not kept.
_MAX_LINE = 4 * 1024 * 1024
# The only field of a row that is a line.
TEXT = "text"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the input.

    line: where it begins, from 1 on. source: the cells of a table's row; the line as it was read of
    any other, and where the cells cannot be told apart. values: by field. error: what is wrong with
    it; then there are no values. end: bytes up to its end.
    """

    line: int
    source: str | list[str]
    end: int
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


class Template:
    """A prompt with `{field}` in it; `{{` and `}}` are braces.

    >>> Template("Review: {text}\\nSentiment:").render({"text": "Fine."})
    'Review: Fine.\\nSentiment:'
    """

    def __init__(self, text: str) -> None:
        """Raises `OptionsError` for a template without a field, and for a brace on its own."""
        self.text = text
        try:
            parts = [*string.Formatter().parse(text)]
        except ValueError as exc:
            raise OptionsError(
                f"the template cannot be read: {exc}", remedy="write {{ and }} for braces"
            ) from exc
        self._parts = [(literal, _name(part)) for literal, *part in parts]
        self.fields = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        if not self.fields:
            raise OptionsError(
                f"the template {text!r:.80} has no field",
                why="every row would be the same prompt",
                remedy="write the name of a column in braces, such as {text}",
            )
        if "" in self.fields:
            raise OptionsError(
                "the template has a field without a name: {}",
                remedy="write the name of a column between the braces, or {{}} for braces",
            )

    @property
    def ends_in_space(self) -> bool:
        """Whatever follows a prompt is after a space already."""
        literal, name = self._parts[-1]
        return name is None and literal[-1:].isspace()

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt of a row. Raises `ValueError` for a field that it does not have."""
        return "".join(
            literal if name is None else literal + _text(values, name)
            for literal, name in self._parts
        )


def _name(part: Sequence[str | None]) -> str | None:
    """The field as it was written: a column may be called `a:b`, or `a!`."""
    name, spec, conversion = part
    if name is None:
        return None
    return name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if isinstance(value, str):
        return value
    if name not in values:
        raise ValueError(f"there is no field {name!r}; there are: {', '.join(values) or 'none'}")
    if value is None:
        raise ValueError(f"the field {name!r} is null")
    return json.dumps(value, ensure_ascii=False)


class Rows:
    """The rows of a file, read as they are wanted; a row that is none has its `error`.

    header: the columns of a CSV file.
    """

    def __init__(self, file: BinaryIO, kind: Format, encoding: str, delimiter: str = ",") -> None:
        """Raises `OptionsError` for an encoding that nobody knows."""
        self.kind = kind
        self.delimiter = delimiter
        self.header: list[str] = []
        # Python's name of UTF-8 with the mark that Windows puts before it, or without.
        encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
        try:
            # A CSV cell may hold any kind of line end; elsewhere only \n ends a row.
            newline = "" if kind == "csv" else "\n"
            self._text = io.TextIOWrapper(file, encoding, "surrogateescape", newline)
        except LookupError as exc:
            raise OptionsError(
                f"unknown encoding {encoding!r}", remedy="for example utf-8, latin-1, utf-16"
            ) from exc
        self._lines = _Lines(self._text)
        self._read = self._csv() if kind == "csv" else self._plain()

    def __iter__(self) -> Iterator[Row]:
        return self._read

    def _plain(self) -> Iterator[Row]:
        while (line := self._lines.next()) is not None:
            number, end = self._lines.number, self._lines.position
            text = line.removesuffix("\n").removesuffix("\r")
            if not text.strip():
                continue
            values: Mapping[str, Any] = {TEXT: text}
            error = self._lines.take_error() or _undecoded(text)
            if error is None and self.kind == "jsonl":
                values, error = _object(text)
            yield Row(number, text, end, {} if error else values, error)

    def _csv(self) -> Iterator[Row]:
        csv.field_size_limit(_MAX_LINE)
        reader = csv.reader(self._lines, delimiter=self.delimiter, strict=True)
        while True:
            self._lines.begin_row()
            line = self._lines.number + 1
            cells: list[str] = []
            error: str | None = None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                # A quote that nobody closed must not take the rows behind it along.
                text = self._lines.keep_first()
                reader = csv.reader(self._lines, delimiter=self.delimiter, strict=True)
                error = self._lines.take_error() or f"it is not CSV: {exc}"
                if self.header:
                    yield Row(line, text.rstrip("\r\n"), self._lines.position, {}, error)
                    continue
            if not cells and error is None:
                continue
            error = self._lines.take_error() or error or _undecoded(*cells)
            if not self.header:
                self._begin(cells, error)
                continue
            if error is None and len(cells) != len(self.header):
                error = f"it has {len(cells)} cells, and the header has {len(self.header)}"
            values = {} if error else dict(zip(self.header, cells, strict=True))
            yield Row(line, cells, self._lines.position, values, error)

    def _begin(self, cells: list[str], error: str | None) -> None:
        twice = sorted({cell for cell in cells if cells.count(cell) > 1})
        if twice:
            error = f"the column {twice[0]!r} is there twice"
        if error is not None:
            raise OptionsError(
                f"the header of the CSV file cannot be used: {error}",
                remedy="its first line must name the columns, each once; see --delimiter, --format",
            )
        self.header = cells


class _Lines:
    """The lines of a text, with where they are; one that is too long comes as nothing.

    Those of a row of CSV can be taken back, to be read again as rows of their own.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.number = 0
        self.position = 0
        # What is wrong with a line of this row.
        self._error: str | None = None
        # Without the mark, which is there once only.
        self._encoding = text.encoding.removesuffix("-sig")
        # Each with the bytes that it takes and what is wrong with it: of this row, and taken back.
        self._row: list[tuple[str, int, str | None]] | None = None
        self._again: deque[tuple[str, int, str | None]] = deque()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.next()
        if line is None:
            raise StopIteration
        return line

    def next(self) -> str | None:
        found = self._again.popleft() if self._again else self._read()
        line, size, error = found
        if not line:
            return None
        self.number += 1
        self.position += size
        self._error = self._error or error
        if self._row is not None:
            self._row.append(found)
        return line

    def begin_row(self) -> None:
        """From here on the lines can be taken back."""
        self._row = []

    def keep_first(self) -> str:
        """Take all lines of the row back but the first; that one."""
        assert self._row
        first, *rest = self._row
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        self.position -= sum(size for _, size, _ in rest)
        self._error = first[2]
        return first[0]

    def take_error(self) -> str | None:
        error, self._error = self._error, None
        return error

    def _read(self) -> tuple[str, int, str | None]:
        line, size = self._chunk()
        if len(line) < _MAX_LINE or line.endswith("\n"):
            return line, size, None
        while True:
            rest, more = self._chunk()
            size += more
            if not rest or rest.endswith("\n"):
                return "…\n", size, f"it has more than {_MAX_LINE} characters"

    def _chunk(self) -> tuple[str, int]:
        try:
            chunk = self._text.readline(_MAX_LINE)
        except UnicodeError as exc:
            raise OptionsError(
                f"line {self.number + 1} and what follows cannot be read: {exc}",
                remedy="give the file's encoding: --encoding",
            ) from exc
        return chunk, len(chunk.encode(self._encoding, "surrogateescape"))


def _object(text: str) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        return {}, f"it is not JSON: {exc}"
    if not isinstance(value, dict):
        return {}, f"it is a JSON {type(value).__name__}, and not an object"
    return value, None


def _undecoded(*texts: str) -> str | None:
    """Bytes that the encoding does not know have become surrogates."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            byte = ord(text[exc.start]) - 0xDC00
            return f"byte 0x{byte:02x} is none of the encoding's" if 0 < byte < 256 else str(exc)
    return None
