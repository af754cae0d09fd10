"""What a model file says about the model, with the defaults that llama.cpp uses."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rocllm.errors import InvalidGGUF, UnsupportedArchitecture
from rocllm.gguf._keys import Keys
from rocllm.gguf.constants import FILE_TYPE_GUESSED, FILE_TYPES, MAX_LAYERS
from rocllm.gguf.split import read_splits, split_paths
from rocllm.gguf.types import ArrayInfo, GGUFFile, MetadataValue, TensorInfo

# Seconds after a change in which another one may leave the time of change as it is: the coarsest
# file systems count in twos.
_SETTLED_AFTER = 2.0
# What stands in `general.type` of files that are not models by themselves (gguf-py, GGUFType).
_NO_MODELS = {
    "mmproj": "the image or audio part of a model (mmproj)",
    "adapter": "an adapter (LoRA) for a model",
    "imatrix": "an importance matrix, for quantising a model",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model file says about the model.

    The names are GGUF's keys without `general.`, the architecture, `attention.` and `ggml.`, with
    `_` for `.`; meanings and units are GGUF's, too. Where a key is missing stands what llama.cpp
    (b11434) takes instead: 0 for what the model does not have. `None`: the file does not say.

    quantization: how most weights are stored, as file names have it: `Q4_K_M`.
    parameter_count: weights of all tensors. bits_per_weight: on the average of all tensors.
    file_size, tensor_bytes: of all parts of the model, in bytes. split_count: in how many files.
    feed_forward_length, head_count, head_count_kv: one number per layer. expert_used_count,
        expert_feed_forward_length: where layers differ, the largest.
    sliding_window: in tokens. sliding_window_pattern: which layers have it: one truth value per
        layer, or the length of the period; `None`: the architecture's own pattern.
    chat_template: the Jinja template; `None`: the file has none.
    metadata, tensors: everything else in the file (of a split model: the first part's metadata,
        every part's tensors, whose offsets count in their own file).
    """

    architecture: str
    name: str | None
    size_label: str | None
    license: str | None
    quantization: str | None
    parameter_count: int
    bits_per_weight: float | None
    file_size: int
    tensor_bytes: int | None
    split_count: int

    context_length: int
    block_count: int
    embedding_length: int
    vocab_size: int | None
    feed_forward_length: tuple[int, ...]
    nextn_predict_layers: int

    head_count: tuple[int, ...]
    head_count_kv: tuple[int, ...]
    key_length: int
    value_length: int
    key_length_swa: int
    value_length_swa: int
    key_length_mla: int
    value_length_mla: int
    sliding_window: int
    sliding_window_pattern: int | tuple[bool, ...] | None
    shared_kv_layers: int

    expert_count: int
    expert_used_count: int
    expert_feed_forward_length: int
    leading_dense_block_count: int

    ssm_conv_kernel: int
    ssm_inner_size: int
    ssm_state_size: int
    ssm_group_count: int

    tokenizer_model: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None

    metadata: Mapping[str, MetadataValue] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)

    def hyperparameter(
        self, key: str, default: MetadataValue | None = None
    ) -> MetadataValue | None:
        """The value of a key of the architecture: `rope.freq_base` for `llama.rope.freq_base`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_model_info(path: str | os.PathLike[str]) -> ModelInfo:
    """What the model of which `path` is the file, or one of the files, says about itself.

    A program that asks again for a model whose files have not changed gets the same answer without
    their being read.

    Raises what `read_splits` and `model_info` raise.

    >>> read_model_info("qwen3-4b-q4_k_m.gguf").context_length  # doctest: +SKIP
    40960
    """
    state = _settled_state(path)
    if state is None:
        return model_info(*read_splits(path))
    return _read_settled(os.fspath(path), state)


@functools.lru_cache(maxsize=16)
def _read_settled(path: str, _state: tuple[tuple[int, ...], ...]) -> ModelInfo:
    return model_info(*read_splits(path))


def _settled_state(path: str | os.PathLike[str]) -> tuple[tuple[int, ...], ...] | None:
    """What changes when a file of the model does; `None`: one may be changing just now.

    A file that changes twice within a tick of the file system's clock looks the same afterwards.
    """
    state = []
    latest = time.time() - _SETTLED_AFTER
    for part in split_paths(path):
        try:
            status = os.stat(part)
        except (OSError, ValueError):  # reading it says why
            return None
        if status.st_mtime > latest:
            return None
        times = (status.st_mtime_ns, status.st_ctime_ns)
        state.append((status.st_dev, status.st_ino, status.st_size, *times))
    return tuple(state)


def model_info(gguf: GGUFFile, *more_parts: GGUFFile) -> ModelInfo:
    """What a model says about itself; of a model in several files, give all parts in order.

    Raises `InvalidGGUF` where a key that every model needs is missing or makes no sense, and
    `UnsupportedArchitecture` for a sound file that is not a language model.
    """
    _refuse_other_kinds(gguf)
    keys = Keys(gguf)
    n_layers = keys.integer("block_count")
    if n_layers > MAX_LAYERS:
        raise keys.wrong("block_count", f"llama.cpp has room for {MAX_LAYERS} layers")
    head_count = keys.per_layer("attention.head_count", n_layers, 0)
    embedding_length = keys.integer("embedding_length")
    head_size = embedding_length // head_count[0] if head_count and head_count[0] else 0
    key_length = keys.integer("attention.key_length", head_size)
    value_length = keys.integer("attention.value_length", head_size)
    tensors = tuple(tensor for part in (gguf, *more_parts) for tensor in part.tensors)
    parameter_count = sum(tensor.n_elements for tensor in tensors)
    tensor_bytes = _sum_known([tensor.n_bytes for tensor in tensors])
    return ModelInfo(
        architecture=keys.architecture,
        name=keys.text("general.name"),
        size_label=keys.text("general.size_label"),
        license=keys.text("general.license"),
        quantization=_quantization(gguf.metadata, tensors),
        parameter_count=parameter_count,
        bits_per_weight=8 * tensor_bytes / parameter_count
        if tensor_bytes is not None and parameter_count
        else None,
        file_size=sum(part.file_size for part in (gguf, *more_parts)),
        tensor_bytes=tensor_bytes,
        split_count=1 + len(more_parts),
        context_length=keys.integer("context_length"),
        block_count=n_layers,
        embedding_length=embedding_length,
        vocab_size=_vocab_size(keys),
        feed_forward_length=keys.per_layer("feed_forward_length", n_layers, 0),
        nextn_predict_layers=keys.integer("nextn_predict_layers", 0),
        head_count=head_count,
        head_count_kv=keys.per_layer("attention.head_count_kv", n_layers, head_count),
        key_length=key_length,
        value_length=value_length,
        key_length_swa=keys.integer("attention.key_length_swa", key_length),
        value_length_swa=keys.integer("attention.value_length_swa", value_length),
        key_length_mla=keys.integer("attention.key_length_mla", 0),
        value_length_mla=keys.integer("attention.value_length_mla", 0),
        sliding_window=keys.integer("attention.sliding_window", 0),
        sliding_window_pattern=_sliding_window_pattern(keys, n_layers),
        shared_kv_layers=keys.integer("attention.shared_kv_layers", 0),
        expert_count=keys.integer("expert_count", 0),
        expert_used_count=keys.largest("expert_used_count", n_layers),
        expert_feed_forward_length=keys.largest("expert_feed_forward_length", n_layers),
        leading_dense_block_count=keys.integer("leading_dense_block_count", 0),
        ssm_conv_kernel=keys.integer("ssm.conv_kernel", 0),
        ssm_inner_size=keys.integer("ssm.inner_size", 0),
        ssm_state_size=keys.integer("ssm.state_size", 0),
        ssm_group_count=keys.integer("ssm.group_count", 0),
        tokenizer_model=keys.text("tokenizer.ggml.model"),
        bos_token_id=keys.token_id("bos"),
        eos_token_id=keys.token_id("eos"),
        chat_template=keys.text("tokenizer.chat_template"),
        metadata=gguf.metadata,
        tensors=tensors,
    )


def _refuse_other_kinds(gguf: GGUFFile) -> None:
    kind = gguf.metadata.get("general.type")
    architecture = gguf.metadata.get("general.architecture")
    if architecture == "clip":  # as these files are marked since before there was a type
        kind = "mmproj"
    if isinstance(kind, str) and kind in _NO_MODELS:
        raise UnsupportedArchitecture(
            f"{str(gguf.path)!r} is not a language model",
            why=f"it is {_NO_MODELS[kind]}",
            remedy="load the model that it belongs to",
        )
    if not isinstance(architecture, str) or not architecture:
        raise InvalidGGUF(
            f"{str(gguf.path)!r}: the key 'general.architecture' is missing",
            why="every model needs this key",
            remedy="fetch the model from another source, or convert it again",
        )


def _sum_known(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total


def _quantization(
    metadata: Mapping[str, MetadataValue], tensors: tuple[TensorInfo, ...]
) -> str | None:
    """By `general.file_type`, or else the type of most weights."""
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and (file_type & ~FILE_TYPE_GUESSED) in FILE_TYPES:
        return FILE_TYPES[file_type & ~FILE_TYPE_GUESSED]
    weights: Counter[str | None] = Counter()
    for tensor in tensors:
        weights[tensor.type] += tensor.n_elements
    return weights.most_common(1)[0][0] if weights else None


def _vocab_size(keys: Keys) -> int | None:
    """As llama.cpp counts it: by its key, or else by the tokens."""
    if keys.value("vocab_size") is not None:
        return keys.integer("vocab_size")
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, ArrayInfo):
        return tokens.count
    return len(tokens) if isinstance(tokens, tuple) else None


def _sliding_window_pattern(keys: Keys, n_layers: int) -> int | tuple[bool, ...] | None:
    value = keys.value("attention.sliding_window_pattern")
    if isinstance(value, tuple):
        flags = tuple(bool(flag) for flag in value[:n_layers])
        return flags + (False,) * (n_layers - len(flags))
    return None if value is None else keys.integer("attention.sliding_window_pattern")
