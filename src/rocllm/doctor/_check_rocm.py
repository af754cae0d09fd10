"""Checks of the ROCm user space, and of the code that is there for the GPU's chip. Pure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Sequence

from rocllm.devices import Device
from rocllm.doctor._bundles import ANY_CHIP, covers
from rocllm.doctor._check_engine import NOT_HERE
from rocllm.doctor._check_system import NOT_TOLD
from rocllm.doctor._override import chip_for_rocm
from rocllm.doctor.types import (
    EngineFiles,
    Facts,
    GfxTargets,
    Missing,
    Repair,
    RocmInstall,
    Verdict,
    fail,
    ok,
    unknown,
    warn,
)

_ROCM = re.compile(r"lib(?:amdhip64|rocblas|hipblas|hipblaslt|hsa-runtime64|rocsolver)\.so\.\d+")
# The directories of AMD's packages.
_VERSIONED = re.compile(r"/(?:rocm|core)-(\d+(?:\.\d+)*)/")
# Libraries for one family of chips: `/rocm/gfx11/lib`, `_rocm_sdk_libraries_gfx110X_dgpu`.
_FAMILY = re.compile(r"[/_](gfx[0-9a-f]+)")
# Names of ROCm's libraries by its major version (ROCm 6.3.3, 7.2 and 10.0).
_BELONGS = {
    "libamdhip64.so.6": "ROCm 6",
    "librocblas.so.4": "ROCm 6",
    "libhipblas.so.2": "ROCm 6",
    "libamdhip64.so.7": "ROCm 7 or later",
    "librocblas.so.5": "ROCm 7 or later",
    "libhipblas.so.3": "ROCm 7 or later",
}
_OTHER_BUILD = "use a llama-server that is built for it, or one with Vulkan"
_LISTED = 12


def check_rocm(facts: Facts) -> Verdict:
    """ROCm's libraries on the machine, and their versions."""
    if facts.installs is None:
        return unknown(NOT_TOLD)
    files = facts.engine_files
    used = _used(files, facts.installs) if files else {}
    versions = dict.fromkeys(used.values())
    if len(versions) > 1:
        return warn(
            f"llama-server would mix libraries of ROCm {' and '.join(versions)}",
            "leave one ROCm version in LD_LIBRARY_PATH",
        )
    shown = [_shown(install, used, files) for install in facts.installs]
    known = {folder for install in facts.installs for folder in _real(install)}
    shown += [f"{used[folder]}, used" for folder in used if folder not in known][:1]
    if shown:
        return ok("; ".join(shown))
    if files is not None and files.hip is not None:
        return warn("none found, and llama-server is built for it", "install ROCm")
    return ok("none found, and nothing here needs it")


def _shown(install: RocmInstall, used: Collection[str], files: EngineFiles | None) -> str:
    text = f"{install.version or 'version unknown'} ({', '.join(install.libraries)})"
    if files is None or files.hip is None:
        return text
    return f"{text}, {'used' if any(one in used for one in _real(install)) else 'not used'}"


def _real(install: RocmInstall) -> list[str]:
    return [os.path.realpath(folder) for folder in install.libraries]


def _used(files: EngineFiles, installs: Sequence[RocmInstall]) -> dict[str, str]:
    """Folders of the ROCm libraries that llama-server finds, and what to call their version."""
    names = {folder: _name(install) for install in installs for folder in _real(install)}
    found: dict[str, str] = {}
    for library, path in files.libraries.items():
        if _ROCM.fullmatch(library):
            folder = os.path.dirname(os.path.realpath(path))
            version = _VERSIONED.search(f"{folder}/")
            found[folder] = names.get(folder) or (version[1] if version else folder)
    return found


def _name(install: RocmInstall) -> str:
    """A distribution's is one, though it may be in several folders."""
    folder = install.libraries[0]
    return install.version or ("of the distribution" if folder.startswith("/usr/lib") else folder)


def check_libraries(facts: Facts) -> Verdict:
    """Every library that llama-server and its HIP backend need is there."""
    files = facts.engine_files
    if files is None:
        return unknown(_no_files(facts))
    if files.script:
        return unknown(f"{files.path} is a script, so its libraries cannot be told")
    if not files.missing:
        return ok(f"all {len(files.libraries)} found")
    needed = [missing for missing in files.missing if "vulkan" not in missing.needed_by]
    if not needed:
        return warn(f"{_missing(files.missing)}: its Vulkan backend does not work")
    repair = _repair(facts, files)
    if repair is not None and not repair.lacking:
        folders = repair.install.libraries
        searched = "and is not searched" if len(folders) == 1 else "and are not searched"
        has = "has" if len(folders) == 1 else "have"
        version = f" (ROCm {repair.install.version})" if repair.install.version else ""
        return fail(
            f"{_missing(needed)}; {' and '.join(folders)}{version} {has} what is missing "
            f"{searched}",
            "let the loader search there",
            f"export LD_LIBRARY_PATH={shlex.quote(':'.join(folders))}"
            '"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"',
        )
    belongs = next((_BELONGS[one.library] for one in needed if one.library in _BELONGS), None)
    installed = ", ".join(install.version or "?" for install in facts.installs or ())
    here = f"; installed: {installed}" if installed and belongs else ""
    if repair is not None:
        here = (
            f"; with {' and '.join(repair.install.libraries)} in LD_LIBRARY_PATH it would still "
            f"lack {', '.join(repair.lacking[:_LISTED])}"
        )
    return fail(
        f"{_missing(needed)}{here}",
        f"install {belongs} (hip-runtime-amd, rocblas and hipblas of AMD's packages), or use a "
        "llama-server that is built for the ROCm you have"
        if belongs
        else "install the packages that contain them, or use another build of llama-server",
    )


def _missing(missing: Sequence[Missing]) -> str:
    by: dict[str, list[str]] = {}
    for one in missing[:_LISTED]:
        by.setdefault(os.path.basename(one.needed_by), []).append(one.library)
    needs = (f"{needer} needs {', '.join(names)}" for needer, names in by.items())
    return f"{' and '.join(needs)}, not found"


def _repair(facts: Facts, files: EngineFiles) -> Repair | None:
    """The first that is complete, and has kernels for the chip where it is made for some only."""
    chips = _chips(facts)

    def other_chips(repair: Repair) -> int:
        families = [
            match[1] for path in repair.install.libraries if (match := _FAMILY.search(path))
        ]
        fitting = [len(one) for one in families if any(chip.startswith(one) for chip in chips)]
        if families and chips and not fitting:
            return 1
        return -max(fitting, default=0)

    ordered = sorted(files.repairs, key=lambda one: (len(one.lacking), other_chips(one)))
    return next(iter(ordered), None)


def check_gpu_code(facts: Facts) -> Verdict:
    """llama-server was compiled for the chip: HIP has no code that runs on all of them."""
    files = facts.engine_files
    if files is None:
        return unknown(_no_files(facts))
    chips = _chips(facts)
    if files.targets is None or files.hip is None:
        return _without_hip(files, chips)
    name = os.path.basename(files.hip)
    code = f"{name} has code for {_names(files.targets)}"
    if not chips:
        return ok(code)
    answers = {words: covers(files.targets, chip) for chip, words in chips.items()}
    lacking = [words for words, covered in answers.items() if covered is False]
    if lacking:
        return fail(f"{code}, not for {', '.join(lacking)}", _OTHER_BUILD)
    if None in answers.values():
        hidden = "is compressed" if files.targets.hidden else "is of an unknown format"
        return unknown(f"the code in {name} {hidden} and does not tell its chips")
    return ok(f"{code}; the GPU is {', '.join(answers)}")


def _without_hip(files: EngineFiles, chips: Collection[str]) -> Verdict:
    if files.script:
        return unknown(f"{files.path} is a script")
    if files.vulkan:
        return warn(
            "llama-server has no ROCm code; it can use Vulkan",
            "ROCm's masks do not hold for Vulkan, so the choice of the GPU is llama.cpp's",
        )
    if not chips:
        return ok("llama-server has no ROCm code, and there is no GPU for it")
    return fail(
        "llama-server has no ROCm code: it is built for the CPU",
        "use a llama-server that is built with ROCm, and set ROCM_LLAMA_SERVER_PATH to it",
    )


def check_rocblas(facts: Facts) -> Verdict:
    """rocBLAS has kernels for the chip; without them llama-server aborts at a longer prompt."""
    files = facts.engine_files
    if files is None:
        return unknown(_no_files(facts))
    if files.rocblas is None:
        needed = any(one.library.startswith("librocblas") for one in files.missing)
        return unknown("rocBLAS is missing") if needed else ok("llama-server does not use rocBLAS")
    if not files.rocblas_targets:
        return unknown(f"{files.rocblas} does not tell for which chips it has kernels")
    have = f"kernels for {', '.join(sorted(files.rocblas_targets)[:_LISTED])}"
    chips = _chips(facts)
    lacking = [words for chip, words in chips.items() if chip not in files.rocblas_targets]
    if lacking:
        return fail(
            f"{have}, not for {', '.join(lacking)}",
            "use a newer ROCm, your distribution's rocBLAS, or a llama-server with Vulkan",
        )
    return ok(have)


def _chips(facts: Facts) -> dict[str, str]:
    """The chips that matter, and what to call them: of the GPU to be used, else of all there are.

    They are those that ROCm takes the GPUs for.
    """
    devices: Sequence[Device] = facts.choice.devices or [
        device for device in facts.machine.devices if device.kfd_node is not None
    ]
    chips = {}
    for device in devices:
        chip = chip_for_rocm(device, facts.environ)
        if chip is not None:
            taken = chip != device.gfx_target
            own = device.gfx_target or "an unknown chip"
            chips[chip] = f"{own}, which HSA_OVERRIDE_GFX_VERSION makes {chip}" if taken else chip
    return chips


def _names(targets: GfxTargets) -> str:
    if ANY_CHIP in targets.names:
        return "any chip"
    names = sorted(targets.names, key=lambda name: (len(name), name))
    rest = len(names) - _LISTED
    shown = ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
    return shown or "chips that it does not tell"


def _no_files(facts: Facts) -> str:
    return "no llama-server to look at" if facts.here else NOT_HERE
