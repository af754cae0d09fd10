"""Decide context, slots and layers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rocllm.errors import OptionsError
from rocllm.gguf import ModelInfo
from rocllm.options import LoadOptions

# What is enough for a conversation and fits next to every model; used until memory is planned.
DEFAULT_CTX_SIZE = 4096


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will be loaded with.

    ctx_size: tokens of one slot. parallel: slots. n_gpu_layers: -1 for all, 0 for none.
    because: the reasons, a sentence each.
    """

    ctx_size: int
    parallel: int
    n_gpu_layers: int
    because: tuple[str, ...]


def plan_memory(model: ModelInfo, options: LoadOptions, *, on_gpu: bool) -> MemoryPlan:
    """The plan for `model` as `options` ask for it; what the user fixed stays fixed.

    on_gpu: a GPU was chosen. Raises `OptionsError` for a context that the model does not have, and
    for GPU layers without a GPU.

    >>> plan_memory(info, LoadOptions(ctx_size=2048), on_gpu=False).ctx_size  # doctest: +SKIP
    2048
    """
    ctx_size, reason = _ctx_size(model, options)
    n_gpu_layers = options.n_gpu_layers
    if n_gpu_layers is None:
        n_gpu_layers = -1 if on_gpu else 0
    if n_gpu_layers != 0 and not on_gpu:
        raise OptionsError(
            f"n_gpu_layers={n_gpu_layers}, but no GPU is used",
            why="the model would run on the CPU without a word",
            remedy="see `rocllm devices`; leave n_gpu_layers away to run on the CPU",
        )
    return MemoryPlan(ctx_size, options.parallel or 1, n_gpu_layers, (reason,))


def _ctx_size(model: ModelInfo, options: LoadOptions) -> tuple[int, str]:
    longest = model.context_length
    if options.ctx_size is not None:
        if longest is not None and options.ctx_size > longest:
            raise OptionsError(
                f"ctx_size={options.ctx_size} is more than the model has",
                why=f"it was trained for {longest} tokens (context_length in the file)",
                remedy=f"use ctx_size={longest} or less",
            )
        return options.ctx_size, f"context of {options.ctx_size} tokens: asked for"
    if longest is not None and longest < DEFAULT_CTX_SIZE:
        return longest, f"context of {longest} tokens: the model's own"
    return DEFAULT_CTX_SIZE, f"context of {DEFAULT_CTX_SIZE} tokens: the default"
