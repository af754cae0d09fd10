"""From options to what vLLM is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.safetensors.made import CONFIG, write_model

from rocllm.backends.vllm.settings import (
    CPU_RUNTIME,
    check_options,
    choose_settings,
    flags,
    kv_bytes_per_token,
    memory_fraction,
)
from rocllm.errors import DoesNotFit, OptionsError
from rocllm.gguf import ModelInfo
from rocllm.memory.available import GpuMemory, HostMemory, Memory
from rocllm.options import LoadOptions
from rocllm.safetensors import read_safetensors_info

GIB = 2**30


def gpu(total: int | None, free: int | None) -> GpuMemory:
    return GpuMemory("a GPU", total=total, free=free)


@pytest.fixture
def info(tmp_path: Path) -> ModelInfo:
    return read_safetensors_info(write_model(tmp_path))


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([], None),
        ([gpu(16 * GIB, 16 * GIB)], 0.92),
        ([gpu(16 * GIB, 8 * GIB)], 0.48),
        ([gpu(16 * GIB, 16 * GIB), gpu(16 * GIB, 4 * GIB)], 0.23),
        ([gpu(16 * GIB, 0)], 0.0),
        ([gpu(16 * GIB, None)], None),
        ([gpu(None, None)], None),
    ],
)
def test_the_share_of_memory(gpus: list[GpuMemory], expected: float | None) -> None:
    """That of what is free on the fullest GPU, and never all of it; unknown stays unknown."""
    assert memory_fraction(gpus) == expected


def test_the_share_is_free() -> None:
    """vLLM refuses to start where its share is not free, so it is rounded down."""
    for free in range(GIB, 16 * GIB, GIB // 7):
        share = memory_fraction([gpu(16 * GIB, free)])
        assert share is not None
        assert share * 16 * GIB <= free


@pytest.mark.parametrize(
    "fields",
    [
        {"ubatch_size": 64},
        {"flash_attn": "on"},
        {"flash_attn": "off"},
        {"load_mode": "mlock"},
        {"mmproj": "auto"},
        {"model_draft": "small"},
        {"llama_server": "embedded"},
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"cache_type_k": "f16"},
        {"n_gpu_layers": 12},
        {"n_gpu_layers": 0},
    ],
)
def test_what_vllm_cannot_do_is_refused(fields: dict[str, Any]) -> None:
    """By the option's name, and with the backend that can."""
    with pytest.raises(OptionsError) as caught:
        check_options(LoadOptions(**fields))
    assert next(iter(fields)) in str(caught.value)
    assert "rocm" in str(caught.value)


def test_what_vllm_can_do_is_said_to_it(info: ModelInfo) -> None:
    """Every option has its argument; what is left away is left to vLLM."""
    options = LoadOptions(
        ctx_size=1024,
        parallel=3,
        batch_size=512,
        cache_type_k="bf16",
        cache_type_v="bf16",
        load_mode="none",
        flash_attn="auto",
        n_gpu_layers=-1,
    )
    check_options(options)
    memory = Memory((gpu(16 * GIB, 12 * GIB), gpu(16 * GIB, 12 * GIB)))
    assert flags(choose_settings(options, info, memory), options) == (
        *("--max-model-len", "1024", "--max-num-seqs", "3", "--max-num-batched-tokens", "512"),
        *("--kv-cache-dtype", "bfloat16", "--safetensors-load-strategy", "eager"),
        *("--gpu-memory-utilization", "0.73", "--tensor-parallel-size", "2"),
    )
    plain = LoadOptions()
    check_options(plain)
    chosen = flags(choose_settings(plain, info, Memory()), plain)
    assert chosen == ("--max-model-len", "4096", "--max-num-seqs", "16")


def test_a_short_context_is_not_exceeded(tmp_path: Path) -> None:
    """Unasked, a model gets no more than it was made for."""
    config = {**CONFIG, "max_position_embeddings": 1024}
    info = read_safetensors_info(write_model(tmp_path, config))
    assert choose_settings(LoadOptions(), info, Memory()).ctx_size == 1024
    assert choose_settings(LoadOptions(ctx_size=2048), info, Memory()).ctx_size == 2048


def test_heads_are_divided_evenly(info: ModelInfo) -> None:
    """Three GPUs cannot share four heads."""
    gpus = (gpu(16 * GIB, 12 * GIB),) * 3
    with pytest.raises(OptionsError, match="4 attention heads"):
        choose_settings(LoadOptions(), info, Memory(gpus))


def test_weights_that_do_not_fit_are_not_loaded(info: ModelInfo) -> None:
    """It is said before anything is started; several GPUs share them."""
    small = gpu(4000, 4000 + 256 * 2**20)
    with pytest.raises(DoesNotFit, match="of the GPU"):
        choose_settings(LoadOptions(), info, Memory((small,)))
    assert choose_settings(LoadOptions(), info, Memory((small, small))).n_gpus == 2
    with pytest.raises(DoesNotFit, match="of the host"):
        choose_settings(LoadOptions(), info, Memory(host=HostMemory(GIB, 1000)))


def test_the_cache_on_the_cpu(info: ModelInfo) -> None:
    """What the requests need, in whole GiB, and not more than is free."""
    assert kv_bytes_per_token(info) == 2 * 2 * 2 * (8 + 8)
    options = LoadOptions(ctx_size=2**20, parallel=32)  # 4 GiB
    free = CPU_RUNTIME + 3 * GIB
    for host, expected in ((None, 4), (100 * GIB, 4), (free, 2), (GIB, 1)):
        memory = Memory(host=HostMemory(host, host))
        assert choose_settings(options, info, memory).cpu_cache == expected * GIB
