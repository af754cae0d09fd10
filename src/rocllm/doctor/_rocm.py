"""ROCm user spaces on a machine: where they are and which versions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from rocllm.devices._sysfs import Tree
from rocllm.doctor.types import RocmInstall

# AMD's packages put one version into /opt/rocm-<version> with a link /opt/rocm; from 7.14 on
# versions are side by side in /opt/rocm/core-<version>.
_FOLDER = re.compile(r"(?:rocm|core)-(\d+(?:\.\d+)*)")
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_BELOW_OPT = ("opt", "opt/rocm")
_DISTRIBUTION = ("usr/lib/x86_64-linux-gnu", "usr/lib64")
_LIBRARY = "libamdhip64.so."


def find_installs(tree: Tree, environ: Mapping[str, str]) -> tuple[RocmInstall, ...]:
    """What is there, each once however many links lead to it; the variables' choice comes first."""
    found: dict[str, RocmInstall] = {}
    for folder in _folders(tree, environ):
        for libraries in (f"{folder}/lib", f"{folder}/lib64"):
            _add(found, tree, libraries, _version(tree, folder))
    for libraries in _DISTRIBUTION:
        _add(found, tree, libraries, None)
    return tuple(found.values())


def _folders(tree: Tree, environ: Mapping[str, str]) -> Iterator[str]:
    for variable in ("ROCM_PATH", "HIP_PATH"):
        if environ.get(variable):
            yield environ[variable].strip("/")
    yield "opt/rocm"
    for parent in _BELOW_OPT:
        yield from (f"{parent}/{name}" for name in tree.names(parent) if _FOLDER.fullmatch(name))


def _add(found: dict[str, RocmInstall], tree: Tree, libraries: str, version: str | None) -> None:
    if any(name.startswith(_LIBRARY) for name in tree.names(libraries)):
        found.setdefault(
            os.path.realpath(tree.path(libraries)), RocmInstall(version, f"/{libraries}")
        )


def _version(tree: Tree, folder: str) -> str | None:
    written = _VERSION.match(tree.text(f"{folder}/.info/version") or "")
    if written is not None:
        return written[0]
    named = _FOLDER.fullmatch(os.path.basename(os.path.realpath(tree.path(folder))))
    return named[1] if named is not None else None
