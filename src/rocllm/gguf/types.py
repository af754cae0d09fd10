"""What a GGUF file holds, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

ByteOrder: TypeAlias = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """An array that was left in the file: the type of its elements and how many there are.

    A string of over 1 MiB is left there too, and stands here as an array of `uint8`.
    """

    type: str
    count: int


Scalar: TypeAlias = bool | int | float | str
MetadataValue: TypeAlias = Scalar | tuple[Scalar, ...] | ArrayInfo


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it looks like.

    shape: elements per dimension, the one that is contiguous in memory first, as in ggml.
    type: ggml's name of the element type, `"Q4_K"`; `None`: a type that rocllm does not know.
    type_id: its number in the file.
    offset: where its data begins, in bytes from the beginning of the file.
    n_bytes: size of its data; `None` when the type is not known.
    """

    name: str
    shape: tuple[int, ...]
    type: str | None
    type_id: int
    offset: int
    n_bytes: int | None

    @property
    def n_elements(self) -> int:
        """The number of weights in it."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a model this file is: number `no` (the first is 0) of `count`.

    tensor_count: tensors of all parts together; `None` when the file does not say.
    """

    no: int
    count: int
    tensor_count: int | None


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """Everything that stands before the tensors' data of a GGUF file.

    version: of the format, 2 or 3. metadata: by key, in the file's order; large arrays as
    `ArrayInfo`. tensors: in the file's order. alignment: of the tensors' data, in bytes.
    data_offset: where that data begins. file_size: in bytes.
    """

    path: Path
    version: int
    byte_order: ByteOrder
    metadata: Mapping[str, MetadataValue] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    alignment: int
    data_offset: int
    file_size: int

    @property
    def split(self) -> Split | None:
        """Which part of a model this is; `None` for a model in one file."""
        no, count, tensor_count = (
            value if isinstance(value, int) else None
            for value in map(self.metadata.get, ("split.no", "split.count", "split.tensors.count"))
        )
        if no is None or count is None or count <= 1:
            return None
        return Split(no, count, tensor_count)
