"""Our reader and writer agree with llama.cpp's own reader, converter package and server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gguf as official
import rocllm
from rocllm.gguf import ArrayInfo, GGUFFile, read_gguf, read_model_info
from rocllm.gguf.constants import FILE_TYPES, TENSOR_TYPES, VALUE_TYPES
from rocllm.gguf.types import ByteOrder
from rocllm.testing.gguf_writer import Tensor, Typed, write_gguf
from rocllm.testing.tiny_models import tiny_llama


def assert_equal_to_official(ours: GGUFFile) -> None:
    """Every key and every tensor, as the `gguf` package reads them."""
    theirs = official.GGUFReader(ours.path)
    fields = {k: f for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value = ours.metadata[key]
        if isinstance(value, ArrayInfo):
            name = official.GGUFValueType(field.types[-1]).name.lower()
            assert (value.type, value.count) == (name, len(field.data))
        else:
            expected: Any = field.contents()
            assert value == (tuple(expected) if isinstance(expected, list) else expected)
    assert [
        (tensor.name, tensor.shape, tensor.type, tensor.offset, tensor.n_bytes)
        for tensor in ours.tensors
    ] == [
        (
            tensor.name,
            tuple(int(length) for length in tensor.shape),
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in theirs.tensors
    ]


def test_the_demo_model(demo_model: Path) -> None:
    """A real file, down to the last tensor."""
    ours = read_gguf(demo_model)
    assert_equal_to_official(ours)
    info = read_model_info(demo_model)
    assert (info.architecture, info.quantization) == ("llama", "Q4_1")
    assert (info.parameter_count, info.vocab_size) == (134515008, 49152)
    assert (info.context_length, info.block_count, info.embedding_length) == (8192, 30, 576)
    assert (info.head_count[0], info.head_count_kv[-1], info.key_length) == (9, 3, 64)
    assert (info.bos_token_id, info.eos_token_id, info.license) == (1, 2, "apache-2.0")
    assert info.chat_template is not None
    assert "<|im_start|>" in info.chat_template


def test_the_vocabulary_of_the_demo_model(demo_model: Path) -> None:
    """Tokens and their types, when they are asked for."""
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    metadata = read_gguf(demo_model, arrays=keys).metadata
    tokens, types = (metadata[key] for key in keys)
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert len(tokens) == len(types) == 49152
    assert tokens[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert types[1] == 3
    assert tokens.index("Ġgravity") > 0


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_what_the_writer_writes(tmp_path: Path, byte_order: ByteOrder) -> None:
    """The official package reads our files as we do, in both byte orders."""
    metadata, tensors = tiny_llama(weight_type="Q8_0")
    metadata |= {"a.bools": [True, False], "a.pi": Typed("float64", 3.25), "a.small": -7}
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors, byte_order=byte_order)
    assert_equal_to_official(read_gguf(path))


def test_what_the_official_writer_writes(tmp_path: Path) -> None:
    """And the other way round."""
    path = tmp_path / "m.gguf"
    writer = official.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count_kv([1, 2])
    writer.add_token_list(["a", "b"])
    writer.add_float64("f", 0.1)
    writer.add_bool("b", True)
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_equal_to_official(read_gguf(path))


def test_the_tables() -> None:
    """Numbers, names and block sizes are the official ones."""
    for tensor_type, sizes in official.GGML_QUANT_SIZES.items():
        if tensor_type.name == "Q8_1":
            continue  # the package has the size of an older llama.cpp; it is in no model file
        assert TENSOR_TYPES[tensor_type] == (tensor_type.name, *sizes)
    for file_type in official.LlamaFileType:
        if file_type.name != "GUESSED":
            assert FILE_TYPES[file_type] == file_type.name.partition("_")[2]
    assert {id_: known.name for id_, known in VALUE_TYPES.items()} == {
        value_type.value: value_type.name.lower() for value_type in official.GGUFValueType
    }


@pytest.mark.parametrize("weight_type", ["F32", "Q8_0", "Q4_0"])
def test_llama_cpp_loads_what_the_writer_writes(tmp_path: Path, weight_type: str) -> None:
    """A tiny model with random weights generates something."""
    metadata, tensors = tiny_llama(weight_type=weight_type)
    path = write_gguf(tmp_path / "tiny.gguf", metadata, tensors, data="random")
    with rocllm.load_model(path, llama_server="embedded", device="cpu") as model:
        assert model.info.ctx_size == 512
        assert model.generate("abc", max_tokens=3).read().tokens


def test_a_hole_takes_no_space(tmp_path: Path) -> None:
    """Models of real dimensions can be described without a disk to match."""
    tensors = [Tensor("big", (2**20, 2**10)), Tensor("end", (32,))]
    path = write_gguf(tmp_path / "big.gguf", {}, tensors, data="hole")
    assert read_gguf(path).tensors[0].n_bytes == 2**32
    status = path.stat()
    assert status.st_size > 2**32
    assert status.st_blocks * 512 < 2**20


def test_random_data_is_the_same_every_time(tmp_path: Path) -> None:
    """Tests that fail can be repeated; different tensors differ."""
    tensors = [Tensor("a", (64,), "Q4_0"), Tensor("b", (64,), "Q4_0")]
    first = write_gguf(tmp_path / "1.gguf", {}, tensors, data="random").read_bytes()
    assert write_gguf(tmp_path / "2.gguf", {}, tensors, data="random").read_bytes() == first
    a, b = read_gguf(tmp_path / "1.gguf").tensors
    assert first[a.offset : a.offset + 36] != first[b.offset : b.offset + 36]
