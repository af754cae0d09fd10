"""The checks as data, in the order in which a person would look."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rocllm.doctor._check_access import check_kfd_device, check_render_devices
from rocllm.doctor._check_choice import check_choice, check_masks, check_override
from rocllm.doctor._check_engine import check_llama_server, check_server_devices
from rocllm.doctor._check_gpu import (
    check_driver,
    check_gpu_memory,
    check_hidden,
    check_kfd,
    check_pci,
    check_power,
)
from rocllm.doctor._check_rocm import (
    check_gpu_code,
    check_libraries,
    check_rocblas,
    check_rocm,
)
from rocllm.doctor._check_system import (
    check_container,
    check_kernel,
    check_kernel_options,
    check_platform,
    check_wsl,
)
from rocllm.doctor.types import Facts, Finding, Verdict


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the machine.

    id: its name, which stays. group: heading under which it is shown. run: from the facts to the
    answer. cheap: discovery, the environment and llama-server's files suffice.
    """

    id: str
    group: str
    run: Callable[[Facts], Verdict]
    cheap: bool = False


CHECKS: tuple[Check, ...] = (
    Check("platform", "system", check_platform),
    Check("wsl", "system", check_wsl, cheap=True),
    Check("container", "system", check_container),
    Check("kernel", "system", check_kernel),
    Check("kernel-options", "system", check_kernel_options),
    Check("pci", "gpu", check_pci, cheap=True),
    Check("driver", "gpu", check_driver, cheap=True),
    Check("kfd", "gpu", check_kfd, cheap=True),
    Check("hidden-gpus", "gpu", check_hidden, cheap=True),
    Check("power", "gpu", check_power),
    Check("kfd-device", "access", check_kfd_device, cheap=True),
    Check("render-devices", "access", check_render_devices),
    Check("masks", "choice", check_masks, cheap=True),
    Check("override", "choice", check_override, cheap=True),
    Check("choice", "choice", check_choice, cheap=True),
    Check("gpu-memory", "choice", check_gpu_memory, cheap=True),
    Check("rocm", "rocm", check_rocm),
    Check("libraries", "rocm", check_libraries, cheap=True),
    Check("gpu-code", "rocm", check_gpu_code, cheap=True),
    Check("rocblas", "rocm", check_rocblas, cheap=True),
    Check("llama-server", "llama-server", check_llama_server),
    Check("server-devices", "llama-server", check_server_devices),
)


def run_checks(facts: Facts, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    """What the checks say, in their order. Pure: all that is read or asked is in `facts`."""
    return tuple(finding(check.id, check.group, check.run(facts)) for check in checks)


def finding(check_id: str, group: str, verdict: Verdict) -> Finding:
    """The verdict with the name of its check."""
    fields = {field.name: getattr(verdict, field.name) for field in dataclasses.fields(Verdict)}
    return Finding(**fields, id=check_id, group=group)
