"""`read_gguf` on what the specification allows and forbids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rocllm.errors import InvalidGGUF
from rocllm.gguf import ArrayInfo, GGUFFile, TensorInfo, read_gguf
from rocllm.gguf.constants import LONG_STRING, TENSOR_TYPES, VERSIONS
from rocllm.gguf.types import ByteOrder
from rocllm.testing.gguf_writer import (
    Tensor,
    Typed,
    Value,
    encode_header,
    encode_string,
    write_gguf,
)

SCALARS: dict[str, Any] = {
    "uint8": 255,
    "int8": -128,
    "uint16": 65535,
    "int16": -32768,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "float32": 0.5,
    "bool": True,
    "string": "grüße 🦙\nline",
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float64": 1e300,
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_every_type_of_metadata_in_every_format(
    tmp_path: Path, version: int, byte_order: ByteOrder
) -> None:
    """Scalars and short arrays of every type are read, in both versions and byte orders."""
    metadata = {f"a.{name}": Typed(name, value) for name, value in SCALARS.items()}
    metadata |= {f"b.{name}": Typed(name, [value] * 3) for name, value in SCALARS.items()}
    metadata |= {f"c.{name}": Typed(name, []) for name in SCALARS}

    path = write_gguf(tmp_path / "m.gguf", metadata, version=version, byte_order=byte_order)
    gguf = read_gguf(path)

    assert (gguf.version, gguf.byte_order, gguf.path) == (version, byte_order, path)
    expected: dict[str, Any] = {f"a.{name}": value for name, value in SCALARS.items()}
    expected |= {f"b.{name}": (value,) * 3 for name, value in SCALARS.items()}
    expected |= {f"c.{name}": () for name in SCALARS}
    assert gguf.metadata == expected
    assert list(gguf.metadata) == list(expected)
    assert type(gguf.metadata["a.bool"]) is bool


def test_tensors_lie_where_they_are_said_to(tmp_path: Path) -> None:
    """Offsets count from the beginning of the file, and data is aligned."""
    path = write_gguf(
        tmp_path / "m.gguf",
        {"general.alignment": 128},
        [Tensor("a", (3,)), Tensor("b", (256, 2, 3), "Q4_K"), Tensor("scalar", ())],
        alignment=128,
    )

    gguf = read_gguf(path)

    start = gguf.data_offset
    assert gguf.alignment == 128
    assert start % 128 == 0
    assert gguf.tensors == (
        TensorInfo("a", (3,), "F32", 0, start, 12),
        TensorInfo("b", (256, 2, 3), "Q4_K", 12, start + 128, 6 * 144),
        TensorInfo("scalar", (), "F32", 0, start + 128 + 896, 4),
    )
    assert [tensor.n_elements for tensor in gguf.tensors] == [3, 1536, 1]
    assert gguf.file_size == path.stat().st_size == start + 128 + 896 + 128


@pytest.mark.parametrize("type_id", TENSOR_TYPES)
def test_every_type_of_tensor(tmp_path: Path, type_id: int) -> None:
    """The size of a row follows from the type's blocks."""
    known = TENSOR_TYPES[type_id]
    path = write_gguf(tmp_path / "m.gguf", {}, [Tensor("t", (512, 2), known.name)])
    (tensor,) = read_gguf(path).tensors
    assert (tensor.type, tensor.type_id) == (known.name, type_id)
    assert tensor.n_bytes == 1024 / known.block_size * known.type_size


def test_an_unknown_type_of_tensor_is_kept_by_its_number(tmp_path: Path) -> None:
    """A newer llama.cpp may know it; its size is not known, and the next tensor is found."""
    unknown = Tensor("new", (32,), type_id=99, n_bytes=40)
    path = write_gguf(tmp_path / "m.gguf", {}, [unknown, Tensor("old", (32,))])
    new, old = read_gguf(path).tensors
    assert (new.type, new.type_id, new.n_bytes) == (None, 99, None)
    assert (old.type, old.offset) == ("F32", new.offset + 64)


@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize(
    "lengths",
    [
        [0] * 3000,
        [8] * 100_000,
        [47, 48, 49] * 1000,
        [*[5] * 1024, 300, *[5] * 1023, 2**16, 2**24, 7],
        list(range(3000)),
        [*[300_000, 3] * 3, *[1] * 2000, 700_000],
    ],
    ids=["empty", "windows", "limit", "long", "all", "larger than a window"],
)
def test_strings_are_counted_and_skipped(
    tmp_path: Path, byte_order: ByteOrder, lengths: list[int]
) -> None:
    """What stands behind an array is found, whatever its strings look like."""
    texts = ["\0" * length for length in lengths]
    metadata: dict[str, Value] = {"before": 1, "texts": texts, "after": "x"}
    gguf = read_gguf(write_gguf(tmp_path / "m.gguf", metadata, byte_order=byte_order))
    assert gguf.metadata == {
        "before": 1,
        "texts": ArrayInfo("string", len(lengths)),
        "after": "x",
    }


def test_long_arrays_of_numbers_are_counted_and_skipped(tmp_path: Path) -> None:
    """Scores and token types are stepped over at once."""
    metadata: dict[str, Value] = {"scores": [0.5] * 5000, "flags": [True] * 1025, "after": "x"}
    assert read_gguf(write_gguf(tmp_path / "m.gguf", metadata)).metadata == {
        "scores": ArrayInfo("float32", 5000),
        "flags": ArrayInfo("bool", 1025),
        "after": "x",
    }


def test_arrays_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """`arrays` names them; a single name will do; an unknown one does not matter."""
    texts = tuple(f"token {number}" for number in range(2000))
    numbers = tuple(range(2000))
    metadata: dict[str, Value] = {"texts": texts, "numbers": numbers}
    path = write_gguf(tmp_path / "m.gguf", metadata)
    assert read_gguf(path, arrays=["texts", "other"]).metadata == {
        "texts": texts,
        "numbers": ArrayInfo("uint32", 2000),
    }
    assert read_gguf(path, arrays="numbers").metadata["numbers"] == numbers


def test_a_very_long_string_is_left_in_the_file(tmp_path: Path) -> None:
    """Some files hold a whole tokenizer.json; that does not keep them from being read."""
    limit = "x" * LONG_STRING
    metadata: dict[str, Value] = {"long": limit + "x", "limit": limit, "last": 1}
    assert read_gguf(write_gguf(tmp_path / "m.gguf", metadata)).metadata == {
        "long": ArrayInfo("uint8", LONG_STRING + 1),
        "limit": limit,
        "last": 1,
    }


def test_text_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    """llama.cpp takes any bytes; two keys that differ in such bytes stay two keys."""
    header = encode_header([(b"a\xff", "x"), (b"a\xfe", "y")], [Tensor(b"\xe9", (8,))])
    gguf = _read(tmp_path, header + bytes(100))
    assert gguf.metadata == {"a\\xff": "x", "a\\xfe": "y"}
    assert gguf.tensors[0].name == "\\xe9"


def test_floats_that_are_no_numbers(tmp_path: Path) -> None:
    """NaN and infinity are values like others."""
    path = write_gguf(tmp_path / "m.gguf", {"a": math.inf, "b": math.nan})
    metadata = read_gguf(path).metadata
    assert metadata["a"] == math.inf
    assert metadata["b"] != metadata["b"]


def test_a_file_may_end_without_padding(tmp_path: Path) -> None:
    """The last tensor's data need not be filled up, as llama.cpp has it."""
    path = write_gguf(tmp_path / "m.gguf", {}, [Tensor("a", (3,))])
    gguf = read_gguf(path)
    path.write_bytes(path.read_bytes()[: gguf.data_offset + 12])
    assert read_gguf(path).tensors == gguf.tensors


def test_a_path_of_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """Files may have any name."""
    path = tmp_path / "m\udcff\n.gguf"
    assert read_gguf(write_gguf(path, {"a": 1})).metadata == {"a": 1}


TENSOR = Tensor("t", (32,))
FORBIDDEN = {
    "duplicate key": (encode_header([("k", 1), ("k", 2)]), "'k' is there twice"),
    "empty key": (encode_header({"": 1}), "the key is empty"),
    "key too long": (encode_header({"k" * 65536: 1}), "a string of 65536 bytes"),
    "nested array": (
        encode_header(n_keys=1) + encode_string("k") + bytes([9, 0, 0, 0, 9, 0, 0, 0]) + bytes(99),
        "array of arrays",
    ),
    "value type": (
        encode_header(n_keys=1) + encode_string("k") + bytes([13, 0, 0, 0]) + bytes(99),
        "no value type 13",
    ),
    "alignment of zero": (encode_header({"general.alignment": 0}), "no power of two"),
    "alignment of 24": (encode_header({"general.alignment": 24}), "no power of two"),
    "alignment of uint64": (
        encode_header({"general.alignment": Typed("uint64", 32)}),
        "of type uint32",
    ),
    "alignment of true": (
        encode_header({"general.alignment": True}),
        "of type uint32",
    ),
    "duplicate tensor": (encode_header({}, [TENSOR, TENSOR]), "'t' is there twice"),
    "tensor name": (encode_header({}, [Tensor("t" * 64, (32,))]), "a string of 64 bytes"),
    "dimensions": (encode_header({}, [Tensor("t", (1, 1, 1, 1, 1))]), "5 dimensions"),
    "negative length": (encode_header({}, [Tensor("t", (2**63, 0), n_bytes=0)]), "too large"),
    "too many elements": (encode_header({}, [Tensor("t", (2**32, 2**31))]), "too large"),
    "row and block": (encode_header({}, [Tensor("t", (33, 32), "Q4_0")]), "rows of 33 elements"),
    "misaligned": (encode_header({}, [TENSOR, Tensor("u", (32,), offset=129)]), "128 is expected"),
    "overlap": (encode_header({}, [TENSOR, Tensor("u", (32,), offset=96)]), "128 is expected"),
    "gap": (encode_header({}, [TENSOR, Tensor("u", (32,), offset=160)]), "128 is expected"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_llama_cpp_refuses_is_refused(tmp_path: Path, what: str) -> None:
    """The error names the file, the place and the reason, and says what to do."""
    header, why = FORBIDDEN[what]
    with pytest.raises(InvalidGGUF, match=why) as caught:
        _read(tmp_path, header + bytes(4096))
    error = caught.value
    assert error.offset is not None
    assert 8 <= error.offset <= len(header)
    assert f"is broken at byte {error.offset}, in " in error.what
    assert str(tmp_path / "broken.gguf") in error.what
    assert error.remedy is not None
    assert "download it again" in error.remedy


@pytest.mark.parametrize(
    ("version", "why"),
    [
        (1, "llama.cpp no longer reads that version"),
        (4, "rocllm knows versions 2 to 3"),
        (0, "there is no such version"),
        (0x10001, "there is no such version"),
        (0x05000000, "has version 5 of"),
    ],
)
def test_other_versions_are_refused(tmp_path: Path, version: int, why: str) -> None:
    """Too old, too new, of the other byte order, or nonsense."""
    with pytest.raises(InvalidGGUF, match=why) as caught:
        _read(tmp_path, encode_header(version=version))
    assert caught.value.offset == 4


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """A file that ends anywhere before its last tensor's data does is refused, with the place."""
    metadata: dict[str, Value] = {"a": "text", "b": ["x"] * 1100, "c": [1.0] * 1100, "d": 1}
    tensors = [Tensor("t", (16,)), Tensor("u", (3,))]
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    whole = path.read_bytes()
    end = read_gguf(path).tensors[-1]
    assert end.n_bytes is not None
    for size in {*range(400), *range(400, end.offset + end.n_bytes, 97), len(whole) - 21}:
        with pytest.raises(InvalidGGUF) as caught:
            _read(tmp_path, whole[:size])
        assert caught.value.offset is not None
        assert caught.value.offset <= size


def test_incomplete_data_is_said_in_numbers(tmp_path: Path) -> None:
    """The usual broken download: everything is there but the end."""
    path = write_gguf(tmp_path / "m.gguf", {}, [Tensor("a", (1024,)), Tensor("b", (1024,))])
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(InvalidGGUF) as caught:
        read_gguf(path)
    assert caught.value.offset == 5000
    assert "in the data of tensor 'b'" in caught.value.what
    assert "the file is incomplete: it has 4.9 KiB (5000 bytes)" in str(caught.value)


def _read(tmp_path: Path, contents: bytes) -> GGUFFile:
    path = tmp_path / "broken.gguf"
    path.write_bytes(contents)
    return read_gguf(path)
