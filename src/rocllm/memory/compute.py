"""Sizes of the buffers for intermediate results. Pure.

llama.cpp lays the tensors of its graph into one buffer per device, where those that do not live at
the same time share their place. So the size is that of the step at which most is alive. The steps
below were found by loading models of ten architectures with b11434, on the CPU and on a second
device; docs/memory.md has the figures. For other architectures they are an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

from rocllm.memory.layers import DELTA_NETS, Shape
from rocllm.memory.settings import Settings

# The architectures that the formulas were checked with.
CHECKED = frozenset(
    {
        "deepseek2",
        "gemma3",
        "gpt-oss",
        "lfm2",
        "llama",
        "mamba2",
        "qwen2",
        "qwen3",
        "qwen3moe",
        "qwen3next",
    }
)
# Several GPUs with all layers work on several batches at once, which takes this many copies of a
# graph's inputs (GGML_SCHED_MAX_COPIES) and of the rows handed on: so many more rows on the first
# GPU, on the others, and on the host.
_COPIES = 4
_MORE_ROWS_FIRST, _MORE_ROWS_OTHER, _MORE_ROWS_HOST = 12, 3, 6


def gpu_compute_size(
    shape: Shape, settings: Settings, where: Sequence[int | None], gpu: int
) -> int:
    """Bytes of the compute buffer of a GPU. where: the place of each layer, then of the output."""
    *of_layers, of_output = where
    layers = [index for index, place in enumerate(of_layers) if place == gpu]
    output = settings.outputs * shape.vocab_size * 4 if of_output == gpu else 0
    n_embd = shape.info.embedding_length
    if not layers:
        return output
    if output and None not in where:
        # The rows of the last layer are there until the output is.
        output += _floats(settings, 4 * n_embd)
    if _pipelined(where):
        more = _MORE_ROWS_FIRST if layers[0] == 0 else _MORE_ROWS_OTHER
        inputs = _COPIES * _inputs(shape, settings, layers)
        return _largest_step(shape, settings, layers) + _floats(settings, more * n_embd) + inputs
    if None not in where:
        inputs = _inputs(shape, settings, layers)
        return max(_largest_step(shape, settings, layers), output) + inputs
    if layers == [len(of_layers) - 1]:
        # Of the last layer's results only those go on that predict a token.
        step = max(
            _floats(settings, 2 * n_embd + 2 * _query_width(shape))
            + _scores(shape, settings, layers),
            _recurrence(shape, settings, layers),
        )
        return max(step, output) + _inputs(shape, settings, layers)
    # The inputs that only the first of these layers needs are gone before its feed-forward step.
    saved = _floats(settings, 2 * n_embd)
    return max(
        _feed_forward(shape, settings) - saved + _inputs(shape, settings, layers[1:]),
        _attention(shape, settings, layers) - saved + _inputs(shape, settings, layers),
        _recurrence(shape, settings, layers) - saved + _inputs(shape, settings, layers),
        output,
    )


def host_compute_size(shape: Shape, settings: Settings, where: Sequence[int | None]) -> int:
    """Bytes of the compute buffer in host memory; `where` as above."""
    of_output = where[-1]
    layers = range(len(shape.layers))
    inputs = _inputs(shape, settings, layers)
    n_embd = shape.info.embedding_length
    if _pipelined(where):
        return _floats(settings, (4 + _MORE_ROWS_HOST) * n_embd) + _COPIES * inputs
    if None not in where:  # only the input is prepared here
        return _floats(settings, 4 * n_embd) + inputs
    step = _largest_step(shape, settings, layers) + _floats(settings, n_embd)
    output = settings.outputs * shape.vocab_size * 4 + _floats(settings, 5 * n_embd)
    return max(step, output if of_output is None else 0) + inputs


def output_size(shape: Shape, settings: Settings) -> int:
    """Bytes of host memory for the scores of the next token, of every slot."""
    return settings.parallel * shape.vocab_size * 4


def _pipelined(where: Sequence[int | None]) -> bool:
    return None not in where and len(set(where)) > 1


def _floats(settings: Settings, width: float) -> int:
    """Bytes of `width` numbers for each token of a micro-batch."""
    return int(4 * width * settings.ubatch)


def _inputs(shape: Shape, settings: Settings, layers: Sequence[int]) -> int:
    """Which token sees which: a mask for every cache, and where values go that are transposed."""
    cached = [shape.layers[index] for index in layers if shape.layers[index].key_width]
    size = 0
    for windowed in {layer.windowed for layer in cached}:
        cells = settings.window_cells(shape.window) if windowed else settings.cells
        size += cells * settings.ubatch * (2 if settings.flash_attn else 4)
        if not settings.flash_attn:
            size += 8 * settings.ubatch * max(layer.value_width for layer in cached)
    return size


def _largest_step(shape: Shape, settings: Settings, layers: Sequence[int]) -> int:
    return max(
        _feed_forward(shape, settings),
        _attention(shape, settings, layers),
        _recurrence(shape, settings, layers),
    )


def _feed_forward(shape: Shape, settings: Settings) -> int:
    n_embd = shape.info.embedding_length
    used = shape.info.expert_used_count
    experts = used * shape.info.expert_feed_forward_length
    width = 0
    if not experts or shape.info.leading_dense_block_count:
        width = 4 * n_embd + 3 * max(shape.info.feed_forward_length, default=0)
    if experts:
        results = used * n_embd
        width = max(width, 4 * n_embd + 3 * experts + (results if results > 2 * experts else 0))
    return _floats(settings, width)


def _attention(shape: Shape, settings: Settings, layers: Sequence[int]) -> int:
    if not any(shape.layers[index].key_width for index in layers):
        return 0
    n_embd, heads = shape.info.embedding_length, max(shape.info.head_count)
    if shape.info.key_length_mla and shape.info.value_length_mla:
        # Queries, queries folded into the latent space, results there.
        per_head = shape.info.key_length_mla + shape.info.key_length + shape.info.value_length
        width = 4 * n_embd + heads * per_head
    else:
        width = 2 * n_embd + 3 * _query_width(shape)
    return _floats(settings, width) + _scores(shape, settings, layers)


def _scores(shape: Shape, settings: Settings, layers: Sequence[int]) -> int:
    """Every head's score of every cached token, which flash attention never holds at once."""
    if settings.flash_attn:
        return 0
    cells = [
        settings.window_cells(shape.window) if shape.layers[index].windowed else settings.cells
        for index in layers
        if shape.layers[index].key_width
    ]
    return _floats(settings, max(cells, default=0) * max(shape.info.head_count))


def _recurrence(shape: Shape, settings: Settings, layers: Sequence[int]) -> int:
    if not any(shape.layers[index].recurrent for index in layers):
        return 0
    if not shape.info.ssm_inner_size:  # a short convolution
        return _floats(settings, 6 * shape.info.embedding_length)
    n_embd, values = shape.info.embedding_length, shape.info.ssm_inner_size
    keys = shape.info.ssm_group_count * shape.info.ssm_state_size
    states = settings.parallel * shape.state_size
    if shape.info.architecture in DELTA_NETS:
        return _floats(settings, 3 * n_embd + 4 * keys + 4 * values) + 2 * states
    return max(
        _floats(settings, 3 * n_embd + 5.5 * values + 4 * keys) + states,
        _floats(settings, 3 * n_embd + 5 * values) + 2 * states,
    )


def _query_width(shape: Shape) -> int:
    return max(shape.info.head_count, default=0) * shape.info.key_length
