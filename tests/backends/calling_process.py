"""The suite on a model in the calling process. `test_suite.py` runs it in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from rocllm.testing.backend_suite import BackendSuite


class TestInCallingProcess(BackendSuite):
    """llama.cpp without HTTP, and without a process of its own."""

    backend = "inprocess"
    options: ClassVar = {"threads": 1, "worker": False}

    @pytest.fixture(scope="class")
    @classmethod
    def model_path(cls, demo_model: Path) -> Path:
        """The demo model."""
        return demo_model
