"""Checks of the operating system: platform, WSL, container, kernel and its options. Pure."""

from __future__ import annotations

import re

from rocllm.doctor.types import Facts, Kernel, State, Verdict, fail, ok, unknown, warn

NOT_TOLD = "the tree does not tell"
_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
# AMD's documentation of Ryzen AI (rdna3-5.rst, ROCm 7.14) wants this kernel for gfx1151.
_GFX1151 = "Linux 6.18.4 or later"


def check_platform(facts: Facts) -> Verdict:
    """ROCm exists for Linux on x86-64."""
    release = facts.kernel.release if facts.kernel else None
    if facts.platform is None:
        return ok(f"Linux {release}") if release else unknown(NOT_TOLD)
    if facts.platform != "linux":
        return fail(f"this is {facts.platform}", "ROCm needs Linux")
    system = f"Linux {release or ''} on {facts.architecture}"
    if facts.architecture != "x86_64":
        return warn(system, "AMD makes ROCm for x86_64; use a llama-server with Vulkan here")
    return ok(system)


def check_wsl(facts: Facts) -> Verdict:
    """Windows' kernel has no KFD."""
    release = (facts.kernel.release if facts.kernel else None) or ""
    if facts.machine.wsl or "microsoft" in release.lower():
        return fail(
            "this is WSL, whose kernel shows no GPU where ROCm on Linux looks for one",
            "run rocllm on Linux itself",
        )
    return ok("Linux itself, not WSL") if release else unknown(NOT_TOLD)


def check_container(facts: Facts) -> Verdict:
    """A container shows the device files that it was started with."""
    if facts.container is None:
        return ok("not in a container") if facts.here else unknown(NOT_TOLD)
    inside = f"inside a container ({facts.container})"
    if not facts.machine.hidden and _devices_usable(facts):
        return ok(inside)
    if not (facts.machine.devices or facts.machine.hidden or facts.machine.other_cards):
        return ok(f"{inside}, which shows no AMD GPU")
    remedy, command = _start_container(facts)
    return warn(f"{inside}, which was not given all of the GPU's device files", remedy, command)


def _devices_usable(facts: Facts) -> bool:
    files = (facts.files or {}).values()
    return all(file.state in ("allowed", None) for file in files)


def _start_container(facts: Facts) -> tuple[str, str | None]:
    gids = {file.gid for file in (facts.files or {}).values() if file.gid}
    if facts.container == "podman":
        return (
            "start it with the devices and with your groups",
            "podman run --device /dev/kfd --device /dev/dri --group-add keep-groups IMAGE",
        )
    if facts.container == "kubernetes":
        return "ask for it with AMD's device plugin: resource amd.com/gpu", None
    if facts.container == "docker":
        groups = " ".join(f"--group-add {gid}" for gid in sorted(gids))
        return (
            "start it with the devices and the numbers of their groups, as they are on the host",
            "docker run --device /dev/kfd --device /dev/dri --security-opt seccomp=unconfined "
            + (groups or '--group-add "$(stat -c %g /dev/kfd)"')
            + " IMAGE",
        )
    numbers = ", ".join(map(str, sorted(gids))) or "the group of /dev/kfd on the host"
    return (f"give it /dev/kfd and /dev/dri/renderD*, and map their group ({numbers})", None)


def check_kernel(facts: Facts) -> Verdict:
    """Kernels that are known to be too old for a chip, and drivers that are not for it."""
    kernel = facts.kernel
    if kernel is None or kernel.release is None:
        return unknown(NOT_TOLD)
    driver = f"amdgpu {kernel.dkms} of a package (DKMS)" if kernel.dkms else "its own amdgpu"
    for device in facts.machine.devices:
        told = device.kfd_node in kernel.cwsr_nodes
        if device.gfx_target == "gfx1151" and device.kfd_node is not None and not told:
            return warn(
                f"Linux {kernel.release} does not save the state of gfx1151 as ROCm expects",
                f"use {_GFX1151}",
            )
    if kernel.dkms and any(device.integrated for device in facts.choice.devices):
        return warn(
            f"Linux {kernel.release} with {driver}, which AMD does not offer for integrated GPUs",
            "remove the package amdgpu-dkms and use the kernel's own driver",
        )
    return ok(f"Linux {kernel.release}" + (f" with {driver}" if kernel.loaded else ""))


# Option, how bad it is, what it does, what to do.
_OPTIONS: tuple[tuple[re.Pattern[str], State, str, str], ...] = (
    (re.compile("nomodeset"), "fail", "keeps amdgpu from starting", "boot without it"),
    (
        re.compile(r"(?:modprobe\.blacklist|module_blacklist)=(?:.*,)?amdgpu(?:,.*)?"),
        "fail",
        "keeps amdgpu from being loaded",
        "boot without it",
    ),
    (
        re.compile(r"amdgpu\.gtt_size=.*"),
        "warn",
        "is no option of amdgpu, which ignores it",
        "to give the GPU more system memory use ttm.pages_limit=<pages of 4 KiB>",
    ),
    (
        re.compile(r"amdgpu\.gttsize=.*"),
        "warn",
        "is deprecated, and does not change what KFD offers",
        "use ttm.pages_limit=<pages of 4 KiB> instead",
    ),
    (
        re.compile("amd_iommu=off"),
        "warn",
        "is known to cause trouble",
        "boot without it if the GPU hangs or is not found",
    ),
)
_NOTED = re.compile(r"(?:amdgpu|ttm|iommu|amd_iommu|radeon)[.=]\S*")


def check_kernel_options(facts: Facts) -> Verdict:
    """Options on the kernel's command line that stop the driver, or do not do what they seem to."""
    options = facts.kernel.options if facts.kernel else None
    if options is None:
        return unknown(NOT_TOLD)
    if not (facts.machine.devices or facts.machine.other_cards):
        return ok("no AMD GPU that they could concern")
    for pattern, state, effect, remedy in _OPTIONS:
        option = next((option for option in options if pattern.fullmatch(option)), None)
        if option is not None:
            return Verdict(state, f"{option} {effect}", remedy)
    discrete = [device for device in facts.machine.devices if not device.integrated]
    if len(discrete) > 1 and "iommu=pt" not in options and facts.here:
        return warn(
            f"{len(discrete)} GPUs without iommu=pt",
            "add iommu=pt to the kernel's options if programs on several GPUs hang",
        )
    noted = [option for option in options if _NOTED.fullmatch(option)]
    return ok(" ".join(noted) or "none that concerns the GPU")


def stopping_option(kernel: Kernel) -> str | None:
    """The option that keeps amdgpu from running."""
    stops = [pattern for pattern, state, _, _ in _OPTIONS if state == "fail"]
    options = kernel.options or ()
    return next((one for one in options if any(stop.fullmatch(one) for stop in stops)), None)


def release_of(text: str | None) -> tuple[int, int, int] | None:
    """A kernel's release as numbers.

    >>> release_of("6.8.0-45-generic")
    (6, 8, 0)
    """
    match = _RELEASE.match(text or "")
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
