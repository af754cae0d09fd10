"""A loaded demo model, on the engine that a user of this environment would get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import rocllm


@pytest.fixture(scope="module")
def model(demo_model: Path) -> Iterator[rocllm.TextModel]:
    """The demo model with three slots, shared by the tests of a file."""
    with rocllm.load_model(demo_model, parallel=3, ctx_size=1024) as loaded:
        yield loaded
