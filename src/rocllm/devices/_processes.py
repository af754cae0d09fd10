"""Which process holds how much of a GPU's memory.

Two sources, which overlap, so the larger one counts and not the sum:

* `/proc/<pid>/fdinfo` tells of every open render node, of processes that this user may look into:
  his own. Kernels differ in whether what ROCm allocates through KFD is in it.
* KFD tells what it has allocated for each process, of all users, by the process ids of the host.

Reference: Documentation/gpu/drm-usage-stats.rst, amdgpu_fdinfo.c and kfd_process.c of Linux 6.12;
for the keys since 6.13 amdgpu_fdinfo.c of that version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rocllm.devices._sysfs import Reader, Tree, decimal, pairs, read_file
from rocllm.devices.types import Device

_KFD = "sys/class/kfd/kfd"
_RENDER_NODE = re.compile(r"/dev/dri/(?:renderD(\d{1,4})|card\d{1,4})")
_SIZE = re.compile(r"(\d{1,20})(?: (KiB|MiB))?")
_UNITS = {None: 1, "KiB": 1024, "MiB": 1024**2}
# The number of the first process-id namespace, PROC_PID_INIT_INO of include/linux/proc_ns.h.
_HOST_NAMESPACE = "pid:[4026531836]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """What a process holds of one GPU, in bytes.

    name: as the kernel calls the process. vram: video memory. gtt: system memory that the GPU has
    mapped. evicted: memory that the process wants in VRAM and that is elsewhere now. `None`: not
    known, as of other users' processes, or from an older kernel.
    """

    device: Device
    pid: int
    name: str
    vram: int
    gtt: int | None = None
    evicted: int | None = None


def process_memory(
    devices: Sequence[Device],
    *,
    pids: Collection[int] | None = None,
    root: str | os.PathLike[str] = "/",
    read: Reader = read_file,
) -> tuple[ProcessMemory, ...]:
    """Who holds memory of these GPUs: by device, then the largest first.

    Of this user's processes all is known; of those of other users what they allocated through
    ROCm. In a container, whose process ids are its own, only processes of this user are found.

    pids: only these processes; `None`: all. root: `/`, or a folder with another machine's `/sys`
    and `/proc`. Never raises for the hardware's sake, and wakes no GPU.

    >>> [(use.name, use.vram) for use in process_memory(devices)]  # doctest: +SKIP
    [('llama-server', 5368709120), ('Xorg', 41943040)]
    """
    tree = Tree(os.path.abspath(root), read)
    found: list[ProcessMemory] = []
    kfd = _kfd_ids(tree, devices)
    known = set(tree.numbered(f"{_KFD}/proc")) if kfd else set()
    clients: set[tuple[str, str]] = set()
    for pid in tree.numbered("proc") if devices else ():
        if pids is not None and pid not in pids:
            continue
        name = _name_if_alive(tree, pid)
        if name is None:
            continue
        uses = _of_files(tree, devices, pid, clients)
        if pid in known:
            for index, gpu_id in kfd.items():
                allocated = tree.number(f"{_KFD}/proc/{pid}/vram_{gpu_id}")
                if allocated:
                    use = uses.setdefault(index, _Use())
                    use.vram = max(use.vram, allocated)
        found += (
            ProcessMemory(
                device=devices[index],
                pid=pid,
                name=name,
                vram=use.vram,
                gtt=use.gtt,
                evicted=use.evicted,
            )
            for index, use in uses.items()
        )
    order = {id(device): index for index, device in enumerate(devices)}
    return tuple(sorted(found, key=lambda use: (order[id(use.device)], -use.vram, use.pid)))


@dataclass(slots=True)
class _Use:
    vram: int = 0
    gtt: int | None = None
    evicted: int | None = None


def _kfd_ids(tree: Tree, devices: Sequence[Device]) -> dict[int, int]:
    """KFD's number of each device; nothing where its process ids are not those of `/proc`."""
    try:
        if os.readlink(tree.path("proc/self/ns/pid")) != _HOST_NAMESPACE:
            return {}
    except OSError:
        pass  # another machine's tree
    return {
        index: gpu_id
        for index, device in enumerate(devices)
        if device.kfd_node is not None
        and (gpu_id := tree.number(f"{_KFD}/topology/nodes/{device.kfd_node}/gpu_id"))
    }


def _name_if_alive(tree: Tree, pid: int) -> str | None:
    """`None` for what has ended: KFD's counters of it must not be read while KFD cleans up.

    Kernels of 2025 and 2026 have crashed there (amd-gfx, June 2026: NULL dereference during the
    teardown of these files).
    """
    head, found, rest = (tree.text(f"proc/{pid}/stat") or "").rpartition(")")
    if not found or rest.split()[:1] in (["Z"], ["X"]):
        return None
    return head.partition("(")[2]


def _of_files(
    tree: Tree, devices: Sequence[Device], pid: int, clients: set[tuple[str, str]]
) -> dict[int, _Use]:
    """By index of the device. clients: those that were counted; files are inherited and passed."""
    uses: dict[int, _Use] = {}
    for fd, minor in _render_files(tree, pid):
        values = pairs(tree.text(f"proc/{pid}/fdinfo/{fd}"), ":")
        address = values.get("drm-pdev", "").lower()
        index = _index(devices, minor, address)
        if index is None or values.get("drm-driver", "amdgpu") != "amdgpu":
            continue
        client = (address, values.get("drm-client-id", f"{pid} {fd}"))
        if client in clients:
            continue
        clients.add(client)
        use = uses.setdefault(index, _Use())
        use.vram += _region(values, "vram") or 0
        use.gtt = _sum(use.gtt, _region(values, "gtt"))
        use.evicted = _sum(use.evicted, _size(values.get("amd-evicted-vram")))
    return uses


def _render_files(tree: Tree, pid: int) -> Iterator[tuple[int, int | None]]:
    """Descriptors of GPUs, with the number of the render node; links are cheaper than files."""
    for fd in tree.numbered(f"proc/{pid}/fd"):
        try:
            node = _RENDER_NODE.fullmatch(os.readlink(tree.path(f"proc/{pid}/fd/{fd}")))
        except OSError:
            continue
        if node is not None:
            yield fd, decimal(node[1])


def _index(devices: Sequence[Device], minor: int | None, address: str) -> int | None:
    """Partitions share an address; each has a render node of its own."""
    for index, device in enumerate(devices):
        if minor is not None and device.render_minor == minor:
            return index
    for index, device in enumerate(devices):
        if device.pci_address == address and not device.partitioned:
            return index
    return None


def _region(values: dict[str, str], name: str) -> int | None:
    """Memory in a region now: `resident` since 6.13, `memory` before; they mean the same."""
    resident = _size(values.get(f"drm-resident-{name}"))
    return _size(values.get(f"drm-memory-{name}")) if resident is None else resident


def _size(text: str | None) -> int | None:
    match = _SIZE.fullmatch(text or "")
    return int(match[1]) * _UNITS[match[2]] if match else None


def _sum(first: int | None, second: int | None) -> int | None:
    return first if second is None else second + (first or 0)
