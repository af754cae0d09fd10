"""A place in a GGUF file that moves forward; every length is checked before it is believed."""

from __future__ import annotations

import functools
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from rocllm.errors import InvalidGGUF
from rocllm.gguf.constants import LONG_STRING, MAX_HEADER, MAX_KEPT, MAX_STRINGS
from rocllm.units import format_bytes

# `read_at(offset, n_bytes)`: fewer bytes than asked for only at the end of the file.
ReadAt: TypeAlias = Callable[[int, int], bytes]

DOWNLOAD_AGAIN = "download it again, and compare its size or checksum with the source's"
# Bytes read at once: small enough for a processor's cache, large enough to read seldom.
_WINDOW = 256 * 1024
# What CPython 3.11 takes on 64 bits: a reference, and an int or float with its reference.
_BYTES_PER_REFERENCE = 8
_BYTES_PER_NUMBER = 40
# Strings that are passed over at once, and the longest that counts as short.
_RUN = 128
_SHORT = 48


class Cursor:
    """Reads numbers and strings one after the other, through a small window on the file.

    read_at: reads from the file. size: of the file, in bytes. name: its name, for messages.

    `place` says what is being read, for messages; `order` is the byte order in `struct`'s code.
    Every method raises `InvalidGGUF` where the file ends too early or a bound is exceeded.
    """

    def __init__(self, read_at: ReadAt, size: int, name: str) -> None:
        self.size = size
        self.name = name
        self.place = "the header"
        self.order = "<"
        self._read_at = read_at
        self._buffer = b""
        self._base = 0  # where in the file the buffer begins
        self._position = 0  # in the buffer; after skipping it may lie beyond its end
        self._kept = 0
        self._skipped = 0

    @property
    def offset(self) -> int:
        """The place in the file, in bytes."""
        return self._base + self._position

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size - self.offset

    def broken(
        self, why: str, *, offset: int | None = None, remedy: str = DOWNLOAD_AGAIN
    ) -> InvalidGGUF:
        """The error to raise for what was found at `offset` (`None`: here)."""
        at = self.offset if offset is None else offset
        return InvalidGGUF(
            f"{self.name!r} is broken at byte {at}, in {self.place}",
            why=why,
            remedy=remedy,
            offset=at,
        )

    def keep(self, n_bytes: int) -> None:
        """Account for Python objects of that size, before they are made."""
        self._kept += n_bytes
        if self._kept > MAX_KEPT:
            raise self.broken(
                f"what is to be read takes more than {format_bytes(MAX_KEPT)} of memory",
                remedy=f"ask for fewer arrays; if you asked for none, {DOWNLOAD_AGAIN}",
            )

    def peek(self, n_bytes: int) -> bytes:
        """Up to `n_bytes` from here, without going forward."""
        self._fill(min(n_bytes, self.remaining))
        return self._buffer[self._position : self._position + n_bytes]

    def record(self, codes: str) -> tuple[Any, ...]:
        """The next few numbers, of types named by their codes in `struct`."""
        layout = self.order + codes
        n_bytes = struct.calcsize(layout)
        self._fill(n_bytes)
        numbers = struct.unpack_from(layout, self._buffer, self._position)
        self._position += n_bytes
        return numbers

    def number(self, code: str) -> Any:
        """The next number."""
        return self.record(code)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """The next `count` numbers, which may be too many."""
        self.need(count * struct.calcsize("<" + code))
        self.keep(count * _BYTES_PER_NUMBER)
        return self.record(f"{count}{code}")

    def string(self, longest: int = LONG_STRING) -> str:
        """The next string, of `longest` bytes at most."""
        offset = self.offset
        length = self.number("Q")
        if length > longest:
            raise self.broken(f"a string of {length} bytes; {longest} are allowed", offset=offset)
        return self.text(length)

    def text(self, n_bytes: int) -> str:
        """The next bytes, decoded. llama.cpp takes any bytes: what is not UTF-8 becomes `\\xff`."""
        self._fill(n_bytes)
        start, self._position = self._position, self._position + n_bytes
        text = self._buffer[start : self._position].decode(errors="backslashreplace")
        self.keep(sys.getsizeof(text) + _BYTES_PER_REFERENCE)
        return text

    def skip(self, n_bytes: int) -> None:
        """Go forward without reading."""
        self.need(n_bytes)
        self._position += n_bytes

    def skip_strings(self, count: int) -> None:
        """Go past `count` strings."""
        start = self.offset
        self._skipped += count
        if self._skipped > MAX_STRINGS:
            raise self.broken(f"its arrays hold more than {MAX_STRINGS} strings")
        while count:
            self._fill(8, start)
            count = self._skip_in_window(count)
        self.need(0, start)

    def _skip_in_window(self, count: int) -> int:
        """Go past strings while their lengths are in the window; returns how many are left.

        Nearly all the time that reading a file takes is spent here. Most tokens are short, and a
        regular expression passes over a run of short ones in half the time of the loop below.
        """
        match_run = _run_of_short_strings(self.order).match
        unpack_length = struct.Struct(self.order + "Q").unpack_from
        buffer, position = self._buffer, self._position
        try:
            while count:
                run = match_run(buffer, position) if count >= _RUN else None
                if run:
                    position = run.end()
                    count -= _RUN
                    continue
                for count in range(count, max(count - _RUN, 0), -1):  # noqa: B007, B020
                    (length,) = unpack_length(buffer, position)
                    position += 8 + length
                count -= 1
        except (struct.error, OverflowError):
            pass  # the next length lies outside of the window
        self._position = position
        return count

    def need(self, n_bytes: int, offset: int | None = None) -> None:
        """Raise, naming `offset` (`None`: here), unless the file has so many more bytes."""
        if n_bytes > self.remaining:
            raise self.broken(
                f"the file has {self.size} bytes; at least {self.offset + n_bytes} belong to it",
                offset=offset,
            )

    def _fill(self, n_bytes: int, offset: int | None = None) -> None:
        """Move the window, so that the next `n_bytes` are in it."""
        if self._position + n_bytes <= len(self._buffer):
            return
        self.need(n_bytes, offset)
        if self.offset + n_bytes > MAX_HEADER:
            raise self.broken(f"over {format_bytes(MAX_HEADER)} stand before the tensors' data")
        self._base, self._position = self.offset, 0
        self._buffer = self._read_at(self._base, max(n_bytes, _WINDOW))
        if len(self._buffer) < n_bytes:
            raise self.broken("the file was cut while it was read", offset=offset)


@functools.cache
def _run_of_short_strings(order: str) -> re.Pattern[bytes]:
    """Matches a run of strings: an alternative for every length, as its eight literal bytes."""
    strings = (
        re.escape(struct.pack(order + "Q", length)) + b".{%d}" % length
        for length in range(_SHORT + 1)
    )
    return re.compile(b"(?:%b){%d}+" % (b"|".join(strings), _RUN), re.DOTALL)
