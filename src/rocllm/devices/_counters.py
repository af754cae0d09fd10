"""The files of a card that say how much of its memory is in use. Reading them wakes no GPU.

Reference: amdgpu_vram_mgr.c and amdgpu_gtt_mgr.c of Linux 6.12, whose `mem_info_*` files only read
counters of the driver.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from rocllm.devices._sysfs import Reader, Tree, pairs, read_file
from rocllm.devices.types import Device

_DRM = "sys/class/drm"
_KFD_NODES = "sys/class/kfd/kfd/topology/nodes"
# Total and use are two files. The total changes when a card is reset or partitioned anew; a look
# takes microseconds, so a second one meets another change only if something is very wrong.
_MAX_READS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class VramInfo:
    """The memory of a GPU at one moment, in bytes; `None`: not known.

    pool: what ROCm allocates from, and what the next three count: `vram`, or on an integrated GPU
        mostly `gtt`, which is system memory. `None`: ROCm cannot use the GPU, or nothing tells.
    total, used, free: of that pool. Never negative, and `used` never more than `total`. `free` of
        system memory is no more than the kernel could give away (`MemAvailable`).
    vram_total, vram_used: all video memory; on an integrated GPU the part of system memory that
        the firmware has set aside.
    visible_total, visible_used: the video memory that the processor can reach.
    gtt_total, gtt_used: system memory that the GPU can map, and that it has mapped.
    """

    pool: Literal["vram", "gtt"] | None = None
    total: int | None = None
    used: int | None = None
    free: int | None = None
    vram_total: int | None = None
    vram_used: int | None = None
    visible_total: int | None = None
    visible_used: int | None = None
    gtt_total: int | None = None
    gtt_used: int | None = None


def vram_info(
    device: Device, *, root: str | os.PathLike[str] = "/", read: Reader = read_file
) -> VramInfo:
    """How much memory a GPU has, and how much of it is in use now, by all programs.

    The GPU is not woken. On an integrated GPU the system memory that ROCm may use counts, not the
    small part that the firmware has set aside (docs/monitoring.md). A partition of a card has a
    total only: the driver counts the use of the card as a whole.

    root: `/`, or a folder that holds another machine's `/sys`. read: reads a file.

    Never raises for the hardware's sake: what cannot be read, because the card is gone or the file
    is refused, is `None`.

    >>> vram_info(rocllm.discover_devices().devices[0]).free  # doctest: +SKIP
    11376291840
    """
    tree = Tree(os.path.abspath(root), read)
    if not is_present(tree, device):
        return VramInfo()
    folder = card_folder(device)
    vram, visible, gtt = (
        (None, None) if folder is None else _count(tree, f"{folder}/mem_info_{name}")
        for name in ("vram", "vis_vram", "gtt")
    )
    total, used = _of_pool(device, vram, gtt)
    return VramInfo(
        pool=device.memory_pool,
        total=total,
        used=used,
        free=_free(tree, device, total, used),
        vram_total=vram[0],
        vram_used=vram[1],
        visible_total=visible[0],
        visible_used=visible[1],
        gtt_total=gtt[0],
        gtt_used=gtt[1],
    )


def card_folder(device: Device) -> str | None:
    """The folder of its card, relative to the root; `None`: it has none of its own."""
    return None if device.card is None else f"{_DRM}/card{device.card}/device"


def is_present(tree: Tree, device: Device) -> bool:
    """The GPU is still there; the number of a card that was taken out may go to another one."""
    folder = card_folder(device)
    if folder is None:
        return device.kfd_node is not None and tree.exists(f"{_KFD_NODES}/{device.kfd_node}")
    if not tree.exists(folder):
        return False
    address = pairs(tree.text(f"{folder}/uevent"), "=").get("PCI_SLOT_NAME")
    return address is None or device.pci_address in (address.lower(), None)


def _count(tree: Tree, path: str) -> tuple[int | None, int | None]:
    """Total and use that belong together."""
    total = tree.number(f"{path}_total")
    used = None
    for _ in range(_MAX_READS):
        used = tree.number(f"{path}_used")
        total, before = tree.number(f"{path}_total"), total
        if total == before:
            break
    return total, _at_most(used, total)


def _of_pool(
    device: Device,
    vram: tuple[int | None, int | None],
    gtt: tuple[int | None, int | None],
) -> tuple[int | None, int | None]:
    if device.memory_pool is None:
        return None, None
    there, used = vram if device.memory_pool == "vram" else gtt
    total = there if device.usable_memory is None else device.usable_memory
    return total, None if device.partitioned else _at_most(used, total)


def _free(tree: Tree, device: Device, total: int | None, used: int | None) -> int | None:
    if total is None or used is None:
        return None
    free = total - used
    if device.memory_pool == "gtt":
        available = pairs(tree.text("proc/meminfo"), ":").get("MemAvailable", "")
        number = available.removesuffix("kB").strip()
        if number.isascii() and number.isdigit():
            free = min(free, int(number) * 1024)
    return free


def _at_most(value: int | None, limit: int | None) -> int | None:
    return value if value is None or limit is None else min(value, limit)
