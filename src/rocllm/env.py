"""Every environment variable that rocllm reads, in one place.

Each function takes the environment as a mapping, so that a test or a bug report can bring its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Masks that ROCm's layers read; set by the user they are a restriction that rocllm honours, and
# they are removed from the child's environment, which gets one mask only (docs/design.md, Pinning).
ROCR_VISIBLE_DEVICES = "ROCR_VISIBLE_DEVICES"
HIP_VISIBLE_DEVICES = "HIP_VISIBLE_DEVICES"
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
GPU_DEVICE_ORDINAL = "GPU_DEVICE_ORDINAL"
GGML_CUDA_DEVICES = "GGML_CUDA_DEVICES"
HSA_OVERRIDE_GFX_VERSION = "HSA_OVERRIDE_GFX_VERSION"

LLAMA_SERVER_PATH = "ROCM_LLAMA_SERVER_PATH"
MODEL_DIR = "ROCM_MODEL_DIR"


def llama_server_path(environ: Mapping[str, str]) -> str | None:
    """`ROCM_LLAMA_SERVER_PATH`: the llama-server to run."""
    return environ.get(LLAMA_SERVER_PATH) or None


def search_path(environ: Mapping[str, str]) -> str:
    """`PATH`, with the system's default when it is unset."""
    return environ.get("PATH", os.defpath)


def model_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """`ROCM_MODEL_DIR`: folders with GGUF files, separated by colons."""
    return tuple(Path(part) for part in environ.get(MODEL_DIR, "").split(os.pathsep) if part)


def home(environ: Mapping[str, str]) -> Path:
    """`HOME`, or the home directory of the password database."""
    return Path(environ["HOME"]) if environ.get("HOME") else Path("~").expanduser()


def data_dir(environ: Mapping[str, str]) -> Path:
    """Where rocllm keeps models: `$XDG_DATA_HOME/rocllm`, by default `~/.local/share/rocllm`."""
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where rocllm keeps what it can make again: `$XDG_CACHE_HOME/rocllm`, or `~/.cache/rocllm`."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def runtime_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where sockets may live, best first: `XDG_RUNTIME_DIR`, `TMPDIR`, `/tmp`."""
    named = (environ.get("XDG_RUNTIME_DIR"), environ.get("TMPDIR"), "/tmp")
    return tuple(Path(path) for path in named if path and os.path.isabs(path))


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    # The specification says that a relative path is to be ignored.
    value = environ.get(variable, "")
    base = Path(value) if os.path.isabs(value) else home(environ) / default
    return base / "rocllm"
