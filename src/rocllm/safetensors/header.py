"""The header of a safetensors file: names, types and places of its tensors. No tensor is read.

The format: eight bytes with the length of the header, the header as JSON, and the tensors without
gaps (https://github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rocllm.errors import ModelFileError
from rocllm.safetensors._files import broken, open_regular, parse_object

# The format allows 100 MB. A tensor takes some 120 bytes, so this is room for 250,000 of them.
MAX_HEADER: Final = 32 << 20
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
# safetensors/src/tensor.rs, `Dtype::bitsize`.
_BITS: Final = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it is stored.

    shape: elements per dimension, the outermost first. dtype: the format's name of the type:
    `BF16`. offset: where its data begins, in bytes from the beginning of the file. n_bytes: its
    size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """What stands before the data. metadata: texts by name, often only `format`."""

    path: Path
    metadata: Mapping[str, str] = field(repr=False)
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    file_size: int


def read_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Read the header of a safetensors file. Reads at most 32 MiB.

    Raises `ModelNotFound`, and `ModelFileError` for what cannot be read or cannot be right, such as
    a file that ends before its tensors do.

    >>> read_safetensors("model.safetensors").tensors[0].dtype  # doctest: +SKIP
    'BF16'
    """
    path = Path(path)
    with open_regular(path) as (descriptor, size):
        length = int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, 0), "little")
        if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            why = f"its header would have {length} bytes, and the file has {size}"
            raise broken(path, why)
        if length > MAX_HEADER:
            raise broken(path, f"its header has {length} bytes, and at most {MAX_HEADER} are read")
        data = os.pread(descriptor, length, _LENGTH_BYTES)
    return parse_header(data, size, path)


def parse_header(data: bytes, size: int, path: Path) -> SafetensorsFile:
    """The same, of a header that was read of a file of `size` bytes. Pure."""
    if not data.startswith(b"{"):
        raise broken(path, f"it is not a safetensors file: its header begins with {data[:8]!r}")
    entries = parse_object(path, data)
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise broken(path, "its metadata is not texts by name")
    start = _LENGTH_BYTES + len(data)
    tensors = [_tensor(path, name, entry, start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.n_bytes))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise broken(path, f"the data of {tensor.name!r} begins at {tensor.offset}, not {end}")
        end += tensor.n_bytes
    if end != size:
        more = "ends before the data of its tensors" if end > size else "goes on after its tensors"
        raise broken(path, f"the file {more}: it has {size} bytes, and they need {end}")
    return SafetensorsFile(path, metadata, tuple(tensors), size)


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(x) is int and 0 <= x < 1 << 63 for x in (*shape, begin, end))
        known = whole and dtype in _BITS
    except (TypeError, KeyError, ValueError) as exc:
        raise _no_tensor(path, name) from exc
    if not whole:
        raise _no_tensor(path, name)
    if not known:
        why = f"tensor {name[:200]!r} has the unknown type {str(dtype)[:40]!r}"
        raise broken(path, why, "update rocllm")
    n_bytes = end - begin
    if len(shape) > 64 or n_bytes * 8 != math.prod(shape) * _BITS[dtype]:
        raise broken(path, f"tensor {name[:200]!r} has {n_bytes} bytes of data for another shape")
    return StoredTensor(name, tuple(shape), dtype, start + begin, n_bytes)


def _no_tensor(path: Path, name: str) -> ModelFileError:
    return broken(path, f"its entry {name[:200]!r} does not describe a tensor")
