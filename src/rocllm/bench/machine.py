"""On what machine a measurement was made."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rocllm.devices import Device, discover_devices
from rocllm.errors import RocllmError
from rocllm.memory import read_memory

# Above this share of the cores, other programs' load shows in the figures.
_BUSY_SHARE = 0.25
# What vendors add to the names of processors.
_NOISE = re.compile(r"\((?:R|TM)\)| (?:CPU|Processor|\d+-Core)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInfo:
    """The machine, as far as it matters to speed; `None`: not known.

    cpu: its name. cores: those that this process may use. memory: of the host, in bytes. gpus: name
    and gfx target of every AMD GPU. load_average: processes that ran or waited at the start, in the
    mean of a minute.
    """

    cpu: str | None
    cores: int
    memory: int | None
    gpus: tuple[str, ...]
    system: str
    kernel: str
    python: str
    load_average: float | None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes figures of this machine doubtful, in words."""
        load = self.load_average
        if load is None or load <= _BUSY_SHARE * self.cores:
            return ()
        text = (
            f"the load average was {load:.1f} on {self.cores} cores when the run began: other "
            "programs make the figures low and unsteady"
        )
        return (text,)

    @property
    def name(self) -> str:
        """In a few words: `RX 7800 XT (gfx1101), 16 cores of AMD Ryzen 9 7950X`."""
        gpus = [f"{self.gpus.count(gpu)} × {gpu}" for gpu in dict.fromkeys(self.gpus)]
        return ", ".join([*(gpu.removeprefix("1 × ") for gpu in gpus), self.processor])

    @property
    def processor(self) -> str:
        """The name without the GPUs."""
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return f"{cores} of {_NOISE.sub('', self.cpu).strip()}" if self.cpu else cores


def describe_machine(environ: Mapping[str, str], root: Path = Path("/")) -> MachineInfo:
    """The machine whose file system begins at `root`. Never raises for what cannot be read."""
    try:
        devices = discover_devices(root, environ).devices
    except RocllmError:
        devices = ()
    return MachineInfo(
        cpu=_field(root / "proc/cpuinfo", "model name"),
        cores=len(os.sched_getaffinity(0)),
        memory=read_memory((), root).host.total,
        gpus=tuple(map(gpu_name, devices)),
        system=_system(root),
        kernel=(_text(root / "proc/sys/kernel/osrelease") or platform.release()).strip(),
        python=platform.python_version(),
        load_average=_load_average(root),
    )


def gpu_name(device: Device) -> str:
    """A GPU for a report: `Radeon RX 7800 XT (gfx1101)`."""
    return f"{device.name} ({device.gfx_target})" if device.gfx_target else device.name


def _system(root: Path) -> str:
    for line in _text(root / "etc/os-release").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip('"')
    return platform.system()


def _load_average(root: Path) -> float | None:
    try:
        return float(_text(root / "proc/loadavg").split()[0])
    except (ValueError, IndexError):
        return None


def _field(path: Path, name: str) -> str | None:
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return " ".join(value.split()) or None
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
