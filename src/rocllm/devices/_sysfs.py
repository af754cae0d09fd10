"""Reading small files of a `/sys` tree: root and reader are arguments, absence is `None`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Reader: TypeAlias = Callable[[str], bytes]

_MAX_FILE = 1 << 16
_CONTROL = re.compile(r"[^\n\x20-\x7e\ufffd]")
# 2**64 - 1 has 20 digits; nothing that the kernel prints has more.
_MAX_DIGITS = 20


def read_file(path: str) -> bytes:
    """The first 64 KiB of a file.

    KFD refuses a node that the device cgroup hides when it is read, not when it is opened.
    """
    with open(path, "rb") as file:
        return file.read(_MAX_FILE)


@dataclass(frozen=True, slots=True)
class Tree:
    """The files below `root`; paths are relative to it and have no leading slash."""

    root: str
    read: Reader = read_file

    def path(self, path: str) -> str:
        """Where the file is on this machine."""
        return f"{self.root.rstrip('/')}/{path}"

    def require(self, path: str) -> str:
        """The text of a file, printable characters and line ends only: it may end up on a terminal.

        Some drivers and some bug reports pad with NULs. Raises `OSError` when it cannot be read.
        """
        text = self.read(self.path(path)).decode("ascii", "replace")
        return _CONTROL.sub(" ", text).strip()

    def text(self, path: str) -> str | None:
        """The text of a file; `None` when it is absent, refused or not available now."""
        try:
            return self.require(path)
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file that holds one decimal number."""
        return decimal(self.text(path))

    def hexadecimal(self, path: str) -> int | None:
        """A file that holds one hexadecimal number, with or without `0x`."""
        return hexadecimal(self.text(path))

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; empty when there is no such directory."""
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def numbered(self, path: str, prefix: str = "") -> list[int]:
        """The numbers N of the entries `<prefix>N` of a directory, in numeric order."""
        rests = (name[len(prefix) :] for name in self.names(path) if name.startswith(prefix))
        return sorted(number for rest in rests if (number := decimal(rest)) is not None)

    def exists(self, path: str) -> bool:
        """There is such a file or directory."""
        return os.path.lexists(self.path(path))


def pairs(text: str | None, separator: str) -> dict[str, str]:
    """Lines of `name<separator>value`; other lines are left out."""
    lines = (line.partition(separator) for line in (text or "").split("\n"))
    return {name.strip(): value.strip() for name, found, value in lines if found}


def decimal(text: str | None) -> int | None:
    """`text` as a decimal number of at most 64 bits."""
    if not text or len(text) > _MAX_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    value = int(text)
    return value if value < 1 << 64 else None


def hexadecimal(text: str | None) -> int | None:
    """`text` as a hexadecimal number of at most 64 bits."""
    digits = (text or "").lower().removeprefix("0x")
    if not 0 < len(digits) <= 16 or not set(digits) <= set("0123456789abcdef"):
        return None
    return int(digits, 16)
