"""Integrated or discrete, and how much memory ROCm has there. Pure.

Reference: kfd_crat.c, amdgpu_amdkfd_gpuvm.c and amdgpu_discovery.c of Linux 6.12; the changes of
6.10 (KFD allocates from GTT on APUs) and 6.14 (`apu_prefer_gtt`).
"""

from __future__ import annotations

from typing import Literal

from rocllm.devices._chips import DISCRETE, GFX942_INTEGRATED, INTEGRATED, gfx_of
from rocllm.devices._drm import Card
from rocllm.devices._kfd import Node


def integrated(
    gfx_target: str | None,
    device_id: int | None,
    card: Card | None,
    bank: int | None,
) -> tuple[bool, str]:
    """Whether a GPU is part of a processor, and what tells; the best evidence comes first.

    Not evidence: the size of the memory, `boot_vga`, the PCI class, the bus number, the heap type.
    bank: bytes that KFD offers; `None` as well on a partitioned card, where it is a share.

    >>> integrated("gfx1036", 0x164E, None, None)
    (True, 'gfx1036 exists only inside a processor')
    """
    chip = gfx_target or gfx_of(device_id)
    if chip in INTEGRATED:
        return True, f"{chip} exists only inside a processor"
    if chip in DISCRETE:
        return False, f"{chip} exists only on cards"
    if device_id in GFX942_INTEGRATED:
        inside = GFX942_INTEGRATED[device_id]
        return inside, f"PCI device {device_id:#06x} is {'an APU' if inside else 'a card'}"
    if card is not None and card.on_card:
        return False, "the driver tells of memory on a card"
    if card is None or bank is None or card.vram_total is None:
        return False, "nothing tells; taken for a card"
    if bank != card.vram_total:
        return True, "KFD offers other memory than the VRAM"
    return False, "KFD offers exactly the VRAM"


def usable_memory(
    node: Node,
    card: Card | None,
    *,
    inside: bool,
    partitioned: bool,
) -> tuple[int | None, Literal["vram", "gtt"] | None]:
    """Bytes that ROCm can allocate, and the pool that they come from.

    A card offers its VRAM. An integrated GPU offers its carve-out of system memory up to Linux 6.9
    or where the carve-out is the larger one, else system memory, which GTT limits further. The two
    are never added up: ROCm uses one of them.
    """
    vram = card.vram_total if card else None
    gtt = card.gtt_total if card else None
    if not inside:
        return (vram if node.bank is None and not partitioned else node.bank), "vram"
    if node.bank is None or vram is None:
        return node.bank, None
    if node.bank == vram:
        return vram, "vram"
    return (node.bank if gtt is None else min(node.bank, gtt)), "gtt"
