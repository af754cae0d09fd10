"""From what the user chose to what vLLM is started with. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rocllm.errors import DoesNotFit, OptionsError
from rocllm.gguf import ModelInfo
from rocllm.memory.available import GpuMemory, Memory
from rocllm.options import LoadOptions
from rocllm.units import format_bytes

DEFAULT_CTX_SIZE = 4096
# Requests that are computed together. They share one cache and take of it what they need, so more
# of them cost nothing while they are not there; vLLM's own default is 256 and more.
DEFAULT_PARALLEL = 16
# vLLM's own default (`CacheConfig.gpu_memory_utilization`, 0.32): what it leaves is for the driver.
MOST_OF_A_GPU = 0.92
# Bytes that stay free on a GPU beside that: the desktop moves a window.
GPU_HEADROOM = 256 * 2**20
# On the CPU: what vLLM's processes take beside weights and cache (measured: 3.6 GB for three
# processes with vLLM 0.32).
CPU_RUNTIME = 4 * 2**30
_KV_TYPES = {"f16": "float16", "bf16": "bfloat16"}
_LOAD_STRATEGIES = {"mmap": "lazy", "none": "eager"}

_CHOOSES = "vLLM chooses its kernels itself"
# Option: the values that vLLM can honour, beside `None`; and why no other.
_ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "ubatch_size": ((), "vLLM computes a step whole: `batch_size` is the tokens of a step"),
    "flash_attn": (("auto",), _CHOOSES),
    "load_mode": (tuple(_LOAD_STRATEGIES), "vLLM maps a file, or reads it"),
    "mmproj": ((), "a model in safetensors format has its projector in it"),
    "model_draft": ((), "a draft model is for llama-server"),
    "llama_server": ((), "this backend runs vLLM"),
    "worker": ((), "this backend always starts a vLLM server"),
    "cache_type_k": (tuple(_KV_TYPES), "vLLM has other types for its cache"),
    "cache_type_v": (tuple(_KV_TYPES), "vLLM has other types for its cache"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What vLLM is started with.

    ctx_size: tokens of a request, prompt and answer. parallel: requests computed together.
    fraction: share of each GPU's memory that vLLM may take; `None`: its own choice. n_gpus: GPUs
    that share each layer; 0: the CPU. cpu_cache: bytes of the cache on the CPU.
    """

    ctx_size: int
    parallel: int
    fraction: float | None
    n_gpus: int
    cpu_cache: int


def check_options(options: LoadOptions) -> None:
    """Raise `OptionsError` for what vLLM cannot honour."""
    for name, (allowed, why) in _ONLY.items():
        value = getattr(options, name)
        if value is not None and value not in allowed:
            raise _refused(name, value, why)
    if options.cache_type_k != options.cache_type_v:
        why = "vLLM stores keys and values in one type"
        raise _refused("cache_type_k", options.cache_type_k, why)
    layers = options.n_gpu_layers
    if layers not in (None, -1) and not (layers == 0 and options.devices == ("cpu",)):
        raise _refused("n_gpu_layers", layers, "vLLM puts a whole model on the GPU, or nothing")


def choose_settings(options: LoadOptions, info: ModelInfo, memory: Memory) -> Settings:
    """How to run the model.

    Raises `DoesNotFit` when the weights alone do not, and `OptionsError` when the model cannot be
    divided among so many GPUs.
    """
    n_gpus = len(memory.gpus)
    ctx_size = options.ctx_size or min(DEFAULT_CTX_SIZE, info.context_length)
    parallel = options.parallel or DEFAULT_PARALLEL
    fraction = memory_fraction(memory.gpus)
    heads = info.head_count[0] if info.head_count else 0
    if n_gpus > 1 and heads % n_gpus:
        raise OptionsError(
            f"{n_gpus} GPUs for a model with {heads} attention heads",
            why="vLLM gives each GPU the same number of heads",
            remedy="choose a number of GPUs that divides it",
        )
    _check_weights(info, memory, fraction)
    cache = kv_bytes_per_token(info) * ctx_size * parallel
    return Settings(ctx_size, parallel, fraction, n_gpus, _cpu_cache(cache, info, memory))


def memory_fraction(gpus: Sequence[GpuMemory], headroom: int = GPU_HEADROOM) -> float | None:
    """The share of each GPU's memory that vLLM may take; `None`: not known, or there is no GPU.

    vLLM refuses to start when less is free than its share of the whole, so the share is that of
    what is free. Every GPU gets the same one: that of the fullest.

    >>> memory_fraction([GpuMemory("a", total=16 * 2**30, free=12 * 2**30)])
    0.73
    """
    shares = []
    for gpu in gpus:
        if not gpu.total or gpu.free is None:
            return None
        shares.append((gpu.free - headroom) / gpu.total)
    if not shares:
        return None
    return max(0.0, min(math.floor(min(shares) * 100) / 100, MOST_OF_A_GPU))


def kv_bytes_per_token(info: ModelInfo) -> int:
    """Bytes of the cache for one token, 16 bits a value: keys and values of every layer."""
    return 2 * sum(heads * (info.key_length + info.value_length) for heads in info.head_count_kv)


def flags(settings: Settings, options: LoadOptions) -> tuple[str, ...]:
    """The arguments that say so."""
    told: dict[str, object] = {
        "--max-model-len": settings.ctx_size,
        "--max-num-seqs": settings.parallel,
        "--max-num-batched-tokens": options.batch_size,
        "--kv-cache-dtype": _KV_TYPES.get(options.cache_type_k or ""),
        "--safetensors-load-strategy": _LOAD_STRATEGIES.get(options.load_mode or ""),
        "--gpu-memory-utilization": settings.fraction,
        "--tensor-parallel-size": settings.n_gpus if settings.n_gpus > 1 else None,
    }
    return tuple(
        part for name, value in told.items() if value is not None for part in (name, str(value))
    )


def _check_weights(info: ModelInfo, memory: Memory, fraction: float | None) -> None:
    weights = info.tensor_bytes or 0
    if memory.gpus:
        if fraction is None:
            return
        room = min(int((gpu.total or 0) * fraction) for gpu in memory.gpus) * len(memory.gpus)
        where = "of the GPU" if len(memory.gpus) == 1 else f"of {len(memory.gpus)} GPUs"
    else:
        if memory.host.free is None:
            return
        room, where = memory.host.free, "of the host"
    if weights > room:
        raise DoesNotFit(
            f"the weights take {format_bytes(weights)}, and {format_bytes(room)} {where} are free",
            why="vLLM keeps all weights in memory, and its cache beside them",
            remedy="use a smaller or quantised model, or several GPUs of the same kind; "
            "backend='rocm' can leave layers of a GGUF model on the CPU",
        )


def _cpu_cache(wanted: int, info: ModelInfo, memory: Memory) -> int:
    """In whole GiB, at least one, as `VLLM_CPU_KVCACHE_SPACE` counts; not more than is free."""
    free = memory.host.free
    gibibytes = math.ceil(wanted / 2**30)
    if free is not None:
        gibibytes = min(gibibytes, (free - (info.tensor_bytes or 0) - CPU_RUNTIME) // 2**30)
    return max(1, gibibytes) * 2**30


def _refused(name: str, value: object, why: str) -> OptionsError:
    return OptionsError(
        f"{name}={value!r} with the backend 'vllm'",
        why=why,
        remedy=f"leave {name} away, or use backend='rocm' with a GGUF model",
    )
