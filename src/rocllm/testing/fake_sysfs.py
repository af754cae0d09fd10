"""Machines to try discovery on: trees with the `/sys` and `/dev` of AMD GPUs.

>>> import tempfile
>>> from rocllm.devices import discover_devices
>>> with tempfile.TemporaryDirectory() as folder:
...     [gpu.gfx_target for gpu in discover_devices(write_tree(folder, DESKTOP), {}).devices]
['gfx1101', 'gfx1036']
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rocllm.devices import Reader

_NODES = "sys/class/kfd/kfd/topology/nodes"


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeGpu:
    """What the kernel would say of one GPU. A `None` leaves the file or the line out.

    gfx_version: KFD's `gfx_target_version`. asic: KFD's `name`. bank: bytes that KFD offers, `vram`
        when it is left out; heap_type: of that bank. partition: its number on a partitioned card.
    kfd: KFD lists it. card: N of `/sys/class/drm/card<N>`. driver: what is bound to it.
    on_card: the driver tells who made the memory, as it does for cards only.
    gpu_id: KFD's number of it. files: further files of the card, such as `SENSORS`.
    """

    device_id: int
    gfx_version: int | None = None
    pci_address: str = "0000:03:00.0"
    render_minor: int = 128
    card: int | None = 0
    vram: int | None = None
    vram_used: int | None = None
    gtt: int | None = None
    gtt_used: int | None = None
    bank: int | None = None
    heap_type: int = 1
    on_card: bool = False
    simd_count: int = 64
    simd_per_cu: int = 2
    unique_id: int = 0
    partition: int = 0
    asic: str = "ip discovery"
    kfd: bool = True
    vendor: int = 0x1002
    driver: str | None = "amdgpu"
    revision: int | None = None
    product_name: str | None = None
    runtime_status: str | None = None
    gpu_id: int | None = None
    files: Mapping[str, object] = field(default_factory=dict)


# What a card shows besides its memory: load, clocks, power, temperatures; a generating one's.
SENSORS = {
    "gpu_busy_percent": 97,
    "mem_busy_percent": 61,
    "power_state": "D0",
    "pp_dpm_sclk": "0: 500Mhz\n1: 2171Mhz *\n2: 2544Mhz",
    "pp_dpm_mclk": "0: 96Mhz\n1: 1124Mhz *",
    "hwmon/hwmon4/name": "amdgpu",
    "hwmon/hwmon4/freq1_input": 2171000000,
    "hwmon/hwmon4/freq2_input": 1124000000,
    "hwmon/hwmon4/power1_average": 228000000,
    "hwmon/hwmon4/power1_cap": 245000000,
    "hwmon/hwmon4/temp1_input": 61000,
    "hwmon/hwmon4/temp1_label": "edge",
    "hwmon/hwmon4/temp2_input": 79000,
    "hwmon/hwmon4/temp2_label": "junction",
    "hwmon/hwmon4/temp3_input": 74000,
    "hwmon/hwmon4/temp3_label": "mem",
}

RX_7700_XT = FakeGpu(
    device_id=0x747E,
    gfx_version=110001,
    vram=12868124672,
    vram_used=1491832832,
    gtt=65498251264,
    on_card=True,
    simd_count=108,
)
# Two compute units that offer more memory than the card beside them.
RAPHAEL = FakeGpu(
    device_id=0x164E,
    gfx_version=100306,
    pci_address="0000:11:00.0",
    render_minor=129,
    card=1,
    vram=536870912,
    gtt=65498251264,
    bank=65498251264,
    simd_count=4,
)
STRIX_HALO = FakeGpu(
    device_id=0x1586,
    gfx_version=110501,
    pci_address="0000:bf:00.0",
    vram=1073741824,
    gtt=112742891520,
    bank=112742891520,
    simd_count=80,
)
# The usual mixed machine: a discrete GPU, and the integrated one of a desktop Ryzen.
DESKTOP = (RX_7700_XT, RAPHAEL)


def partitions(gpu: FakeGpu, count: int) -> tuple[FakeGpu, ...]:
    """`gpu` divided; as the kernel does, only the first partition has a card of its own."""
    return tuple(
        replace(
            gpu,
            partition=number,
            render_minor=gpu.render_minor + number,
            card=gpu.card if number == 0 else None,
            bank=None if gpu.vram is None else gpu.vram // count,
        )
        for number in range(count)
    )


def write_tree(
    root: str | os.PathLike[str],
    gpus: Iterable[FakeGpu],
    *,
    cpu_nodes: int = 1,
    kfd: bool = True,
) -> Path:
    """Write a machine with these GPUs under `root`; returns `root`.

    cpu_nodes: KFD nodes of processors, which come first. kfd: the kernel has KFD.
    """
    root = Path(root)
    number = cpu_nodes
    if kfd:
        _write(root, "dev/kfd", "")
        _write(root, "sys/class/kfd/kfd/topology/generation_id", "2")
        for cpu in range(cpu_nodes):
            _write(root, f"{_NODES}/{cpu}/properties", "cpu_cores_count 16\nsimd_count 0")
    for gpu in gpus:
        if kfd and gpu.kfd:
            _write_node(root, number, gpu)
            number += 1
        if gpu.driver is not None:
            _write(root, f"dev/dri/renderD{gpu.render_minor}", "")
            if gpu.card is not None:
                _write_card(root, gpu)
        _write_function(root, f"sys/bus/pci/devices/{gpu.pci_address}", gpu)
    return root


def refusing(root: str | os.PathLike[str], nodes: Collection[int], read: Reader) -> Reader:
    """`read`, refused for the files of some KFD nodes as a container's device cgroup does it."""
    folders = tuple(f"{os.fspath(root)}/{_NODES}/{node}/" for node in nodes)

    def refuse(path: str) -> bytes:
        if path.startswith(folders):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        return read(path)

    return refuse


def write_process(
    root: str | os.PathLike[str],
    pid: int,
    name: str,
    gpu: FakeGpu,
    *,
    client: int | None = 1,
    kfd: int | None = None,
    state: str = "S",
    **memory: str,
) -> None:
    """Add a process that has `gpu` open to a tree; may be called again for another file of it.

    client: the number by which the driver knows the open file. kfd: bytes that it has allocated
    through KFD. state: of the process, `Z` for one that has ended. memory: lines of the file's
    `fdinfo`, such as `drm_memory_vram="512 KiB"`; without any the process has no such file open.
    """
    root = Path(root)
    _write(root, f"proc/{pid}/stat", f"{pid} ({name}) {state} 1")
    if kfd is not None:
        _write(root, f"sys/class/kfd/kfd/proc/{pid}/vram_{gpu.gpu_id}", str(kfd))
    if not memory:
        return
    values = {"drm-driver": "amdgpu", "drm-pdev": gpu.pci_address, "drm-client-id": client}
    values |= {key.replace("_", "-"): value for key, value in memory.items()}
    lines = (f"{key}:\t{value}" for key, value in values.items() if value is not None)
    folder = root / f"proc/{pid}/fd"
    folder.mkdir(parents=True, exist_ok=True)
    fd = 3 + len(list(folder.iterdir()))
    (folder / str(fd)).symlink_to(f"/dev/dri/renderD{gpu.render_minor}")
    _write(root, f"proc/{pid}/fdinfo/{fd}", "\n".join(lines))


def _write_node(root: Path, number: int, gpu: FakeGpu) -> None:
    domain, bus, slot = (int(part, 16) for part in gpu.pci_address.split(".")[0].split(":"))
    properties = {
        "cpu_cores_count": 0,
        "simd_count": gpu.simd_count,
        "simd_per_cu": gpu.simd_per_cu,
        "gfx_target_version": gpu.gfx_version,
        "vendor_id": gpu.vendor,
        "device_id": gpu.device_id,
        "location_id": bus << 8 | slot << 3 | gpu.partition,
        "domain": domain,
        "drm_render_minor": gpu.render_minor,
        "unique_id": gpu.unique_id,
    }
    lines = (f"{name} {value}" for name, value in properties.items() if value is not None)
    folder = f"{_NODES}/{number}"
    _write(root, f"{folder}/properties", "\n".join(lines))
    _write(root, f"{folder}/name", gpu.asic)
    if gpu.gpu_id is not None:
        _write(root, f"{folder}/gpu_id", str(gpu.gpu_id))
    bank = gpu.vram if gpu.bank is None else gpu.bank
    if bank is not None:
        _write(
            root,
            f"{folder}/mem_banks/0/properties",
            f"heap_type {gpu.heap_type}\nsize_in_bytes {bank}\nflags 0\nwidth 256",
        )


def _write_card(root: Path, gpu: FakeGpu) -> None:
    folder = f"sys/class/drm/card{gpu.card}/device"
    _write_function(root, folder, gpu)
    _write(root, f"{folder}/drm/card{gpu.card}/dev", "")
    _write(root, f"{folder}/drm/renderD{gpu.render_minor}/dev", "")
    files = {
        "revision": None if gpu.revision is None else f"{gpu.revision:#04x}",
        "unique_id": f"{gpu.unique_id:016x}" if gpu.unique_id else None,
        "product_name": gpu.product_name,
        "mem_info_vram_total": gpu.vram,
        "mem_info_vram_used": gpu.vram_used,
        "mem_info_gtt_total": gpu.gtt,
        "mem_info_gtt_used": gpu.gtt_used,
        "mem_info_vram_vendor": "samsung" if gpu.on_card else None,
        "power/runtime_status": gpu.runtime_status,
        **gpu.files,
    }
    for name, value in files.items():
        if value is not None:
            _write(root, f"{folder}/{name}", str(value))


def _write_function(root: Path, folder: str, gpu: FakeGpu) -> None:
    lines = [
        "PCI_CLASS=30000",
        f"PCI_ID={gpu.vendor:04X}:{gpu.device_id:04X}",
        f"PCI_SLOT_NAME={gpu.pci_address}",
    ]
    if gpu.driver is not None:
        lines.insert(0, f"DRIVER={gpu.driver}")
    _write(root, f"{folder}/uevent", "\n".join(lines))


def _write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n" if text else "")
