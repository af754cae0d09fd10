"""What a GPU is doing: load, clocks, power, temperatures, and whether it sleeps.

Reading a sensor wakes a sleeping card on kernels up to 6.13, and is refused with EPERM while it
sleeps, or with EBUSY while it is reset, on later ones. So the state is read first, from files of
the kernel's power management, which wake nothing.

Reference: pm/amdgpu_pm.c of Linux 6.12 and 6.15, drivers/base/power/sysfs.c, and for the units
Documentation/hwmon/sysfs-interface.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rocllm.devices._sysfs import Tree, decimal

_MHZ = 1_000_000
_CURRENT_CLOCK = re.compile(r"^\S+:\s*(\d{1,6})mhz\s*\*", re.IGNORECASE | re.MULTILINE)
# What no GPU does: drivers answer 65535 or 2^32 - 1 where they do not know, which is 4295 W if it
# is in microwatts. The largest of today (an MI355X) takes 1.4 kW and no clock is above 4 GHz.
_MAX_CLOCK = 10_000 * _MHZ
_MAX_WATTS = 4_000.0
_MIN_CELSIUS, _MAX_CELSIUS = -60.0, 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensors:
    """One reading; `None`: not known. See `DeviceSample` for the units."""

    busy_percent: int | None = None
    memory_busy_percent: int | None = None
    core_clock: int | None = None
    memory_clock: int | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: float | None = None
    junction_temperature: float | None = None
    memory_temperature: float | None = None


def is_asleep(tree: Tree, folder: str) -> bool | None:
    """The driver has powered the card down, or is about to; `None`: nothing tells.

    Runtime power management knows; `unsupported` says that it is off. PCI's own state tells of a
    card that another mechanism has put to sleep.
    """
    status = tree.text(f"{folder}/power/runtime_status")
    state = tree.text(f"{folder}/power_state")
    if status in ("suspended", "suspending") or (state or "").startswith("D3"):
        return True
    return None if status is None and state is None else False


def read_sensors(tree: Tree, folder: str) -> Sensors:
    """Read the sensors of a card that is awake."""
    hwmon = _hwmon(tree, folder)
    temperatures = _temperatures(tree, hwmon)
    return Sensors(
        busy_percent=_percent(tree, f"{folder}/gpu_busy_percent"),
        memory_busy_percent=_percent(tree, f"{folder}/mem_busy_percent"),
        core_clock=_clock(tree, f"{hwmon}/freq1_input", f"{folder}/pp_dpm_sclk"),
        memory_clock=_clock(tree, f"{hwmon}/freq2_input", f"{folder}/pp_dpm_mclk"),
        # Cards of 2023 and later have `input` only; where both are there one is the mean of a
        # second or so, which is what a person wants to see.
        power=_watts(tree, f"{hwmon}/power1_average", f"{hwmon}/power1_input"),
        power_limit=_watts(tree, f"{hwmon}/power1_cap"),
        temperature=temperatures.get("edge"),
        junction_temperature=temperatures.get("junction"),
        memory_temperature=temperatures.get("mem"),
    )


def _hwmon(tree: Tree, folder: str) -> str:
    numbers = tree.numbered(f"{folder}/hwmon", "hwmon")
    folders = [f"{folder}/hwmon/hwmon{number}" for number in numbers]
    own = [path for path in folders if tree.text(f"{path}/name") == "amdgpu"]
    return (own or folders or [f"{folder}/hwmon"])[0]


def _percent(tree: Tree, path: str) -> int | None:
    value = tree.number(path)
    return value if value is not None and value <= 100 else None


def _clock(tree: Tree, exact: str, table: str) -> int | None:
    """Hertz, from the sensor or from the line with a star in the table of states."""
    value = tree.number(exact)
    if value is None:
        current = _CURRENT_CLOCK.search(tree.text(table) or "")
        value = int(current[1]) * _MHZ if current else None
    return value if value is not None and value <= _MAX_CLOCK else None


def _watts(tree: Tree, *paths: str) -> float | None:
    """The first of the files that tells; they are in microwatts."""
    for path in paths:
        value = tree.number(path)
        if value is not None and value <= _MAX_WATTS * 1e6:
            return value / 1e6
    return None


def _temperatures(tree: Tree, hwmon: str) -> dict[str, float]:
    """By label; chips before Vega have one sensor without a label, at the edge of the die."""
    found = {}
    for number, usual in ((1, "edge"), (2, "junction"), (3, "mem")):
        label = tree.text(f"{hwmon}/temp{number}_label") or usual
        value = _celsius(tree.text(f"{hwmon}/temp{number}_input"))
        if value is not None:
            found[label] = value
    return found


def _celsius(text: str | None) -> float | None:
    """From thousandths; a machine may stand in the cold."""
    value = decimal((text or "").removeprefix("-"))
    if text is None or value is None:
        return None
    celsius = (-value if text.startswith("-") else value) / 1000
    return celsius if _MIN_CELSIUS <= celsius <= _MAX_CELSIUS else None
