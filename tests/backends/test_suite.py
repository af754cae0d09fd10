"""The suite of all backends, on each of rocllm's own that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from rocllm.testing.backend_suite import BackendSuite

_NATIVE = Path(
    os.environ.get("ROCM_LLAMA_SERVER_PATH", "~/.cache/rocllm/native/bin/llama-server")
).expanduser()


class _OnDemoModel(BackendSuite):
    @pytest.fixture(scope="class")
    @classmethod
    def model_path(cls, demo_model: Path) -> Path:
        return demo_model


class TestRocmEmbedded(_OnDemoModel):
    """llama-server from the wheel."""

    backend = "rocm"
    options: ClassVar = {"llama_server": "embedded", "threads": 1}


@pytest.mark.skipif(not _NATIVE.exists(), reason="there is no llama-server here")
class TestRocmNative(_OnDemoModel):
    """llama-server as a program of its own."""

    backend = "rocm"
    options: ClassVar = {"llama_server": _NATIVE, "threads": 1}


class TestInProcessWorker(_OnDemoModel):
    """llama.cpp without HTTP, in a worker process."""

    backend = "inprocess"
    options: ClassVar = {"threads": 1}


def test_in_the_calling_process(demo_model: Path) -> None:
    """The suite passes on a model in the calling process, which is another one than this."""
    suite = Path(__file__).with_name("calling_process.py")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite))
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed, 2 skipped" in done.stdout
