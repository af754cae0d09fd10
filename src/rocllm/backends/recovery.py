"""What else to try when a server cannot run as it was started: the recovery ladder. Pure.

Each rung mends some causes and is taken for those only, from the least to the most that it changes,
and never twice. After a GPU reset there is none: whatever runs next is likely to hang the GPU
again, and the desktop with it. What the user has fixed of the answer's nature stays fixed: the
context, the device and the engine; how the model is loaded and computed may change.

    rung             mends                                         unless
    load mode        a file that cannot be mapped, a load that     the mode was given
                     stands still (llama.cpp#15018)
    flash attention  flash attention kernels that fail             the V cache is quantised
    f16 cache        a quantised V cache without flash attention
    smaller context  memory that is not enough                     ctx_size was given
    other device     a GPU that the engine has no kernels for,     device was given; it needs
                     that faults, or is full                       another discrete GPU
    Vulkan build     missing or mixed ROCm libraries, missing      llama_server was given; it needs
                     kernels, faults                               a Vulkan build
    CPU              all of these but the file's                   it needs cpu_fallback=True
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from rocllm.devices import Device
from rocllm.errors import RocllmError
from rocllm.options import LoadOptions

Rung: TypeAlias = Literal[
    "load_mode",
    "flash_attn",
    "cache_type",
    "ctx_size",
    "device",
    "vulkan",
    "cpu",
]

# Below this a context is of little use, and halving it once more would not mend much.
_SMALLEST_CTX = 2048

_FILE_OR_STALL = frozenset({"mmap_failed", "stalled"})
_MEMORY = frozenset({"out_of_context_memory", "out_of_device_memory", "out_of_host_memory"})
_NO_KERNELS = frozenset({"wrong_gfx", "no_rocblas_kernels"})
_GPU_FAILS = frozenset({"gpu_fault", "gpu_error", "flash_attention_failed"})
_ROCM_LIBRARIES = frozenset(
    {
        "missing_library",
        "mixed_libraries",
        "no_devices_for_rocblas",
        "no_gpu_visible",
        "not_a_gpu_build",
        "invalid_device",
    }
)
_NOT_VISIBLE = frozenset(
    {
        "gpu_access_denied",
        "driver_not_loaded",
        "driver_rejected",
        "no_pcie_atomics",
        "gpu_partly_visible",
        "bad_gfx_override",
    }
)

CAUSES: Mapping[Rung, frozenset[str]] = {
    "load_mode": _FILE_OR_STALL,
    "flash_attn": frozenset({"flash_attention_failed"}),
    "cache_type": frozenset({"flash_attention_needed"}),
    "ctx_size": _MEMORY,
    "device": _NO_KERNELS | _GPU_FAILS | {"out_of_device_memory", "out_of_context_memory"},
    "vulkan": _NO_KERNELS | _GPU_FAILS | _ROCM_LIBRARIES,
    "cpu": _NO_KERNELS
    | _GPU_FAILS
    | _ROCM_LIBRARIES
    | _NOT_VISIBLE
    | {"out_of_device_memory", "out_of_context_memory", "stalled"},
}
"""Which causes each rung mends; in the order in which they are taken."""


@dataclass(frozen=True, slots=True)
class Situation:
    """How the server was started that failed, and what else there is.

    asked: the user's options. options: those it was started with. ctx_size: tokens of a slot;
    `None`: it did not come so far. devices: the GPUs it used. others: GPUs that could be used
    instead, best first. vulkan_server: path of a Vulkan build.
    """

    asked: LoadOptions
    options: LoadOptions
    ctx_size: int | None
    devices: tuple[Device, ...]
    others: tuple[Device, ...]
    vulkan_server: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What to change for the next start, and how to say so."""

    rung: Rung
    options: LoadOptions
    note: str


def next_step(error: RocllmError, now: Situation, taken: Collection[Rung]) -> Step | None:
    """The next rung that may mend `error`; `None`: there is none left.

    >>> error = RocllmError("no")
    >>> error.cause = "flash_attention_failed"
    >>> now = Situation(LoadOptions(), LoadOptions(), 4096, (), (), None)
    >>> next_step(error, now, ()).options.flash_attn
    'off'
    """
    # What may pass by itself is first tried again unchanged, by the restart policy.
    if error.cause is None or error.retryable:
        return None
    for rung, causes in CAUSES.items():
        if rung not in taken and error.cause in causes:
            change = _CHANGES[rung](now)
            if change is not None:
                options, what = change
                return Step(rung, options, f"{what}, after: {_reason(error)}")
    return None


def _reason(error: RocllmError) -> str:
    return (error.why or error.what).splitlines()[0]


_Change: TypeAlias = tuple[LoadOptions, str] | None


def _load_mode(now: Situation) -> _Change:
    if now.asked.load_mode is not None:
        return None
    return replace(now.options, load_mode="none"), "the file is read instead of mapped"


def _flash_attn(now: Situation) -> _Change:
    if now.options.cache_type_v not in (None, "f32", "f16", "bf16"):
        return None
    return replace(now.options, flash_attn="off"), "flash attention is off"


def _cache_type(now: Situation) -> _Change:
    options = replace(now.options, cache_type_k="f16", cache_type_v="f16")
    return options, "the KV cache is f16"


def _ctx_size(now: Situation) -> _Change:
    if now.asked.ctx_size is not None or now.ctx_size is None:
        return None
    smaller = now.ctx_size // 2
    if smaller < _SMALLEST_CTX:
        return None
    return replace(now.options, ctx_size=smaller), f"the context is {smaller} tokens"


def _device(now: Situation) -> _Change:
    if now.asked.device is not None or not now.devices:
        return None
    used = {device.pci_address for device in now.devices}
    for other in now.others:
        if other.pci_address is not None and other.pci_address not in used:
            return replace(now.options, device=other.pci_address), f"{other.label} is used"
    return None


def _vulkan(now: Situation) -> _Change:
    if now.asked.llama_server is not None or now.vulkan_server is None:
        return None
    options = replace(now.options, llama_server=now.vulkan_server)
    return options, f"the Vulkan build {now.vulkan_server} is used"


def _cpu(now: Situation) -> _Change:
    if not now.asked.cpu_fallback or now.asked.devices == ("cpu",):
        return None
    # What was tried on the GPU, such as a smaller context, need not hold on the CPU.
    return replace(now.asked, device="cpu"), "the CPU is used"


_CHANGES: Mapping[Rung, Callable[[Situation], _Change]] = {
    "load_mode": _load_mode,
    "flash_attn": _flash_attn,
    "cache_type": _cache_type,
    "ctx_size": _ctx_size,
    "device": _device,
    "vulkan": _vulkan,
    "cpu": _cpu,
}
