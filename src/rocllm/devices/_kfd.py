"""The KFD topology: the GPUs as ROCr sees them.

Reference: drivers/gpu/drm/amd/amdkfd/kfd_topology.c of Linux 6.12; libhsakmt's topology.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from rocllm.devices._chips import GFX_BY_ASIC, gfx_name, gfx_of
from rocllm.devices._sysfs import Tree, decimal, pairs

_TOPOLOGY = "sys/class/kfd/kfd/topology"
# A full rack server in its finest partition mode has 2 + 64 nodes.
_MAX_NODES = 256
_MAX_READS = 3
# Heap types of kfd_crat.h: memory of the GPU that the CPU can see, and that it cannot.
_GPU_HEAPS = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the topology that has a GPU. partition: number within a partitioned card."""

    number: int
    gfx_target: str | None
    device_id: int | None
    pci_address: str | None
    partition: int
    render_minor: int | None
    unique_id: int | None
    cu_count: int | None
    bank: int | None


@dataclass(frozen=True, slots=True)
class Topology:
    """nodes: GPUs in numeric order. hidden: nodes whose reading is refused. broken: the others
    that cannot be read. present: KFD is there at all."""

    present: bool = False
    nodes: tuple[Node, ...] = ()
    hidden: int = 0
    broken: tuple[int, ...] = ()
    generation: int | None = None


def read_topology(tree: Tree) -> Topology:
    """Read all nodes; again when the kernel changed the topology meanwhile."""
    topology = Topology()
    for _ in range(_MAX_READS):
        generation = tree.number(f"{_TOPOLOGY}/generation_id")
        topology = _read_once(tree, generation)
        if tree.number(f"{_TOPOLOGY}/generation_id") == generation:
            break
    return topology


def _read_once(tree: Tree, generation: int | None) -> Topology:
    nodes: list[Node] = []
    hidden = 0
    broken: list[int] = []
    for number in tree.numbered(f"{_TOPOLOGY}/nodes")[:_MAX_NODES]:
        folder = f"{_TOPOLOGY}/nodes/{number}"
        try:
            properties = pairs(tree.require(f"{folder}/properties"), " ")
        except PermissionError:
            hidden += 1
            continue
        except OSError:
            broken.append(number)
            continue
        if decimal(properties.get("simd_count")):
            nodes.append(_node(tree, folder, number, properties))
    present = tree.exists(_TOPOLOGY)
    return Topology(present, tuple(nodes), hidden, tuple(broken), generation)


def _node(tree: Tree, folder: str, number: int, properties: dict[str, str]) -> Node:
    values = {name: decimal(value) for name, value in properties.items()}
    device_id = values.get("device_id")
    location = values.get("location_id")
    simds, per_cu = values.get("simd_count"), values.get("simd_per_cu")
    return Node(
        number=number,
        gfx_target=_gfx_target(tree, folder, values.get("gfx_target_version"), device_id),
        device_id=device_id,
        pci_address=_pci_address(values.get("domain") or 0, location),
        # On a partitioned card the kernel puts the partition's number where the function belongs.
        partition=(location or 0) & 7,
        render_minor=values.get("drm_render_minor") or None,
        unique_id=values.get("unique_id"),
        cu_count=simds // per_cu if simds and per_cu else None,
        bank=_bank(tree, folder),
    )


def _gfx_target(tree: Tree, folder: str, version: int | None, device_id: int | None) -> str | None:
    if version:
        return gfx_name(version)
    # Kernels before 5.15 print no version, but the name of the chip.
    return GFX_BY_ASIC.get(tree.text(f"{folder}/name") or "") or gfx_of(device_id)


def _pci_address(domain: int, location: int | None) -> str | None:
    if location is None:
        return None
    # AMD's GPUs are function 0.
    return f"{domain & 0xFFFFFFFF:04x}:{location >> 8 & 255:02x}:{location >> 3 & 31:02x}.0"


def _bank(tree: Tree, folder: str) -> int | None:
    total = 0
    for bank in tree.names(f"{folder}/mem_banks"):
        values = pairs(tree.text(f"{folder}/mem_banks/{bank}/properties"), " ")
        if decimal(values.get("heap_type")) in _GPU_HEAPS:
            total += decimal(values.get("size_in_bytes")) or 0
    return total or None
