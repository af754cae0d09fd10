"""Watching GPUs: one sample of each, a stream of them, and the wait for memory to come back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

from rocllm.devices._counters import VramInfo, card_folder, is_present, vram_info
from rocllm.devices._sensors import Sensors, is_asleep, read_sensors
from rocllm.devices._sysfs import Reader, Tree, read_file
from rocllm.devices.types import Device
from rocllm.errors import OptionsError
from rocllm.units import format_bytes, format_seconds

_Clock: TypeAlias = Callable[[], float]
_Sleep: TypeAlias = Callable[[float], None]

# Bytes by which the use of a card may exceed what was there before a load: a desktop that draws
# two 4K images, 2 x 3840 x 2160 x 4 bytes, moves by as much.
_SLACK = 64 * 1024**2
# Seconds without a change after which what is still in use is taken for somebody else's.
_SETTLED = 1.0
_POLL = 0.05
_KFD_PROCESSES = "sys/class/kfd/kfd/proc"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """What a GPU was doing at one moment; `None`: not known.

    device: the GPU. time: seconds of the clock that was given. present: it is still in the machine.
    asleep: the driver has powered it down; then no sensor is read, because that would wake it.
    memory: see `VramInfo`. busy_percent, memory_busy_percent: share of the last moments, 0 to 100,
    in which the GPU, and its memory controller, had work. core_clock, memory_clock: hertz.
    power, power_limit: watts. temperature: degrees Celsius at the edge of the die;
    junction_temperature: at its hottest point; memory_temperature: of the video memory.
    """

    device: Device
    time: float
    present: bool
    asleep: bool | None
    memory: VramInfo
    busy_percent: int | None = None
    memory_busy_percent: int | None = None
    core_clock: int | None = None
    memory_clock: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: float | None = None
    junction_temperature: float | None = None
    memory_temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """How the wait for memory ended.

    seconds: how long it took. left: bytes in use above what was expected, of each device; 0 where
    that is not known. complete: nothing is left.
    """

    seconds: float
    left: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Every device has given back its memory."""
        return not any(self.left)

    def __str__(self) -> str:
        waited = f"after {format_seconds(self.seconds)}"
        if self.complete:
            return f"the memory was given back {waited}"
        return f"{format_bytes(sum(self.left))} of GPU memory are still in use {waited}"


def read_sample(
    device: Device,
    *,
    root: str | os.PathLike[str] = "/",
    clock: _Clock = time.monotonic,
    read: Reader = read_file,
) -> DeviceSample:
    """What one GPU is doing now; never raises for the hardware's sake, and never wakes it."""
    tree = Tree(os.path.abspath(root), read)
    folder = card_folder(device)
    present = is_present(tree, device)
    asleep = is_asleep(tree, folder) if folder is not None and present else None
    readable = folder is not None and present and not asleep
    sensors = read_sensors(tree, folder) if folder is not None and readable else Sensors()
    return DeviceSample(
        device=device,
        time=clock(),
        present=present,
        asleep=asleep,
        memory=vram_info(device, root=root, read=read),
        **asdict(sensors),
    )


def monitor(
    devices: Sequence[Device],
    interval: float = 1.0,
    *,
    root: str | os.PathLike[str] = "/",
    clock: _Clock = time.monotonic,
    sleep: _Sleep = time.sleep,
    read: Reader = read_file,
) -> Iterator[tuple[DeviceSample, ...]]:
    """Samples of GPUs, the first at once, then every `interval` seconds, until you stop asking.

    A GPU that sleeps is not woken. One that is awake is kept awake while its sensors are read at
    intervals shorter than its driver's delay (5 seconds), as by every monitor.

    root: `/`, or a folder that holds another machine's `/sys`. clock, sleep: seconds; for tests.

    Raises `OptionsError` for an interval that is not above 0, and nothing for the hardware's sake:
    a GPU that was taken out has `present=False`.

    >>> for samples in rocllm.monitor(rocllm.discover_devices().devices):  # doctest: +SKIP
    ...     print(*(f"{sample.busy_percent} %" for sample in samples))
    """
    if not interval > 0:
        raise OptionsError(f"the interval is {interval!r} s", remedy="give one above 0")
    return _samples(devices, interval, root, clock, sleep, read)


def wait_memory_released(
    devices: Sequence[Device],
    expected: Sequence[int | None],
    timeout: float = 5.0,
    *,
    pid: int | None = None,
    root: str | os.PathLike[str] = "/",
    clock: _Clock = time.monotonic,
    sleep: _Sleep = time.sleep,
    read: Reader = read_file,
) -> Release:
    """Wait until GPUs have given back the memory of a process that has ended.

    The driver frees it after the process is gone, so that a load right after a stop may see a card
    that is full.

    devices: the GPUs that it used; none for the CPU. expected: bytes in use on each that are fine,
    which is `vram_info(device).used` from before the load. timeout: most seconds to wait.
    pid: the process: while KFD still knows it, the wait goes on. When KFD does not and the use has
    not changed for a second, another program has taken memory meanwhile, and the wait is over.

    A GPU whose use is not known is not waited for. Never raises for the hardware's sake.

    >>> before = [vram_info(device).used for device in devices]  # doctest: +SKIP
    >>> wait_memory_released(devices, before, pid=1234).complete  # doctest: +SKIP
    True
    """
    tree = Tree(os.path.abspath(root), read)
    began = changed = clock()
    last: tuple[int, ...] | None = None
    while True:
        left = tuple(
            _excess(vram_info(device, root=root, read=read).used, wanted)
            for device, wanted in zip(devices, expected, strict=True)
        )
        now = clock()
        if left != last or (pid is not None and tree.exists(f"{_KFD_PROCESSES}/{pid}")):
            last, changed = left, now
        if not any(left) or now - began >= timeout or now - changed >= _SETTLED:
            return Release(now - began, left)
        sleep(min(_POLL, began + timeout - now))


def _samples(
    devices: Sequence[Device],
    interval: float,
    root: str | os.PathLike[str],
    clock: _Clock,
    sleep: _Sleep,
    read: Reader,
) -> Iterator[tuple[DeviceSample, ...]]:
    due = clock()
    while True:
        yield tuple(read_sample(device, root=root, clock=clock, read=read) for device in devices)
        # From one due time to the next: what reading and the caller take does not add up. After
        # a long pause, as of a laptop that slept, the missed ones are not made up for.
        due = max(due + interval, clock())
        sleep(max(0.0, due - clock()))


def _excess(used: int | None, wanted: int | None) -> int:
    if used is None or wanted is None or used <= wanted + _SLACK:
        return 0
    return used - wanted
