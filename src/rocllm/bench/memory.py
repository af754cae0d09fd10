"""Memory of a loaded model by place and kind: what the engine says beside what was planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from rocllm.backends import LoadedInfo
from rocllm.bench.machine import gpu_name
from rocllm.bench.report import HOST, MemoryPart
from rocllm.errors import RocllmError
from rocllm.memory import GpuMemory, Memory, Part, measured_parts, plan_memory
from rocllm.options import LoadOptions
from rocllm.safetensors import find_directory


def memory_parts(info: LoadedInfo, options: LoadOptions) -> tuple[MemoryPart, ...]:
    """Where the memory of a loaded model is.

    Weights in host memory have no figure of the engine: it tells which range of the file it has
    mapped, not what it needs of it. Nothing was planned for a model that is no GGUF file.
    """
    if find_directory(info.path) is not None:
        return tuple(_told(info))
    names = _gpu_names(buffer.device for buffer in info.buffers) if info.devices else ()
    allocated = _sums(measured_parts(info.buffers, names))
    planned = _sums(_planned(info, options))
    keys = [*planned, *(key for key in allocated if key not in planned)]
    return tuple(
        MemoryPart(_place(info, gpu), kind, allocated.get((gpu, kind)), planned.get((gpu, kind)))
        for gpu, kind in keys
    )


def _told(info: LoadedInfo) -> Iterator[MemoryPart]:
    """What vLLM tells: weights and cache, of each GPU in turn."""
    kinds = {"model": "weights", "KV": "KV cache"}
    for one in info.buffers:
        gpu = int(one.device.removeprefix("GPU")) if one.device.startswith("GPU") else None
        yield MemoryPart(_place(info, gpu), kinds.get(one.kind, one.kind), one.size, None)


def _sums(parts: Iterable[Part]) -> dict[tuple[int | None, str], int]:
    sums: dict[tuple[int | None, str], int] = {}
    for part in parts:
        sums[part.gpu, part.kind] = sums.get((part.gpu, part.kind), 0) + part.size
    return sums


def _planned(info: LoadedInfo, options: LoadOptions) -> tuple[Part, ...]:
    """What the plan says of the settings that are in force; how much is free plays no part."""
    longest = info.model.context_length or info.ctx_size
    fixed = replace(
        options,
        ctx_size=min(info.ctx_size, longest),  # the engine rounds up
        parallel=info.parallel,
        n_gpu_layers=info.n_gpu_layers,
    )
    gpus = tuple(GpuMemory(one.label, one.gfx_target) for one in info.devices)
    try:
        parts = plan_memory(info.model, Memory(gpus), fixed).parts
    except RocllmError:
        return ()  # a figure less
    # What is assumed is an allowance and no part of the model.
    return tuple(part for part in parts if part.source != "assumed")


def _gpu_names(devices: Iterable[str]) -> tuple[str, ...]:
    """llama.cpp's names of GPUs among those of buffers: `ROCm0`, and not `CPU` or `ROCm_Host`."""
    names = (name.split("[")[0] for name in devices)
    found = (one for one in names if not one.startswith("CPU") and not one.endswith("_Host"))
    return tuple(sorted(set(found), key=lambda name: (len(name), name)))


def _place(info: LoadedInfo, gpu: int | None) -> str:
    if gpu is None:
        return HOST
    if gpu >= len(info.devices):
        return f"GPU {gpu}"
    device = info.devices[gpu]
    twins = sum(gpu_name(one) == gpu_name(device) for one in info.devices) > 1
    return f"{gpu_name(device)} at {device.pci_address}" if twins else gpu_name(device)
