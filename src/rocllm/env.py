"""Every environment variable that rocllm reads, in one place.

Each function takes the environment as a mapping, so that a test or a bug report can bring its own.
"""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from pathlib import Path

from rocllm.errors import OptionsError

# Masks that ROCm's layers read; set by the user they are a restriction that rocllm honours, and
# they are removed from the child's environment, which gets one mask only (docs/design.md, Pinning).
ROCR_VISIBLE_DEVICES = "ROCR_VISIBLE_DEVICES"
HIP_VISIBLE_DEVICES = "HIP_VISIBLE_DEVICES"
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
GPU_DEVICE_ORDINAL = "GPU_DEVICE_ORDINAL"
GGML_CUDA_DEVICES = "GGML_CUDA_DEVICES"
HSA_OVERRIDE_GFX_VERSION = "HSA_OVERRIDE_GFX_VERSION"

LLAMA_SERVER_PATH = "ROCM_LLAMA_SERVER_PATH"
VULKAN_SERVER_PATH = "ROCM_LLAMA_SERVER_VULKAN_PATH"
VLLM_PYTHON = "ROCM_VLLM_PYTHON"
VLLM_ARGS = "ROCM_VLLM_ARGS"
MODEL_DIR = "ROCM_MODEL_DIR"


def llama_server_path(environ: Mapping[str, str]) -> str | None:
    """`ROCM_LLAMA_SERVER_PATH`: the llama-server to run."""
    return environ.get(LLAMA_SERVER_PATH) or None


def vulkan_server_path(environ: Mapping[str, str]) -> str | None:
    """`ROCM_LLAMA_SERVER_VULKAN_PATH`: a Vulkan build, to use when ROCm fails."""
    return environ.get(VULKAN_SERVER_PATH) or None


def vllm_python(environ: Mapping[str, str]) -> str | None:
    """`ROCM_VLLM_PYTHON`: the Python that has vLLM."""
    return environ.get(VLLM_PYTHON) or None


def vllm_args(environ: Mapping[str, str]) -> tuple[str, ...]:
    """`ROCM_VLLM_ARGS`: further arguments of the vLLM server, quoted as in a shell.

    Raises `OptionsError` for a quotation that does not end.
    """
    try:
        return tuple(shlex.split(environ.get(VLLM_ARGS, "")))
    except ValueError as exc:
        raise OptionsError(f"{VLLM_ARGS}={environ[VLLM_ARGS]!r}", why=str(exc)) from exc


def search_path(environ: Mapping[str, str]) -> str:
    """`PATH`, with the system's default when it is unset."""
    return environ.get("PATH", os.defpath)


def model_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """`ROCM_MODEL_DIR`: folders with GGUF files, separated by colons."""
    return tuple(Path(part) for part in environ.get(MODEL_DIR, "").split(os.pathsep) if part)


def home(environ: Mapping[str, str]) -> Path:
    """`HOME`, or the home directory of the password database; `/` for a user who is not in it."""
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        # Not expanduser, which reads the process's own HOME.
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container that was given any number as its user
        return Path("/")


def data_dir(environ: Mapping[str, str]) -> Path:
    """Where rocllm keeps models: `$XDG_DATA_HOME/rocllm`, by default `~/.local/share/rocllm`."""
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Where rocllm keeps what it can make again: `$XDG_CACHE_HOME/rocllm`, or `~/.cache/rocllm`."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def state_dir(environ: Mapping[str, str]) -> Path:
    """Where rocllm keeps what happened: `$XDG_STATE_HOME/rocllm`, or `~/.local/state/rocllm`."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def hub_endpoint(environ: Mapping[str, str]) -> str:
    """`HF_ENDPOINT`: the Hugging Face Hub, or a mirror of it."""
    return (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_offline(environ: Mapping[str, str]) -> bool:
    """`HF_HUB_OFFLINE`: use what is in the cache, and no network."""
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_token(environ: Mapping[str, str]) -> str | None:
    """`HF_TOKEN`: what the user may read on the Hub."""
    return (environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip() or None


def hub_token_path(environ: Mapping[str, str]) -> Path:
    """`HF_TOKEN_PATH`: where `hf auth login` leaves the token, by default `$HF_HOME/token`."""
    return _named_path(environ, "HF_TOKEN_PATH") or _hub_home(environ) / "token"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """`HF_HUB_CACHE`: what was fetched from the Hub, by default `$HF_HOME/hub`."""
    named = _named_path(environ, "HF_HUB_CACHE") or _named_path(environ, "HUGGINGFACE_HUB_CACHE")
    return named or _hub_home(environ) / "hub"


def llama_cache(environ: Mapping[str, str]) -> Path:
    """`LLAMA_CACHE`: what llama.cpp fetched, by default `~/.cache/llama.cpp`."""
    named = _named_path(environ, "LLAMA_CACHE")
    return named or _xdg_base(environ, "XDG_CACHE_HOME", ".cache") / "llama.cpp"


def ollama_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """`OLLAMA_MODELS`, by default the user's own store and those of the system service."""
    named = _named_path(environ, "OLLAMA_MODELS")
    if named is not None:
        return (named,)
    homes = (home(environ), Path("/usr/share/ollama"), Path("/var/lib/ollama"))
    return tuple(folder / ".ollama" / "models" for folder in homes)


def runtime_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where sockets may live, best first: `XDG_RUNTIME_DIR`, `TMPDIR`, `/tmp`."""
    named = (environ.get("XDG_RUNTIME_DIR"), environ.get("TMPDIR"), "/tmp")
    return tuple(Path(path) for path in named if path and os.path.isabs(path))


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    return _xdg_base(environ, variable, default) / "rocllm"


def _xdg_base(environ: Mapping[str, str], variable: str, default: str) -> Path:
    # The specification says that a relative path is to be ignored.
    value = environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else home(environ) / default


def _hub_home(environ: Mapping[str, str]) -> Path:
    named = _named_path(environ, "HF_HOME")
    return named or _xdg_base(environ, "XDG_CACHE_HOME", ".cache") / "huggingface"


def _named_path(environ: Mapping[str, str], variable: str) -> Path | None:
    value = environ.get(variable, "")
    if value == "~" or value.startswith("~/"):
        return home(environ) / value[2:]
    return Path(value) if value else None
