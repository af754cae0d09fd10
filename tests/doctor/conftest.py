"""Small program files, as a linker would write them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

import pytest

_HEADER, _SEGMENT, _SECTION, _DYNAMIC = 64, 56, 64, 16
_NEEDED, _STRTAB, _RPATH, _RUNPATH = 1, 5, 15, 29

WriteElf = Callable[..., bytes]


@pytest.fixture
def elf() -> WriteElf:
    """A function from what an ELF file needs to its bytes."""
    return _elf


@pytest.fixture
def bundle() -> Callable[..., bytes]:
    """A function from target ids to an offload bundle, whose code is zeros."""
    return _bundle


def _elf(
    needed: Sequence[str] = (),
    *,
    runpath: str | None = None,
    rpath: str | None = None,
    sections: Mapping[str, bytes] | None = None,
) -> bytes:
    strings = b"\0"
    dynamic = []
    values = [(_NEEDED, name) for name in needed]
    values += [(tag, text) for tag, text in ((_RUNPATH, runpath), (_RPATH, rpath)) if text]
    for tag, text in values:
        dynamic.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    strings_at = _HEADER + 2 * _SEGMENT
    dynamic_at = strings_at + len(strings)
    dynamic += [(_STRTAB, strings_at), (0, 0)]
    body = strings + b"".join(struct.pack("<qQ", *entry) for entry in dynamic)
    at = dynamic_at + _DYNAMIC * len(dynamic)
    names, table = b"\0.shstrtab\0", []
    for name, content in (sections or {}).items():
        table.append((len(names), 1, at, len(content)))
        names += name.encode() + b"\0"
        body += content
        at += len(content)
    table = [(0, 0, 0, 0), *table, (1, 3, at, len(names))]
    body += names
    sections_at = at + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, _HEADER, sections_at, 0, _HEADER,
        _SEGMENT, 2, _SECTION, len(table), len(table) - 1,
    )  # fmt: skip
    size = sections_at
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, size, size, 4096)
    size = _DYNAMIC * len(dynamic)
    points = struct.pack("<IIQQQQQQ", 2, 4, dynamic_at, dynamic_at, 0, size, size, 8)
    rows = (
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, length, 0, 0, 1, 0)
        for name, kind, offset, length in table
    )
    return header + load + points + body + b"".join(rows)


def _bundle(*ids: str, code: int = 5000) -> bytes:
    """As clang writes it: the code of each entry is aligned to 4096 bytes."""
    header = b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", len(ids) + 1)
    offset = 4096
    for number, name in enumerate(("host-x86_64-unknown-linux--", *ids)):
        size = code if number else 0
        header += struct.pack("<QQQ", offset, size, len(name)) + name.encode()
        offset += -(-size // 4096) * 4096
    return header.ljust(offset, b"\0")
