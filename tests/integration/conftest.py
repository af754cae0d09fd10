"""A loaded demo model, on the engine that a user of this environment would get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.engine import servers

import rocllm
from rocllm import env


@pytest.fixture(scope="module")
def model(demo_model: Path) -> Iterator[rocllm.TextModel]:
    """The demo model with three slots, shared by the tests of a file."""
    with rocllm.load_model(demo_model, parallel=3, ctx_size=1024) as loaded:
        yield loaded


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No server and no directory of one is there that was not there before, and no descriptor."""

    def left() -> set[str]:
        found = {str(path) for path in env.runtime_dirs(os.environ)[0].glob("rocllm-*")}
        return found | {f"{pid} {command}" for pid, command in servers().items()}

    before, descriptors = left(), len(os.listdir("/proc/self/fd"))
    yield
    assert left() <= before
    assert len(os.listdir("/proc/self/fd")) <= descriptors
