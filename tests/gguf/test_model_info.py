"""`model_info`: the real keys, with the defaults that llama.cpp uses."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import pytest

from rocllm.errors import InvalidGGUF, ModelNotFound, UnsupportedArchitecture
from rocllm.gguf import ModelInfo, read_model_info
from rocllm.testing.gguf_writer import Tensor, Typed, Value, write_gguf

LEAST: dict[str, Value] = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
}


def info_of(
    tmp_path: Path, more: dict[str, Value] | None = None, tensors: tuple[Tensor, ...] = ()
) -> ModelInfo:
    """The model of the least metadata that there can be, and more."""
    return read_model_info(write_gguf(tmp_path / "m.gguf", LEAST | (more or {}), tensors))


def test_defaults(tmp_path: Path) -> None:
    """What is missing is 0, none or unknown, as llama.cpp takes it."""
    info = info_of(tmp_path)
    assert (info.architecture, info.block_count, info.context_length) == ("llama", 3, 2048)
    assert info.head_count == info.head_count_kv == info.feed_forward_length == (0, 0, 0)
    assert (info.key_length, info.value_length, info.sliding_window) == (0, 0, 0)
    assert (info.expert_count, info.ssm_state_size, info.split_count) == (0, 0, 1)
    assert info.sliding_window_pattern is None
    assert (info.name, info.license, info.chat_template, info.vocab_size) == (None,) * 4
    assert (info.quantization, info.bits_per_weight, info.parameter_count) == (None, None, 0)


def test_defaults_that_follow_from_other_keys(tmp_path: Path) -> None:
    """Heads for keys and values are as many as heads, and all share the width."""
    info = info_of(tmp_path, {"llama.attention.head_count": 4})
    assert info.head_count == info.head_count_kv == (4, 4, 4)
    assert info.key_length == info.value_length == 16
    assert info.key_length_swa == info.value_length_swa == 16
    assert (
        info_of(
            tmp_path, {"llama.attention.head_count": 4, "llama.attention.key_length": 128}
        ).key_length_swa
        == 128
    )


def test_facts_of_every_layer(tmp_path: Path) -> None:
    """Hybrid and pruned models have arrays where others have one number."""
    info = info_of(
        tmp_path,
        {
            "llama.attention.head_count": [4, 4, 8],
            "llama.attention.head_count_kv": Typed("int32", [0, 2, 0]),
            "llama.feed_forward_length": [1, 2, 3],
            "llama.expert_feed_forward_length": [5, 7, 6],
            "llama.attention.sliding_window": 512,
            "llama.attention.sliding_window_pattern": [True, False],
        },
    )
    assert info.head_count == (4, 4, 8)
    assert info.head_count_kv == (0, 2, 0)
    assert info.feed_forward_length == (1, 2, 3)
    assert info.expert_feed_forward_length == 7
    assert info.key_length == 16
    assert info.sliding_window == 512
    assert info.sliding_window_pattern == (True, False, False)


def test_the_period_of_a_sliding_window(tmp_path: Path) -> None:
    """The pattern may be a number."""
    assert (
        info_of(tmp_path, {"llama.attention.sliding_window_pattern": 6}).sliding_window_pattern == 6
    )


def test_everything_else_stays_within_reach(tmp_path: Path) -> None:
    """The planner reads keys that have no field."""
    info = info_of(tmp_path, {"llama.rope.freq_base": 0.5, "other.key": 1})
    assert info.hyperparameter("rope.freq_base") == 0.5
    assert info.hyperparameter("none", 7) == 7
    assert info.metadata["other.key"] == 1


@pytest.mark.parametrize("count", [10, 2000])
def test_the_vocabulary_is_counted(tmp_path: Path, count: int) -> None:
    """By its own key if there is one, else by the tokens, whether they are read or not."""
    tokens: dict[str, Value] = {"tokenizer.ggml.tokens": ["t"] * count}
    assert info_of(tmp_path, tokens).vocab_size == count
    assert info_of(tmp_path, tokens | {"llama.vocab_size": 5}).vocab_size == 5


def test_quantization(tmp_path: Path) -> None:
    """By the file's word, or else the type of most weights."""
    tensors = (
        Tensor("a", (256, 8), "Q4_K"),
        Tensor("b", (256, 4), "Q6_K"),
        Tensor("c", (256, 3), "F32"),
    )
    info = info_of(tmp_path, None, tensors)
    assert info.quantization == "Q4_K"
    assert info.parameter_count == 256 * 15
    assert info.tensor_bytes == 8 * 144 + 4 * 210 + 3 * 1024
    assert info.bits_per_weight == 8 * info.tensor_bytes / info.parameter_count
    for file_type, name in ((15, "Q4_K_M"), (1024 + 7, "Q8_0"), (999, "Q4_K")):
        more: dict[str, Value] = {"general.file_type": file_type}
        assert info_of(tmp_path, more, tensors).quantization == name


def test_sizes_with_an_unknown_type_of_tensor_are_unknown(tmp_path: Path) -> None:
    """The weights can be counted, not their bytes."""
    info = info_of(tmp_path, None, (Tensor("new", (32,), type_id=99),))
    assert (info.parameter_count, info.tensor_bytes, info.bits_per_weight) == (32, None, None)
    assert info.quantization is None


WRONG: dict[str, tuple[dict[str, Value], str]] = {
    "architecture": ({"general.architecture": ""}, "general.architecture' is missing"),
    "architecture of a number": ({"general.architecture": 1}, "general.architecture' is missing"),
    "other architecture": ({"general.architecture": "other"}, "'other.block_count' is missing"),
    "text": ({"llama.context_length": "long"}, "'llama.context_length' is 'long'"),
    "negative": ({"llama.embedding_length": -1}, "'llama.embedding_length' is -1"),
    "truth value": ({"llama.context_length": True}, "'llama.context_length' is True"),
    "float": ({"llama.block_count": 3.0}, "'llama.block_count' is 3.0"),
    "many layers": ({"llama.block_count": 2**32}, "room for 512 layers"),
    "wrong length": ({"llama.attention.head_count": [1, 2]}, "or 3 of them"),
    "wrong elements": ({"llama.feed_forward_length": [1, 2, -3]}, "or 3 of them"),
    "long array": ({"llama.feed_forward_length": [1] * 2000}, "or 3 of them"),
}


@pytest.mark.parametrize("what", WRONG)
def test_keys_that_make_no_sense(tmp_path: Path, what: str) -> None:
    """The error names the file, the key and the value."""
    more, message = WRONG[what]
    with pytest.raises(InvalidGGUF, match=message) as caught:
        info_of(tmp_path, more)
    assert str(tmp_path / "m.gguf") in caught.value.what


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"general.type": "mmproj"}, "mmproj"),
        ({"general.architecture": "clip"}, "mmproj"),
        ({"general.type": "adapter"}, "LoRA"),
        ({"general.type": "imatrix"}, "importance matrix"),
    ],
)
def test_files_that_belong_to_a_model(tmp_path: Path, more: dict[str, Value], what: str) -> None:
    """They are sound, and said not to be models."""
    with pytest.raises(UnsupportedArchitecture, match=what):
        info_of(tmp_path, more)


def test_it_can_be_pickled(tmp_path: Path) -> None:
    """Plain data goes to other processes."""
    info = info_of(tmp_path, {"llama.attention.head_count": 4}, (Tensor("a", (4,)),))
    assert pickle.loads(pickle.dumps(info)) == info


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    """One that has is, however it was changed; and so is one that may be changing just now."""
    path = write_gguf(tmp_path / "m.gguf", LEAST, ())
    fresh = read_model_info(path)
    assert read_model_info(path) is not fresh

    os.utime(path, (0, 0))
    known = read_model_info(path)
    assert read_model_info(path) is known
    assert read_model_info(str(path)) is known

    write_gguf(path, LEAST | {"llama.context_length": 4096}, ())
    os.utime(path, (0, 60))  # the same size as before
    assert read_model_info(path).context_length == 4096

    later = time.time() + 3600  # a clock that was set back meanwhile
    os.utime(path, (later, later))
    assert read_model_info(path) is not read_model_info(path)

    path.unlink()
    with pytest.raises(ModelNotFound):
        read_model_info(path)


def test_parts_of_a_known_model_are_looked_at(tmp_path: Path) -> None:
    """One that is gone is missed."""
    parts = []
    for number in range(2):
        split = {"split.no": Typed("uint16", number), "split.count": Typed("uint16", 2)}
        parts.append(write_gguf(tmp_path / f"m-{number + 1:05}-of-00002.gguf", LEAST | split, ()))
        os.utime(parts[-1], (0, 0))
    assert read_model_info(parts[0]) is read_model_info(parts[0])
    parts[1].unlink()
    with pytest.raises(ModelNotFound, match="1 are missing"):
        read_model_info(parts[0])
