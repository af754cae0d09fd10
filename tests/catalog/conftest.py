"""Model files for the tests of the catalogue: real ones, but small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from rocllm.testing.gguf_writer import Tensor, write_gguf
from rocllm.testing.tiny_models import tiny_llama

WriteModel: TypeAlias = Callable[..., Path]

# General.file_type in llama.cpp (enum llama_ftype).
_FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}


@pytest.fixture(scope="session")
def write_model() -> WriteModel:
    """Write a small model to a path; `quantization` is what its metadata says."""

    def write(path: Path, quantization: str = "Q4_0", n_layers: int = 1, **more: Any) -> Path:
        metadata, tensors = tiny_llama(n_layers=n_layers)
        metadata |= {"general.file_type": _FILE_TYPES[quantization]} | more
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_gguf(path, metadata, tensors)

    return write


@pytest.fixture(scope="session")
def write_other() -> WriteModel:
    """Write what stands beside a model: `kind` is `mmproj` or `adapter`."""

    def write(path: Path, kind: str, architecture: str = "llama") -> Path:
        metadata = {"general.type": kind, "general.architecture": architecture}
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_gguf(path, metadata, [Tensor("t", (32,))])

    return write


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment of its own: a home, and no store of a system service."""
    return {"HOME": str(tmp_path / "home"), "OLLAMA_MODELS": str(tmp_path / "ollama")}
