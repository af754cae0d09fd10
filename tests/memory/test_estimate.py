"""Predicted sizes against sizes that others have published or measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from rocllm.errors import OptionsError
from rocllm.gguf import ModelInfo, read_model_info
from rocllm.memory import Kind, Part, Settings, estimate_parts, shape_of
from rocllm.memory.kv import bytes_per_token, check_cache_types, checkpoint_size, row_size
from rocllm.memory.layers import Shape
from rocllm.testing.model_shapes import Mix, f16, q4_0, q4_k_m, q8_0

Real: TypeAlias = Callable[..., ModelInfo]

MIB = 2**20
GIB = 2**30


def gemma_qat(name: str, _layer: int, _n_layers: int, _row: int) -> str:
    """How Google stores its Gemma 3 QAT files: the embedding is not quantised."""
    return "F16" if name == "output" else "Q4_0"


# Sizes of files as their publishers give them, to the last digit that they give: llama.cpp's
# tools/quantize/README.md for Llama, the tables on the model pages for the others (bartowski's for
# Qwen3, stduhpf's comparison with Google's for Gemma 3, ggml-org's for its 4B).
PUBLISHED = [
    ("Llama-3.1-8B", q4_k_m, 4.58 * GIB),
    ("Llama-3.1-8B", q8_0, 7.95 * GIB),
    ("Llama-3.1-8B", f16, 14.96 * GIB),
    ("Qwen3-8B", q8_0, 8.71e9),
    ("Qwen3-8B", f16, 16.39e9),
    ("Gemma-3-4B", q4_k_m, 2.49e9),
    ("Gemma-3-12B", q4_0, 6.89e9),
    ("Gemma-3-12B", gemma_qat, 8.07e9),
    ("Gemma-3-27B", q4_0, 15.6e9),
    ("Gemma-3-27B", gemma_qat, 17.2e9),
]


@pytest.mark.parametrize(("name", "mix", "published"), PUBLISHED)
def test_weights_agree_with_published_files(
    real: Real, name: str, mix: Mix, published: float
) -> None:
    """All weights together are as large as the published file, within 0.5 %."""
    parts = estimate_parts(shape_of(real(name, mix)), Settings(ctx_size=4096), 0)

    assert size(parts, None, "weights") == pytest.approx(published, rel=0.005)


# llama-server b11434 on a second device with all layers: KV cache and state together, compute there
# and compute on the host, in MiB; measured by other people and with other code than the formulas'.
LAID_OUT = [
    ("Qwen3-8B", Settings(ctx_size=16384), 2304, 120, 48),
    ("Qwen3-8B", Settings(ctx_size=16384, parallel=4, cache_type_k="q8_0", cache_type_v="q8_0"),
     4896, 120, 48),
    ("Qwen3-8B", Settings(ctx_size=8192, parallel=4, kv_unified=True), 4608, 136, 64),
    ("Qwen3-8B", Settings(ctx_size=32768, ubatch_size=2048), 4608, 544, 256),
    ("Qwen3-8B", Settings(ctx_size=8192, parallel=2, flash_attn=False), 2304, 572, 52),
    ("Gemma-3-27B", Settings(ctx_size=16384), 1904, 185, 59),
    ("Gemma-3-27B", Settings(ctx_size=8192, parallel=4, kv_unified=True), 4432, 204, 78),
    ("Gemma-3-27B", Settings(ctx_size=32768, ubatch_size=2048), 3808, 812, 308),
    ("Gemma-3-27B", Settings(ctx_size=8192, parallel=2, flash_attn=False), 2528, 597, 77),
    ("gpt-oss-20b", Settings(ctx_size=16384), 402, 106, 39),
    ("gpt-oss-20b", Settings(ctx_size=8192, parallel=4, kv_unified=True), 792, 123, 55),
    ("Qwen3-30B-A3B", Settings(ctx_size=32768, ubatch_size=2048), 3072, 464, 192),
    ("DeepSeek-V2-Lite", Settings(ctx_size=16384), 486, 96, 32),
    ("DeepSeek-V2-Lite", Settings(ctx_size=8192, parallel=2, flash_attn=False), 486, 328, 32),
    ("Qwen3-Next-80B-A3B", Settings(ctx_size=16384), 459, 102, 32),
    ("Qwen3-Next-80B-A3B", Settings(ctx_size=8192, parallel=2, flash_attn=False), 534, 314, 34),
    ("LFM2-1.2B", Settings(ctx_size=8192, parallel=4, kv_unified=True), 384, 96, 48),
    ("Mamba2-2.7B", Settings(ctx_size=16384), 163, 74, 20),
    ("Mamba2-2.7B", Settings(ctx_size=16384, parallel=4), 655, 81, 20),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "kept", "compute", "host"), LAID_OUT)
def test_sizes_agree_with_the_server(
    real: Real, name: str, settings: Settings, kept: int, compute: int, host: int
) -> None:
    """Cache and state are exact, to the MiB that the server prints; compute is within 10 %."""
    parts = estimate_parts(shape_of(real(name)), replace(settings, n_gpu_layers=-1), 1)

    found = size(parts, 0, "KV cache") + size(parts, 0, "state")
    assert found // MIB == kept
    assert size(parts, 0, "compute") / MIB == pytest.approx(compute, rel=0.1)
    assert size(parts, None, "compute") / MIB == pytest.approx(host, rel=0.1)


def test_weights_move_with_the_layers(real: Real) -> None:
    """The output goes to the GPU first, then the last layers; a tied matrix is there twice."""
    shape = shape_of(real("Gemma-3-4B"))
    count = shape.info.block_count
    on_device = [
        size(estimate_parts(shape, Settings(ctx_size=4096, n_gpu_layers=n), 1), 0, "weights")
        for n in range(count + 2)
    ]

    assert on_device[0] == 0
    assert on_device[1] == shape.weights.output + shape.weights.tied
    assert on_device[2] - on_device[1] == shape.weights.layers[-1]
    assert on_device[count + 1] - on_device[count] == shape.weights.layers[0]
    everything = size(
        estimate_parts(shape, Settings(ctx_size=4096, n_gpu_layers=-1), 1), 0, "weights"
    )
    assert on_device[count + 1] == everything


def test_the_cache_is_where_the_layer_is(real: Real) -> None:
    """Together host and GPU hold what one of them would."""
    shape = shape_of(real("Gemma-3-4B"))
    whole = size(estimate_parts(shape, Settings(ctx_size=8192), 0), None, "KV cache")
    parts = estimate_parts(shape, Settings(ctx_size=8192, n_gpu_layers=20), 1)

    assert size(parts, 0, "KV cache") + size(parts, None, "KV cache") == whole


def test_two_gpus_hold_what_one_would(real: Real) -> None:
    """Nothing is lost or doubled by a split, and each GPU has its own buffers."""
    shape = shape_of(real("Qwen3-8B"))
    one = estimate_parts(shape, Settings(ctx_size=8192, n_gpu_layers=-1), 1)
    two = estimate_parts(shape, Settings(ctx_size=8192, n_gpu_layers=-1, split=(18, 19)), 2)

    for kind in ("weights", "KV cache"):
        assert size(two, 0, kind) + size(two, 1, kind) == size(one, 0, kind)
    assert size(two, 0, "compute") > size(one, 0, "compute")
    assert {part.gpu for part in two} == {0, 1, None}


def test_layers_for_several_tokens_are_not_loaded(real: Real) -> None:
    """What predicts tokens further ahead takes no memory, yet counts as a layer."""
    info = real("Qwen3-8B")
    shape = shape_of(replace(info, nextn_predict_layers=1))

    assert len(shape.layers) == info.block_count - 1
    assert sum(shape.weights.layers) < sum(shape_of(info).weights.layers)


@pytest.mark.parametrize(
    ("cache_type", "size_of_row"),
    [("f32", 4096), ("f16", 2048), ("q8_0", 1088), ("q5_1", 768), ("q4_0", 576)],
)
def test_a_row_of_the_cache(cache_type: str, size_of_row: int) -> None:
    """1024 elements, in blocks of 32 where the type has blocks."""
    assert row_size(cache_type, 1024) == size_of_row


def test_bytes_a_token(real: Real) -> None:
    """Llama 3.1 8B takes 128 KiB a token; a window counts for nothing that grows."""
    settings = Settings(ctx_size=4096)
    assert bytes_per_token(shape_of(real("Llama-3.1-8B")), settings) == 128 * 1024

    gemma = shape_of(real("Gemma-3-27B"))
    growing = sum(not layer.windowed for layer in gemma.layers)
    assert growing == 10
    assert bytes_per_token(gemma, settings) == growing * 2 * 16 * 128 * 2


def test_saved_states_are_for_models_that_cannot_go_back(real: Real) -> None:
    """A plain transformer saves nothing; windowed and recurrent layers are saved."""
    settings = Settings(ctx_size=16384)

    assert checkpoint_size(shape_of(real("Llama-3.1-8B")), settings) == 0
    mamba = shape_of(real("Mamba2-2.7B"))
    assert checkpoint_size(mamba, settings) == 64 * mamba.state_size
    # 52 layers, each with the keys and values of 1536 tokens: 16 heads of 128 numbers.
    gemma = checkpoint_size(shape_of(real("Gemma-3-27B")), settings)
    assert gemma == 52 * 2 * 1536 * 16 * 128 * 2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DeepSeek-V2-Lite", Settings(ctx_size=4096, cache_type_k="q8_0"), "cannot be mixed"),
        ("Phi", Settings(ctx_size=4096, cache_type_k="q4_0", cache_type_v="q4_0"), "80 elements"),
    ],
)
def test_cache_types_that_the_server_refuses(
    real: Real, name: str, settings: Settings, message: str
) -> None:
    """Found out before anything is started."""
    shape = narrow_heads(real) if name == "Phi" else shape_of(real(name))
    with pytest.raises(OptionsError) as caught:
        check_cache_types(shape, settings)
    assert message in str(caught.value)


def narrow_heads(real: Real) -> Shape:
    """A model with heads of 80 elements, as Phi-2 has them."""
    return shape_of(replace(real("Llama-3.1-8B"), key_length=80, value_length=80))


def size(parts: tuple[Part, ...], gpu: int | None, kind: Kind) -> int:
    """Bytes of one kind in one place."""
    return sum(part.size for part in parts if (part.gpu, part.kind) == (gpu, kind))


@pytest.mark.parametrize("architecture", ["gemma3", "gpt-oss", "llama", "qwen3moe", "qwen3next"])
def test_weights_are_those_of_the_file(small: Callable[[str], Path], architecture: str) -> None:
    """On the host and on GPUs, tensor by tensor; a tied output is there twice."""
    path = small(architecture)
    info = read_model_info(path)
    sizes = {tensor.name: tensor.n_bytes or 0 for tensor in info.tensors}
    # What the file holds, to the last byte: tensors are aligned to 32 bytes.
    first = min(tensor.offset for tensor in info.tensors)
    assert path.stat().st_size - first <= sum(-(-size // 32) * 32 for size in sizes.values())
    assert path.stat().st_size - first >= sum(sizes.values())
    embedding = sizes["token_embd.weight"]
    tied = 0 if "output.weight" in sizes else embedding
    for layers in range(info.block_count + 2):
        settings = Settings(ctx_size=512, n_gpu_layers=layers)
        parts = estimate_parts(shape_of(info), settings, 1)
        weights = {part.gpu: part.size for part in parts if part.kind == "weights"}
        first_on_gpu = info.block_count + 1 - layers
        on_host = sum(
            size
            for name, size in sizes.items()
            if (name.startswith("blk.") and int(name.split(".")[1]) < first_on_gpu)
            or name.startswith("token_embd.")
            or (layers == 0 and not name.startswith("blk."))
        )
        assert weights[None] == on_host, layers
        both = sum(sizes.values()) + (tied if layers else 0)
        assert weights[None] + weights.get(0, 0) == both, layers
