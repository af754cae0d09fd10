"""From what KFD and DRM say apart to one list of devices. Pure, but for the access check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rocllm.devices import _problems
from rocllm.devices._access import AccessCheck
from rocllm.devices._drm import Card
from rocllm.devices._kfd import Node, Topology
from rocllm.devices._memory import integrated, usable_memory
from rocllm.devices._names import device_name
from rocllm.devices.types import Device, Problem

# (device id, revision) to marketing name.
_Names = Mapping[tuple[int, int], str]


def join(
    topology: Topology,
    cards: Sequence[Card],
    names: _Names,
    access: AccessCheck,
) -> tuple[Device, ...]:
    """KFD's GPUs in numeric order, each with its card, then the cards of amdgpu that KFD lacks."""
    by_render: dict[int | None, Card] = {
        card.render_minor: card for card in cards if card.render_minor is not None
    }
    by_address: dict[str | None, Card] = {
        card.pci.address: card for card in cards if card.pci.address is not None
    }
    sharing: Counter[str | None] = Counter(
        node.pci_address for node in topology.nodes if node.pci_address is not None
    )
    devices: list[Device] = []
    ordinal = 0
    for node in topology.nodes:
        partitioned = node.partition > 0 or sharing[node.pci_address] > 1
        card = by_render.get(node.render_minor)
        if card is None and not partitioned:  # the card's figures are not those of one partition
            card = by_address.get(node.pci_address)
        minor = node.render_minor or (card.render_minor if card else None)
        problem, listed = _render_file(minor, access)
        devices.append(
            _device(node, card, ordinal if listed else None, partitioned, names, problem)
        )
        ordinal += listed
    alone = _without_node(topology, cards, devices, access)
    return (*devices, *(_device_without_node(card, topology, names) for card in alone))


def _render_file(minor: int | None, access: AccessCheck) -> tuple[Problem | None, bool]:
    """What is wrong with the render node, and whether ROCr lists the GPU.

    libhsakmt skips a GPU whose render node is not there or masked. One that is refused stops it
    altogether, which is the machine's problem.
    """
    if minor is None:
        return None, True
    path = f"/dev/dri/renderD{minor}"
    answer = access(path)
    if answer.state in ("allowed", "refused"):
        return None, True
    return _problems.device_file(path, answer), False


def _device(
    node: Node,
    card: Card | None,
    ordinal: int | None,
    partitioned: bool,
    names: _Names,
    problem: Problem | None,
) -> Device:
    device_id = node.device_id or (card.pci.device_id if card else None)
    bank = None if partitioned else node.bank
    inside, because = integrated(node.gfx_target, device_id, card, bank)
    usable, pool = usable_memory(node, card, inside=inside, partitioned=partitioned)
    unknown = _problems.unknown_chip() if node.gfx_target is None else None
    small = _problems.small_memory(usable) if inside else None
    return Device(
        kfd_node=node.number,
        ordinal=ordinal,
        gfx_target=node.gfx_target,
        name=device_name(device_id, card, node.gfx_target, names),
        pci_address=node.pci_address or (card.pci.address if card else None),
        device_id=_hex(device_id),
        uuid=_uuid(node.unique_id, card),
        render_minor=node.render_minor or (card.render_minor if card else None),
        integrated=inside,
        integrated_because=because,
        vram_total=card.vram_total if card else None,
        usable_memory=usable,
        used_memory=_used(card, pool),
        asleep=_asleep(card),
        problems=tuple(found for found in (problem, unknown, small) if found),
        card=card.number if card else None,
        gtt_total=card.gtt_total if card else None,
        kfd_bank=node.bank,
        memory_pool=pool,
        cu_count=node.cu_count,
        partitioned=partitioned,
    )


def _without_node(
    topology: Topology,
    cards: Sequence[Card],
    devices: Sequence[Device],
    access: AccessCheck,
) -> list[Card]:
    joined = {device.card for device in devices}
    addresses = {device.pci_address for device in devices}
    alone = [
        card
        for card in cards
        if card.pci.by_amdgpu and card.number not in joined and card.pci.address not in addresses
    ]
    if topology.hidden:  # in a container sysfs may show cards that belong to the hidden nodes
        alone = [card for card in alone if _render_file(card.render_minor, access)[1]]
    return alone


def _device_without_node(card: Card, topology: Topology, names: _Names) -> Device:
    inside, because = integrated(None, card.pci.device_id, card, None)
    return Device(
        name=device_name(card.pci.device_id, card, None, names),
        pci_address=card.pci.address,
        device_id=_hex(card.pci.device_id),
        uuid=_uuid(None, card),
        render_minor=card.render_minor,
        integrated=inside,
        integrated_because=because,
        vram_total=card.vram_total,
        used_memory=None if inside else card.vram_used,
        asleep=_asleep(card),
        problems=(_problems.no_kfd_node(topology, card.pci.device_id),),
        card=card.number,
        gtt_total=card.gtt_total,
        memory_pool=None if inside else "vram",
    )


def _used(card: Card | None, pool: str | None) -> int | None:
    if card is None or pool is None:
        return None
    return card.vram_used if pool == "vram" else card.gtt_used


def _asleep(card: Card | None) -> bool | None:
    if card is None or card.runtime_status is None:
        return None
    return card.runtime_status in ("suspended", "suspending")


def _uuid(unique_id: int | None, card: Card | None) -> str | None:
    if unique_id is None and card is not None:
        unique_id = card.unique_id
    return f"GPU-{unique_id:016x}" if unique_id else None


def _hex(device_id: int | None) -> str | None:
    return None if device_id is None else f"{device_id:#06x}"
