"""Predictions against what the real embedded server says it takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import rocllm
from rocllm.gguf import read_model_info
from rocllm.memory import Kind, Part, Settings, estimate_parts, read_measurements, shape_of
from rocllm.server import find_server
from rocllm.testing.measure_memory import actual_parts, load_buffers

MIB = 2**20
# The log rounds to 0.01 MiB; a windowed model has two caches.
ROUNDING = MIB // 50

EXACT: tuple[Kind, ...] = ("KV cache", "state", "output")

LOADS = [
    ("gemma3", Settings(ctx_size=2048, parallel=2)),
    ("qwen3", Settings(ctx_size=4096, cache_type_k="q8_0", cache_type_v="q4_0")),
    ("deepseek2", Settings(ctx_size=2048, flash_attn=False)),
    ("gpt-oss", Settings(ctx_size=1024, parallel=3, ubatch_size=128)),
    ("qwen3next", Settings(ctx_size=4096)),
    ("mamba2", Settings(ctx_size=512, parallel=4)),
]


@pytest.mark.parametrize(("architecture", "settings"), LOADS)
def test_predicted_is_actual(
    small: Callable[[str], Path], architecture: str, settings: Settings
) -> None:
    """Weights within 1 %, cache, state and output exact, compute within 10 %."""
    path = small(architecture)
    engine = find_server("embedded", os.environ)
    actual = actual_parts(load_buffers(engine, path, settings, os.environ), ())
    predicted = estimate_parts(shape_of(read_model_info(path)), settings, 0)

    assert size(predicted, "weights") == pytest.approx(size(actual, "weights"), rel=0.01)
    assert size(predicted, "compute") == pytest.approx(size(actual, "compute"), rel=0.1)
    for kind in EXACT:
        assert size(predicted, kind) == pytest.approx(size(actual, kind), abs=ROUNDING), kind


def test_a_load_is_measured(demo_model: Path) -> None:
    """After loading, the next plan knows what it took; the context is the one that was planned."""
    with rocllm.load_model(demo_model, device="cpu", ctx_size=768) as model:
        assert model.info.ctx_size == 768
    kept = [one for one in read_measurements(demo_model, os.environ) if one.gpus == ()]

    found = next(one for one in kept if one.settings.ctx_size == 768)
    sizes = {part.kind: part.size for part in found.parts}
    assert sizes["KV cache"] == pytest.approx(30 * 768 * 2 * 192 * 2, abs=ROUNDING)
    assert sizes["compute"] > 10 * MIB


def size(parts: tuple[Part, ...], kind: Kind) -> int:
    """Bytes of one kind."""
    return sum(part.size for part in parts if part.kind == kind)
