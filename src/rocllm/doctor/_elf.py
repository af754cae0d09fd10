"""What an ELF file needs to run, and where its sections are. Bounded: a broken file costs nothing.

Reference: the System V ABI, "Object Files" and "Dynamic Linking"; elf(5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

# ELF, 64 bits, least significant byte first: what ROCm exists for.
_MAGIC = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_SHT_NOBITS = 8
# Far above what linkers write.
_MAX_RECORDS = 4096
_MAX_STRING = 4096

# From an offset and a size to the bytes that are there, which may be fewer.
_Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Elf:
    """needed: names of libraries. search: directories where the file says they are, unexpanded.
    overriding: `LD_LIBRARY_PATH` comes after `search` (DT_RPATH), not before (DT_RUNPATH).
    sections: offset and size in the file by name, of those that have bytes there."""

    needed: tuple[str, ...]
    search: tuple[str, ...]
    overriding: bool
    sections: Mapping[str, tuple[int, int]]


def read_elf(file: BinaryIO) -> Elf | None:
    """What the file says; `None` when it is no 64-bit ELF file, or a broken one."""

    def read(offset: int, size: int) -> bytes:
        file.seek(offset)
        return file.read(size)

    try:
        return _parse(read)
    except (struct.error, OverflowError, ValueError, OSError):
        return None


def _parse(read: _Read) -> Elf | None:
    header = read(0, _HEADER.size)
    if not header.startswith(_MAGIC):
        return None
    fields = _HEADER.unpack(header)
    segments_at, sections_at, segments, sections = fields[5], fields[6], fields[10], fields[12]
    loads: list[tuple[int, int, int]] = []
    dynamic: list[tuple[int, ...]] = []
    for kind, _, offset, address, _, size, _, _ in _records(read, _SEGMENT, segments_at, segments):
        if kind == _PT_LOAD:
            loads.append((address, offset, size))
        elif kind == _PT_DYNAMIC:
            dynamic = list(_records(read, _DYNAMIC, offset, size // _DYNAMIC.size))
    strings = next((value for tag, value in dynamic if tag == _DT_STRTAB), None)
    strings_at = None if strings is None else _file_offset(strings, loads)

    def text(tag: int) -> list[str]:
        if strings_at is None:
            return []
        return [_string(read, strings_at + value) for found, value in dynamic if found == tag]

    runpath, rpath = text(_DT_RUNPATH), text(_DT_RPATH)
    search = ":".join(runpath or rpath).split(":")
    return Elf(
        needed=tuple(text(_DT_NEEDED)),
        search=tuple(path for path in search if path),
        overriding=bool(rpath) and not runpath,
        sections=_sections(read, sections_at, sections, fields[13]),
    )


def _records(
    read: _Read, layout: struct.Struct, offset: int, count: int
) -> Iterator[tuple[int, ...]]:
    data = read(offset, layout.size * min(count, _MAX_RECORDS))
    yield from layout.iter_unpack(data[: len(data) // layout.size * layout.size])


def _file_offset(address: int, loads: list[tuple[int, int, int]]) -> int | None:
    for start, offset, size in loads:
        if start <= address < start + size:
            return address - start + offset
    return None


def _string(read: _Read, offset: int) -> str:
    return os.fsdecode(read(offset, _MAX_STRING).partition(b"\0")[0])


def _sections(read: _Read, offset: int, count: int, names: int) -> dict[str, tuple[int, int]]:
    table = list(_records(read, _SECTION, offset, count))
    if names >= len(table):
        return {}
    names_at = table[names][4]
    return {
        _string(read, names_at + section[0]): (section[4], section[5])
        for section in table
        if section[1] != _SHT_NOBITS
    }
