"""Name the check that explains why a model could not be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from rocllm.devices import Choice, Machine, choose_devices
from rocllm.doctor._engine_files import failed_program, read_engine_files
from rocllm.doctor.checks import CHECKS, run_checks
from rocllm.doctor.types import EngineFiles, Facts, Finding, State
from rocllm.errors import (
    DeviceError,
    OffloadFailed,
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    StartFailed,
)
from rocllm.server import ServerBinary

_CHEAP = tuple(check for check in CHECKS if check.cheap)
_NO_DEVICE = ("wsl", "pci", "driver", "kfd", "hidden-gpus", "kfd-device", "masks")
_NO_CODE = ("libraries", "gpu-code", "rocblas", "override")
# The checks that may explain an error, likeliest first.
_CAUSES: tuple[tuple[type[RocllmError], tuple[str, ...]], ...] = (
    (DeviceError, _NO_DEVICE),
    (OffloadFailed, (*_NO_CODE, *_NO_DEVICE)),
    (OutOfMemory, ("gpu-memory",)),
    (StartFailed, _NO_CODE),
    (ServerCrashed, _NO_CODE),
)
# A server that ends for another reason, such as a broken file, has nothing to do with the checks.
_ABOUT_GPU = re.compile(r"ROCm|rocBLAS|\bHIP|libhip|amdhip|GPU|shared librar|undefined symbol")


# What is worth a word although the model was loaded. Not that there are cards that are not used, or
# hidden ones, or that the CPU is used: that may be as it should be, and would be said every time.
_AT_LAUNCH: Mapping[str, tuple[State, ...]] = {
    "masks": ("warn", "fail"),
    "override": ("warn",),
    "gpu-memory": ("warn",),
    "libraries": ("fail",),
    "gpu-code": ("fail",),
    "rocblas": ("warn", "fail"),
}


def launch_warnings(
    machine: Machine,
    choice: Choice,
    environ: Mapping[str, str],
    binary: ServerBinary | None = None,
) -> tuple[str, ...]:
    """What is wrong with the GPU that was chosen though a model runs on it, a sentence each.

    machine, choice: what discovery found and what of it is used. environ: the user's. binary: the
    llama-server that runs; the heads of its files are read, which takes milliseconds. `None`: it
    is another engine, whose files are not looked at.

    Nothing is said where the CPU is used, nor on a machine on which all is well.

    >>> launch_warnings(machine, choice, os.environ, binary)  # doctest: +SKIP
    ('HSA_OVERRIDE_GFX_VERSION=11.0.0 makes ROCm take gfx1101 for another chip: unset it …',)
    """
    if not choice.devices:
        return ()
    files = None if binary is None else read_engine_files(binary.path, environ)
    return tuple(
        f"{one.evidence}" + (f": {remedy}" if (remedy := _remedy(one)) else "")
        for one in cheap_findings(machine, environ, files, choice)
        if one.state in _AT_LAUNCH.get(one.id, ())
    )


def cheap_findings(
    machine: Machine,
    environ: Mapping[str, str],
    engine_files: EngineFiles | None = None,
    choice: Choice | None = None,
) -> tuple[Finding, ...]:
    """What stands in the way, as far as discovery tells: only checks that warn or fail. Pure.

    engine_files: of the llama-server, when they have been read. choice: what is used; `None`: what
    would be.

    >>> [found.id for found in cheap_findings(Machine(), {"HSA_OVERRIDE_GFX_VERSION": "11.0.0"})]
    ['override']
    """
    facts = Facts(
        machine=machine,
        choice=choose_devices(machine) if choice is None else choice,
        environ=environ,
        engine_files=engine_files,
    )
    return tuple(one for one in run_checks(facts, _CHEAP) if one.state in ("warn", "fail"))


def explain_failure(error: RocllmError, findings: Iterable[Finding]) -> Finding | None:
    """The finding that explains `error`; `None`: none of them does. Pure."""
    causes = next((ids for kind, ids in _CAUSES if isinstance(error, kind)), ())
    by_chance = isinstance(error, (StartFailed, ServerCrashed))
    output = "\n".join(getattr(error, "output", ()))
    if by_chance and not _ABOUT_GPU.search(f"{error}\n{output}"):
        return None
    found = {one.id: one for one in findings}
    possible = [found[cause] for cause in causes if cause in found]
    failed = [one for one in possible if one.state == "fail"]
    return next(iter(failed or possible), None)


def name_cause(
    error: RocllmError,
    machine: Machine,
    environ: Mapping[str, str],
    binary: ServerBinary | None = None,
) -> None:
    """Add to `error` what explains it, if a check does: for a backend that gives up loading.

    environ: of the child. binary: the llama-server, whose files are read; `None`: the one that the
        error names, if any.
    """
    path = failed_program(error) if binary is None else binary.path
    files = None if path is None else read_engine_files(path, environ)
    cause = explain_failure(error, cheap_findings(machine, environ, files))
    if cause is None:
        return
    told = f"`rocllm doctor`, check {cause.id}: {cause.evidence}"
    error.why = f"{error.why}\n{told}" if error.why else told
    error.remedy = _remedy(cause) or error.remedy


def _remedy(found: Finding) -> str:
    return ": ".join(part for part in (found.remedy, found.command) if part)
