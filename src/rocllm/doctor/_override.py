"""Which chip ROCm takes a GPU for, when the user overrides what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rocllm import env
from rocllm.devices import Device

_VERSION = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{1,2})")


def chip_for_rocm(device: Device, environ: Mapping[str, str]) -> str | None:
    """The chip whose code ROCm runs on `device`: its own, unless the environment names another.

    The variable of one node comes before that of all (`topology.c` of libhsakmt, ROCm 6.2); what is
    no version is ignored, as there.

    >>> chip_for_rocm(device, {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"})  # doctest: +SKIP
    'gfx1030'
    """
    everywhere = environ.get(env.HSA_OVERRIDE_GFX_VERSION, "")
    value = environ.get(f"{env.HSA_OVERRIDE_GFX_VERSION}_{device.kfd_node}", everywhere)
    version = _VERSION.fullmatch(value)
    if version is None:
        return device.gfx_target
    major, minor, stepping = map(int, version.groups())
    return f"gfx{major}{minor:x}{stepping:x}"
