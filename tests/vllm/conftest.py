"""A real vLLM, where `make test-vllm` has made one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rocllm import env

# The directory of a small model in safetensors format (scripts/make-vllm).
_MODEL = "ROCLLM_TEST_SAFETENSORS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs vLLM goes to one worker, and may take its time to start."""
    for item in items:
        if "vllm_model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("vllm"))
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def vllm_model(_own_home: None) -> Iterator[Path]:
    """A small model in safetensors format, with a vLLM that can run it."""
    model = os.environ.get(_MODEL)
    if not model or not os.environ.get(env.VLLM_PYTHON):
        pytest.skip("needs vLLM: make test-vllm")
    with pytest.MonkeyPatch.context() as patch:
        # Compiling would take longer than everything that these tests generate.
        patch.setenv(env.VLLM_ARGS, "--enforce-eager")
        yield Path(model)
