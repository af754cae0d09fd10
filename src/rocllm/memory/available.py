"""How much memory is free, on GPUs and on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rocllm.devices import Device, Machine


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of a GPU, in bytes; `None`: not known.

    label: what identifies it to a person. gfx_target: its instruction set. total: what ROCm can
    allocate. free: what nobody uses. shared: it is part of the host's memory. device: what the
    option `device` calls it.
    """

    label: str
    gfx_target: str | None = None
    total: int | None = None
    free: int | None = None
    shared: bool = False
    device: str | None = None


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The host's memory, in bytes; `None`: not known. free: what can be had without swapping."""

    total: int | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What there is to put a model into. gpus: those that are to be used, none for the CPU.
    others: those that could be used as well."""

    gpus: tuple[GpuMemory, ...] = ()
    host: HostMemory = HostMemory()
    others: tuple[GpuMemory, ...] = ()


def read_memory(
    devices: Sequence[Device], root: Path = Path("/"), machine: Machine | None = None
) -> Memory:
    """The memory of the chosen `devices` and of the host whose files are under `root`.

    machine: what else there is; `None`: it does not matter.

    Never raises for what cannot be read: that is not known, then.

    >>> read_memory([]).host.free is not None  # doctest: +SKIP
    True
    """
    usable = () if machine is None or machine.denied is not None else machine.devices
    others = (
        device
        for device in usable
        if machine is not None and device.ordinal in machine.visible and device not in devices
    )
    gpus, more = map(gpu_memory, devices), map(gpu_memory, others)
    return Memory(tuple(gpus), _host_memory(root), tuple(more))


def gpu_memory(device: Device) -> GpuMemory:
    """The memory of a device; what is in use and not known is nothing, as of a sleeping GPU."""
    total = device.usable_memory
    return GpuMemory(
        label=device.label,
        gfx_target=device.gfx_target,
        total=total,
        free=None if total is None else max(0, total - (device.used_memory or 0)),
        shared=device.memory_pool == "gtt",
        device=None if device.ordinal is None else str(device.ordinal),
    )


def _host_memory(root: Path) -> HostMemory:
    sizes = _read_table(root / "proc/meminfo", scale=1024)
    total, free = sizes.get("MemTotal:"), sizes.get("MemAvailable:")
    for limit, left in _cgroup_limits(root):
        total = limit if total is None else min(total, limit)
        free = left if free is None else min(free, left)
    return HostMemory(total, free)


def _cgroup_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of the control group of this process and those around it.

    Pages of files count as free: the kernel drops them when memory runs short. Those of tmpfs,
    which are counted among them, it cannot drop.
    """
    for folder, files in _cgroup_folders(root):
        used = _read_number(folder / files.used)
        for name in files.limits:
            limit = _read_number(folder / name)
            if limit is None or used is None or limit >= 2**60:  # version 1 writes "no limit" so
                continue
            stat = _read_table(folder / "memory.stat")
            cached = max(0, stat.get(files.cached, 0) - stat.get(files.shared, 0))
            yield limit, max(0, limit - used + cached)


@dataclass(frozen=True, slots=True)
class _CgroupFiles:
    """Names of files, and of lines in `memory.stat`."""

    limits: tuple[str, ...]
    used: str
    cached: str
    shared: str


_VERSION_1 = _CgroupFiles(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_cache", "total_shmem"
)
# Above `memory.high` a process is slowed down until it hardly moves.
_VERSION_2 = _CgroupFiles(("memory.max", "memory.high"), "memory.current", "file", "shmem")


def _cgroup_folders(root: Path) -> Iterator[tuple[Path, _CgroupFiles]]:
    mounted = root / "sys/fs/cgroup"
    for line in _read_lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = Path(path.lstrip("/"))
        if controllers == "":
            base, files = mounted, _VERSION_2
        elif "memory" in controllers.split(","):
            base, files = mounted / "memory", _VERSION_1
        else:
            continue
        if ".." in inside.parts:
            inside = Path()
        for folder in (inside, *inside.parents):
            yield base / folder, files


def _read_table(path: Path, scale: int = 1) -> dict[str, int]:
    table = {}
    for line in _read_lines(path):
        name, number = [*line.split(), "", ""][:2]
        if number.isdigit():
            table[name] = int(number) * scale
    return table


def _read_number(path: Path) -> int | None:
    lines = _read_lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
