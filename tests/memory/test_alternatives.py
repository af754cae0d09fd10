"""What is suggested when a model does not fit: it fits, and can be typed as it stands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rocllm.errors import DoesNotFit
from rocllm.gguf import ModelInfo, read_gguf
from rocllm.memory import GpuMemory, HostMemory, Memory, plan_memory
from rocllm.memory.alternatives import BITS_PER_WEIGHT
from rocllm.memory.companions import NO_COMPANIONS, Companions, projector_of
from rocllm.memory.fit import Request, search
from rocllm.memory.layers import shape_of
from rocllm.memory.measured import Measurement
from rocllm.options import LoadOptions
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.tiny_models import tiny_mmproj
from rocllm.units import parse_size

Real: TypeAlias = Callable[..., ModelInfo]

GIB = 2**30
# To make a failure smaller takes minutes, and the values tell enough.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
CARD = GpuMemory("0000:03:00.0 (Radeon)", "gfx1100", 16 * GIB, 16 * GIB, device="0")
HOST = HostMemory(32 * GIB, 28 * GIB)
MODELS = (
    *("Gemma-3-4B", "Gemma-3-12B", "Gemma-3-27B", "Llama-3.1-8B", "Qwen3-8B", "LFM2-1.2B"),
    *("DeepSeek-V2-Lite", "Qwen3-Next-80B-A3B"),
)


def python_part(way: str) -> tuple[str, dict[str, Any]]:
    """What stands before the options as Python has them, and these."""
    start = re.search(r" \((?=[a-z_]+=)", way)
    if start is None:
        return way, {}
    for end in (one.start() for one in re.finditer(r"\)", way) if one.start() > start.end()):
        try:
            call = ast.parse(f"dict({way[start.end() : end]})", mode="eval").body
        except SyntaxError:
            continue
        assert isinstance(call, ast.Call)
        named = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
        return way[: start.start()], named
    raise AssertionError(way)


def typed_part(words: list[str]) -> dict[str, Any]:
    """The same from the command line."""
    found: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if word == "without":
            found[words.pop(0)[2:].replace("-", "_")] = None
        elif word.startswith("--"):
            name = word[2:].replace("-", "_")
            value = words.pop(0)
            found[name] = (*found.get(name, ()), value)
    return {
        name: value[0] if value is not None and len(value) == 1 else value
        for name, value in found.items()
    }


def changed(request: Request, way: str) -> Request:
    """The request with what `way` says."""
    before, options = python_part(way)
    assert typed_part(shlex.split(before)) == {
        name: value if value is None or isinstance(value, tuple) else str(value)
        for name, value in options.items()
    }
    memory, companions, shape = request.memory, request.companions, request.shape
    for one, kind in (("model_draft", "draft"), ("mmproj", "projector")):
        if one in options:
            companions = replace(companions, **{kind: None})  # type: ignore[arg-type]
    if "device" in options:
        names = options["device"]
        names = (names,) if isinstance(names, str) else names
        known = {gpu.device: gpu for gpu in (*memory.gpus, *memory.others)}
        memory = replace(memory, gpus=tuple(known[name] for name in names if name != "cpu"))
    file = re.search(r"a file of the quantisation (\w+) \(about", before)
    if file is not None:
        ratio = BITS_PER_WEIGHT[file[1]] / (shape.info.bits_per_weight or 0)
        shape = replace(shape, weights=shape.weights.scaled(ratio))
    gpu = re.search(r"GPUs? with (\d+(?:\.\d)? GiB) free", before)
    if gpu is not None:
        free = parse_size(gpu[1])
        gpus = tuple(replace(one, free=free, total=free) for one in memory.gpus)
        memory = replace(memory, gpus=gpus)
    host = re.search(r"machine with (\d+(?:\.\d)? GiB) of free memory", before)
    if host is not None:
        free = parse_size(host[1])
        gpus = tuple(
            replace(one, free=free, total=free) if one.shared else one for one in memory.gpus
        )
        host_memory = HostMemory(max(free, memory.host.total or 0), free)
        memory = replace(memory, gpus=gpus, host=host_memory)
    assert options or file or gpu or host, way
    return Request(shape, memory, replace(request.options, **options), (), companions)


@pytest.fixture(scope="module")
def beside(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Companions:
    """A draft model and a projector."""
    path = tmp_path_factory.mktemp("beside") / "mmproj.gguf"
    sizes = {"image_size": 896, "n_embd": 1152, "n_head": 16, "n_ff": 4304, "n_embd_text": 576}
    write_gguf(path, *tiny_mmproj("gemma3", n_layers=27, **sizes))
    projector = projector_of(read_gguf(path))
    return Companions(shape_of(real("LFM2-1.2B")), projector, ("draft", "projector"))


@settings(max_examples=80, deadline=None, phases=PHASES)
@given(data=st.data())
def test_every_suggestion_fits(real: Real, beside: Companions, data: st.DataObject) -> None:
    """Many models, memories and wishes: what is named is planned again as it was typed."""
    draw = data.draw
    info = real(draw(st.sampled_from(MODELS)))
    sizes = st.integers(GIB // 4, 48 * GIB)
    shared = draw(st.booleans())
    gpus = [
        replace(CARD, label=f"GPU {index}", device=str(index), free=draw(sizes), total=48 * GIB,
                shared=shared)
        for index in range(draw(st.integers(0, 3)))
    ]  # fmt: skip
    used = draw(st.integers(0, len(gpus)))
    memory = Memory(tuple(gpus[:used]), HostMemory(64 * GIB, draw(sizes)), tuple(gpus[used:]))
    layers = draw(st.sampled_from((None, -1, 5, 20))) if used else None
    with_draft, with_projector = draw(st.booleans()), draw(st.booleans())
    options = LoadOptions(
        ctx_size=draw(st.sampled_from((None, 700, 4096, 32768, 131072))),
        parallel=draw(st.sampled_from((None, 1, 2, 7))),
        n_gpu_layers=layers,
        cache_type_k=draw(st.sampled_from((None, "q8_0"))),
        flash_attn=draw(st.sampled_from((None, "off"))),
        model_draft="draft.gguf" if with_draft else None,
        mmproj="mmproj.gguf" if with_projector else None,
    )
    longest = info.context_length
    if options.ctx_size is not None and options.ctx_size > longest:
        options = replace(options, ctx_size=longest)
    if info.architecture == "deepseek2":
        options = replace(options, cache_type_k=None)
    companions = replace(
        NO_COMPANIONS,
        draft=beside.draft if with_draft else None,
        projector=beside.projector if with_projector else None,
    )
    try:
        plan_memory(info, memory, options, companions=companions)
    except DoesNotFit as exc:
        error = exc
    else:
        return
    request = Request(shape_of(info), memory, options, (), companions)
    assert len(set(error.would_fit)) == len(error.would_fit)
    for way in error.would_fit:
        assert search(changed(request, way)).fits, way
        assert way in str(error.remedy)


def ways(info: ModelInfo, memory: Memory, options: LoadOptions) -> tuple[str, ...]:
    """What is suggested."""
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(info, memory, options)
    return caught.value.would_fit


def test_another_gpu_of_this_machine(real: Real) -> None:
    """It changes nothing of the answers, and is named as the option takes it."""
    large = replace(CARD, label="0000:07:00.0 (large)", free=24 * GIB, total=24 * GIB, device="1")
    asked = LoadOptions(ctx_size=131072, n_gpu_layers=-1)
    memory = Memory((CARD,), HOST, (large,))
    first = ways(real("Llama-3.1-8B"), memory, asked)[0]
    assert first == "--device 1 (device='1'): 0000:07:00.0 (large)"

    twin = replace(CARD, label="0000:07:00.0 (twin)", device="1")
    first = ways(real("Llama-3.1-8B"), Memory((CARD,), HOST, (twin,)), asked)[0]
    assert first.startswith("--device 0 --device 1 (device=('0', '1')): ")
    other = replace(twin, gfx_target="gfx1030")
    found = ways(real("Llama-3.1-8B"), Memory((CARD,), HOST, (other,)), asked)
    assert not any("--device" in way for way in found)


def test_the_largest_of_other_gpus_with_something_else(real: Real) -> None:
    """Where none of them is enough by itself."""
    small = replace(CARD, label="small", gfx_target="gfx1030", free=4 * GIB, device="2")
    large = replace(CARD, label="large", gfx_target="gfx1200", free=20 * GIB, device="1")
    memory = Memory((replace(CARD, free=8 * GIB),), HOST, (small, large))
    found = ways(real("Llama-3.1-8B"), memory, LoadOptions(ctx_size=131072, n_gpu_layers=-1))
    assert any(way.startswith("--device 1 --cache-type-k q8_0 ") for way in found), found


def test_what_was_measured_is_not_taken_for_another_file(real: Real) -> None:
    """The weights of an earlier load are those of the file that is there."""
    info, asked = real("Qwen3-8B"), LoadOptions(n_gpu_layers=-1, ctx_size=512)
    tight = Memory((replace(CARD, free=11 * GIB // 2),), HOST)
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(info, tight, asked)
    plan = caught.value.plan
    assert plan is not None
    measured = Measurement("e", (CARD.label,), plan.settings, plan.parts)
    with pytest.raises(DoesNotFit) as again:
        plan_memory(info, tight, asked, measurements=[measured])
    assert again.value.would_fit == caught.value.would_fit
    assert any("quantisation" in way for way in again.value.would_fit)


def test_three_wherever_there_are_three(real: Real) -> None:
    """However little there is: what is smaller, the CPU, a larger machine."""
    for name in MODELS[:-1]:
        for free in (2, 3, 4):
            memory = Memory((replace(CARD, free=free * GIB),), HostMemory(32 * GIB, 24 * GIB))
            asked = LoadOptions(ctx_size=8192, n_gpu_layers=-1, parallel=4)
            fits = search(Request(shape_of(real(name)), memory, asked)).fits
            assert fits or len(ways(real(name), memory, asked)) == 3, (name, free)


def test_a_gpu_that_would_be_large_enough(real: Real) -> None:
    """When all else fails; in whole GiB, as `rocllm plan --memory` takes it."""
    found = ways(real("Qwen3-Next-80B-A3B"), Memory((CARD,), HOST), LoadOptions(n_gpu_layers=-1))
    assert found[-1].startswith("a GPU with 4"), found
