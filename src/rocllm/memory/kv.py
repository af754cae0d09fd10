"""Sizes of the KV cache and of recurrent states. Pure.

Source: src/llama-kv-cache.cpp, src/llama-memory-recurrent.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from rocllm.errors import OptionsError
from rocllm.memory.layers import Layer, Shape
from rocllm.memory.settings import Settings

# Elements and bytes of a block of each cache type (ggml/src/ggml-common.h).
_BLOCKS = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}


def check_cache_types(shape: Shape, settings: Settings) -> None:
    """Raise `OptionsError` for cache types that llama.cpp refuses for this model.

    Blocks must divide a head (`llama_init_from_model` in src/llama-context.cpp), and where the
    values are a part of the keys, both must be of one type.
    """
    info = shape.info
    types = (settings.cache_type_k, settings.cache_type_v)
    if types[0] != types[1] and info.key_length_mla and info.value_length_mla:
        raise OptionsError(
            f"cache_type_k={types[0]!r} and cache_type_v={types[1]!r} cannot be mixed here",
            why=f"{info.architecture} models keep keys and values together",
            remedy=f"use {types[0]} for both, or {types[1]}",
        )
    heads = {(info.key_length, info.value_length)}
    if any(layer.windowed for layer in shape.layers):
        heads.add((info.key_length_swa, info.value_length_swa))
    for lengths in heads if any(layer.key_width for layer in shape.layers) else ():
        for cache_type, length in zip(types, lengths, strict=True):
            elements, _ = _BLOCKS[cache_type]
            if length % elements:
                raise OptionsError(
                    f"the KV cache of this model cannot be stored as {cache_type}",
                    why=f"its heads have {length} elements, and {cache_type} stores {elements} "
                    "together",
                    remedy="use f16",
                )


def row_size(cache_type: str, width: int) -> int:
    """Bytes of `width` elements in the cache.

    >>> row_size("q8_0", 1024)
    1088
    """
    elements, size = _BLOCKS[cache_type]
    return -(-width // elements) * size


def kv_sizes(shape: Shape, settings: Settings) -> tuple[int, ...]:
    """Bytes of the KV cache of each layer."""
    window_cells = settings.window_cells(shape.window)
    # Without flash attention the values are stored transposed, all as wide as the widest.
    widest = max((layer.value_width for layer in shape.layers), default=0)

    def size(layer: Layer) -> int:
        if not layer.key_width:
            return 0
        value_width = layer.value_width if settings.flash_attn else widest
        row = row_size(settings.cache_type_k, layer.key_width) + (
            row_size(settings.cache_type_v, value_width) if layer.value_width else 0
        )
        return row * (window_cells if layer.windowed else settings.cells) * settings.streams

    return tuple(size(layer) for layer in shape.layers)


def state_sizes(shape: Shape, settings: Settings) -> tuple[int, ...]:
    """Bytes of the recurrent state of each layer: one for every slot, however long the context."""
    one = shape.state_size * settings.parallel
    return tuple(one if layer.recurrent else 0 for layer in shape.layers)


def checkpoint_size(shape: Shape, settings: Settings) -> int:
    """Bytes of host memory that one saved state of every slot takes at most.

    A model that cannot go back in its cache (windowed or recurrent layers) is saved up to
    `settings.checkpoints` times per slot (`create_checkpoint` in tools/server/server-context.cpp).
    """
    windowed = 0
    if not settings.swa_full:
        windowed = sum(
            size
            for size, layer in zip(kv_sizes(shape, settings), shape.layers, strict=True)
            if layer.windowed
        )
    return windowed + sum(state_sizes(shape, settings))


def bytes_per_token(shape: Shape, settings: Settings) -> int:
    """Bytes by which the KV cache grows with each token of context, in all slots together."""
    return settings.parallel * sum(
        row_size(settings.cache_type_k, layer.key_width)
        + (row_size(settings.cache_type_v, layer.value_width) if layer.value_width else 0)
        for layer in shape.layers
        if layer.key_width and (settings.swa_full or not layer.windowed)
    )
