"""ROCm user spaces on a machine: where they are and which versions."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping

from rocllm.devices._sysfs import Tree
from rocllm.doctor.types import RocmInstall

# AMD's packages put one version into /opt/rocm-<version> with a link /opt/rocm; from 7.14 on
# versions are side by side in /opt/rocm/core-<version>.
_FOLDER = re.compile(r"(?:rocm|core)-(\d+(?:\.\d+)*)")
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_BELOW_OPT = ("opt", "opt/rocm")
_DISTRIBUTION = ("usr/lib/x86_64-linux-gnu", "usr/lib64")
# Fedora keeps rocBLAS apart for each family of chips: /usr/lib64/rocm/gfx11/lib.
_FAMILIES = "usr/lib64/rocm"
_RUNTIME = "libamdhip64.so."
_LIBRARY = re.compile(r"lib(?:amdhip64|rocblas|hipblas|hipblaslt)\.so\.\d+.*")
# AMD's wheels: the runtime is in one package, rocBLAS in another, which has a suffix where it is
# for one family of chips (`_rocm_sdk_libraries_gfx110X_dgpu`).
_WHEEL = re.compile(r"_?rocm_sdk_(?:core|libraries\w*)")
_WHEEL_VERSION = re.compile(r"rocm_sdk_core-([^-]+)\.dist-info")
_SITES = ("site-packages", "dist-packages")
_PYTHON = re.compile(r"python3(?:\.\d+t?)?")
_PREFIXES = ("usr", "usr/local")
_ENVIRONMENTS = ("VIRTUAL_ENV", "CONDA_PREFIX")


def find_installs(
    tree: Tree, environ: Mapping[str, str], engine: str | None = None
) -> tuple[RocmInstall, ...]:
    """What is there, each once however many links lead to it; the variables' choice comes first.

    engine: path of the llama-server, whose Python environment is looked into, too.
    """
    found: dict[str, RocmInstall] = {}
    for folder in _folders(tree, environ):
        for libraries in (f"{folder}/lib", f"{folder}/lib64"):
            _add(found, tree, (libraries,), _version(tree, folder))
    for libraries in _DISTRIBUTION:
        _add(found, tree, (libraries,), None)
    for family in tree.names(_FAMILIES):
        for libraries in (f"{_FAMILIES}/{family}/lib", f"{_FAMILIES}/{family}/lib64"):
            _add(found, tree, (libraries,), _version(tree, f"{_FAMILIES}/{family}"), part=True)
    for site in dict.fromkeys(_sites(tree, environ, engine)):
        names = tree.names(site)
        wheels = [f"{site}/{name}/lib" for name in names if _WHEEL.fullmatch(name)]
        versions = [match[1] for name in names if (match := _WHEEL_VERSION.fullmatch(name))]
        _add(found, tree, tuple(wheels), versions[0] if versions else None)
    return tuple(found.values())


def _folders(tree: Tree, environ: Mapping[str, str]) -> Iterator[str]:
    yield from (folder for folder in _named(environ) if not _site_around(folder))
    yield "opt/rocm"
    for parent in _BELOW_OPT:
        yield from (f"{parent}/{name}" for name in tree.names(parent) if _FOLDER.fullmatch(name))


def _named(environ: Mapping[str, str]) -> list[str]:
    named = (environ.get(variable, "") for variable in ("ROCM_PATH", "HIP_PATH"))
    return [path.strip("/") for path in named if path.strip("/")]


def _sites(tree: Tree, environ: Mapping[str, str], engine: str | None) -> Iterator[str]:
    """Folders of Python packages: that of a variable, of the engine, this program, the system."""
    yield from (site for path in _named(environ) for site in _site_around(path))
    if engine is not None:
        for path in (engine, os.path.realpath(engine)):
            yield from _site_around(path)
            yield from _sites_of(tree, os.path.dirname(os.path.dirname(path)))
    yield from (site for name in _ENVIRONMENTS for site in _sites_of(tree, environ.get(name, "")))
    if os.path.realpath(tree.root) == "/":
        yield from (path.strip("/") for path in sys.path if os.path.basename(path) in _SITES)
    for prefix in _PREFIXES:
        yield from _sites_of(tree, prefix)


def _site_around(path: str) -> list[str]:
    """`.../site-packages` of a file of a package in it."""
    parts = path.strip("/").split("/")
    return ["/".join(parts[: index + 1]) for index, part in enumerate(parts) if part in _SITES]


def _sites_of(tree: Tree, prefix: str) -> Iterator[str]:
    prefix = prefix.strip("/")
    for lib in (f"{prefix}/lib", f"{prefix}/lib64") if prefix else ():
        pythons = (name for name in tree.names(lib) if _PYTHON.fullmatch(name))
        yield from (f"{lib}/{python}/{site}" for python in pythons for site in _SITES)


def _add(
    found: dict[str, RocmInstall],
    tree: Tree,
    folders: tuple[str, ...],
    version: str | None,
    *,
    part: bool = False,
) -> None:
    """Those of the folders that hold ROCm's libraries, if one of them has the runtime.

    part: the runtime is elsewhere, where the loader looks anyway.
    """
    names = {folder: tree.names(folder) for folder in folders}
    held = [one for one in folders if any(_LIBRARY.fullmatch(name) for name in names[one])]
    runtime = [one for one in held if any(name.startswith(_RUNTIME) for name in names[one])]
    if not (runtime or (part and held)):
        return
    # The runtime first: what the others need of it is then of the same version.
    ordered = sorted(held, key=lambda one: one not in runtime)
    real = os.path.realpath(tree.path(ordered[0]))
    found.setdefault(real, RocmInstall(version, tuple(f"/{folder}" for folder in ordered)))


def _version(tree: Tree, folder: str) -> str | None:
    written = _VERSION.match(tree.text(f"{folder}/.info/version") or "")
    if written is not None:
        return written[0]
    named = _FOLDER.fullmatch(os.path.basename(os.path.realpath(tree.path(folder))))
    return named[1] if named is not None else None
