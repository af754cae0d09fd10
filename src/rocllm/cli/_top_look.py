"""`rocllm top`: one look at the GPUs and at the running models."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rocllm.devices import (
    Device,
    DeviceSample,
    Machine,
    ProcessMemory,
    Spill,
    discover_devices,
    find_spill,
    process_memory,
    read_sample,
)
from rocllm.memory import HostMemory, read_memory
from rocllm.server.running import RunningServer, list_running
from rocllm.server.status import ServerStatus, read_status, tokens_per_second

# Seconds that one server may take to answer, and that the view waits for all of them: one that is
# computing a long prompt shows up late, and does not stop the others.
ANSWER_TIMEOUT = 1.0
_MOST_AT_ONCE = 16
_DEVICE_FIELDS = ("pci_address", "name", "gfx_target", "ordinal", "integrated")


@dataclass(frozen=True, slots=True)
class Model:
    """A running server. status: its last answer; `None`: none yet. rate: tokens per second.

    uses: what it holds of GPUs. resident: bytes of main memory, file pages included.
    """

    server: RunningServer
    status: ServerStatus | None
    rate: float | None
    uses: tuple[ProcessMemory, ...]
    resident: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that one frame shows. time: seconds since 1970."""

    time: float
    machine: Machine
    samples: tuple[DeviceSample, ...]
    processes: tuple[ProcessMemory, ...]
    spills: tuple[Spill, ...]
    host: HostMemory
    models: tuple[Model, ...]


@dataclass(slots=True)
class _Known:
    """status: the last answer. ready: the last one with numbers. rate: between these two."""

    status: ServerStatus | None = None
    ready: ServerStatus | None = None
    rate: float | None = None


class Watch:
    """Looks again and again; remembers what a rate needs, and GPUs that have gone meanwhile."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Directories of running servers belong to this machine, whatever tree is looked at.
        self._here = os.path.realpath(root) == "/"
        self._devices: tuple[Device, ...] = ()
        self._asking: dict[int, Future[ServerStatus]] = {}
        self._known: dict[int, _Known] = {}
        self._pool = ThreadPoolExecutor(_MOST_AT_ONCE, "rocllm-top")

    def look(self, patience: float) -> Look:
        """See what is there; servers have `patience` seconds to answer, then the rest is shown."""
        servers = list_running(os.environ) if self._here else ()
        self._ask(servers)
        machine = discover_devices(self._root, os.environ)
        self._devices = _with_those_that_went(machine.devices, self._devices)
        samples = tuple(read_sample(device, root=self._root) for device in self._devices)
        processes = process_memory(self._devices, root=self._root)
        spills = (find_spill(one.device, one.memory, processes) for one in samples)
        host = read_memory((), self._root).host
        wait(self._asking.values(), patience)
        self._collect()
        return Look(
            time=time.time(),
            machine=machine,
            samples=samples,
            processes=processes,
            spills=tuple(spill for spill in spills if spill is not None),
            host=host,
            models=tuple(self._model(server, processes) for server in servers),
        )

    def close(self) -> None:
        """Ask nobody any more; who is being asked ends within `ANSWER_TIMEOUT`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, servers: Sequence[RunningServer]) -> None:
        for gone in self._known.keys() - {server.pid for server in servers}:
            del self._known[gone]
        for server in servers:
            if server.endpoint is not None and server.pid not in self._asking:
                self._asking[server.pid] = self._pool.submit(
                    read_status, server.endpoint, ANSWER_TIMEOUT
                )

    def _collect(self) -> None:
        for pid in [pid for pid, answer in self._asking.items() if answer.done()]:
            status = self._asking.pop(pid).result()
            known = self._known.setdefault(pid, _Known())
            known.rate = None if known.ready is None else tokens_per_second(known.ready, status)
            known.status = status
            if status.state == "ready":
                known.ready = status

    def _model(self, server: RunningServer, processes: Sequence[ProcessMemory]) -> Model:
        known = self._known.get(server.pid, _Known())
        return Model(
            server=server,
            status=known.status,
            rate=known.rate,
            uses=tuple(use for use in processes if use.pid == server.pid),
            resident=_resident(server.pid),
        )


def as_json(look: Look) -> dict[str, Any]:
    """What programs build on; docs/monitoring.md describes it."""
    return {
        "time": look.time,
        "devices": [_device_as_json(sample, look) for sample in look.samples],
        "host": {"total": look.host.total, "free": look.host.free},
        "models": [_model_as_json(model) for model in look.models],
        "problems": [str(problem) for problem in look.machine.problems],
    }


def _device_as_json(sample: DeviceSample, look: Look) -> dict[str, Any]:
    device = sample.device
    spill = next((one for one in look.spills if one.device == device), None)
    return {
        **{name: getattr(device, name) for name in _DEVICE_FIELDS},
        **{name: value for name, value in asdict(sample).items() if name not in ("device", "time")},
        "processes": [
            {"pid": use.pid, "name": use.name, "vram": use.vram, "gtt": use.gtt}
            for use in look.processes
            if use.device == device
        ],
        "spill": None
        if spill is None
        else {"size": spill.size, "certain": spill.certain, "what": spill.what},
    }


def _model_as_json(model: Model) -> dict[str, Any]:
    server, status = model.server, model.status
    return {
        "pid": server.pid,
        "parent_pid": server.parent_pid,
        "name": server.alias,
        "path": None if server.model_path is None else str(server.model_path),
        "endpoint": None if server.endpoint is None else str(server.endpoint),
        "started": server.started,
        "devices": [use.device.pci_address for use in model.uses],
        "device_names": None if server.device_names is None else list(server.device_names),
        "vram": sum(use.vram for use in model.uses) if model.uses else None,
        "resident": model.resident,
        "state": None if status is None else status.state,
        "parallel": server.parallel,
        "busy_slots": None if status is None else status.busy_slots,
        "waiting": None if status is None else status.waiting,
        "slots": None
        if status is None or status.slots is None
        else [asdict(slot) for slot in status.slots],
        "tokens_per_second": None if model.rate is None else round(model.rate, 2),
    }


def _with_those_that_went(
    now: tuple[Device, ...], before: tuple[Device, ...]
) -> tuple[Device, ...]:
    """GPUs of today, then those that were there and are gone: they are shown as gone.

    So is one that has lost its card, and of which KFD still knows: as it was, with its card.
    """
    known = {(device.pci_address, device.kfd_node): device for device in before}
    there = [(known.pop((one.pci_address, one.kfd_node), None), one) for one in now]
    lost = (was if was and was.card is not None and one.card is None else one for was, one in there)
    return (*lost, *known.values())


def _resident(pid: int) -> int | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
