"""The recovery ladder: which rung for which cause, and never a wrong one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rocllm.backends.recovery import CAUSES, Rung, Situation, next_step
from rocllm.devices import Device
from rocllm.errors import RocllmError
from rocllm.options import LoadOptions
from rocllm.server import diagnose

FIRST = Device(
    name="RX 7800 XT", pci_address="0000:03:00.0", integrated=False, integrated_because=""
)
SECOND = replace(FIRST, name="RX 6800", pci_address="0000:0b:00.0")


def situation(**fields: Any) -> Situation:
    """One GPU in use, another one there, a Vulkan build, and the CPU allowed."""
    asked = fields.pop("asked", LoadOptions(cpu_fallback=True))
    whole: dict[str, Any] = {
        "asked": asked,
        "options": asked,
        "ctx_size": 16384,
        "devices": (FIRST,),
        "others": (FIRST, SECOND),
        "vulkan_server": "/opt/vulkan/llama-server",
    }
    return Situation(**{**whole, **fields})


def failure(cause: str | None, *, retryable: bool = False) -> RocllmError:
    """An error with a cause."""
    error = RocllmError("it failed", why="the reason\nand more")
    error.cause, error.retryable = cause, retryable
    return error


def climb(error: RocllmError, now: Situation) -> list[Rung]:
    """Every rung that is taken while the same error comes again."""
    taken: list[Rung] = []
    while (step := next_step(error, now, taken)) is not None:
        assert step.rung not in taken
        assert "the reason" in step.note or "ROCm" in step.note or error.why
        taken.append(step.rung)
        now = replace(now, options=step.options)
    return taken


@pytest.mark.parametrize(
    ("cause", "rungs"),
    [
        ("mmap_failed", ["load_mode"]),
        ("stalled", ["load_mode", "cpu"]),
        ("flash_attention_failed", ["flash_attn", "device", "vulkan", "cpu"]),
        ("flash_attention_needed", ["cache_type"]),
        ("out_of_context_memory", ["ctx_size", "device", "cpu"]),
        ("out_of_device_memory", ["ctx_size", "device", "cpu"]),
        ("out_of_host_memory", ["ctx_size"]),
        ("wrong_gfx", ["device", "vulkan", "cpu"]),
        ("no_rocblas_kernels", ["device", "vulkan", "cpu"]),
        ("gpu_fault", ["device", "vulkan", "cpu"]),
        ("missing_library", ["vulkan", "cpu"]),
        ("no_gpu_visible", ["vulkan", "cpu"]),
        ("gpu_access_denied", ["cpu"]),
        ("gpu_reset", []),
        ("device_lost", []),
        ("bad_file", []),
        ("unknown_architecture", []),
        ("killed_by_oom", []),
        ("disk_full", []),
        (None, []),
    ],
)
def test_each_cause_has_its_rungs(cause: str | None, rungs: list[Rung]) -> None:
    """In the order in which they are taken, each once."""
    assert climb(failure(cause), situation()) == rungs


@pytest.mark.parametrize(
    ("said", "rungs"),
    [
        ("ROCm error: invalid device function", ["device", "vulkan", "cpu"]),
        (
            "ggml_cuda_compute_forward: FLASH_ATTN_EXT failed",
            ["flash_attn", "device", "vulkan", "cpu"],
        ),
        (
            "HW Exception by GPU node-1 (Agent handle: 0x5ab48bbcc960) reason :GPU Hang",
            [],
        ),
        ("terminate called after throwing an instance of 'vk::DeviceLostError'", []),
        (
            "allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
            ["ctx_size", "device", "cpu"],
        ),
        (
            "rocBLAS error: Cannot read TensileLibrary.dat: Illegal seek for GPU arch : gfx1036",
            ["device", "vulkan", "cpu"],
        ),
        ("error loading model: mmap failed: No such device", ["load_mode"]),
    ],
)
def test_recorded_failures(said: str, rungs: list[Rung]) -> None:
    """From the words of the server to the rungs."""
    assert climb(diagnose(("llama-server",), 134, (said,), ready=False), situation()) == rungs


def test_every_cause_is_one_that_the_diagnosis_gives() -> None:
    """A cause that nobody names would be a rung that is never taken."""
    from rocllm.server._rules import RULES, SIGNALS

    known = {rule.id for rule in (*RULES, *SIGNALS.values())} | {"stalled", "no_gpu_visible"}
    for rung, causes in CAUSES.items():
        assert causes <= known, rung


def test_what_may_pass_by_itself_changes_nothing() -> None:
    """It is the restart policy's."""
    assert next_step(failure("gpu_fault", retryable=True), situation(), ()) is None


@pytest.mark.parametrize(
    ("cause", "asked", "rung"),
    [
        ("stalled", LoadOptions(load_mode="mmap"), "load_mode"),
        ("out_of_device_memory", LoadOptions(ctx_size=16384), "ctx_size"),
        ("wrong_gfx", LoadOptions(device="0000:03:00.0"), "device"),
        ("wrong_gfx", LoadOptions(llama_server="/opt/llama-server"), "vulkan"),
        ("wrong_gfx", LoadOptions(), "cpu"),
        ("flash_attention_failed", LoadOptions(cache_type_v="q8_0"), "flash_attn"),
    ],
)
def test_what_the_user_fixed_stays(cause: str, asked: LoadOptions, rung: Rung) -> None:
    """And the CPU is used only when that was allowed."""
    assert rung not in climb(failure(cause), situation(asked=asked))


def test_what_is_not_there_is_not_tried() -> None:
    """No other GPU, no Vulkan build, no context to make smaller."""
    now = situation(others=(FIRST,), vulkan_server=None, ctx_size=None, asked=LoadOptions())
    for cause in ("wrong_gfx", "out_of_device_memory"):
        assert climb(failure(cause), now) == []
    assert climb(failure("out_of_host_memory"), situation(ctx_size=2048)) == []


def test_the_cpu_begins_afresh() -> None:
    """What was changed for the GPU's sake does not hold there."""
    smaller = LoadOptions(ctx_size=4096, cpu_fallback=True)
    step = next_step(failure("missing_library"), situation(options=smaller, vulkan_server=None), ())
    assert step is not None
    assert step.options.device == "cpu"
    assert step.options.ctx_size is None
