"""The suite of all backends, on a real vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from rocllm.testing.backend_suite import BackendSuite


class TestVllm(BackendSuite):
    """vLLM for the CPU."""

    backend = "vllm"
    options: ClassVar = {"threads": 1}

    @pytest.fixture(scope="class")
    @classmethod
    def model_path(cls, vllm_model: Path) -> Path:
        return vllm_model
