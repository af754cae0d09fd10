"""Which GPU to use, why, and the environment that makes a child see no other. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rocllm import env
from rocllm.devices.types import Device, Machine, Problem
from rocllm.errors import DeviceAccessDenied, NoDeviceFound, OptionsError
from rocllm.units import format_bytes

CPU = "cpu"

# Integrated GPUs that are worth using unasked: the large ones. Of the others, the two compute units
# of gfx1036 are slower than the processor they sit in, and crash (facts in the package's README).
_GOOD_INTEGRATED = frozenset({"gfx942", "gfx1150", "gfx1151", "gfx1152", "gfx1153"})

_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """devices: the GPUs to use; none: the CPU. because: the reasons, a short sentence each.

    problem: why a GPU that is there cannot be used though nobody asked for the CPU; it should be
    said aloud.
    """

    devices: tuple[Device, ...]
    because: tuple[str, ...]
    problem: Problem | None = None

    @property
    def device_names(self) -> tuple[str, ...]:
        """What llama-server calls the devices once the others are hidden: `("ROCm0",)`."""
        return tuple(f"ROCm{index}" for index in range(len(self.devices)))

    @property
    def environment(self) -> dict[str, str | None]:
        """Variables to set for the child; `None`: to remove.

        One mask, in the layer that acts before the hidden GPUs are touched. A second one would
        count within the first.
        """
        ordinals = ",".join(str(device.ordinal) for device in self.devices)
        return {
            env.ROCR_VISIBLE_DEVICES: ordinals,  # empty hides all
            env.HIP_VISIBLE_DEVICES: None,
            env.CUDA_VISIBLE_DEVICES: None,
            env.GPU_DEVICE_ORDINAL: None,
            env.GGML_CUDA_DEVICES: None,
        }


def child_environment(choice: Choice, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a child that is to see the chosen GPUs and no other.

    >>> child_environment(Choice((), ()), {"HOME": "/root", "HIP_VISIBLE_DEVICES": "1"})
    {'HOME': '/root', 'ROCR_VISIBLE_DEVICES': ''}
    """
    merged = {**environ, **choice.environment}
    return {name: value for name, value in merged.items() if value is not None}


def choose_devices(machine: Machine, wanted: Sequence[str] = ()) -> Choice:
    """The GPUs to use on `machine`.

    wanted: `"cpu"`, or GPUs by PCI address (the domain may be left out), ROCr ordinal or UUID;
        several only when they have the same instruction set. Empty: the discrete GPU with the most
        memory, else a large integrated one, else the CPU.

    Masks that the user has set restrict the choice.

    Raises `OptionsError` for a name that cannot be meant, `NoDeviceFound` when there is no such
    GPU or ROCm cannot use it, `DeviceAccessDenied` when the wanted GPU may not be opened. It raises
    nothing when nothing is wanted.

    >>> choose_devices(Machine()).because
    ('no AMD GPU was found',)
    """
    names = [name.strip() for name in ([wanted] if isinstance(wanted, str) else wanted)]
    if [name.lower() for name in names] == [CPU]:
        return Choice((), ("the CPU was asked for",))
    if names:
        return _wanted(machine, names)
    return _best(machine)


def discrete_gpus(machine: Machine) -> tuple[Device, ...]:
    """The discrete GPUs of `machine` that may be used, the best first.

    >>> discrete_gpus(Machine())
    ()
    """
    if machine.denied is not None:
        return ()
    found = [one for one in machine.devices if one.ordinal in machine.visible]
    return tuple(sorted((one for one in found if not one.integrated), key=_rank, reverse=True))


def _best(machine: Machine) -> Choice:
    listed = [device for device in machine.devices if device.ordinal is not None]
    if not listed:
        return _no_gpu(machine)
    if machine.denied is not None:
        return Choice((), (machine.denied.what,), machine.denied)
    allowed = [device for device in listed if device.ordinal in machine.visible]
    masks = " and ".join(machine.masks)
    if not allowed:
        return Choice((), (f"{masks} hides every GPU",))
    restricted = len(allowed) < len(listed)
    because = (f"{masks} hides other GPUs",) if restricted else ()
    discrete = [device for device in allowed if not device.integrated]
    if discrete:
        return _best_discrete(allowed, discrete, because)
    # Who hides all other GPUs has chosen. A mask that hides nothing may be meant for NVIDIA's.
    good = [device for device in allowed if restricted or device.gfx_target in _GOOD_INTEGRATED]
    if not good:
        return Choice((), tuple(map(_left_alone, allowed)))
    best = max(good, key=_rank)
    reason = f"{best.label} is an integrated GPU and there is no discrete one to use"
    return Choice((best,), (*because, reason))


def _best_discrete(
    allowed: Sequence[Device],
    discrete: Sequence[Device],
    because: tuple[str, ...],
) -> Choice:
    best = max(discrete, key=_rank)
    if len(discrete) == 1:
        reason = f"{best.label} is the only discrete GPU"
    elif best.usable_memory is None:
        reason = f"{best.label} is the first of {len(discrete)} discrete GPUs"
    else:
        memory = format_bytes(best.usable_memory)
        reason = f"{best.label} has the most memory of {len(discrete)} discrete GPUs, {memory}"
    hidden = tuple(
        f"{device.label} is integrated, and hidden because there is a discrete GPU"
        for device in allowed
        if device.integrated
    )
    return Choice((best,), (*because, reason, *hidden))


def _rank(device: Device) -> tuple[int, int, int, int]:
    """Memory, free memory, compute units; the first of equals."""
    usable = device.usable_memory or 0
    return usable, usable - (device.used_memory or 0), device.cu_count or 0, -(device.ordinal or 0)


def _left_alone(device: Device) -> str:
    return (
        f"{device.label} is a small integrated GPU, not used unless it is asked for by its address"
    )


def _no_gpu(machine: Machine) -> Choice:
    for device in machine.devices:
        for problem in device.problems:
            told = Problem(f"{device.label}: {problem.what}", problem.remedy)
            return Choice((), (told.what,), told)
    if machine.problems and (machine.wsl or machine.hidden or machine.other_cards):
        problem = machine.problems[0]
        return Choice((), (problem.what,), problem)
    return Choice((), ("no AMD GPU was found",))


def _wanted(machine: Machine, names: Sequence[str]) -> Choice:
    devices = tuple(dict.fromkeys(_find(machine, name) for name in names))
    for device in devices:
        _require_usable(machine, device)
    targets = {device.gfx_target for device in devices}
    if len(devices) > 1 and (len(targets) > 1 or None in targets):
        raise OptionsError(
            f"{' and '.join(device.label for device in devices)} cannot be used together",
            why="they have different instruction sets: "
            + ", ".join(device.gfx_target or "unknown" for device in devices),
            remedy="choose GPUs of one kind",
        )
    return Choice(devices, tuple(f"{device.label} was asked for" for device in devices))


def _find(machine: Machine, name: str) -> Device:
    found = [device for device in machine.devices if _is_called(device, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise OptionsError(
            f"device {name!r} is {len(found)} partitions of one card",
            remedy="say which by ordinal: " + ", ".join(str(device.ordinal) for device in found),
        )
    meant = name.isdigit() or name.upper().startswith("GPU-") or _address(name) is not None
    error = NoDeviceFound if meant else OptionsError
    raise error(
        f"there is no device {name!r}" if meant else f"{name!r} is no name of a device",
        why=_what_exists(machine),
        remedy=f"give a PCI address, an ordinal, a UUID, or {CPU!r} alone",
    )


def _is_called(device: Device, name: str) -> bool:
    if name.isdigit():
        return str(device.ordinal) == name
    if device.uuid is not None and device.uuid.lower() == name.lower():
        return True
    return device.pci_address is not None and device.pci_address == _address(name)


def _address(name: str) -> str | None:
    match = _PCI_ADDRESS.fullmatch(name.lower())
    if match is None:
        return None
    domain, bus, slot, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def _what_exists(machine: Machine) -> str:
    if not machine.devices:
        return "this machine has no AMD GPU that could be used"
    return "this machine has " + ", ".join(
        device.label if device.ordinal is None else f"{device.ordinal}: {device.label}"
        for device in machine.devices
    )


def _require_usable(machine: Machine, device: Device) -> None:
    what = f"{device.label} was asked for and cannot be used"
    if device.ordinal is None:
        problem = device.problems[0]
        raise NoDeviceFound(what, why=problem.what, remedy=problem.remedy)
    if machine.denied is not None:
        raise DeviceAccessDenied(what, why=machine.denied.what, remedy=machine.denied.remedy)
    if device.ordinal not in machine.visible:
        masks = " and ".join(machine.masks)
        raise NoDeviceFound(what, why=f"{masks} hides it", remedy="unset that, or include the GPU")
