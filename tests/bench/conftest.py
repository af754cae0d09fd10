"""A history of its own for every test, and a model that only a fake server can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.tiny_models import tiny_llama


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept: empty at first."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "state"


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A model of a few kilobytes with a context of 512 tokens."""
    metadata, tensors = tiny_llama()
    return write_gguf(tmp_path / "tiny.gguf", metadata, tensors, data="hole")
