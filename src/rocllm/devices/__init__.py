"""What hardware is there, which GPU to use, and how to make a child see no other."""

from rocllm.devices._access import Access, AccessCheck
from rocllm.devices._counters import VramInfo, vram_info
from rocllm.devices._processes import ProcessMemory, process_memory
from rocllm.devices._spill import Spill, find_spill
from rocllm.devices._sysfs import Reader
from rocllm.devices.choose import Choice, child_environment, choose_devices, discrete_gpus
from rocllm.devices.discover import discover_devices
from rocllm.devices.monitoring import (
    DeviceSample,
    Release,
    monitor,
    read_sample,
    wait_memory_released,
)
from rocllm.devices.types import Device, Machine, OtherCard, Problem

__all__ = [
    "Access",
    "AccessCheck",
    "Choice",
    "Device",
    "DeviceSample",
    "Machine",
    "OtherCard",
    "Problem",
    "ProcessMemory",
    "Reader",
    "Release",
    "Spill",
    "VramInfo",
    "child_environment",
    "choose_devices",
    "discover_devices",
    "discrete_gpus",
    "find_spill",
    "monitor",
    "process_memory",
    "read_sample",
    "vram_info",
    "wait_memory_released",
]
