"""The suite of all backends, on a real vLLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from rocllm import env
from rocllm.testing.backend_suite import BackendSuite


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("vllm")
@pytest.mark.skipif(not os.environ.get(env.VLLM_PYTHON), reason="needs vLLM: make test-vllm")
class TestVllm(BackendSuite):
    """vLLM for the CPU."""

    backend = "vllm"
    options: ClassVar = {"threads": 1}

    @pytest.fixture(scope="class")
    @classmethod
    def model_path(cls, vllm_model: Path) -> Path:
        return vllm_model
