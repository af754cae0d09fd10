"""What hardware is there, which GPU to use, and how to make a child see no other."""

from rocllm.devices._access import Access, AccessCheck
from rocllm.devices._sysfs import Reader
from rocllm.devices.choose import Choice, child_environment, choose_devices
from rocllm.devices.discover import discover_devices
from rocllm.devices.types import Device, Machine, OtherCard, Problem

__all__ = [
    "Access",
    "AccessCheck",
    "Choice",
    "Device",
    "Machine",
    "OtherCard",
    "Problem",
    "Reader",
    "child_environment",
    "choose_devices",
    "discover_devices",
]
