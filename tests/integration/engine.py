"""Small models on the real engine, and wrappers of the engine that break something."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import rocllm
from rocllm.options import RestartPolicy
from rocllm.testing.gguf_writer import Tensor, Value, write_gguf
from rocllm.testing.tiny_models import tiny_llama

ONCE = RestartPolicy(max_restarts=0)
# How `load` loads, where nothing else is said.
DEFAULTS: dict[str, object] = {"threads": 1, "restart": ONCE, "llama_server": "embedded"}
Change = Callable[[dict[str, Value], list[Tensor]], object]


def tiny(path: Path, change: Change = lambda _metadata, _tensors: None) -> Path:
    """A small model that the real engine loads, unless it is changed."""
    metadata, tensors = tiny_llama()
    change(metadata, tensors)
    return write_gguf(path, metadata, tensors, data="random")


def engine_after(script: str, path: Path) -> Path:
    """The embedded engine, which runs a shell script before it loads its model, `$model`."""
    engine = shlex.join((sys.executable, "-m", "rocllm.server.embedded"))
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = --model ]; then model=$2; {script}; fi\nexec {engine} "$@"\n'
    )
    path.chmod(0o755)
    return path


def load(path: Path, **options: object) -> rocllm.TextModel:
    """Load it on one thread, and leave it at that when it crashes."""
    return rocllm.load_model(path, **{**DEFAULTS, **options})  # type: ignore[arg-type]


def servers() -> dict[int, str]:
    """Process id and command line of the servers that this session has started."""
    found = {}
    mark = f"ROCLLM_TEST_SESSION={os.getpid()}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            command = (folder / "cmdline").read_bytes()
            if b"--model\0" in command and mark in (folder / "environ").read_bytes():
                found[int(folder.name)] = command.replace(b"\0", b" ").decode()
    return found
