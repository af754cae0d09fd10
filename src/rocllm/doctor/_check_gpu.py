"""Checks of the GPUs and their driver: PCI, amdgpu, KFD, power, the memory of an APU. Pure."""

from __future__ import annotations

from rocllm.devices import Device, OtherCard
from rocllm.doctor._check_system import release_of, stopping_option
from rocllm.doctor.types import Facts, Kernel, Verdict, fail, ok, unknown, warn
from rocllm.units import format_bytes

_DMESG = "sudo dmesg | grep -iE 'amdgpu|kfd'"
_LISTED = 3
# Below this an APU shows its carve-out only (Linux up to 6.9).
_SMALL = 4 << 30
_GTT_SINCE = (6, 10, 0)
_PAGE = 4096


def no_gpu(facts: Facts) -> str:
    """Why a check has no GPU to look at."""
    machine = facts.machine
    if machine.devices:
        return "KFD offers no GPU"
    if machine.other_cards:
        return "amdgpu runs no GPU"
    return "the GPUs are hidden" if machine.hidden else "no AMD GPU was found"


def check_pci(facts: Facts) -> Verdict:
    """There is an AMD GPU at all."""
    machine = facts.machine
    seen = [device.label for device in machine.devices]
    seen += [f"{card.pci_address} ({card.device_id or 'AMD'})" for card in machine.other_cards]
    if seen:
        return ok(_listing(list(dict.fromkeys(seen))))
    if machine.hidden:
        return ok("an AMD GPU that is hidden from this container")
    if machine.wsl or facts.pci_seen is None:
        return unknown("there is no PCI bus to look at")
    where = "the PCI bus" if facts.pci_seen else "this machine, which has no PCI bus"
    return fail(
        f"no AMD GPU on {where}",
        "in a virtual machine, pass the GPU through; without a GPU rocllm runs on the CPU",
    )


def check_driver(facts: Facts) -> Verdict:
    """The amdgpu driver runs the card."""
    machine = facts.machine
    if not machine.other_cards:
        return ok("amdgpu") if machine.devices or machine.hidden else unknown(no_gpu(facts))
    found = _driver_problem(facts, machine.other_cards[0])
    if machine.devices:
        return warn(found.evidence, found.remedy, found.command)
    return found


def _driver_problem(facts: Facts, card: OtherCard) -> Verdict:
    what = card.pci_address
    if card.driver == "vfio-pci":
        return fail(
            f"{what} is reserved for virtual machines (vfio-pci)",
            "take it out of the vfio-pci ids of the kernel options or modprobe.d, then reboot",
        )
    if card.driver == "amdgpu":
        return fail(
            f"{what}: amdgpu did not start the card", "see what the driver said", command=_DMESG
        )
    if card.driver is not None:
        return fail(
            f"{what} is driven by {card.driver}, not by amdgpu",
            "ROCm does not support chips that old; a llama-server with Vulkan may"
            if card.driver == "radeon"
            else None,
        )
    return _no_driver(f"{what} has no driver", facts.kernel or Kernel())


def _no_driver(what: str, kernel: Kernel) -> Verdict:
    option = stopping_option(kernel)
    if option is not None:
        return fail(f"{what}: the kernel was started with {option}", "boot without it")
    if kernel.blacklist is not None:
        return fail(
            f"{what}: {kernel.blacklist} keeps amdgpu from being loaded",
            f"remove the line from {kernel.blacklist}, then reboot",
        )
    if kernel.loaded:
        return fail(
            f"{what}, though amdgpu is loaded: it does not know the card, or gave it up",
            "see what the driver said; a newer kernel may know the card",
            _DMESG,
        )
    if kernel.secure_boot:
        return fail(
            f"{what}, amdgpu is not loaded, and Secure Boot is on: it refuses unsigned drivers",
            "if this says `Key was rejected`, remove amdgpu-dkms or enrol its key",
            "sudo modprobe amdgpu",
        )
    return fail(
        f"{what}" + (", and amdgpu is not loaded" if kernel.loaded is False else ""),
        "load the driver",
        "sudo modprobe amdgpu",
        fixes=True,
    )


def check_kfd(facts: Facts) -> Verdict:
    """KFD, the part of amdgpu that ROCm uses, offers the GPU."""
    devices = facts.machine.devices
    if not devices:
        return unknown(no_gpu(facts))
    without = [device for device in devices if device.kfd_node is None]
    if not without:
        return ok(f"KFD offers {_gpus(len(devices))}: {_targets(devices)}")
    problem = without[0].problems[0]
    evidence = f"{without[0].label}: {problem.what}"
    if len(without) < len(devices):
        return warn(evidence, problem.remedy)
    return fail(evidence, problem.remedy)


def check_hidden(facts: Facts) -> Verdict:
    """A container's device cgroup may refuse GPUs that sysfs shows."""
    hidden, devices = facts.machine.hidden, facts.machine.devices
    if not hidden:
        return ok("none") if devices else unknown(no_gpu(facts))
    evidence = f"{_gpus(hidden)} hidden from this container by its device cgroup"
    remedy = "start it with --device /dev/dri/renderD<N> for each GPU that it should see"
    return warn(evidence, remedy) if devices else fail(evidence, remedy)


def check_power(facts: Facts) -> Verdict:
    """A sleeping card wakes by itself; one in error does not."""
    devices = facts.machine.devices
    states = {
        device.label: state
        for device in devices
        if device.card is not None and (state := facts.power.get(device.card)) is not None
    }
    if not states:
        return unknown("the driver does not tell" if devices else no_gpu(facts))
    broken = [label for label, state in states.items() if state == "error"]
    if broken:
        return fail(
            f"{broken[0]}: the driver could not wake it",
            "restart the machine, and see what the driver said",
            _DMESG,
        )
    asleep = [label for label, state in states.items() if state.startswith("suspend")]
    if asleep:
        return ok(f"{_listing(asleep)}: asleep, which is normal; it wakes when it is used")
    return ok("awake")


def check_gpu_memory(facts: Facts) -> Verdict:
    """An APU takes the memory that the kernel lets it have."""
    chosen = facts.choice.devices or facts.machine.devices
    integrated = [device for device in chosen if device.integrated and device.usable_memory]
    # Where none is chosen, it would be the discrete one.
    if not integrated or any(device.integrated is False for device in chosen):
        sizes = _sizes(chosen)
        return ok(sizes) if sizes else unknown("KFD does not tell" if chosen else no_gpu(facts))
    device, kernel = integrated[0], facts.kernel or Kernel()
    usable = device.usable_memory or 0
    have = f"{device.label} can use {format_bytes(usable)}"
    if kernel.memory is not None:
        have += f" of {format_bytes(kernel.memory)} system memory"
    if usable < _SMALL:
        return warn(have, _more_memory(kernel))
    limit = None if kernel.pages_limit is None else kernel.pages_limit * _PAGE
    if limit is not None and device.gtt_total not in (None, limit):
        gtt = format_bytes(device.gtt_total or 0)
        return ok(f"{have} (GTT {gtt}, ttm.pages_limit allows {format_bytes(limit)})")
    return ok(f"{have}; the kernel option ttm.pages_limit=<pages of 4 KiB> changes it")


def _more_memory(kernel: Kernel) -> str:
    release = release_of(kernel.release)
    firmware = "give the GPU more memory in the firmware's setup (UMA frame buffer size)"
    if release is not None and release >= _GTT_SINCE:
        return f"raise the kernel option ttm.pages_limit=<pages of 4 KiB>, or {firmware}"
    return f"use Linux 6.10 or later, or {firmware}"


def _sizes(devices: tuple[Device, ...]) -> str:
    return _listing(
        [
            f"{device.pci_address or device.name}: {format_bytes(device.usable_memory)}"
            for device in devices
            if device.usable_memory
        ]
    )


def _targets(devices: tuple[Device, ...]) -> str:
    return ", ".join(dict.fromkeys(device.gfx_target or "unknown chip" for device in devices))


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count != 1 else ''}"


def _listing(words: list[str]) -> str:
    rest = len(words) - _LISTED
    return ", ".join(words[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
