"""Models without weights, read back from files as a user's are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

from rocllm.gguf import ModelInfo, read_model_info
from rocllm.testing.model_shapes import Mix, ModelShape, q4_k_m
from rocllm.testing.model_zoo import real_model, small_models

Real: TypeAlias = Callable[..., ModelInfo]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """`real(name, mix)`: what the file of a real model says about itself."""
    folder = tmp_path_factory.mktemp("real")

    @cache
    def read(name: str, mix: Mix = q4_k_m) -> ModelInfo:
        return read_model_info(real_model(name, mix).write(folder / "model.gguf"))

    return read


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`small(architecture)`: the path of a small model that llama-server loads."""
    folder = tmp_path_factory.mktemp("small")
    models: dict[str, ModelShape] = small_models()

    @cache
    def write(architecture: str) -> Path:
        return models[architecture].write(folder / f"{architecture}.gguf")

    return write
