"""A draft model and a projector: what they take, where, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from rocllm.errors import (
    DoesNotFit,
    InvalidGGUF,
    ModelNotFound,
    OptionsError,
    UnsupportedArchitecture,
)
from rocllm.gguf import ModelInfo, read_gguf
from rocllm.memory import (
    Companions,
    GpuMemory,
    HostMemory,
    Memory,
    Part,
    Settings,
    estimate_parts,
    needed_in,
    plan_memory,
    read_companions,
    shape_of,
)
from rocllm.memory.companions import draft_settings, projector_of
from rocllm.options import LoadOptions
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.tiny_models import tiny_llama, tiny_mmproj, tiny_vocabulary

Real: TypeAlias = Callable[..., ModelInfo]

MIB, GIB = 2**20, 2**30
HOST = HostMemory(32 * GIB, 28 * GIB)


def card(size: float) -> Memory:
    """A machine with one GPU of so many GiB."""
    free = int(size * GIB)
    return Memory((GpuMemory("card", "gfx1100", free, free),), HOST)


@pytest.fixture
def pair(real: Real) -> tuple[ModelInfo, Companions]:
    """A model with a draft model of its family."""
    return real("Qwen3-8B"), Companions(draft=shape_of(real("Qwen3-0.6B")), files=("draft",))


def parts_of(parts: tuple[Part, ...], of: str) -> dict[tuple[int | None, str], int]:
    """Sizes by place and kind, of the model, the draft or the projector."""
    return {(part.gpu, part.kind): part.size for part in parts if part.of == of}


def test_a_draft_is_planned_as_a_model(pair: tuple[ModelInfo, Companions]) -> None:
    """With the context and the slots of the target, an f16 cache, and one output for each slot."""
    info, companions = pair
    assert companions.draft is not None
    settings = Settings(
        ctx_size=8192,
        parallel=2,
        n_gpu_layers=-1,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        draft_n_max=3,
        n_gpu_layers_draft=-1,
    )
    parts = estimate_parts(shape_of(info), settings, 1, companions)
    alone = Settings(ctx_size=8192, parallel=2, n_gpu_layers=-1)
    expected = estimate_parts(companions.draft, alone, 1)

    assert parts_of(parts, "draft") == {
        key: size for key, size in parts_of(expected, "model").items() if key[1] != "runtime"
    }
    assert sum(part.kind == "runtime" for part in parts) == 2  # one process, whatever it loads


def test_guesses_are_outputs(pair: tuple[ModelInfo, Companions]) -> None:
    """A token of each slot and three guesses are checked at once."""
    settings = Settings(ctx_size=4096, parallel=4)
    assert settings.outputs == 4
    assert replace(settings, draft_n_max=3).outputs == 16
    assert replace(settings, draft_n_max=3, batch_size=8).outputs == 8


def test_a_draft_is_dealt_out_as_the_model(pair: tuple[ModelInfo, Companions]) -> None:
    """Over several GPUs in the same proportion, which llama.cpp takes over."""
    draft = pair[1].draft
    assert draft is not None
    settings = Settings(ctx_size=4096, n_gpu_layers=-1, n_gpu_layers_draft=-1, split=(28, 9))
    assert draft_settings(settings, draft).split == (22, 7)
    fewer = replace(settings, n_gpu_layers_draft=4)
    assert draft_settings(fewer, draft).split == (4, 0)


def test_the_plan_makes_room_for_both(pair: tuple[ModelInfo, Companions]) -> None:
    """Beside a draft model the context is shorter; without a GPU the draft is on the host, too."""
    info, companions = pair
    alone = plan_memory(info, card(10), LoadOptions())
    both = plan_memory(info, card(10), LoadOptions(), companions=companions)

    assert both.ctx_size < alone.ctx_size
    assert needed_in(both.parts, 0) <= 10 * GIB - 256 * MIB
    assert (both.settings.draft_n_max, both.settings.n_gpu_layers_draft) == (3, -1)
    assert both.settings.companions == ("draft",)

    on_cpu = plan_memory(info, Memory((), HOST), LoadOptions(), companions=companions)
    assert on_cpu.settings.n_gpu_layers_draft == 0
    assert {gpu for gpu, _ in parts_of(on_cpu.parts, "draft")} == {None}


def test_layers_of_the_draft_stay_fixed(pair: tuple[ModelInfo, Companions]) -> None:
    """Those that were asked for, and none without a GPU."""
    info, companions = pair
    options = LoadOptions(model_draft="d.gguf", n_gpu_layers_draft=5)
    planned = plan_memory(info, card(16), options, companions=companions)
    assert planned.settings.n_gpu_layers_draft == 5
    assert (None, "KV cache") in parts_of(planned.parts, "draft")

    with pytest.raises(OptionsError, match="n_gpu_layers_draft=5, but no GPU is used"):
        plan_memory(info, Memory((), HOST), options, companions=companions)
    with pytest.raises(OptionsError, match="without a draft model"):
        LoadOptions(n_gpu_layers_draft=5)


def test_a_draft_on_two_gpus(pair: tuple[ModelInfo, Companions]) -> None:
    """Also where the context is shorter than the model's own, and where only the draft is there."""
    info, companions = pair
    memory = card(7)
    memory = Memory((*memory.gpus, replace(memory.gpus[0], label="second")), memory.host)
    plan = plan_memory(info, memory, LoadOptions(), companions=companions)
    assert plan.ctx_size < info.context_length
    only = LoadOptions(n_gpu_layers=0, ctx_size=4096)
    parts = plan_memory(info, memory, only, companions=companions).parts
    assert {part.gpu for part in parts if part.of == "draft"} == {None, 0, 1}


def test_to_do_without_is_the_nearest_way_out(
    real: Real, pair: tuple[ModelInfo, Companions], tmp_path: Path
) -> None:
    """The answers are the same without a draft model."""
    info, companions = pair
    fixed = LoadOptions(ctx_size=16384, n_gpu_layers=-1)
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(info, card(9), fixed, companions=companions)
    assert caught.value.would_fit[0] == "without --model-draft (model_draft=None)"

    projector = projector_of(read_gguf(write_mmproj(tmp_path, n_layers=27, **GEMMA)))
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(info, card(8.3), fixed, companions=Companions(projector=projector))
    assert caught.value.would_fit[0] == "without --mmproj (mmproj=None)"


def test_a_short_draft_is_said(real: Real, pair: tuple[ModelInfo, Companions]) -> None:
    """It guesses badly where it was not trained."""
    info, companions = pair
    assert companions.draft is not None
    short = replace(companions.draft, info=replace(companions.draft.info, context_length=2048))
    planned = plan_memory(info, card(16), LoadOptions(), companions=Companions(draft=short))
    assert any("trained for 2048 tokens" in remark for remark in planned.remarks)
    planned = plan_memory(info, card(16), LoadOptions(), companions=companions)
    assert not any("was trained for" in remark for remark in planned.remarks)


def write_mmproj(folder: Path, kind: str = "gemma3", **sizes: Any) -> Path:
    """A projector without weights."""
    return write_gguf(folder / f"mmproj-{kind}.gguf", *tiny_mmproj(kind, **sizes))


GEMMA = {"image_size": 896, "n_embd": 1152, "n_head": 16, "n_ff": 4304, "n_embd_text": 576}
SMOL = {"image_size": 512, "patch_size": 16, "n_embd": 768, "n_head": 12, "n_ff": 3072}
# What llama-server b11549 prints for projectors of these sizes, in MiB: `model size`, `compute
# buffer size` with flash attention and without.
PROJECTORS = [
    ("gemma3", {**GEMMA, "n_layers": 2}, 78.77, 121.25, 1132.00),
    ("gemma3", {**GEMMA, "n_layers": 2, "image_size": 448}, 65.27, 30.31, 91.00),
    ("idefics3", {**SMOL, "n_layers": 2, "n_embd_text": 576}, 44.71, 21.00, 60.00),
]


@pytest.mark.parametrize(("kind", "sizes", "weights", "compute", "without"), PROJECTORS)
def test_projectors_agree_with_the_server(
    tmp_path: Path,
    kind: str,
    sizes: dict[str, int],
    weights: float,
    compute: float,
    without: float,
) -> None:
    """Weights are exact, the compute buffer is within 10 %."""
    projector = projector_of(read_gguf(write_mmproj(tmp_path, kind, **sizes)))

    assert projector.checked
    assert projector.weights / MIB == pytest.approx(weights, abs=0.005)
    found = projector.compute_size(flash_attn=True)
    assert found / MIB == pytest.approx(compute, rel=0.01)
    found = projector.compute_size(flash_attn=False)
    assert found / MIB == pytest.approx(without, rel=0.1001)


def test_a_projector_is_on_the_first_gpu(real: Real, tmp_path: Path) -> None:
    """Both its parts, and what the layers are split by knows of it."""
    projector = projector_of(read_gguf(write_mmproj(tmp_path, n_layers=27, **GEMMA)))
    info = real("Gemma-3-12B")
    two = Memory((*card(8).gpus, *card(8).gpus), HOST)
    planned = plan_memory(info, two, LoadOptions(), companions=Companions(projector=projector))

    size = projector.compute_size(flash_attn=True)
    assert parts_of(planned.parts, "projector") == {
        (0, "weights"): projector.weights,
        (0, "compute"): size,
        (None, "compute"): 896 * 896 * 3 * 4,
    }
    alone = plan_memory(info, two, LoadOptions())
    assert planned.settings.split[0] < alone.settings.split[0]

    on_cpu = estimate_parts(
        shape_of(info), Settings(ctx_size=512), 0, Companions(projector=projector)
    )
    assert set(parts_of(on_cpu, "projector")) == {(None, "weights"), (None, "compute")}


def test_what_was_not_checked_is_assumed(tmp_path: Path) -> None:
    """A projector for images of any size: the largest with which llama.cpp begins."""
    path = write_mmproj(tmp_path, "qwen2vl_merger", n_embd=1280, n_ff=3420)
    projector = projector_of(read_gguf(path))
    assert not projector.checked
    assert [one.positions for one in projector.encoders] == [8464]


def write_model(path: Path, **changes: Any) -> Path:
    """A tiny model, with other metadata."""
    metadata, tensors = tiny_llama()
    return write_gguf(path, {**metadata, **changes}, tensors)


def test_a_draft_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """Llama.cpp would load it, say a line in its log, and not use it."""
    model = write_model(tmp_path / "model.gguf")
    read_companions(LoadOptions(model_draft=str(model)), model)

    vocabulary = tiny_vocabulary()
    tokens = vocabulary["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    first = write_model(tmp_path / "1.gguf", **{"tokenizer.ggml.tokens": ["?", *tokens[1:]]})
    read_companions(LoadOptions(model_draft=first), model)  # control tokens may differ

    for name, changed in (
        ("2.gguf", [*tokens[:40], "?", *tokens[41:]]),
        ("3.gguf", [*tokens, *map(str, range(129))]),
    ):
        other = write_model(tmp_path / name, **{"tokenizer.ggml.tokens": changed})
        with pytest.raises(OptionsError, match="another vocabulary than"):
            read_companions(LoadOptions(model_draft=other), model)


def test_files_of_another_kind(tmp_path: Path) -> None:
    """Each is named, with what it is."""
    model, mmproj = write_model(tmp_path / "model.gguf"), write_mmproj(tmp_path)
    (tmp_path / "text.gguf").write_text("no model at all")
    head = write_model(
        tmp_path / "head.gguf",
        **{"general.architecture": "eagle3"},
        **{f"eagle3.{key}": 1 for key in ("block_count", "context_length", "embedding_length")},
    )
    with pytest.raises(OptionsError, match="is no projector"):
        read_companions(LoadOptions(mmproj=model), model)
    with pytest.raises(OptionsError, match="is no model by itself"):
        read_companions(LoadOptions(model_draft=head), model)
    for options, error in (
        (LoadOptions(mmproj=tmp_path / "text.gguf"), InvalidGGUF),
        (LoadOptions(mmproj=tmp_path / "gone.gguf"), ModelNotFound),
        (LoadOptions(model_draft=tmp_path / "gone.gguf"), ModelNotFound),
    ):
        with pytest.raises(error):
            read_companions(options, model)
    with pytest.raises(UnsupportedArchitecture, match="mmproj"):
        read_companions(LoadOptions(model_draft=mmproj), model)


def test_a_changed_companion_is_another(tmp_path: Path) -> None:
    """What was measured with one draft model says nothing of another."""
    model, draft = write_model(tmp_path / "model.gguf"), tmp_path / "draft.gguf"
    options = LoadOptions(model_draft=write_model(draft))
    before = read_companions(options, model).files
    write_model(draft, **{"general.name": "another name"})
    assert read_companions(options, model).files != before
