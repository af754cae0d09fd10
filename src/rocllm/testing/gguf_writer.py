"""Write small GGUF files for tests: sound ones that llama.cpp loads, and broken ones."""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from rocllm.gguf.constants import ARRAY, DEFAULT_ALIGNMENT, STRING, TENSOR_TYPES, VALUE_TYPES
from rocllm.gguf.types import ByteOrder, Scalar

_VALUE_TYPE_IDS = {value_type.name: type_id for type_id, value_type in VALUE_TYPES.items()}
_TENSOR_TYPE_IDS = {tensor_type.name: type_id for type_id, tensor_type in TENSOR_TYPES.items()}
_RANDOM_BYTES = 2**16  # after which random data repeats

TensorData: TypeAlias = Literal["zeros", "random", "hole"]


@dataclass(frozen=True, slots=True)
class Typed:
    """A value of a type that Python does not tell: `Typed("uint16", 3)`.

    type: of the value or, for a sequence, of its elements, as the specification names it.
    """

    type: str
    value: Scalar | Sequence[Scalar]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to write.

    shape: elements per dimension, the contiguous one first. type: ggml's name of it.
    type_id, offset, n_bytes: written, or taken as its size, in place of what is true.
    """

    name: str | bytes
    shape: tuple[int, ...]
    type: str = "F32"
    type_id: int | None = None
    offset: int | None = None
    n_bytes: int | None = None

    @property
    def size(self) -> int:
        """Bytes that the data takes."""
        if self.n_bytes is not None:
            return self.n_bytes
        known = TENSOR_TYPES[_TENSOR_TYPE_IDS[self.type]]
        return math.prod(self.shape) // known.block_size * known.type_size


Value: TypeAlias = Scalar | Sequence[Scalar] | Typed
Metadata: TypeAlias = Mapping[str, Value] | Iterable[tuple[str | bytes, Value]]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Metadata = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    byte_order: ByteOrder = "little",
    alignment: int = DEFAULT_ALIGNMENT,
    data: TensorData = "zeros",
) -> Path:
    """Write a GGUF file; returns its path.

    metadata: by key, or as pairs, among which a key may be repeated. An `int` is written as the
        first of uint32, int32, uint64, int64 that holds it, a `float` as float32, a sequence as an
        array; for all else there is `Typed`.
    alignment: of the data. It does not go into the metadata by itself.
    data: what the tensors hold; `"random"`: small numbers, always the same; `"hole"`: zeros that
        take no space on the disk.

    >>> write_gguf("m.gguf", {"general.architecture": "llama"})  # doctest: +SKIP
    PosixPath('m.gguf')
    """
    path = Path(path)
    with path.open("wb") as file:
        file.write(
            encode_header(
                metadata, tensors, version=version, byte_order=byte_order, alignment=alignment
            )
        )
        for tensor in tensors:
            file.seek(-file.tell() % alignment, os.SEEK_CUR)
            if data == "hole":
                file.seek(tensor.size, os.SEEK_CUR)
            else:
                _write_repeated(file, _pattern(tensor, data, byte_order), tensor.size)
        file.seek(-file.tell() % alignment if tensors else 0, os.SEEK_CUR)
        file.truncate()
    return path


def encode_header(
    metadata: Metadata = (),
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    byte_order: ByteOrder = "little",
    alignment: int = DEFAULT_ALIGNMENT,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    """What stands before the padding and the data; `n_tensors` and `n_keys` can be made to lie."""
    order = _order(byte_order)
    pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata)
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_keys is None else n_keys,
    )
    parts = [b"GGUF", struct.pack(f"{order}IQQ", version, *counts)]
    for key, value in pairs:
        parts += (encode_string(key, byte_order), encode_value(value, byte_order))
    start = 0
    for tensor in tensors:
        parts.append(_encode_tensor(tensor, start, byte_order))
        start += tensor.size
        start += -start % alignment
    return b"".join(parts)


def encode_string(text: str | bytes, byte_order: ByteOrder = "little") -> bytes:
    """Length and bytes of a string."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(f"{_order(byte_order)}Q", len(raw)) + raw


def encode_value(value: Value, byte_order: ByteOrder = "little") -> bytes:
    """Type and bytes of a value."""
    order = _order(byte_order)
    type_name = None
    if isinstance(value, Typed):
        type_name, value = value.type, value.value
    if isinstance(value, (bool, int, float, str)):
        head, elements = "", [value]
    else:
        head, elements = "array", list(value)
    type_id = _VALUE_TYPE_IDS[type_name or _type_of(elements)]
    encoded = struct.pack(f"{order}I", type_id)
    if head:
        encoded = struct.pack(f"{order}IIQ", ARRAY, type_id, len(elements))
    if type_id == STRING:
        return encoded + b"".join(encode_string(str(text), byte_order) for text in elements)
    return encoded + struct.pack(f"{order}{len(elements)}{VALUE_TYPES[type_id].code}", *elements)


def _order(byte_order: ByteOrder) -> str:
    return "<" if byte_order == "little" else ">"


def _type_of(elements: Sequence[Scalar]) -> str:
    """The type in which converters write such elements."""
    if not elements or isinstance(elements[0], str):
        return "string"
    if isinstance(elements[0], bool):
        return "bool"
    if any(isinstance(element, float) for element in elements):
        return "float32"
    low, high = int(min(elements)), int(max(elements))
    for name, least, most in (
        ("uint32", 0, 2**32),
        ("int32", -(2**31), 2**31),
        ("uint64", 0, 2**64),
    ):
        if least <= low and high < most:
            return name
    return "int64"


def _encode_tensor(tensor: Tensor, start: int, byte_order: ByteOrder) -> bytes:
    return encode_string(tensor.name, byte_order) + struct.pack(
        f"{_order(byte_order)}I{len(tensor.shape)}QIQ",
        len(tensor.shape),
        *tensor.shape,
        _TENSOR_TYPE_IDS[tensor.type] if tensor.type_id is None else tensor.type_id,
        start if tensor.offset is None else tensor.offset,
    )


def _pattern(tensor: Tensor, data: TensorData, byte_order: ByteOrder) -> bytes:
    if data == "zeros":
        return bytes(_RANDOM_BYTES)
    source = random.Random(repr(tensor.name))
    if tensor.type == "F32":
        count = _RANDOM_BYTES // 4
        numbers = (source.gauss(0, 0.05) for _ in range(count))
        return struct.pack(f"{_order(byte_order)}{count}f", *numbers)
    # Scales stand at different places of a block, as a float16 or a power of two: with the upper
    # three bits of every byte empty they are finite and small wherever they are.
    return bytes(byte & 0x1F for byte in source.randbytes(_RANDOM_BYTES))


def _write_repeated(file: BinaryIO, pattern: bytes, n_bytes: int) -> None:
    file.writelines(pattern for _ in range(n_bytes // len(pattern)))
    file.write(pattern[: n_bytes % len(pattern)])
