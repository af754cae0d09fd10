"""What stands between a person and the GPU, in words, with the way out. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from rocllm import env
from rocllm.devices._access import Access
from rocllm.devices._chips import GCN_1
from rocllm.devices._kfd import Topology
from rocllm.devices.types import OtherCard, Problem
from rocllm.units import format_bytes

# Below this, an APU shows its carve-out only (Linux up to 6.9).
_SMALL = 4 << 30

_OTHER_DRIVERS = {
    "radeon": "none: ROCm does not support chips that old",
    "vfio-pci": "it is reserved for a virtual machine; bind it to amdgpu to use it here",
}
# Who owns a file whose real owner the user namespace of a container does not know.
_UNMAPPED = ("nogroup", "nobody")


def no_kfd_node(topology: Topology, device_id: int | None) -> Problem:
    """A card of amdgpu that KFD does not list."""
    if device_id is not None and any(first <= device_id <= last for first, last in GCN_1):
        return Problem(
            "ROCm never supported chips of its generation (GCN 1)",
            "no kernel or option changes that; a llama-server with Vulkan may use it",
        )
    if not topology.present:
        return Problem(
            "ROCm cannot use it without KFD, and there is no /sys/class/kfd",
            "use a kernel with CONFIG_HSA_AMD; in a container, do not mask /sys",
        )
    return Problem(
        "ROCm cannot use it: KFD did not accept it (chip not supported, PCIe atomics missing, or"
        " the driver failed to start it)",
        "`sudo dmesg | grep -iE 'kfd|amdgpu'` tells which",
    )


def device_file(path: str, access: Access) -> Problem | None:
    """A device file that this process cannot use; `None` when it can."""
    if access.state == "allowed":
        return None
    if access.state == "missing":
        return Problem(
            f"{path} is missing",
            f"in a container: start it with --device {path}; else: sudo modprobe amdgpu",
        )
    if access.state == "masked":
        return Problem(
            f"{path} is kept from this process by a device cgroup",
            f"start the container with --device {path}, or the service with"
            f" DeviceAllow='{path} rw'",
        )
    return _refused(path, access)


def _refused(path: str, access: Access) -> Problem:
    denied = f"{path}: permission denied"
    if access.group is None:
        return Problem(
            f"{denied} (only its owner may use it)",
            'a udev rule gives it to a group: KERNEL=="kfd", GROUP="render", MODE="0660", and the'
            ' same for SUBSYSTEM=="drm", KERNEL=="renderD*"',
        )
    if access.group in _UNMAPPED:
        return Problem(
            f"{denied} (its owner is unknown in this container)",
            "with podman: --group-add keep-groups; with LXC: map the host's group render",
        )
    if access.listed:
        return Problem(
            f"{denied} (this session is older than the user's membership in group {access.group})",
            "log out and in again",
        )
    return Problem(
        f"{denied} (the user is not in group {access.group})",
        f'sudo usermod -aG {access.group} "$USER", then log out and in again; in a container: start'
        " it with --group-add and the number of that group",
    )


def small_memory(usable: int | None) -> Problem | None:
    """An integrated GPU that can use next to nothing of the system's memory."""
    if usable is None or usable >= _SMALL:
        return None
    return Problem(
        f"ROCm can use only {format_bytes(usable)} of memory",
        "use Linux 6.10 or later, or give the GPU more memory in the firmware's setup",
    )


def hidden_nodes(count: int) -> Problem:
    """KFD nodes that the device cgroup refuses."""
    return Problem(
        f"{count} GPU{'s are' if count > 1 else ' is'} hidden from this container",
        "start it with --device /dev/dri/renderD<N> for each that it should see",
    )


def other_card(card: OtherCard, kernel_options: str) -> Problem:
    """A card without amdgpu."""
    what = f"{card.pci_address} (AMD, PCI device {card.device_id or 'unknown'})"
    if card.driver is None:
        if "nomodeset" in kernel_options.split():
            remedy = "boot without the kernel option nomodeset"
        else:
            remedy = (
                "sudo modprobe amdgpu; if that does not help, `sudo dmesg | grep -i amdgpu` tells"
                " why (blacklisted, refused by Secure Boot, or a kernel too old for the card)"
            )
        return Problem(f"{what} has no driver", remedy)
    if card.driver == "amdgpu":
        return Problem(
            f"{what} has its driver, but no graphics device",
            "`sudo dmesg | grep -i amdgpu` tells why",
        )
    return Problem(
        f"{what} is driven by {card.driver}, not by amdgpu", _OTHER_DRIVERS.get(card.driver)
    )


def wsl() -> Problem:
    """Windows Subsystem for Linux."""
    return Problem(
        "this is WSL: its kernel shows no GPU where rocllm looks for one",
        "run rocllm on Linux itself",
    )


def overrides(environ: Mapping[str, str]) -> list[Problem]:
    """`HSA_OVERRIDE_GFX_VERSION`, and its form for one node."""
    return [
        Problem(
            f"{name}={value}: ROCm takes the GPU for another chip than it is",
            "unset it unless llama-server lacks your chip; current builds have nearly all of them",
        )
        for name, value in sorted(environ.items())
        if name.startswith(env.HSA_OVERRIDE_GFX_VERSION)
    ]


def broken_nodes(topology: Topology) -> list[Problem]:
    """KFD nodes that cannot be read for another reason than permission."""
    return [
        Problem(f"KFD node {number} cannot be read", "`sudo dmesg | grep -i kfd` may tell why")
        for number in topology.broken
    ]


def unknown_chip() -> Problem:
    """KFD lists it and does not say what it is."""
    return Problem("its instruction set is not known", "use Linux 5.15 or later")
