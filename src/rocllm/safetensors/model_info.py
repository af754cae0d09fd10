"""What a model in safetensors format says about itself, in GGUF's words.

The keys of `config.json` are those of the `transformers` library; where a family has names of its
own (GPT-2's `n_embd`), those are looked for, too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rocllm.errors import ModelFileError
from rocllm.gguf import ModelInfo
from rocllm.safetensors._files import broken, read_json
from rocllm.safetensors.directory import CONFIG, find_weights
from rocllm.safetensors.header import SafetensorsFile, read_safetensors

# As vLLM takes it where the configuration does not say (`_get_and_verify_max_len`, vllm/config).
_DEFAULT_CONTEXT = 2048
_MOST = 1 << 40
_MAX_LAYERS = 4096
_REPO_FOLDER = "models--"
_MAX_TEMPLATE = 1 << 20


def read_safetensors_info(directory: str | os.PathLike[str]) -> ModelInfo:
    """What the model in a directory says about itself: its configuration and its files' headers.

    The fields are those of a GGUF model; `metadata` holds the plain values of `config.json`, and
    `tensors` is empty.

    Raises `ModelNotFound` where a file is missing, and `ModelFileError` for what cannot be right.

    >>> read_safetensors_info("/models/Qwen3-4B").context_length  # doctest: +SKIP
    40960
    """
    directory = Path(directory)
    config = _Config(directory / CONFIG)
    files = [read_safetensors(path) for path in find_weights(directory)]
    return _model_info(directory, config, files)


class _Config:
    """The values of a configuration; of a model with several parts, those of its language model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole = read_json(path)
        inner = self.whole.get("text_config")
        self._values: Mapping[str, Any] = (
            {**self.whole, **inner} if isinstance(inner, dict) else self.whole
        )

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        return value if isinstance(value, str) else None

    def integer(self, *keys: str, default: int | None = None, most: int = _MOST) -> int:
        """The first of the keys that is there; without a default one of them must be."""
        for key in keys:
            value = self._values.get(key)
            if value is None:
                continue
            if type(value) is not int or not 0 <= value <= most:
                raise self.wrong(key, f"it must be a whole number up to {most}, got {value!r:.40}")
            return value
        if default is None:
            raise self.wrong(keys[0], "every language model needs it")
        return default

    def token_id(self, key: str) -> int | None:
        """A token id; the first where there are several."""
        value = self._values.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        return value if type(value) is int and value >= 0 else None

    def quantization(self) -> str | None:
        """How the weights are quantised: `AWQ`, `FP8`; `None`: they are not."""
        told = self.whole.get("quantization_config")
        method = told.get("quant_method") if isinstance(told, dict) else None
        return method.upper() if isinstance(method, str) else None

    def plain(self) -> dict[str, bool | int | float | str]:
        """Every value that is no list and no object."""
        items = self._values.items()
        return {key: value for key, value in items if isinstance(value, (bool, int, float, str))}

    def wrong(self, key: str, why: str) -> ModelFileError:
        return broken(self.path, f"{key!r}: {why}")


def _model_info(directory: Path, config: _Config, files: list[SafetensorsFile]) -> ModelInfo:
    n_layers = config.integer("num_hidden_layers", "n_layer", "n_layers", most=_MAX_LAYERS)
    heads = config.integer("num_attention_heads", "n_head", "n_heads", default=0)
    embedding = config.integer("hidden_size", "n_embd", "d_model")
    head_size = config.integer("head_dim", default=embedding // heads if heads else 0)
    value_size = config.integer("v_head_dim", default=head_size)
    sizes = [tensor.n_elements for file in files for tensor in file.tensors]
    tensor_bytes = sum(tensor.n_bytes for file in files for tensor in file.tensors)
    parameters = sum(sizes)
    window = config.integer("sliding_window", default=0)
    used = config.plain().get("use_sliding_window", True)
    return ModelInfo(
        architecture=config.text("model_type") or _architecture(config),
        name=_name(directory),
        size_label=None,
        license=None,
        quantization=config.quantization() or _dtype(files),
        parameter_count=parameters,
        bits_per_weight=8 * tensor_bytes / parameters if parameters else None,
        file_size=sum(file.file_size for file in files),
        tensor_bytes=tensor_bytes,
        split_count=len(files),
        context_length=config.integer(
            "max_position_embeddings", "n_positions", "max_seq_len", default=_DEFAULT_CONTEXT
        ),
        block_count=n_layers,
        embedding_length=embedding,
        vocab_size=config.integer("vocab_size", default=0) or None,
        feed_forward_length=(config.integer("intermediate_size", "n_inner", default=0),) * n_layers,
        nextn_predict_layers=config.integer("num_nextn_predict_layers", default=0),
        head_count=(heads,) * n_layers,
        head_count_kv=(config.integer("num_key_value_heads", default=heads),) * n_layers,
        key_length=head_size,
        value_length=value_size,
        key_length_swa=head_size,
        value_length_swa=value_size,
        key_length_mla=0,
        value_length_mla=0,
        sliding_window=window if used else 0,
        sliding_window_pattern=None,
        shared_kv_layers=0,
        expert_count=config.integer(
            "num_local_experts", "num_experts", "n_routed_experts", default=0
        ),
        expert_used_count=config.integer("num_experts_per_tok", default=0),
        expert_feed_forward_length=config.integer("moe_intermediate_size", default=0),
        leading_dense_block_count=config.integer("first_k_dense_replace", default=0),
        ssm_conv_kernel=0,
        ssm_inner_size=0,
        ssm_state_size=0,
        ssm_group_count=0,
        tokenizer_model=None,
        bos_token_id=config.token_id("bos_token_id"),
        eos_token_id=config.token_id("eos_token_id"),
        chat_template=_chat_template(directory),
        metadata=config.plain(),
        tensors=(),
    )


def _architecture(config: _Config) -> str:
    names = config.whole.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    raise config.wrong("model_type", "every model needs it")


def _name(directory: Path) -> str:
    """`user/repo` for a snapshot of the Hub's cache, else the directory's own name."""
    for folder in directory.parents[:2]:
        if folder.name.startswith(_REPO_FOLDER):
            return folder.name.removeprefix(_REPO_FOLDER).replace("--", "/", 1)
    return directory.name


def _dtype(files: list[SafetensorsFile]) -> str | None:
    """The type of most weights."""
    weights: Counter[str] = Counter()
    for file in files:
        for tensor in file.tensors:
            weights[tensor.dtype] += tensor.n_elements
    return weights.most_common(1)[0][0] if weights else None


def _chat_template(directory: Path) -> str | None:
    """The Jinja template: a file of its own, or part of the tokeniser's configuration."""
    try:
        with open(directory / "chat_template.jinja", encoding="utf-8") as file:
            return file.read(_MAX_TEMPLATE)
    except (OSError, ValueError):
        pass
    try:
        value = read_json(directory / "tokenizer_config.json").get("chat_template")
    except ModelFileError:
        return None
    if isinstance(value, list):  # several, by name
        named = {one["name"]: one["template"] for one in value if _is_named_template(one)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _is_named_template(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and {"name", "template"} <= value.keys()
        and (isinstance(value["name"], str))
    )
