"""Headers of safetensors files, whole and hostile."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.safetensors.made import SHAPES, encode, header_of, weights

from rocllm.errors import ModelFileError, ModelNotFound
from rocllm.safetensors import read_safetensors
from rocllm.safetensors.header import MAX_HEADER, parse_header


def read(tmp_path: Path, contents: bytes) -> Any:
    path = tmp_path / "model.safetensors"
    path.write_bytes(contents)
    return read_safetensors(path)


def entry(**changes: Any) -> dict[str, Any]:
    """A header with one tensor of 4 bytes."""
    return {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4], **changes}}


def test_tensors_are_told_in_the_order_of_their_data(tmp_path: Path) -> None:
    """Name, type, shape, place and size of each; nothing of the data is looked at."""
    file = read(tmp_path, weights())
    assert [tensor.name for tensor in file.tensors] == list(SHAPES)
    embedding, norm = file.tensors
    assert (embedding.dtype, embedding.shape, embedding.n_bytes) == ("BF16", (100, 32), 6400)
    assert embedding.n_elements == 3200
    assert norm.offset == embedding.offset + 6400
    assert norm.offset + norm.n_bytes == file.file_size
    assert file.metadata == {"format": "pt"}


def test_padding_and_scalars_are_part_of_the_format(tmp_path: Path) -> None:
    """Spaces after the JSON, a tensor without dimensions, one without elements."""
    header = header_of({"scalar": (), "empty": (0, 3)})
    file = read(tmp_path, encode(str(header).replace("'", '"').encode() + b"   ", bytes(2)))
    assert {tensor.name: tensor.n_elements for tensor in file.tensors} == {"scalar": 1, "empty": 0}


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "header would have 0 bytes"),
        (b"\x05\0\0", "the file has 3"),
        (weights()[:1000], "ends before the data"),
        (weights() + b"\0", "goes on after"),
        ((2**63).to_bytes(8, "little") + b"{}", f"{2**63} bytes"),
        (encode(b"<html>"), "not a safetensors file"),
        (encode(b'{"a": '), "no JSON object"),
        (encode(b"{" + b'"a":{' * 100_000), "no JSON object"),
        (encode(b'{"a": 1' + b"0" * 5000 + b"}"), "no JSON object"),
        (encode(b'{"a": 1, "a": 2}'), "stands in it twice"),
        (encode({"__metadata__": {"format": 1}}), "metadata"),
        (encode({"__metadata__": []}), "metadata"),
        (encode({"a": 1}), "does not describe a tensor"),
        (encode(entry(shape="2"), bytes(4)), "does not describe a tensor"),
        (encode(entry(shape=[True, 2]), bytes(4)), "does not describe a tensor"),
        (encode(entry(shape=[-1, -2]), bytes(4)), "does not describe a tensor"),
        (encode(entry(data_offsets=[0]), bytes(4)), "does not describe a tensor"),
        (encode(entry(data_offsets=[4, 0]), bytes(4)), "for another shape"),
        (encode(entry(shape=[2**62, 2**62]), bytes(4)), "for another shape"),
        (encode(entry(shape=[1] * 65 + [2]), bytes(4)), "for another shape"),
        (encode(entry(dtype="Q4"), bytes(4)), "unknown type 'Q4'"),
        (encode(entry(dtype=["F16"]), bytes(4)), "does not describe a tensor"),
        (encode(entry(data_offsets=[2, 6]), bytes(6)), "begins at"),
        (encode({**entry(), "b": entry()["a"]}, bytes(4)), "begins at"),
    ],
)
def test_what_cannot_be_right_is_refused(contents: bytes, said: str, tmp_path: Path) -> None:
    """Each with what is wrong, and none with an error that is not ours."""
    with pytest.raises(ModelFileError) as caught:
        read(tmp_path, contents)
    assert said in str(caught.value)
    assert caught.value.cause == "bad_file"


def test_a_large_header_is_not_read(tmp_path: Path) -> None:
    """A file may announce any length; it is refused before memory is taken for it."""
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 100)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="at most"):
        read_safetensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Nothing there, a directory, a pipe (which nobody waits for), a name that cannot be."""
    with pytest.raises(ModelNotFound):
        read_safetensors(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="regular file"):
        read_safetensors(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="regular file"):
        read_safetensors(tmp_path / "pipe")
    with pytest.raises(ModelFileError):
        read_safetensors("a\0b")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_VALUES, st.integers(0, 64))
def test_any_json_is_read_or_refused(value: object, size: int) -> None:
    """Whatever a header holds, the answer is a file or one of our errors."""
    contents = encode(value, bytes(size))
    try:
        file = parse_header(contents[8:-size] if size else contents[8:], len(contents), Path("x"))
    except ModelFileError:
        return
    assert sum(tensor.n_bytes for tensor in file.tensors) == size


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """The same for what is no JSON at all."""
    with pytest.raises(ModelFileError):
        parse_header(b"{" + data, len(data) + 9, Path("x"))
