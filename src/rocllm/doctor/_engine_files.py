"""What the files of a llama-server tell without running it."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from rocllm.devices._sysfs import Tree
from rocllm.doctor._bundles import SECTION, read_targets
from rocllm.doctor._libraries import Loader, system_loader
from rocllm.doctor._rocm import find_installs
from rocllm.doctor.types import EngineFiles, GfxTargets, Missing, Repair, RocmInstall
from rocllm.errors import RocllmError, ServerError

# rocBLAS looks there first (its documentation, "Environment variables").
_TENSILE = "ROCBLAS_TENSILE_LIBPATH"
_ROCBLAS = re.compile(r"librocblas\.so\.\d+")
_KERNELS = re.compile(r"TensileLibrary_lazy_(gfx[0-9a-f]+)\.dat")
# Before kernels were loaded lazily (ROCm 5.2) there was one file for all types of numbers.
_OLD_KERNELS = re.compile(r"Kernels\.so-000-(gfx[0-9a-f]+)\S*\.hsaco")


def read_engine_files(path: str, environ: Mapping[str, str]) -> EngineFiles:
    """Libraries that it finds and lacks, and the chips that it and rocBLAS hold code for.

    path: `ServerBinary.path`, a program or a file of the embedded engine's package. environ: of the
        child; `LD_LIBRARY_PATH` matters.

    >>> read_engine_files("/usr/bin/llama-server", os.environ).missing  # doctest: +SKIP
    ()
    """
    loader = system_loader(environ)
    path = os.path.realpath(path)
    programs = _modules(path) if path.endswith(".py") else [path]
    loaded = {program: loader.load(program) for program in programs}
    if not any(loaded.values()):
        return EngineFiles(path=path, script=True)
    plugins = _plugins(path, loader.found)
    for plugin in plugins:
        loader.load(plugin)
    repairs = _repairs([*programs, *plugins], loader.missing, environ, path)
    hip, targets = _gpu_code(loader, [*plugins, *programs, *_ggml(loader.found)])
    rocblas = _kernel_directory(loader.found, environ)
    return EngineFiles(
        path=path,
        libraries=loader.found,
        missing=tuple(loader.missing),
        repairs=repairs,
        hip=hip,
        vulkan=any("vulkan" in name for name in (*loader.found, *plugins)),
        targets=targets,
        rocblas=rocblas,
        rocblas_targets=_kernel_targets(rocblas),
    )


def failed_program(error: RocllmError | None) -> str | None:
    """The program that could not be run, if it is one and the error tells."""
    argv = error.argv if isinstance(error, ServerError) else ()
    return argv[0] if argv and os.path.isfile(argv[0]) else None


def _repairs(
    programs: Sequence[str], missing: Sequence[Missing], environ: Mapping[str, str], path: str
) -> tuple[Repair, ...]:
    """The user spaces with which less is missing, each by itself: two versions do not mix."""
    if not missing:
        return ()
    before = {one.library for one in missing}
    repairs = []
    for install in find_installs(Tree("/"), environ, path):
        loader = system_loader(environ)
        loader.library_path = [*install.libraries, *loader.library_path]
        for program in programs:
            loader.load(program)
        after = tuple(one.library for one in loader.missing if "vulkan" not in one.needed_by)
        if before - set(after):
            repairs.append(Repair(install, after))
    return tuple(sorted(repairs, key=lambda repair: _preference(repair, environ)))


def _preference(repair: Repair, environ: Mapping[str, str]) -> tuple[int, bool, list[int]]:
    """Complete ones first, then the one that the user's variables name, then the newest."""
    install = repair.install
    return len(repair.lacking), not _named(install, environ), [-one for one in _numbers(install)]


def _named(install: RocmInstall, environ: Mapping[str, str]) -> bool:
    """A variable of the user's leads to it."""
    roots = (environ.get(name, "").rstrip("/") for name in ("ROCM_PATH", "HIP_PATH"))
    return any(root and install.libraries[0].startswith(f"{root}/") for root in roots)


def _numbers(install: RocmInstall) -> tuple[int, ...]:
    """Its version to compare; nothing when it is not known."""
    return tuple(map(int, re.findall(r"\d+", install.version or "")[:3]))


def _modules(path: str) -> list[str]:
    """The embedded engine: the extension modules of the package that `path` is in."""
    return sorted(glob.glob(f"{glob.escape(os.path.dirname(path))}/*.so"))


def _plugins(path: str, found: Mapping[str, str]) -> list[str]:
    """ggml's backends for GPUs, which it loads itself: from beside the program, or where ggml is.

    Debian keeps them in a folder below that.
    """
    directories = {os.path.dirname(library): None for library in (path, *_ggml(found))}
    patterns = [
        f"{glob.escape(directory)}/{below}libggml-{kind}*.so"
        for directory in directories
        for below in ("", "ggml/*/")
        for kind in ("hip", "vulkan")
    ]
    return [plugin for pattern in patterns for plugin in sorted(glob.glob(pattern))]


def _ggml(found: Mapping[str, str]) -> list[str]:
    return [library for name, library in found.items() if name.startswith("libggml")]


def _gpu_code(loader: Loader, files: Iterable[str]) -> tuple[str | None, GfxTargets | None]:
    for path in files:
        elf = loader.files.get(path)
        if elf is None or SECTION not in elf.sections:
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return path, read_targets(file, *elf.sections[SECTION])
    return None, None


def _kernel_directory(found: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    library = next((path for name, path in found.items() if _ROCBLAS.fullmatch(name)), None)
    if library is None:
        return None
    named = environ.get(_TENSILE)
    return named or f"{os.path.dirname(os.path.realpath(library))}/rocblas/library"


def _kernel_targets(directory: str | None) -> frozenset[str]:
    try:
        names = os.listdir(directory) if directory is not None else []
    except OSError:
        names = []
    for pattern in (_KERNELS, _OLD_KERNELS):
        targets = frozenset(match[1] for name in names if (match := pattern.fullmatch(name)))
        if targets:
            return targets
    return frozenset()
