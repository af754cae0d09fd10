"""A real server to talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import rocllm
from rocllm.endpoint import Endpoint


@pytest.fixture(scope="session")
def server(demo_model: Path) -> Iterator[Endpoint]:
    """A real llama.cpp server with the demo model and two slots."""
    with rocllm.load_model(demo_model, device="cpu", threads=1, parallel=2, ctx_size=512) as model:
        assert model.info.endpoint is not None
        yield model.info.endpoint
