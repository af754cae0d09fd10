"""Checks of the device files: may this user open them, and what would change that. Pure."""

from __future__ import annotations

import shlex

from rocllm.doctor._check_gpu import no_gpu
from rocllm.doctor.types import KFD, DeviceFile, Facts, User, Verdict, fail, ok, unknown, warn

# The owner of files whose real owner a user namespace does not know (proc(5), overflowuid).
_NOBODY = 65534
_GROUP_BITS = 0o060
_NO_FILES = "the device files were not looked at"
_RULES = (
    'KERNEL=="kfd", GROUP="render", MODE="0660"',
    'SUBSYSTEM=="drm", KERNEL=="renderD*", GROUP="render", MODE="0660"',
)


def check_kfd_device(facts: Facts) -> Verdict:
    """`/dev/kfd`, which every GPU needs."""
    if not any(device.kfd_node is not None for device in facts.machine.devices):
        return unknown(no_gpu(facts))
    if facts.files is None:
        denied = facts.machine.denied
        return fail(denied.what, denied.remedy) if denied else unknown(_NO_FILES)
    return _judge(facts.files[KFD], facts)


def check_render_devices(facts: Facts) -> Verdict:
    """`/dev/dri/renderD*`; one that may not be opened stops all GPUs, even if it is not used."""
    nodes = [device for device in facts.machine.devices if device.kfd_node is not None]
    if not nodes:
        return unknown(no_gpu(facts))
    files = [file for path, file in (facts.files or {}).items() if path != KFD]
    if not files:
        return unknown(_NO_FILES if facts.files is None else "KFD names none")
    bad = [file for file in files if file.state not in ("allowed", None)]
    if not bad:
        found = _judge(files[0], facts)
        more = f" and {len(files) - 1} more" if found.state == "ok" and len(files) > 1 else ""
        return Verdict(found.state, found.evidence + more)
    refused = [file for file in bad if file.state == "refused"]
    found = _judge((refused or bad)[0], facts)
    if refused and len(files) > 1:
        return fail(
            f"{found.evidence}; this stops all GPUs", found.remedy, found.command, fixes=found.fixes
        )
    if len(bad) == len(files) or refused:
        return found
    return warn(f"{found.evidence}; ROCm leaves that GPU out", found.remedy, found.command)


def _judge(file: DeviceFile, facts: Facts) -> Verdict:
    if file.state == "missing":
        return _missing(file.path, facts)
    owner = f"{file.path} (group {file.group or 'without a name'}, gid {file.gid}, {_mode(file)})"
    if file.state is None:
        return unknown("it is there; who may open it cannot be told from a tree")
    if file.state == "allowed":
        return ok(owner)
    if file.state == "masked":
        return fail(
            f"{owner} is kept from this process by a device cgroup",
            f"start the container with --device {file.path}, or the systemd service with "
            f"DeviceAllow={file.path} rw",
        )
    return _refused(file, owner, facts)


def _missing(path: str, facts: Facts) -> Verdict:
    if facts.container is not None:
        return fail(f"{path} is missing in this container", f"start it with --device {path}")
    return fail(
        f"{path} is missing, though the driver is there",
        "let udev make the device files again, or restart the machine",
        "sudo udevadm trigger --subsystem-match=kfd --subsystem-match=drm",
    )


def _refused(file: DeviceFile, owner: str, facts: Facts) -> Verdict:
    user = facts.user or User("this user", -1, frozenset())
    if file.owner == _NOBODY or file.gid == _NOBODY:
        return fail(
            f"{owner}: its owner is unknown in this container",
            "with podman start it with --group-add keep-groups; with LXC map the host's group",
        )
    if file.mode is None or file.mode & _GROUP_BITS != _GROUP_BITS or file.gid == 0:
        return fail(
            f"{owner} is closed to everybody but its owner",
            "give it to the group render with a udev rule, then restart the machine",
            f"printf '%s\\n' {' '.join(map(shlex.quote, _RULES))} | "
            "sudo tee /etc/udev/rules.d/70-amdgpu.rules",
        )
    if file.gid in user.groups:
        return fail(f"{owner} refuses {user.name}, who is in its group", "see `ls -l` and getfacl")
    if file.listed:
        return fail(
            f"{owner}: {user.name} belongs to the group, and this session is older than that",
            "log out and in again (a graphical session too, or restart the machine)",
        )
    if file.group is None or facts.container is not None:
        return fail(
            f"{owner}: {user.name} is not in that group",
            f"start the container with --group-add {file.gid}",
        )
    return fail(
        f"{owner}: {user.name} is not in that group",
        "join it, then log out and in again: a running session does not notice",
        f"sudo usermod -aG {shlex.quote(file.group)} {shlex.quote(user.name)}",
        fixes=True,
    )


def _mode(file: DeviceFile) -> str:
    return "mode unknown" if file.mode is None else f"mode {file.mode:04o}"
