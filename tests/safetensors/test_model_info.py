"""What the directory of a model says about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.safetensors.made import CONFIG, SHAPES, weights, write_model

from rocllm.errors import ModelFileError, ModelNotFound
from rocllm.safetensors import find_weights, is_safetensors_model, read_safetensors_info


def test_the_configuration_in_words_of_gguf(tmp_path: Path) -> None:
    """Sizes, heads, context, special tokens; counts and sizes from the headers."""
    info = read_safetensors_info(write_model(tmp_path / "Tiny-1M"))
    assert (info.architecture, info.name, info.quantization) == ("llama", "Tiny-1M", "BF16")
    assert info.parameter_count == 100 * 32 + 32
    assert info.tensor_bytes == 2 * info.parameter_count
    assert info.bits_per_weight == 16
    assert info.file_size == (tmp_path / "Tiny-1M" / "model.safetensors").stat().st_size
    assert (info.context_length, info.block_count, info.embedding_length) == (8192, 2, 32)
    assert (info.head_count, info.head_count_kv, info.key_length) == ((4, 4), (2, 2), 8)
    assert (info.vocab_size, info.bos_token_id, info.eos_token_id) == (100, 1, 2)
    assert info.metadata["rope_theta"] == 10000.0
    assert "rope_scaling" not in info.metadata
    assert info.chat_template is None


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"head_dim": 128}, "key_length", 128),
        ({"num_key_value_heads": None}, "head_count_kv", (4, 4)),
        ({"sliding_window": 512}, "sliding_window", 512),
        ({"sliding_window": 512, "use_sliding_window": False}, "sliding_window", 0),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, "expert_count", 8),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization", "AWQ"),
        ({"max_position_embeddings": None}, "context_length", 2048),
        ({"max_position_embeddings": None, "n_positions": 1024}, "context_length", 1024),
        ({"text_config": {"num_hidden_layers": 7}}, "block_count", 7),
        ({"model_type": None}, "architecture", "LlamaForCausalLM"),
    ],
)
def test_other_families(changes: dict[str, Any], field: str, value: object, tmp_path: Path) -> None:
    """Names of their own, parts of several, and what is left away."""
    info = read_safetensors_info(write_model(tmp_path, {**CONFIG, **changes}))
    assert getattr(info, field) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": True},
        {"hidden_size": "32"},
        {"hidden_size": -1},
        {"model_type": None, "architectures": []},
    ],
)
def test_a_configuration_that_cannot_be_right(changes: dict[str, Any], tmp_path: Path) -> None:
    """It is refused by the name of the key."""
    with pytest.raises(ModelFileError, match=next(iter(changes))):
        read_safetensors_info(write_model(tmp_path, {**CONFIG, **changes}))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"a":' * 10_000])
def test_a_configuration_that_is_none(text: str, tmp_path: Path) -> None:
    """Whatever stands in the file."""
    (write_model(tmp_path) / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match="no JSON object"):
        read_safetensors_info(tmp_path)


def test_chat_templates(tmp_path: Path) -> None:
    """In a file of its own, in the tokenizer's configuration, one of several; or none."""
    settings = write_model(tmp_path) / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "{{ a }}"}))
    assert read_safetensors_info(tmp_path).chat_template == "{{ a }}"
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}, 3]
    settings.write_text(json.dumps({"chat_template": named}))
    assert read_safetensors_info(tmp_path).chat_template == "d"
    settings.write_text("nonsense")
    assert read_safetensors_info(tmp_path).chat_template is None
    (tmp_path / "chat_template.jinja").write_text("{{ b }}")
    assert read_safetensors_info(tmp_path).chat_template == "{{ b }}"


def test_a_model_in_several_files(tmp_path: Path) -> None:
    """Those of the index count; one that is missing is named."""
    (write_model(tmp_path) / "model.safetensors").unlink()
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    index = {"weight_map": dict(zip(SHAPES, names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, (tensor, shape) in zip(names, SHAPES.items(), strict=True):
        (tmp_path / name).write_bytes(weights({tensor: shape}))
    (tmp_path / "other.safetensors").write_bytes(b"not of this model")
    assert [path.name for path in find_weights(tmp_path)] == names
    info = read_safetensors_info(tmp_path)
    assert (info.parameter_count, info.split_count) == (100 * 32 + 32, 2)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelNotFound, match=names[1]):
        read_safetensors_info(tmp_path)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "model.bin", 3, None])
def test_an_index_that_leads_elsewhere(name: object, tmp_path: Path) -> None:
    """Only files of the directory itself are read."""
    index = {"weight_map": {"a": name}}
    (write_model(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="weight_map"):
        find_weights(tmp_path)


def test_what_is_a_model_and_what_is_not(tmp_path: Path) -> None:
    """A configuration and weights, both."""
    model = write_model(tmp_path / "model")
    assert is_safetensors_model(model)
    assert not is_safetensors_model(tmp_path)
    assert not is_safetensors_model(model / "config.json")
    assert not is_safetensors_model(tmp_path / "nothing")
    assert not is_safetensors_model("a\0b")
    (model / "config.json").unlink()
    assert not is_safetensors_model(model)


def test_the_name_of_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    """It is the repository's, not the commit's."""
    folder = tmp_path / "models--ann--Tiny-1M" / "snapshots" / "abc123"
    assert read_safetensors_info(write_model(folder)).name == "ann/Tiny-1M"
