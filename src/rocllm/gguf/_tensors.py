"""The part of a GGUF file that says where each tensor lies."""

from __future__ import annotations

import math
from typing import NamedTuple

from rocllm.gguf._cursor import Cursor
from rocllm.gguf.constants import MAX_DIMENSIONS, MAX_TENSOR_NAME, TENSOR_TYPES
from rocllm.gguf.types import TensorInfo
from rocllm.units import format_bytes

# What `_Entry` and `TensorInfo` take beside the name, in CPython 3.11.
_BYTES_PER_TENSOR = 700
# ggml counts elements and bytes in a signed 64-bit number.
_MOST = 2**63 - 1


class _Entry(NamedTuple):
    """A tensor as it stands in the file; `start` counts from the beginning of the data."""

    at: int
    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int


def read_tensors(
    cursor: Cursor, n_tensors: int, alignment: int
) -> tuple[tuple[TensorInfo, ...], int]:
    """The tensors, and where their data begins, in bytes from the beginning of the file.

    As in llama.cpp (gguf.cpp, b11434) they must lie one after the other, in order, each at the next
    multiple of `alignment`. Raises `InvalidGGUF` if they do not, or if the file ends before them.
    """
    cursor.keep(n_tensors * _BYTES_PER_TENSOR)
    entries: dict[str, _Entry] = {}
    for number in range(n_tensors):
        cursor.place = f"tensor {number + 1} of {n_tensors}"
        entry = _read_entry(cursor)
        if entry.name in entries:
            raise cursor.broken(f"the tensor {entry.name!r} is there twice", offset=entry.at)
        entries[entry.name] = entry
    if not entries:
        return (), cursor.offset
    data_offset = _aligned(cursor.offset, alignment)
    return tuple(_place(cursor, entries, alignment, data_offset)), data_offset


def _read_entry(cursor: Cursor) -> _Entry:
    at = cursor.offset
    name = cursor.string(longest=MAX_TENSOR_NAME)
    cursor.place = f"the description of tensor {name!r}"
    n_dimensions = cursor.number("I")
    if n_dimensions > MAX_DIMENSIONS:
        raise cursor.broken(
            f"{n_dimensions} dimensions; {MAX_DIMENSIONS} are allowed", offset=cursor.offset - 4
        )
    *shape, type_id, start = cursor.record(f"{n_dimensions}QIQ")
    return _Entry(at, name, tuple(shape), type_id, start)


def _place(
    cursor: Cursor, entries: dict[str, _Entry], alignment: int, data_offset: int
) -> list[TensorInfo]:
    tensors = []
    end: int | None = 0
    for entry in entries.values():
        cursor.place = f"the description of tensor {entry.name!r}"
        if end is None:  # the one before has an unknown size: this one may begin anywhere
            end = _aligned(entry.start, alignment)
        if entry.start != end:
            raise cursor.broken(
                f"its data begins at {entry.start} of all tensors' data, where {end} is expected",
                offset=entry.at,
            )
        known = TENSOR_TYPES.get(entry.type_id)
        n_bytes = _n_bytes(cursor, entry)
        offset = data_offset + entry.start
        if offset + (n_bytes or 0) > cursor.size:
            raise _incomplete(cursor, entry, offset, n_bytes or 0)
        end = None if n_bytes is None else _aligned(entry.start + n_bytes, alignment)
        tensors.append(
            TensorInfo(
                name=entry.name,
                shape=entry.shape,
                type=known.name if known else None,
                type_id=entry.type_id,
                offset=offset,
                n_bytes=n_bytes,
            )
        )
    return tensors


def _n_bytes(cursor: Cursor, entry: _Entry) -> int | None:
    n_elements = math.prod(entry.shape)
    if n_elements > _MOST or any(length > _MOST for length in entry.shape):
        raise cursor.broken(f"the shape {entry.shape} is too large for ggml", offset=entry.at)
    known = TENSOR_TYPES.get(entry.type_id)
    if known is None:
        return None
    row = entry.shape[0] if entry.shape else 1
    if row % known.block_size:
        raise cursor.broken(
            f"rows of {row} elements cannot be stored as {known.name}, in blocks of "
            f"{known.block_size}",
            offset=entry.at,
        )
    return n_elements // known.block_size * known.type_size


def _incomplete(cursor: Cursor, entry: _Entry, offset: int, n_bytes: int) -> Exception:
    cursor.place = f"the data of tensor {entry.name!r}"
    return cursor.broken(
        f"the file is incomplete: it has {format_bytes(cursor.size)} ({cursor.size} bytes), and "
        f"at least {format_bytes(offset + n_bytes)} ({offset + n_bytes} bytes) belong to it",
        offset=cursor.size,
    )


def _aligned(offset: int, alignment: int) -> int:
    return offset + -offset % alignment
