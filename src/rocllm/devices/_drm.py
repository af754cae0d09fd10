"""Graphics cards in sysfs: what DRM and PCI know of them.

Reference: drivers/gpu/drm/amd/amdgpu/amdgpu_device.c, amdgpu_vram_mgr.c and amdgpu_gtt_mgr.c of
Linux 6.12. Only files are read that do not wake a sleeping card.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rocllm.devices._sysfs import Tree, hexadecimal, pairs

_AMD = 0x1002
# PCI base classes: display controller, processing accelerator (Instinct cards).
_GPU_CLASSES = (0x03, 0x12)
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_DRM = "sys/class/drm"
_PCI = "sys/bus/pci/devices"


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFunction:
    """vendor, device_id: PCI ids. base_class: its highest byte. driver: `None`: not known, none."""

    vendor: int | None
    device_id: int | None
    base_class: int | None
    driver: str | None
    address: str | None

    @property
    def amd(self) -> bool:
        """Made by AMD."""
        return self.vendor == _AMD

    @property
    def by_amdgpu(self) -> bool:
        """An AMD card under amdgpu; a card that DRM lists has a driver, named or not."""
        return self.amd and self.driver in ("amdgpu", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """`/sys/class/drm/card<number>`; sizes in bytes.

    on_card: a file is there that the driver shows for memory soldered to a card only.
    """

    number: int
    pci: PciFunction
    render_minor: int | None
    revision: int | None
    product_name: str | None
    unique_id: int | None
    vram_total: int | None
    vram_used: int | None
    gtt_total: int | None
    gtt_used: int | None
    on_card: bool
    runtime_status: str | None


def read_cards(tree: Tree) -> tuple[Card, ...]:
    """All cards that are AMD's or nobody's; the latter are further partitions of an AMD card."""
    cards = (_read_card(tree, number) for number in tree.numbered(_DRM, "card"))
    return tuple(card for card in cards if card is not None)


def read_pci_gpus(tree: Tree) -> tuple[PciFunction, ...]:
    """AMD's GPUs on the PCI bus, with a driver or without."""
    functions = (_read_function(tree, f"{_PCI}/{name}") for name in tree.names(_PCI))
    return tuple(pci for pci in functions if pci.amd and pci.base_class in _GPU_CLASSES)


def _read_card(tree: Tree, number: int) -> Card | None:
    folder = f"{_DRM}/card{number}/device"
    pci = _read_function(tree, folder)
    if pci.vendor not in (_AMD, None):
        return None
    minors = tree.numbered(f"{folder}/drm", "renderD")
    return Card(
        number=number,
        pci=pci,
        render_minor=minors[0] if minors else None,
        revision=tree.hexadecimal(f"{folder}/revision"),
        product_name=tree.text(f"{folder}/product_name") or None,
        unique_id=tree.hexadecimal(f"{folder}/unique_id"),
        vram_total=tree.number(f"{folder}/mem_info_vram_total"),
        vram_used=tree.number(f"{folder}/mem_info_vram_used"),
        gtt_total=tree.number(f"{folder}/mem_info_gtt_total"),
        gtt_used=tree.number(f"{folder}/mem_info_gtt_used"),
        on_card=any(
            tree.exists(f"{folder}/{name}") for name in ("board_info", "mem_info_vram_vendor")
        ),
        runtime_status=tree.text(f"{folder}/power/runtime_status"),
    )


def _read_function(tree: Tree, folder: str) -> PciFunction:
    uevent = pairs(tree.text(f"{folder}/uevent"), "=")
    vendor, _, device = uevent.get("PCI_ID", "").partition(":")
    pci_class = _either(hexadecimal(uevent.get("PCI_CLASS")), tree, f"{folder}/class")
    address = uevent.get("PCI_SLOT_NAME") or os.path.basename(os.path.realpath(tree.path(folder)))
    return PciFunction(
        vendor=_either(hexadecimal(vendor), tree, f"{folder}/vendor"),
        device_id=_either(hexadecimal(device), tree, f"{folder}/device"),
        base_class=None if pci_class is None else pci_class >> 16,
        driver=uevent.get("DRIVER") or None,
        address=address.lower() if _ADDRESS.fullmatch(address.lower()) else None,
    )


def _either(value: int | None, tree: Tree, path: str) -> int | None:
    return tree.hexadecimal(path) if value is None else value
