"""Which chips a file holds GPU code for: the ids in the offload bundles that HIP's compiler leaves.

Reference: clang's ClangOffloadBundler.rst, "Bundled Code Object" and "Compressed Offload Bundle"
(LLVM 22); AMDGPUUsage.rst, "Generic Processors". A library of llama.cpp has one bundle for each
source file, one after the other, aligned to 4096 bytes. A compressed one hides its ids.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from rocllm.doctor.types import GfxTargets

SECTION = ".hip_fatbin"
_PLAIN = b"__CLANG_OFFLOAD_BUNDLE__"
_COMPRESSED = b"CCOB"
_COUNT = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQQ")
# The size of a compressed bundle, by the version of its format; version 1 does not tell.
_TOTAL = {2: struct.Struct("<8xI"), 3: struct.Struct("<8xQ")}
_ALIGNMENT = 4096
_HEADER = 1 << 14
_MAX_BUNDLES = 1 << 14
_MAX_ENTRIES = 256
# `hipv4-amdgcn-amd-amdhsa--gfx90a:xnack-`; features after the colon make variants of one chip.
_ID = re.compile(rb"amdgcn-amd-amdhsa-[^-]*-(gfx[0-9a-f]+(?:-[0-9a-f]+)*(?:-generic)?)(?::.*)?$")
# Compiled for whatever chip is there when it runs.
_ANY = b"amdgcnspirv"
ANY_CHIP = "any"

# Code for a family of chips, and the chips.
_GENERIC = {
    "gfx9-generic": r"gfx90[02469c]",
    "gfx9-4-generic": r"gfx94[0-2]|gfx950",
    "gfx10-1-generic": r"gfx101[0-3]",
    "gfx10-3-generic": r"gfx103[0-6]",
    "gfx11-generic": r"gfx11(0[0-3]|5[0-3])",
    "gfx12-generic": r"gfx120[01]",
}


def read_targets(file: BinaryIO, offset: int, size: int) -> GfxTargets:
    """The chips of all bundles in the `size` bytes at `offset`."""
    names: set[str] = set()
    hidden = False
    position, end = offset, min(offset + size, file.seek(0, os.SEEK_END))
    for _ in range(_MAX_BUNDLES):
        if position >= end:
            break
        file.seek(position)
        header = file.read(min(_HEADER, end - position))
        length = 0
        if header.startswith(_PLAIN):
            found, length = _plain(header)
            names |= found
        elif header.startswith(_COMPRESSED):
            hidden = True
            length = _compressed(header)
        # What is no bundle, or does not tell its size, is stepped over page by page.
        position += -(-max(length, 1) // _ALIGNMENT) * _ALIGNMENT
    return GfxTargets(frozenset(names), hidden)


def covers(targets: GfxTargets, gfx: str) -> bool | None:
    """There is code for the chip `gfx`; `None`: it may be in what is compressed.

    >>> covers(GfxTargets(frozenset({"gfx11-generic"}), hidden=False), "gfx1151")
    True
    """
    for name in targets.names:
        pattern = _GENERIC.get(name)
        if name in (gfx, ANY_CHIP) or (pattern is not None and re.fullmatch(pattern, gfx)):
            return True
    return None if targets.hidden or not targets.names else False


def _plain(header: bytes) -> tuple[set[str], int]:
    """The ids of a bundle, and its length in bytes."""
    names: set[str] = set()
    length = 0
    for offset, size, identifier in _entries(header):
        length = max(length, offset + size)
        match = _ID.search(identifier)
        if match is not None:
            names.add(match[1].decode())
        elif identifier.endswith(_ANY):
            names.add(ANY_CHIP)
    return names, length


def _entries(header: bytes) -> Iterator[tuple[int, int, bytes]]:
    position = len(_PLAIN) + _COUNT.size
    if len(header) < position:
        return
    (count,) = _COUNT.unpack_from(header, len(_PLAIN))
    for _ in range(min(count, _MAX_ENTRIES)):
        if position + _ENTRY.size > len(header):
            return
        offset, size, id_length = _ENTRY.unpack_from(header, position)
        position += _ENTRY.size
        yield offset, size, header[position : position + id_length]
        position += id_length


def _compressed(header: bytes) -> int:
    """The length of a compressed bundle; 0 when it does not tell."""
    version = int.from_bytes(header[4:6], "little")
    layout = _TOTAL.get(version)
    if layout is None or len(header) < layout.size:
        return 0
    length: int = layout.unpack_from(header)[0]
    return length
