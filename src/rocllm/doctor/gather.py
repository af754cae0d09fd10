"""Collect the facts: all reading of files and all questions to programs are here and below."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping

from rocllm.devices import (
    Choice,
    Machine,
    Reader,
    child_environment,
    choose_devices,
    discover_devices,
)
from rocllm.devices._access import AccessCheck
from rocllm.devices._sysfs import Tree, decimal, pairs, read_file
from rocllm.doctor._device_files import access_check, current_user, read_device_file
from rocllm.doctor._engine_files import failed_program, read_engine_files
from rocllm.doctor._rocm import find_installs
from rocllm.doctor.types import KFD, DeviceFile, Engine, Facts, Kernel, User
from rocllm.errors import RocllmError
from rocllm.server import ServerBinary, find_server, list_devices

_MODPROBE = ("etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d")
_BLACKLIST = re.compile(
    r"^\s*(?:blacklist\s+amdgpu|install\s+amdgpu\s+\S*(?:false|true))\s*$", re.MULTILINE
)
# The variable of the UEFI specification; four bytes of attributes precede its value.
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# libhsakmt is silent below level 3 (openclose.c of ROCm/rocm-systems 1b1610f).
_TALKATIVE = {"HSAKMT_DEBUG_LEVEL": "6", "AMD_LOG_LEVEL": "1"}
_TELLING = re.compile(r"fail|error|denied|cannot|unable|no such|not found|invalid", re.IGNORECASE)
_MAX_WORDS = 5


def gather(
    root: str | os.PathLike[str],
    environ: Mapping[str, str],
    *,
    read: Reader = read_file,
    user: User | None = None,
) -> Facts:
    """The facts about the machine whose file system begins at `root`.

    user: who would use it; `None`: who runs this process, and nobody on another machine, whose
    device files are then judged by their presence only. Programs are asked on this machine only.
    """
    tree = Tree(os.path.abspath(root), read)
    here = os.path.realpath(tree.root) == "/"
    access = access_check(tree, here, user)
    machine = discover_devices(root, environ, read=read, access=access)
    if user is None and here:
        user = current_user()
    choice = choose_devices(machine)
    engine = _ask_engine(choice, environ) if here else None
    engine_path = _engine_path(engine) if engine is not None else None
    return Facts(
        machine=machine,
        choice=choice,
        environ=environ,
        here=here,
        platform=sys.platform if here else None,
        architecture=os.uname().machine if here else None,
        kernel=_kernel(tree, machine),
        container=_container(tree, environ, here),
        pci_seen=bool(tree.names("sys/bus/pci/devices")) or (False if here else None),
        user=user,
        files=_files(tree, machine, access, user, here),
        power=_power(tree, machine),
        installs=find_installs(tree, environ, engine_path)
        if tree.names("usr") or tree.names("opt")
        else None,
        engine=engine,
        engine_files=None if engine_path is None else read_engine_files(engine_path, environ),
    )


def _kernel(tree: Tree, machine: Machine) -> Kernel:
    options = tree.text("proc/cmdline")
    limit = tree.number("sys/module/ttm/parameters/pages_limit")
    memory = pairs(tree.text("proc/meminfo"), ":").get("MemTotal", "").partition(" ")[0]
    kibibytes = decimal(memory)
    return Kernel(
        release=tree.text("proc/sys/kernel/osrelease") or None,
        options=None if options is None else tuple(options.split()),
        secure_boot=_secure_boot(tree),
        dkms=tree.text("sys/module/amdgpu/version") or None,
        loaded=tree.exists("sys/module/amdgpu") if tree.exists("sys/module") else None,
        blacklist=_blacklist(tree),
        pages_limit=limit,
        memory=None if kibibytes is None else kibibytes << 10,
        cwsr_nodes=frozenset(
            device.kfd_node
            for device in machine.devices
            if device.kfd_node is not None and _tells_cwsr_size(tree, device.kfd_node)
        ),
    )


def _tells_cwsr_size(tree: Tree, node: int) -> bool:
    text = tree.text(f"sys/class/kfd/kfd/topology/nodes/{node}/properties")
    return "cwsr_size" in pairs(text, " ")


def _secure_boot(tree: Tree) -> bool | None:
    with contextlib.suppress(OSError):
        value = tree.read(tree.path(_SECURE_BOOT))
        return value[4:5] == b"\1"
    return None


def _blacklist(tree: Tree) -> str | None:
    paths = (f"{folder}/{name}" for folder in _MODPROBE for name in tree.names(folder))
    found = (path for path in paths if path.endswith(".conf"))
    return next((f"/{path}" for path in found if _BLACKLIST.search(tree.text(path) or "")), None)


def _container(tree: Tree, environ: Mapping[str, str], here: bool) -> str | None:
    if tree.exists("run/.containerenv"):
        return "podman"
    if here and "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if tree.exists(".dockerenv"):
        return "docker"
    first = (tree.text("proc/1/environ") or "") if here else ""  # its NULs have become blanks
    return (environ.get("container") if here else None) or pairs(first.replace(" ", "\n"), "=").get(
        "container"
    )


def _files(
    tree: Tree, machine: Machine, access: AccessCheck | None, user: User | None, here: bool
) -> dict[str, DeviceFile] | None:
    """The device files that KFD's GPUs need; `None`: a tree that has no GPU's device files."""
    if not here and not tree.numbered("dev/dri", "renderD"):
        return None
    minors = [d.render_minor for d in machine.devices if d.kfd_node is not None]
    paths = [KFD, *(f"/dev/dri/renderD{minor}" for minor in minors if minor is not None)]
    return {path: read_device_file(tree, path, access, user, here=here) for path in paths}


def _power(tree: Tree, machine: Machine) -> dict[int, str]:
    cards = [device.card for device in machine.devices if device.card is not None]
    texts = {
        card: tree.text(f"sys/class/drm/card{card}/device/power/runtime_status") for card in cards
    }
    return {card: text for card, text in texts.items() if text}


def _ask_engine(choice: Choice, environ: Mapping[str, str]) -> Engine:
    try:
        binary = find_server(None, environ)
    except RocllmError as exc:
        return Engine(error=exc)
    if not choice.devices:
        return Engine(binary=binary)
    child = child_environment(choice, environ)
    try:
        listed = list_devices(binary, child).devices
    except RocllmError as exc:
        return Engine(binary=binary, listing_error=exc)
    return Engine(binary=binary, listed=listed, words=() if listed else _words(binary, child))


def _engine_path(engine: Engine) -> str | None:
    """Its file, which is worth reading above all when it does not run."""
    if engine.binary is not None:
        return engine.binary.path
    return failed_program(engine.error)


def _words(binary: ServerBinary, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What llama-server and ROCm say while they find no GPU; by default they say nothing."""
    try:
        said = list_devices(binary, {**environ, **_TALKATIVE}).said
    except RocllmError:
        return ()
    lines = (line.strip() for line in said)
    return tuple(line for line in lines if _TELLING.search(line))[:_MAX_WORDS]
