"""What discovery finds: plain values. `None` says that something is not known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person should know about the machine, and what to do about it."""

    what: str
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An AMD GPU that the amdgpu driver runs; a partition of one counts as a device of its own.

    kfd_node: number of its node in the KFD topology; `None`: ROCm cannot use the card.
    ordinal: index that ROCr gives it before any mask; `None`: ROCr does not list it.
    gfx_target: the instruction set, as ROCm writes it, such as `gfx1101`.
    name: marketing name, or the best description there is.
    pci_address: `0000:03:00.0`; partitions of a card share it. device_id: PCI id, such as `0x747e`.
    uuid: ROCr's `GPU-<16 hex digits>`; `None` where the chip has no serial number.
    render_minor: N of `/dev/dri/renderD<N>`. card: N of `/sys/class/drm/card<N>`.
    integrated: part of a processor, using its memory. integrated_because: what tells.
    vram_total, gtt_total: bytes of video memory, and of system memory that the GPU can map.
    kfd_bank: bytes of memory that KFD offers. usable_memory: bytes that ROCm can allocate.
    memory_pool: where these come from, `vram` or `gtt`; used_memory: bytes of that pool in use.
    cu_count: compute units. partitioned: it shares the card with others.
    asleep: the driver has powered it down; reading a sensor would wake it.
    problems: what stands in the way of using it.
    """

    kfd_node: int | None = None
    ordinal: int | None = None
    gfx_target: str | None = None
    name: str
    pci_address: str | None = None
    device_id: str | None = None
    uuid: str | None = None
    render_minor: int | None = None
    integrated: bool
    integrated_because: str
    vram_total: int | None = None
    usable_memory: int | None = None
    used_memory: int | None = None
    asleep: bool | None = None
    problems: tuple[Problem, ...] = ()
    card: int | None = None
    gtt_total: int | None = None
    kfd_bank: int | None = None
    memory_pool: Literal["vram", "gtt"] | None = None
    cu_count: int | None = None
    partitioned: bool = False

    @property
    def label(self) -> str:
        """Short text that identifies it to a person: `0000:03:00.0 (Radeon RX 7600)`."""
        return f"{self.pci_address or f'KFD node {self.kfd_node}'} ({self.name})"


@dataclass(frozen=True, slots=True)
class OtherCard:
    """An AMD card that amdgpu does not run. driver: the one that does; `None`: no driver at all."""

    pci_address: str
    device_id: str | None
    driver: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one look at the machine found.

    devices: GPUs, by KFD node, then cards without one.
    hidden: KFD nodes that this process may not read: GPUs that a container is not given.
    other_cards: AMD cards without the amdgpu driver.
    visible: ordinals that the inherited masks leave, in the order of the masks.
    masks: the masks in force, such as `HIP_VISIBLE_DEVICES=1`.
    denied: why this process cannot open the device files; it concerns every GPU, because ROCr
        gives up at the first file that it may not open.
    problems: what concerns the machine and no single device; `denied` is among them.
    wsl: Windows Subsystem for Linux. generation: KFD's counter of changes to the topology.
    """

    devices: tuple[Device, ...] = ()
    hidden: int = 0
    other_cards: tuple[OtherCard, ...] = ()
    visible: tuple[int, ...] = ()
    masks: tuple[str, ...] = ()
    denied: Problem | None = None
    problems: tuple[Problem, ...] = ()
    wsl: bool = False
    generation: int | None = None
