"""Models by their shape: hyper-parameters and tensors, but no weights.

They are written as GGUF files with weights that are zeros or random numbers. A shape without a
vocabulary (`no_vocab`) is loaded by llama-server as well, and serves nothing.

The shapes follow the `load_arch_tensors` functions of src/models/*.cpp of llama.cpp b11434.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rocllm.testing.gguf_writer import Tensor, TensorData, Value, write_gguf

# What a matrix is stored as: from its name, its layer, the number of layers and its row length.
Mix: TypeAlias = Callable[[str, int, int, int], str]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model without its weights. metadata: the keys of the file. tensors: in its order."""

    name: str
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata["general.architecture"])

    def write(self, path: str | os.PathLike[str], *, data: TensorData = "hole") -> Path:
        """Write it as a GGUF file; without a `data` that says otherwise its weights are zeros that
        take no space on the disk."""
        return write_gguf(path, self.metadata, self.tensors, data=data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """The numbers that most architectures share; the names are those of the GGUF keys.

    head_dim: key and value length; 0: embedding_length / head_count. tied: the output matrix is
    the token embedding. mix: how the matrices are stored.
    """

    block_count: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    head_dim: int = 0
    vocab_size: int
    context_length: int
    tied: bool = False
    mix: Mix

    @property
    def key_width(self) -> int:
        """Elements of the keys of one token in one layer."""
        return self.head_count_kv * self.head_length

    @property
    def query_width(self) -> int:
        """Elements of the queries of one token in one layer."""
        return self.head_count * self.head_length

    @property
    def head_length(self) -> int:
        """Elements of one head."""
        return self.head_dim or self.embedding_length // self.head_count


def f16(_name: str, _layer: int, _n_layers: int, _row: int) -> str:
    """Every matrix as it is."""
    return "F16"


def q8_0(_name: str, _layer: int, _n_layers: int, _row: int) -> str:
    """Every matrix in Q8_0."""
    return "Q8_0"


def q4_0(name: str, _layer: int, _n_layers: int, _row: int) -> str:
    """Matrices in Q4_0, the output in Q6_K."""
    return "Q6_K" if name == "output" else "Q4_0"


def q4_k_m(name: str, layer: int, n_layers: int, row: int) -> str:
    """The mix Q4_K_M (`llama_tensor_get_type` in src/llama-quant.cpp).

    Half of the value and down projections are stored more precisely. Rows that are no multiple of
    256 fall back to types with shorter blocks.
    """
    eighth = n_layers // 8
    more = layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
    precise = name == "output" or (name in ("attn_v", "ffn_down", "ffn_down_exps") and more)
    if row % 256:
        return "Q8_0" if precise else "Q5_0"
    return "Q6_K" if precise else "Q4_K"


class Builder:
    """Collects the tensors of a model of the given dimensions."""

    def __init__(self, architecture: str, dimensions: Dimensions) -> None:
        self.architecture = architecture
        self.dimensions = dimensions
        self.tensors: list[Tensor] = []
        self.metadata: dict[str, Value] = {}

    def keys(self, **values: Value) -> None:
        """Add metadata; in the names `__` stands for a dot."""
        for name, value in values.items():
            self.metadata[f"{self.architecture}.{name.replace('__', '.')}"] = value

    def matrix(self, name: str, *shape: int, layer: int = -1, stored_as: str = "") -> None:
        """Add a tensor that is quantised. stored_as: the name by which the mix knows it."""
        d = self.dimensions
        kind = d.mix(stored_as or name, layer, d.block_count, shape[0])
        self._add(f"{name}.weight", shape, kind, layer)

    def vector(self, name: str, *shape: int, layer: int = -1, suffix: str = ".weight") -> None:
        """Add a tensor that stays F32."""
        self._add(f"{name}{suffix}", shape, "F32", layer)

    def _add(self, name: str, shape: tuple[int, ...], kind: str, layer: int) -> None:
        self.tensors.append(Tensor(f"blk.{layer}.{name}" if layer >= 0 else name, shape, kind))

    def embeddings(self, norm: str = "output_norm") -> None:
        """The matrices before the first layer and after the last."""
        d = self.dimensions
        # A tied embedding is stored as precisely as the output that it also is.
        self.matrix(
            "token_embd", d.embedding_length, d.vocab_size, stored_as="output" if d.tied else ""
        )
        self.vector(norm, d.embedding_length)
        if not d.tied:
            self.matrix("output", d.embedding_length, d.vocab_size)

    def attention(self, layer: int, *, query_width: int = 0) -> None:
        """Norm, query, key, value and output projection of a layer."""
        d = self.dimensions
        self.vector("attn_norm", d.embedding_length, layer=layer)
        self.matrix("attn_q", d.embedding_length, query_width or d.query_width, layer=layer)
        self.matrix("attn_k", d.embedding_length, d.key_width, layer=layer)
        self.matrix("attn_v", d.embedding_length, d.key_width, layer=layer)
        self.matrix("attn_output", d.query_width, d.embedding_length, layer=layer)

    def head_norms(self, layer: int) -> None:
        """The norms of queries and keys."""
        for name in ("attn_q_norm", "attn_k_norm"):
            self.vector(name, self.dimensions.head_length, layer=layer)

    def feed_forward(self, layer: int, *, norm: str = "ffn_norm") -> None:
        """Norm and the three matrices of a dense layer."""
        d = self.dimensions
        self.vector(norm, d.embedding_length, layer=layer)
        self.matrix("ffn_gate", d.embedding_length, d.feed_forward_length, layer=layer)
        self.matrix("ffn_up", d.embedding_length, d.feed_forward_length, layer=layer)
        self.matrix("ffn_down", d.feed_forward_length, d.embedding_length, layer=layer)

    def experts(self, layer: int, count: int, width: int, *, shared: int = 0) -> None:
        """Router and matrices of `count` experts of `width`; `shared` is the width of those that
        every token passes."""
        n_embd = self.dimensions.embedding_length
        self.vector("ffn_gate_inp", n_embd, count, layer=layer)
        self.matrix("ffn_gate_exps", n_embd, width, count, layer=layer)
        self.matrix("ffn_up_exps", n_embd, width, count, layer=layer)
        self.matrix("ffn_down_exps", width, n_embd, count, layer=layer)
        if shared:
            self.matrix("ffn_gate_shexp", n_embd, shared, layer=layer)
            self.matrix("ffn_up_shexp", n_embd, shared, layer=layer)
            self.matrix("ffn_down_shexp", shared, n_embd, layer=layer)

    def model(self, name: str, head_count_kv: int | Sequence[int] | None = None) -> ModelShape:
        """The model, with the keys that every architecture has, and without a vocabulary."""
        d = self.dimensions
        shared: dict[str, Value] = {
            "vocab_size": d.vocab_size,
            "context_length": d.context_length,
            "embedding_length": d.embedding_length,
            "block_count": d.block_count,
            "feed_forward_length": d.feed_forward_length,
            "attention.head_count": d.head_count,
            "attention.head_count_kv": d.head_count_kv if head_count_kv is None else head_count_kv,
            "attention.layer_norm_rms_epsilon": 1e-6,
        }
        if d.head_dim:
            shared["attention.key_length"] = shared["attention.value_length"] = d.head_dim
        metadata: dict[str, Value] = {
            "general.architecture": self.architecture,
            "general.name": name,
            "tokenizer.ggml.model": "no_vocab",
        }
        metadata |= {f"{self.architecture}.{key}": value for key, value in shared.items()}
        return ModelShape(name, metadata | self.metadata, tuple(self.tensors))
