"""What of the user's environment a child is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rocllm.server.environment import scrub_environment


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "LANG", "LC_NUMERIC", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("XDG_CACHE_HOME", "XDG_DATA_DIRS", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"),
        *("ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "HSA_ENABLE_SDMA", "HIP_PATH"),
        *("AMD_LOG_LEVEL", "GPU_MAX_HW_QUEUES", "ROCBLAS_TENSILE_LIBPATH", "ROCM_PATH"),
        *("HIPBLASLT_TENSILE_LIBPATH", "NCCL_DEBUG", "VK_ICD_FILENAMES", "RADV_PERFTEST"),
        *("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "GGML_VK_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
        *("PYTHONPATH", "ROCLLM_ANYTHING"),
    ],
)
def test_what_it_needs_is_passed(name: str) -> None:
    """What the loader, ROCm, Vulkan, ggml, OpenMP and the embedded engine's Python read."""
    assert scrub_environment({name: "value"}, "/dev/null")[name].split(":")[-1] == "value"


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("OPENAI_API_KEY", "GITHUB_TOKEN", "DATABASE_URL", "SSH_AUTH_SOCK", "GPG_AGENT_INFO"),
        *("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "DBUS_SESSION_BUS_ADDRESS"),
        *("AMD_API_KEY", "AMD_ACCESS_TOKEN", "ROCM_PASSWORD", "HIP_secret", "GPU_APIKEY"),
        *("LLAMA_ARG_CTX_SIZE", "LLAMA_API_KEY", "LLAMA_SERVER_ROUTER_PORT", "LLAMA_CACHE"),
        *("MTMD_BACKEND_DEVICE", "BASH_ENV", "ENV", "path", "PATHS", "ANYTHING"),
    ],
)
def test_what_it_does_not_need_is_not(name: str) -> None:
    """Secrets, what would change llama-server silently, and whatever nobody thought of."""
    assert name not in scrub_environment({name: "value"}, "/dev/null")


def test_the_configuration_is_ours() -> None:
    """The user's would change the server; his environment is not changed."""
    environ = {"XDG_CONFIG_HOME": "/home/u/.config", "PATH": "/bin"}
    before = dict(environ)
    assert scrub_environment(environ, "/run/x/config")["XDG_CONFIG_HOME"] == "/run/x/config"
    assert environ == before


def test_a_debugger_that_llama_cpp_calls_does_nothing() -> None:
    """Its backtrace would take seconds, and push the reason out of the last lines."""
    child = scrub_environment(os.environ, "/dev/null")
    called = ("gdb", "--batch", "-ex", "set style enabled on", "-ex", "attach 1")
    done = subprocess.run(called, env=child, capture_output=True, text=True, check=True, timeout=20)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_debugger_that_somebody_else_calls_is_the_real_one(tmp_path: Path) -> None:
    """A wrapper script may run the server under it."""
    gdb = tmp_path / "gdb"
    gdb.write_text('#!/bin/sh\necho "gdb $*"\n')
    gdb.chmod(0o700)
    child = scrub_environment({"PATH": f"{tmp_path}:{os.environ['PATH']}"}, "/dev/null")
    called = ("gdb", "--args", "llama-server", "--model", "a b")
    done = subprocess.run(called, env=child, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "gdb --args llama-server --model a b\n"
