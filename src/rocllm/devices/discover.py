"""One look at the machine. The package's README has the rules."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from rocllm.devices import _problems
from rocllm.devices._access import AccessCheck, check_access, presence_check
from rocllm.devices._drm import Card, read_cards, read_pci_gpus
from rocllm.devices._join import join
from rocllm.devices._kfd import read_topology
from rocllm.devices._masks import apply_masks
from rocllm.devices._names import read_amdgpu_ids
from rocllm.devices._sysfs import Reader, Tree, read_file
from rocllm.devices.types import Device, Machine, OtherCard, Problem

_KFD = "/dev/kfd"


def discover_devices(
    root: str | os.PathLike[str] = "/",
    environ: Mapping[str, str] | None = None,
    *,
    read: Reader = read_file,
    access: AccessCheck | None = None,
) -> Machine:
    """Find the machine's AMD GPUs. Only files are read that have no side effects.

    root: `/`, or a folder that holds another machine's `/sys` and `/dev`.
    environ: where inherited masks are looked for; `None`: this process's environment.
    read: reads a file, given its whole path; raises `OSError` as `open` and `read` do.
    access: judges device files; `None`: asks the kernel for `/`, and of another machine's tree
        believes that what is there may be used.

    Raises nothing for the hardware's sake: what is wrong is in `problems`.

    >>> discover_devices("/nowhere", {}).devices
    ()
    """
    tree = Tree(os.path.abspath(root), read)
    if access is None:
        access = check_access if os.path.realpath(tree.root) == "/" else presence_check(tree)
    environ = os.environ if environ is None else environ
    topology = read_topology(tree)
    cards = read_cards(tree)
    names = read_amdgpu_ids(tree) if cards else {}
    devices = join(topology, cards, names, access)
    others = _other_cards(tree, cards, devices, expect_hidden=topology.hidden > 0)
    listed = [device for device in devices if device.ordinal is not None]
    denied = _denied(listed, access)
    visibility = apply_masks(environ, [device.uuid for device in listed])
    wsl = _is_wsl(tree)
    kernel_options = tree.text("proc/cmdline") or ""
    problems = [
        _problems.wsl() if wsl else None,
        denied,
        _problems.hidden_nodes(topology.hidden) if topology.hidden else None,
        *_problems.broken_nodes(topology),
        *(_problems.other_card(card, kernel_options) for card in others),
        *_problems.overrides(environ),
        *visibility.problems,
    ]
    return Machine(
        devices=devices,
        hidden=topology.hidden,
        other_cards=others,
        visible=visibility.visible,
        masks=visibility.masks,
        denied=denied,
        problems=tuple(problem for problem in problems if problem is not None),
        wsl=wsl,
        generation=topology.generation,
    )


def _denied(listed: Sequence[Device], access: AccessCheck) -> Problem | None:
    """What keeps this process from all GPUs."""
    if not listed:
        return None
    minors = [device.render_minor for device in listed if device.render_minor is not None]
    for path in (_KFD, *(f"/dev/dri/renderD{minor}" for minor in minors)):
        problem = _problems.device_file(path, access(path))
        if problem is not None:
            return problem
    return None


def _other_cards(
    tree: Tree,
    cards: Sequence[Card],
    devices: Sequence[Device],
    *,
    expect_hidden: bool,
) -> tuple[OtherCard, ...]:
    """AMD's GPUs that are not among the devices.

    expect_hidden: a card of amdgpu that shows nothing may be one that a container is not given.
    """
    known = {device.pci_address for device in devices}
    drm = {card.pci.address for card in cards}
    functions = [card.pci for card in cards if card.pci.amd and not card.pci.by_amdgpu]
    functions += [pci for pci in read_pci_gpus(tree) if pci.address not in drm]
    return tuple(
        OtherCard(
            pci.address, None if pci.device_id is None else f"{pci.device_id:#06x}", pci.driver
        )
        for pci in functions
        if pci.address is not None
        and pci.address not in known
        and not (expect_hidden and pci.driver == "amdgpu")
    )


def _is_wsl(tree: Tree) -> bool:
    release = tree.text("proc/sys/kernel/osrelease") or ""
    return "microsoft" in release.lower() and tree.exists("dev/dxg")
