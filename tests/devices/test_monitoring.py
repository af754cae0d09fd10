"""What GPUs do, seen without disturbing them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

import rocllm
from rocllm.devices import Device, discover_devices, read_sample
from rocllm.devices._sysfs import read_file
from rocllm.errors import OptionsError
from rocllm.testing.fake_sysfs import (
    DESKTOP,
    RX_7700_XT,
    SENSORS,
    FakeGpu,
    partitions,
    write_tree,
)

_CARD = "sys/class/drm/card0/device"
_BUSY = replace(RX_7700_XT, runtime_status="active", files=SENSORS)


def only(root: Path, gpu: FakeGpu) -> Device:
    """The device of a machine with one GPU."""
    (device,) = discover_devices(write_tree(root, [gpu]), {}).devices
    return device


class Clock:
    """Time that passes only while somebody sleeps, or works."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@contextmanager
def opened_below(folder: Path) -> Iterator[list[str]]:
    """Collect the files below a folder that the block opens, as the kernel sees it (inotify(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    folders = {}
    for path, _, _ in os.walk(folder):
        folders[libc.inotify_add_watch(queue, os.fsencode(path), 0x20)] = path  # IN_OPEN
    found: list[str] = []
    try:
        yield found
        data = os.read(queue, 1 << 20)
        while data:
            watch, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            if not mask & 0x40000000:  # IN_ISDIR
                found.append(os.path.relpath(os.path.join(folders[watch], name), folder))
            data = data[16 + length :]
    except BlockingIOError:
        pass
    finally:
        os.close(queue)


def test_a_sample_is_in_plain_units(tmp_path: Path) -> None:
    """Percent, hertz, watts, degrees Celsius, bytes."""
    sample = read_sample(only(tmp_path, _BUSY), root=tmp_path, clock=lambda: 7.0)

    assert (sample.busy_percent, sample.memory_busy_percent) == (97, 61)
    assert (sample.core_clock, sample.memory_clock) == (2_171_000_000, 1_124_000_000)
    assert (sample.power, sample.power_limit) == (228.0, 245.0)
    assert sample.temperature == 61.0
    assert (sample.junction_temperature, sample.memory_temperature) == (79.0, 74.0)
    assert sample.memory.used == 1491832832
    assert (sample.present, sample.asleep, sample.time) == (True, False, 7.0)


def test_older_and_newer_kernels_name_files_differently(tmp_path: Path) -> None:
    """The current state of the table of clocks, and power of the moment, serve as well."""
    files = {key: value for key, value in SENSORS.items() if "freq" not in key}
    files["hwmon/hwmon4/power1_input"] = files.pop("hwmon/hwmon4/power1_average")
    files["pp_dpm_sclk"] = "S: 19Mhz *\n0: 615Mhz\n1: 800Mhz"
    sample = read_sample(only(tmp_path, replace(_BUSY, files=files)), root=tmp_path)

    assert (sample.core_clock, sample.memory_clock) == (19_000_000, 1_124_000_000)
    assert sample.power == 228.0


def test_the_hwmon_of_the_driver_is_taken(tmp_path: Path) -> None:
    """Its number is arbitrary, and a board may have another one."""
    files = {**SENSORS, "hwmon/hwmon3/name": "other", "hwmon/hwmon3/temp1_input": 1000}
    sample = read_sample(only(tmp_path, replace(_BUSY, files=files)), root=tmp_path)

    assert sample.temperature == 61.0


def test_a_chip_without_labels_has_one_temperature(tmp_path: Path) -> None:
    """And one in the cold has a negative one."""
    gpu = replace(_BUSY, files={"hwmon/hwmon1/temp1_input": -4000})
    sample = read_sample(only(tmp_path, gpu), root=tmp_path)

    assert (sample.temperature, sample.junction_temperature) == (-4.0, None)


@pytest.mark.parametrize("status", ["suspended", "suspending"])
def test_a_sleeping_card_is_not_woken(status: str, tmp_path: Path) -> None:
    """Reading a sensor wakes it on kernels up to 6.13, so none is opened, nor its folder."""
    device = only(tmp_path, replace(_BUSY, runtime_status=status))
    with opened_below(tmp_path) as opened:
        sample = read_sample(device, root=tmp_path)

    assert sample.asleep is True
    assert sample.present
    assert (sample.busy_percent, sample.power, sample.temperature) == (None, None, None)
    assert (sample.core_clock, sample.memory_clock) == (None, None)
    assert sample.memory.used == 1491832832
    waking = {f"{_CARD}/{name}" for name in SENSORS if name != "power_state"}
    assert f"{_CARD}/power/runtime_status" in opened  # the watch works
    assert waking.isdisjoint(opened)


def test_discovery_and_process_use_open_no_sensor_either(tmp_path: Path) -> None:
    """A look at who holds memory of a sleeping card leaves it asleep."""
    root = write_tree(tmp_path, [replace(_BUSY, runtime_status="suspended")])
    with opened_below(tmp_path) as opened:
        machine = discover_devices(root, {})
        rocllm.vram_info(machine.devices[0], root=root)
        rocllm.devices.process_memory(machine.devices, root=root)

    assert opened
    assert {f"{_CARD}/{name}" for name in SENSORS}.isdisjoint(opened)


def test_the_trap_for_sensors_catches(tmp_path: Path) -> None:
    """The card of the two tests above, awake, has its sensors opened."""
    device = only(tmp_path, _BUSY)
    with opened_below(tmp_path) as opened:
        read_sample(device, root=tmp_path)

    assert {f"{_CARD}/gpu_busy_percent", f"{_CARD}/hwmon/hwmon4/power1_average"} <= set(opened)


def test_a_card_in_d3_sleeps_whatever_runtime_power_management_says(tmp_path: Path) -> None:
    """It may have been put there by another mechanism."""
    files = {**SENSORS, "power_state": "D3cold"}
    gpu = replace(_BUSY, runtime_status="active", files=files)

    assert read_sample(only(tmp_path, gpu), root=tmp_path).asleep is True


def test_a_card_without_runtime_power_management_is_awake(tmp_path: Path) -> None:
    """The kernel says `unsupported` of it; its sensors are read."""
    sample = read_sample(
        only(tmp_path, replace(_BUSY, runtime_status="unsupported")), root=tmp_path
    )

    assert (sample.asleep, sample.busy_percent) == (False, 97)


def test_sensors_that_are_refused_are_unknown(tmp_path: Path) -> None:
    """Kernels from 6.14 on refuse a card that fell asleep meanwhile, and one that is reset."""
    device = only(tmp_path, _BUSY)

    def refusing(path: str) -> bytes:
        name = os.path.relpath(path, tmp_path / _CARD)
        if name in SENSORS and name != "power_state":
            raise PermissionError(errno.EPERM, "refused", path)
        return read_file(path)

    sample = read_sample(device, root=tmp_path, read=refusing)

    assert sample.asleep is False
    assert (sample.busy_percent, sample.core_clock, sample.power) == (None, None, None)
    assert sample.memory.used == 1491832832


@pytest.mark.parametrize(
    ("file", "text", "field"),
    [
        ("gpu_busy_percent", "65535", "busy_percent"),
        ("gpu_busy_percent", "-1", "busy_percent"),
        ("mem_busy_percent", "n/a", "memory_busy_percent"),
        ("hwmon/hwmon4/freq1_input", "18446744073709551615", "core_clock"),
        ("hwmon/hwmon4/power1_average", "4294967295000000", "power"),
        ("hwmon/hwmon4/power1_average", "4294967295", "power"),
        ("hwmon/hwmon4/power1_cap", "", "power_limit"),
        ("hwmon/hwmon4/temp1_input", "511000", "temperature"),
        ("hwmon/hwmon4/temp1_input", "--5", "temperature"),
        ("hwmon/hwmon4/temp2_input", "\0\0\0", "junction_temperature"),
    ],
)
def test_values_that_cannot_be_are_unknown(
    file: str, text: str, field: str, tmp_path: Path
) -> None:
    """Firmware answers all ones where it does not know; the other values stay."""
    files = {**SENSORS, file: text}
    sample = read_sample(only(tmp_path, replace(_BUSY, files=files)), root=tmp_path)

    assert getattr(sample, field) is None
    assert None not in (sample.memory_clock, sample.memory_temperature)


def test_a_partition_has_no_sensors(tmp_path: Path) -> None:
    """It has no card of its own; that it is there, KFD tells."""
    devices = discover_devices(write_tree(tmp_path, partitions(_BUSY, 2)), {}).devices
    sample = read_sample(devices[1], root=tmp_path)

    assert sample.present
    assert (sample.asleep, sample.busy_percent) == (None, None)

    shutil.rmtree(tmp_path / "sys/class/kfd")
    assert not read_sample(devices[1], root=tmp_path).present


def test_monitor_keeps_its_pace(tmp_path: Path) -> None:
    """The first sample comes at once; what the caller's work takes is not added to the interval."""
    clock = Clock()
    devices = discover_devices(write_tree(tmp_path, DESKTOP), {}).devices
    samples = rocllm.monitor(devices, 2.0, root=tmp_path, clock=clock, sleep=clock.sleep)

    times = []
    for sample, _ in islice(samples, 3):
        times.append(sample.time)
        clock.now += 0.5

    assert times == [1000.0, 1002.0, 1004.0]
    assert clock.slept == [1.5, 1.5]


def test_monitor_does_not_make_up_for_a_pause(tmp_path: Path) -> None:
    """After a laptop has slept the samples do not come in a burst."""
    clock = Clock()
    samples = rocllm.monitor(
        [only(tmp_path, _BUSY)], 1.0, root=tmp_path, clock=clock, sleep=clock.sleep
    )
    next(samples)
    clock.now += 3600.0

    assert [next(samples)[0].time for _ in range(3)] == [4600.0, 4601.0, 4602.0]


def test_monitor_outlives_a_card(tmp_path: Path) -> None:
    """A card that is taken out is reported as gone, and comes back when it does."""
    clock = Clock()
    devices = discover_devices(write_tree(tmp_path, [_BUSY]), {}).devices
    samples = rocllm.monitor(devices, root=tmp_path, clock=clock, sleep=clock.sleep)

    assert next(samples)[0].present
    (tmp_path / _CARD).rename(tmp_path / "out")
    (gone,) = next(samples)
    assert (gone.present, gone.asleep, gone.memory.total, gone.busy_percent) == (
        False,
        None,
        None,
        None,
    )
    (tmp_path / "out").rename(tmp_path / _CARD)
    assert next(samples)[0].busy_percent == 97


@pytest.mark.parametrize("interval", [0, -1.0, float("nan")])
def test_an_interval_that_cannot_be_meant(interval: float) -> None:
    """It is refused at the call, not at the first sample."""
    with pytest.raises(OptionsError, match="interval"):
        rocllm.monitor([], interval)


def test_no_devices_is_a_machine_too() -> None:
    """On the CPU there is nothing to sample, and nothing fails."""
    assert list(islice(rocllm.monitor([], sleep=lambda _: None), 2)) == [(), ()]
