"""Read what stands before the tensors' data of a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from rocllm.errors import InvalidGGUF
from rocllm.gguf._cursor import DOWNLOAD_AGAIN, Cursor, ReadAt
from rocllm.gguf._file import open_regular
from rocllm.gguf._other_formats import N_BYTES, guess_format
from rocllm.gguf._tensors import read_tensors
from rocllm.gguf.constants import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    LONG_STRING,
    MAGIC,
    MAX_KEY,
    MAX_KEYS,
    MAX_TENSORS,
    SMALL_ARRAY,
    STRING,
    UINT32,
    VALUE_TYPES,
    VERSIONS,
    ValueType,
)
from rocllm.gguf.types import ArrayInfo, ByteOrder, GGUFFile, MetadataValue

# The smallest entries that there can be: key, type, value; name, dimensions, type, offset.
_SMALLEST_KEY_VALUE = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8
# What a key and a number take beside the key's text, in CPython 3.11.
_BYTES_PER_KEY = 200
_ALIGNMENT = "general.alignment"


def read_gguf(path: str | os.PathLike[str], *, arrays: Collection[str] = ()) -> GGUFFile:
    """Metadata and tensor infos of a GGUF file, of version 2 or 3 and of either byte order.

    arrays: keys of arrays to read. Of the others, those of at most 1024 elements are read as well;
        larger ones, such as the vocabulary, are counted and skipped: `ArrayInfo`.

    What llama.cpp (b11434) refuses is refused, except tensor types that rocllm does not know.
    Whatever is in the file, reading takes at most 64 MiB of memory and about a second.

    The file is read with `pread` through a small window, and not mapped: a file that is cut while
    it is mapped ends the process with SIGBUS.

    Raises `ModelNotFound` (no such file), `InvalidGGUF` (not a GGUF file, or a broken or incomplete
    one), `ModelFileError` (the system does not let it be read).

    >>> gguf = read_gguf("qwen3-4b-q4_k_m.gguf")  # doctest: +SKIP
    >>> gguf.metadata["general.architecture"], len(gguf.tensors)  # doctest: +SKIP
    ('qwen3', 398)
    """
    keys = {arrays} if isinstance(arrays, str) else frozenset(arrays)
    with open_regular(path) as (descriptor, size):
        return parse_gguf(
            lambda offset, n_bytes: os.pread(descriptor, n_bytes, offset),
            size,
            Path(path),
            arrays=keys,
        )


def parse_gguf(read_at: ReadAt, size: int, path: Path, *, arrays: Collection[str] = ()) -> GGUFFile:
    """The same, of a file of `size` bytes that `read_at(offset, n_bytes)` reads from."""
    cursor = Cursor(read_at, size, str(path))
    version, byte_order = _read_version(cursor)
    n_tensors = _read_count(cursor, "tensors", MAX_TENSORS, _SMALLEST_TENSOR)
    n_keys = _read_count(cursor, "metadata keys", MAX_KEYS, _SMALLEST_KEY_VALUE)
    metadata = _read_metadata(cursor, n_keys, arrays)
    alignment = metadata.get(_ALIGNMENT, DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)  # that is checked where it is read
    tensors, data_offset = read_tensors(cursor, n_tensors, alignment)
    return GGUFFile(
        path=path,
        version=version,
        byte_order=byte_order,
        metadata=metadata,
        tensors=tensors,
        alignment=alignment,
        data_offset=data_offset,
        file_size=size,
    )


def _read_version(cursor: Cursor) -> tuple[int, ByteOrder]:
    head = cursor.peek(N_BYTES)
    if not head.startswith(MAGIC):
        what, remedy = guess_format(head)
        raise InvalidGGUF(
            f"{cursor.name!r} is not a GGUF file", why=f"it is {what}", remedy=remedy, offset=0
        )
    cursor.skip(len(MAGIC))
    version = cursor.number("I")
    byte_order: ByteOrder = "little"
    # As in llama.cpp: a small number read in the wrong order has an empty lower half.
    if version and version & 0xFFFF == 0:
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
        byte_order, cursor.order = "big", ">"
    if version not in VERSIONS:
        raise _unknown_version(cursor, version)
    return version, byte_order


def _unknown_version(cursor: Cursor, version: int) -> InvalidGGUF:
    if version == 1:
        why = "llama.cpp no longer reads that version (of August 2023)"
        remedy = "fetch a newer file of this model"
    elif version == 0 or version > 0xFFFF:
        why, remedy = "there is no such version", DOWNLOAD_AGAIN
    else:
        why = f"rocllm knows versions {VERSIONS[0]} to {VERSIONS[-1]}"
        remedy = "update rocllm and llama.cpp"
    return InvalidGGUF(
        f"{cursor.name!r} has version {version} of the GGUF format",
        why=why,
        remedy=remedy,
        offset=len(MAGIC),
    )


def _read_count(cursor: Cursor, of_what: str, most: int, smallest: int) -> int:
    offset = cursor.offset
    count: int = cursor.number("Q")
    if count > most:
        raise cursor.broken(f"{count} {of_what}; rocllm reads up to {most}", offset=offset)
    cursor.need(count * smallest, offset)
    return count


def _read_metadata(
    cursor: Cursor, n_keys: int, arrays: Collection[str]
) -> dict[str, MetadataValue]:
    cursor.keep(n_keys * _BYTES_PER_KEY)
    metadata: dict[str, MetadataValue] = {}
    for number in range(n_keys):
        offset = cursor.offset
        cursor.place = f"metadata key {number + 1} of {n_keys}"
        key = cursor.string(longest=MAX_KEY)
        if not key:
            raise cursor.broken("the key is empty", offset=offset)
        if key in metadata:
            raise cursor.broken(f"the key {key!r} is there twice", offset=offset)
        offset = cursor.offset
        cursor.place = f"the value of {key!r}"
        type_id = cursor.number("I")
        value = _read_value(cursor, type_id, read_array=key in arrays)
        if key == _ALIGNMENT and (type_id != UINT32 or not _is_power_of_two(value)):
            raise cursor.broken(f"{value!r} is no power of two of type uint32", offset=offset)
        metadata[key] = value
    return metadata


def _is_power_of_two(value: object) -> bool:
    return isinstance(value, int) and value.bit_count() == 1


def _read_value(cursor: Cursor, type_id: int, *, read_array: bool) -> MetadataValue:
    if type_id == ARRAY:
        return _read_array(cursor, read=read_array)
    value_type = _value_type(cursor, type_id)
    if type_id != STRING:
        number: bool | int | float = cursor.number(value_type.code)
        return number
    length = cursor.number("Q")
    if length > LONG_STRING:
        cursor.skip(length)
        return ArrayInfo("uint8", length)
    return cursor.text(length)


def _read_array(cursor: Cursor, *, read: bool) -> MetadataValue:
    type_id = cursor.number("I")
    if type_id == ARRAY:
        raise cursor.broken("an array of arrays, which llama.cpp does not read either")
    element = _value_type(cursor, type_id)
    offset = cursor.offset
    count = cursor.number("Q")
    cursor.need(count * element.size, offset)
    read = read or count <= SMALL_ARRAY
    if type_id == STRING:
        if read:
            return tuple(cursor.string() for _ in range(count))
        cursor.skip_strings(count)
    else:
        if read:
            return cursor.numbers(element.code, count)
        cursor.skip(count * element.size)
    return ArrayInfo(element.name, count)


def _value_type(cursor: Cursor, type_id: int) -> ValueType:
    value_type = VALUE_TYPES.get(type_id)
    if value_type is None:
        raise cursor.broken(f"there is no value type {type_id}", offset=cursor.offset - 4)
    return value_type
