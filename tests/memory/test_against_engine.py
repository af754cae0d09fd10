"""Predictions against what the real embedded server says it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import rocllm
from rocllm.gguf import read_model_info
from rocllm.memory import (
    Kind,
    Owner,
    Part,
    Settings,
    estimate_parts,
    read_companions,
    read_measurements,
    shape_of,
)
from rocllm.options import LoadOptions
from rocllm.server import find_server
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.measure_memory import actual_parts, load_buffers
from rocllm.testing.tiny_models import tiny_llama, tiny_mmproj

MIB = 2**20
# The log rounds to 0.01 MiB; a windowed model has two caches.
ROUNDING = MIB // 50

EXACT: tuple[Kind, ...] = ("KV cache", "state", "output")

LOADS = [
    ("gemma3", Settings(ctx_size=2048, parallel=2)),
    ("gemma3", Settings(ctx_size=2048, parallel=2, swa_full=True)),
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


def test_companions_are_predicted(tmp_path: Path, demo_model: Path) -> None:
    """A model as its own draft and a projector beside it: as the server says, each by itself."""
    encoder = tiny_mmproj(
        "idefics3",
        image_size=256,
        patch_size=16,
        n_embd=768,
        n_head=12,
        n_ff=3072,
        n_embd_text=576,
    )
    mmproj = write_gguf(tmp_path / "mmproj.gguf", *encoder)
    beside = read_companions(LoadOptions(model_draft=demo_model, mmproj=mmproj), demo_model)
    settings = Settings(ctx_size=1024, parallel=2, draft_n_max=3)
    engine = find_server("embedded", os.environ)
    buffers = load_buffers(
        engine, demo_model, settings, os.environ, mmproj=mmproj, model_draft=demo_model
    )
    actual = sizes_of(actual_parts(buffers, ()))
    predicted = sizes_of(estimate_parts(shape_of(read_model_info(demo_model)), settings, 0, beside))

    assert predicted.keys() == actual.keys()
    for (of, kind), found in actual.items():
        if kind in EXACT or (of, kind) == ("projector", "weights"):
            assert predicted[of, kind] == pytest.approx(found, abs=ROUNDING), (of, kind)
        else:
            assert predicted[of, kind] == pytest.approx(found, rel=0.1), (of, kind)


def test_a_draft_guesses(tmp_path: Path) -> None:
    """It is loaded, used, measured, and changes nothing of what a greedy model says."""
    metadata, tensors = tiny_llama(n_layers=4)
    model = write_gguf(tmp_path / "model.gguf", metadata, tensors, data="random")
    draft = write_gguf(tmp_path / "draft.gguf", *tiny_llama(n_layers=1), data="random")
    with rocllm.load_model(model, device="cpu", threads=1) as loaded:
        alone = loaded.generate("abc", max_tokens=24).read().text
    with rocllm.load_model(model, model_draft=draft, device="cpu", threads=1) as loaded:
        assert loaded.info.warnings == ()
        assert {buffer.of for buffer in loaded.info.buffers} == {"model", "draft"}
        assert loaded.generate("abc", max_tokens=24).read().text == alone

    kept = read_measurements(model, os.environ)
    assert [one.settings.draft_n_max for one in kept] == [0, 3]
    assert ("draft", "KV cache") in sizes_of(kept[1].parts)


def test_a_load_is_measured(demo_model: Path) -> None:
    """After loading, the next plan knows what it took; the context is the one that was planned."""
    with rocllm.load_model(demo_model, device="cpu", ctx_size=768) as model:
        assert model.info.ctx_size == 768
    kept = [one for one in read_measurements(demo_model, os.environ) if one.gpus == ()]

    found = next(one for one in kept if one.settings.ctx_size == 768)
    sizes = {part.kind: part.size for part in found.parts}
    assert sizes["KV cache"] == pytest.approx(30 * 768 * 2 * 192 * 2, abs=ROUNDING)
    assert sizes["compute"] > 10 * MIB


def sizes_of(parts: Iterable[Part]) -> dict[tuple[Owner, Kind], int]:
    """Bytes by owner and kind, without what no buffer shows."""
    sizes: dict[tuple[Owner, Kind], int] = {}
    for part in parts:
        if part.kind != "runtime":
            sizes[part.of, part.kind] = sizes.get((part.of, part.kind), 0) + part.size
    return sizes


def size(parts: tuple[Part, ...], kind: Kind) -> int:
    """Bytes of one kind."""
    return sum(part.size for part in parts if part.kind == kind)
