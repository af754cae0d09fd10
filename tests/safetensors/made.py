"""Models in safetensors format, of a few bytes, made by the format's own rules."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 8192,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "default"},
}
SHAPES = {"model.embed_tokens.weight": (100, 32), "model.norm.weight": (32,)}


def encode(header: object, data: bytes = b"") -> bytes:
    """A file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def header_of(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", size: int = 2) -> Any:
    """The header for tensors that follow each other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header


def weights(shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: str = "BF16") -> bytes:
    """A file with these tensors, of 16 bits, all zeros."""
    return encode(header_of(shapes, dtype), bytes(sum(2 * math.prod(s) for s in shapes.values())))


def write_model(directory: Path, config: Mapping[str, Any] = CONFIG) -> Path:
    """A whole model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(weights())
    return directory
