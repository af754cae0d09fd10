"""Has video memory of a card spilled into system memory? Pure.

amdgpu moves buffers out of a full card instead of refusing, unless they were allocated through KFD,
which refuses. So a desktop beside ROCm is what spills, and the model itself under Vulkan. Whatever
it is, it is then read over PCIe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rocllm.devices._counters import VramInfo
from rocllm.devices._processes import ProcessMemory
from rocllm.devices.types import Device
from rocllm.units import format_bytes

# Each token reads every weight once. 64 MiB over PCIe 4.0 x16 (about 25 GB/s in practice) take
# 3 ms, which is what a person begins to see at 50 tokens a second; less is a window that nobody
# looks at.
_EVICTED = 64 * 1024**2
# Full: what was moved out was larger than the rest. A 16 GB card keeps 0.8 GiB then.
_FULL = 0.95
# System memory that a card maps without any spill: 12 to 145 MiB in trees of idle desktops, and
# 640 to 680 MiB reported with a llama-server beside one, of which nothing was evicted while 12 MiB
# of VRAM were free.
_MAPPED = 1024**3
# Share of the used VRAM whose owners tell whether anything of theirs was moved out; with more than
# that, their word counts and nothing is concluded from the totals.
_ACCOUNTED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """Video memory that is in system memory.

    size: bytes; of a suspicion, at most. certain: a process tells so; else it is concluded from a
    full card and much mapped system memory, which pinned buffers of a program explain as well.
    what, remedy: in words.
    """

    device: Device
    size: int
    certain: bool
    what: str
    remedy: str = (
        "use a smaller context, fewer GPU layers or a smaller model, or end other programs"
    )

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def find_spill(
    device: Device, memory: VramInfo, processes: Iterable[ProcessMemory] = ()
) -> Spill | None:
    """Whether video memory of a discrete card is in system memory; `None`: nothing says so.

    memory: of the device now. processes: who holds its memory, from `process_memory`.

    The evidence, best first: (1) processes whose buffers should be in VRAM and are not
    (`amd-evicted-vram`), 64 MiB or more together; (2) where no process tells: VRAM is at least 95 %
    full and the card maps 1 GiB or more of system memory. An integrated GPU never spills: system
    memory is what it has.

    >>> find_spill(device, vram_info(device), process_memory([device])) is None  # doctest: +SKIP
    True
    """
    if device.integrated or device.partitioned:
        return None
    own = [use for use in processes if use.device == device and use.evicted is not None]
    evicted = sum(use.evicted or 0 for use in own)
    if evicted >= _EVICTED:
        owners = ", ".join(f"{use.name} ({use.pid})" for use in own if use.evicted)
        return Spill(
            device=device,
            size=evicted,
            certain=True,
            what=f"{format_bytes(evicted)} of the video memory of {owners} are in system memory",
        )
    total, used, mapped = memory.vram_total, memory.vram_used, memory.gtt_used
    if not total or used is None or mapped is None:
        return None
    told = sum(use.vram for use in own) >= _ACCOUNTED * used
    if told or used < _FULL * total or mapped < _MAPPED:
        return None
    return Spill(
        device=device,
        size=mapped,
        certain=False,
        what=f"VRAM is full ({format_bytes(used)} of {format_bytes(total)}) and the card uses "
        f"{format_bytes(mapped)} of system memory: video memory may have been moved there",
    )
