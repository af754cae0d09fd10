"""What a check says, and the facts that it says it from. `None`: not looked at, or not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rocllm.devices import Choice, Machine
from rocllm.errors import RocllmError
from rocllm.server import ListedDevice, ServerBinary

KFD = "/dev/kfd"
State: TypeAlias = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a check ended.

    evidence: what it is based on. remedy: what to do, in words. command: the exact command that
    does it, for a POSIX shell. fixes: `rocllm doctor --fix` may run the command.
    """

    state: State
    evidence: str
    remedy: str | None = None
    command: str | None = None
    fixes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Verdict):
    """The verdict of the check `id`, which belongs to `group`."""

    id: str
    group: str


@dataclass(frozen=True, slots=True)
class User:
    """Who would open the device files. groups: group ids of the running session."""

    name: str
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFile:
    """A device file, and what keeps the user from it.

    state: `masked` means that mode and owner would let the user in, so a device cgroup does not;
        `None`: another machine's file, whose mode tells nothing. mode: permission bits. owner: user
        id. gid, group: its group; a group without a name has `None`. listed: the user belongs to
        the group by the user database, whatever this session says.
    """

    path: str
    state: Literal["allowed", "missing", "refused", "masked"] | None
    mode: int | None = None
    owner: int | None = None
    gid: int | None = None
    group: str | None = None
    listed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """release: as of `uname -r`. options: its command line. secure_boot: the firmware's state.
    dkms: version of an amdgpu that is not the kernel's own. loaded: amdgpu is in the kernel.
    blacklist: the file that keeps amdgpu from being loaded. pages_limit: ttm's, in pages of 4 KiB.
    memory: bytes of system memory. cwsr_nodes: the KFD nodes that tell their `cwsr_size`.
    """

    release: str | None = None
    options: tuple[str, ...] | None = None
    secure_boot: bool | None = None
    dkms: str | None = None
    loaded: bool | None = None
    blacklist: str | None = None
    pages_limit: int | None = None
    memory: int | None = None
    cwsr_nodes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RocmInstall:
    """A ROCm user space. version: `6.3.3`. libraries: the directories of its libraries, which are
    several where it consists of Python wheels."""

    version: str | None
    libraries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """A library that was not found, and the file that needs it."""

    library: str
    needed_by: str


@dataclass(frozen=True, slots=True)
class Repair:
    """A user space that the loader would have to search, too. lacking: what is missing even so."""

    install: RocmInstall
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GfxTargets:
    """The chips that a file holds code for. hidden: compressed bundles may hold more."""

    names: frozenset[str]
    hidden: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFiles:
    """What the files of a llama-server tell.

    script: it is no program file. libraries: what was found, by name. missing: what was not.
    repairs: user spaces that hold some of it, those first that hold all.
    hip: the file with ROCm's GPU code. targets: of that file. vulkan: it can use Vulkan.
    rocblas: directory of rocBLAS's kernels. rocblas_targets: the chips that it has kernels for.
    """

    path: str
    script: bool = False
    libraries: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[Missing, ...] = ()
    repairs: tuple[Repair, ...] = ()
    hip: str | None = None
    vulkan: bool = False
    targets: GfxTargets | None = None
    rocblas: str | None = None
    rocblas_targets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The llama-server that would be used, or the error that says why there is none.

    listed: the GPUs that it sees under the mask that rocllm would set. listing_error: why it could
    not be asked. words: what it and ROCm said meanwhile.
    """

    binary: ServerBinary | None = None
    error: RocllmError | None = None
    listed: tuple[ListedDevice, ...] | None = None
    listing_error: RocllmError | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that checks look at.

    here: the machine is this one, and not a tree of files. files: device files by path.
    container: its kind. power: `runtime_status` by card number. installs: `None`: not looked for.
    """

    machine: Machine
    choice: Choice
    environ: Mapping[str, str]
    here: bool = True
    platform: str | None = None
    architecture: str | None = None
    kernel: Kernel | None = None
    container: str | None = None
    pci_seen: bool | None = None
    user: User | None = None
    files: Mapping[str, DeviceFile] | None = None
    power: Mapping[int, str] = field(default_factory=dict)
    installs: tuple[RocmInstall, ...] | None = None
    engine: Engine | None = None
    engine_files: EngineFiles | None = None


def ok(evidence: str) -> Verdict:
    """Nothing stands in the way."""
    return Verdict("ok", evidence)


def warn(evidence: str, remedy: str | None = None, command: str | None = None) -> Verdict:
    """It works, or may work, and not as well as it could."""
    return Verdict("warn", evidence, remedy, command)


def fail(
    evidence: str, remedy: str | None = None, command: str | None = None, *, fixes: bool = False
) -> Verdict:
    """It keeps the GPU, or rocllm as a whole, from working."""
    return Verdict("fail", evidence, remedy, command, fixes)


def unknown(because: str) -> Verdict:
    """It cannot be told."""
    return Verdict("unknown", because)
