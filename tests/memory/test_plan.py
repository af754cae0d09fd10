"""Which context, which layers, and what is said when nothing fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocllm.errors import DoesNotFit, ModelFileError, OptionsError
from rocllm.gguf import ModelInfo
from rocllm.memory import (
    GpuMemory,
    HostMemory,
    Memory,
    MemoryPlan,
    needed_in,
    plan_memory,
    room,
)
from rocllm.options import LoadOptions

Real: TypeAlias = Callable[..., ModelInfo]

MIB = 2**20
GIB = 2**30
# What an RX 7900 GRE or a W7600 of the same chip family has, with nothing on it.
CARD = GpuMemory("0000:03:00.0 (Radeon)", "gfx1100", 16 * GIB, 16 * GIB)
HOST = HostMemory(32 * GIB, 28 * GIB)
MACHINE = Memory((CARD,), HOST)
ON_CPU = Memory((), HOST)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("Gemma-3-4B", 131072),
        ("Qwen3-8B", 40960),
        ("Llama-3.1-8B", 65536),
        ("Gemma-3-12B", 65536),
    ],
)
def test_the_longest_context_on_16_gib(real: Real, name: str, context: int) -> None:
    """All layers are on the GPU; twice the context would not fit, or the model has no more."""
    info = real(name)
    plan = plan_memory(info, MACHINE, LoadOptions())

    assert (plan.ctx_size, plan.n_gpu_layers, plan.parallel) == (context, -1, 1)
    assert_fits(plan)
    if context < info.context_length:
        with pytest.raises(DoesNotFit):
            plan_memory(info, MACHINE, LoadOptions(ctx_size=2 * context, n_gpu_layers=-1))


def test_layers_stay_on_the_host_when_not_all_fit(real: Real) -> None:
    """27B in 4 bits is more than 16 GiB: as many layers as fit, and both numbers are said."""
    info = real("Gemma-3-27B")
    plan = plan_memory(info, MACHINE, LoadOptions())

    assert plan.ctx_size == 4096
    assert 40 < plan.n_gpu_layers < info.block_count
    assert_fits(plan)
    assert f"{plan.n_gpu_layers} of {info.block_count + 1} layers on the GPU" in plan.because[1]
    assert "17.2 GiB" in plan.because[1]
    with pytest.raises(DoesNotFit):
        plan_memory(info, MACHINE, LoadOptions(ctx_size=4096, n_gpu_layers=plan.n_gpu_layers + 1))


def test_two_cards_take_it_whole(real: Real) -> None:
    """With two of them all layers fit, about half on each."""
    plan = plan_memory(real("Gemma-3-27B"), Memory((CARD, CARD), HOST), LoadOptions())

    assert (plan.ctx_size, plan.n_gpu_layers) == (131072, -1)
    assert sum(plan.settings.split) == 63
    assert abs(plan.settings.split[0] - plan.settings.split[1]) < 8
    assert_fits(plan)


def test_a_split_follows_what_is_free(real: Real) -> None:
    """A card that is half in use gets about half as many layers."""
    busy = replace(CARD, free=8 * GIB)
    plan = plan_memory(real("Qwen3-8B"), Memory((CARD, busy), HOST), LoadOptions())

    assert plan.settings.split[0] > 1.7 * plan.settings.split[1]
    assert_fits(plan)


def test_cards_of_different_kinds_are_refused(real: Real) -> None:
    """llama.cpp would need code for both."""
    other = replace(CARD, gfx_target="gfx1030")
    with pytest.raises(OptionsError, match="different kinds"):
        plan_memory(real("Qwen3-8B"), Memory((CARD, other), HOST), LoadOptions())


def test_the_reason_says_what_a_token_costs(real: Real) -> None:
    """And what a smaller cache would make possible."""
    plan = plan_memory(real("Llama-3.1-8B"), MACHINE, LoadOptions())

    assert "65536 tokens: the longest step that fits" in plan.because[0]
    assert "128 KiB a token" in plan.because[0]
    assert "131072 would fit with q8_0 keys and values" in plan.because[0]


def test_slots_are_paid_for(real: Real) -> None:
    """Four slots of a quarter of the context take what one takes."""
    plan = plan_memory(real("Llama-3.1-8B"), MACHINE, LoadOptions(parallel=4))

    assert (plan.ctx_size, plan.parallel) == (16384, 4)
    assert_fits(plan)


@pytest.mark.parametrize(
    ("name", "memory", "options", "slots"),
    [
        ("Llama-3.1-8B", MACHINE, LoadOptions(ctx_size=2048), 4),  # 256 MiB each
        ("Llama-3.1-8B", MACHINE, LoadOptions(ctx_size=4096), 2),  # 512 MiB each, of 16 GiB
        ("Llama-3.1-8B", MACHINE, LoadOptions(ctx_size=8192), 1),
        ("Llama-3.1-8B", MACHINE, LoadOptions(), 1),  # its context is the longest
        ("Llama-3.1-8B", MACHINE, LoadOptions(ctx_size=2048, parallel=1), 1),
        ("Llama-3.1-8B", MACHINE, LoadOptions(ctx_size=2048, n_gpu_layers=20), 1),
        ("Llama-3.1-8B", Memory((CARD, CARD), HOST), LoadOptions(ctx_size=4096), 4),
        ("Llama-3.1-8B", ON_CPU, LoadOptions(ctx_size=512), 1),
        ("Llama-3.1-8B", Memory((replace(CARD, free=None),), HOST), LoadOptions(ctx_size=512), 1),
        ("Gemma-3-27B", MACHINE, LoadOptions(ctx_size=512), 1),  # not all layers fit
    ],
)
def test_slots_that_nobody_asked_for(
    real: Real, name: str, memory: Memory, options: LoadOptions, slots: int
) -> None:
    """Several, on GPUs only, where all that they hold is an eighth of what is free at most."""
    plan = plan_memory(real(name), memory, options)

    assert plan.parallel == slots
    assert_fits(plan)
    said = [sentence for sentence in plan.because if "callers at once" in sentence]
    assert len(said) == (slots > 1)
    if slots > 1:
        held = [part for part in plan.parts if part.kind == "KV cache" and part.gpu is not None]
        assert sum(part.size for part in held) <= len(memory.gpus) * 16 * GIB / 8


def test_slots_cost_no_context(real: Real) -> None:
    """What is chosen for one slot is what each of several has."""
    small = real("Gemma-3-4B")
    huge = Memory((replace(CARD, free=48 * GIB, total=48 * GIB),), HOST)
    plan = plan_memory(small, huge, LoadOptions())

    assert (plan.ctx_size, plan.parallel) == (131072, 2)


@pytest.mark.parametrize(("free", "count"), [(128, 32), (28, 12), (3, 1), (1.7, 0)])
def test_saved_states_fit_into_host_memory(real: Real, free: float, count: int) -> None:
    """A quarter of what is left, or one state if only that has room: a 12B model's take 480 MiB."""
    host = HostMemory(round(free * GIB), round(free * GIB))
    plan = plan_memory(real("Gemma-3-12B"), Memory((CARD,), host), LoadOptions())

    assert plan.settings.checkpoints == count
    left = (room(plan.memory, None) or 0) - needed_in(plan.parts, None)
    assert count * 480 * MIB <= max(left / 4, 480 * MIB)
    assert any(f", {count} a slot" in remark for remark in plan.remarks) == (count > 0)
    # They are no part of what is measured, so another number is no other way of loading.
    assert plan.settings == replace(plan.settings, checkpoints=7)


def test_what_is_fixed_stays_fixed(real: Real) -> None:
    """Context, slots, layers and cache types are those that were asked for."""
    wanted = LoadOptions(
        ctx_size=5000, parallel=2, n_gpu_layers=10, cache_type_k="q8_0", cache_type_v="q5_1"
    )
    plan = plan_memory(real("Qwen3-8B"), MACHINE, wanted)

    assert (plan.ctx_size, plan.parallel, plan.n_gpu_layers) == (5000, 2, 10)
    assert (plan.settings.cache_type_k, plan.settings.cache_type_v) == ("q8_0", "q5_1")
    assert plan.because == ("2 slots, each with a context of 5120 tokens: 5000, rounded up",)


def test_a_fixed_context_moves_layers(real: Real) -> None:
    """The context was asked for, so layers give way."""
    plan = plan_memory(real("Llama-3.1-8B"), MACHINE, LoadOptions(ctx_size=131072))

    assert plan.ctx_size == 131072
    assert 0 < plan.n_gpu_layers < 33
    assert_fits(plan)


def test_a_plan_that_cannot_be_carries_numbers_and_ways_out(real: Real) -> None:
    """Each of the three ways out does fit."""
    info = real("Llama-3.1-8B")
    wanted = LoadOptions(ctx_size=131072, n_gpu_layers=-1, parallel=1)
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(info, MACHINE, wanted)
    error = caught.value

    assert error.plan is not None
    assert error.plan.ctx_size == 131072
    assert "21.3 GiB needed, 15.8 GiB there for it" in error.what
    assert error.why is not None
    assert "KV cache 16.0 GiB" in error.why
    assert error.would_fit == (
        "--cache-type-k q8_0 --cache-type-v q8_0 (cache_type_k='q8_0', cache_type_v='q8_0')",
        "--ctx-size 86016 (ctx_size=86016)",
        "--n-gpu-layers 23 (n_gpu_layers=23)",
    )
    for changes in (
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"ctx_size": 86016},
        {"n_gpu_layers": 23},
    ):
        assert_fits(plan_memory(info, MACHINE, replace(wanted, **changes)))  # type: ignore[arg-type]


def test_fewer_slots_and_a_smaller_file_are_ways_out(real: Real) -> None:
    """What else there is to change, when the cache is as small as can be."""
    wanted = LoadOptions(
        n_gpu_layers=-1, parallel=8, cache_type_k="q4_0", cache_type_v="q4_0", ctx_size=40960
    )
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(real("Qwen3-8B"), MACHINE, wanted)
    assert caught.value.would_fit[0] == "--parallel 6 (parallel=6)"

    tight = Memory((replace(CARD, free=11 * GIB // 2),), HOST)
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(real("Qwen3-8B"), tight, LoadOptions(n_gpu_layers=-1))
    assert any("quantisation Q3_K_M (about 3." in way for way in caught.value.would_fit)


def test_where_one_change_is_not_enough_several_are_named(real: Real) -> None:
    """Each of them does fit."""
    wanted = LoadOptions(ctx_size=32768, parallel=4, n_gpu_layers=-1)
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(real("Gemma-3-27B"), MACHINE, wanted)
    q8_0 = "--cache-type-k q8_0 --cache-type-v q8_0"
    named = "cache_type_k='q8_0', cache_type_v='q8_0'"
    assert caught.value.would_fit == (
        "--n-gpu-layers 32 (n_gpu_layers=32)",
        f"{q8_0} --n-gpu-layers 40 ({named}, n_gpu_layers=40)",
        f"a file of the quantisation IQ2_XXS (about 7.5 GiB) with {q8_0} ({named})",
    )

    tight = Memory((replace(CARD, free=8 * GIB),), HOST)
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(real("Qwen3-8B"), tight, replace(wanted, parallel=64, cache_type_k="q4_0"))
    assert caught.value.would_fit[0] == (
        "--parallel 1 --ctx-size 27648 (parallel=1, ctx_size=27648)"
    )
    less = LoadOptions(ctx_size=27648, n_gpu_layers=-1, cache_type_k="q4_0")
    assert_fits(plan_memory(real("Qwen3-8B"), tight, less))


def test_nothing_at_all_fits(real: Real) -> None:
    """80B on a small machine: nothing is made up but a larger one."""
    info = real("Qwen3-Next-80B-A3B")
    with pytest.raises(DoesNotFit) as caught:
        plan_memory(info, Memory((), HostMemory(8 * GIB, 6 * GIB)), LoadOptions())
    assert caught.value.would_fit == ("a machine with 50.0 GiB of free memory",)


def test_a_vocabulary_is_no_model(real: Real) -> None:
    """It is said before a server is started, which would blame the file."""
    with pytest.raises(ModelFileError, match="a vocabulary and no weights"):
        plan_memory(replace(real("Qwen3-8B"), tensors=()), MACHINE, LoadOptions())


def test_unknown_memory_means_the_default(real: Real) -> None:
    """4096, or the model's own when that is less."""
    unknown = Memory((GpuMemory("card"),), HostMemory())
    plan = plan_memory(real("Qwen3-8B"), unknown, LoadOptions())
    assert (plan.ctx_size, plan.n_gpu_layers) == (4096, -1)
    assert "not known how much memory is free" in plan.because[0]

    short = replace(real("Qwen3-8B"), context_length=2048)
    assert plan_memory(short, Memory(), LoadOptions()).ctx_size == 2048
    assert plan_memory(short, ON_CPU, LoadOptions()).because == (
        "context of 2048 tokens: the model's own",
    )


def test_the_cpu_is_modest_unless_asked(real: Real) -> None:
    """An eighth of what is free beside the weights; asked for, the context may take all."""
    info = real("Llama-3.1-8B")
    plan = plan_memory(info, ON_CPU, LoadOptions())
    assert (plan.ctx_size, plan.n_gpu_layers) == (16384, 0)
    assert "no more than 1/8 of the memory" in plan.because[0]
    assert_fits(plan)

    assert plan_memory(info, ON_CPU, LoadOptions(ctx_size=131072)).ctx_size == 131072


def test_an_integrated_gpu_shares(real: Real) -> None:
    """GPU and host parts must fit into the host's memory together."""
    shared = GpuMemory("Strix Halo", "gfx1151", 28 * GIB, 28 * GIB, shared=True)
    alone = plan_memory(real("Gemma-3-27B"), Memory((shared,), HostMemory()), LoadOptions())
    beside = plan_memory(real("Gemma-3-27B"), Memory((shared,), HOST), LoadOptions())

    assert beside.ctx_size < alone.ctx_size
    assert needed_in(beside.parts, 0) + needed_in(beside.parts, None) <= 24 * GIB
    assert any("integrated GPU uses host memory" in remark for remark in beside.remarks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoadOptions(ctx_size=40961), "ctx_size=40961 is more than the model has"),
        (LoadOptions(n_gpu_layers=-1), "n_gpu_layers=-1, but no GPU is used"),
        (LoadOptions(n_gpu_layers=5), "n_gpu_layers=5, but no GPU is used"),
    ],
)
def test_what_cannot_be_meant(real: Real, options: LoadOptions, message: str) -> None:
    """It is said before anything is counted."""
    with pytest.raises(OptionsError, match=message):
        plan_memory(real("Qwen3-8B"), ON_CPU, options)


def test_what_is_not_verified_is_said(real: Real) -> None:
    """The runtime's share of a GPU, and architectures that the formulas were not checked with."""
    plan = plan_memory(replace(real("Qwen3-8B"), architecture="grok"), MACHINE, LoadOptions())
    assert any("has not been verified" in remark for remark in plan.remarks)
    assert any("grok models are an estimate" in remark for remark in plan.remarks)


@settings(max_examples=60, deadline=None)
@given(
    free=st.integers(0, 32 * GIB),
    host=st.integers(0, 64 * GIB),
    parallel=st.integers(1, 8),
    name=st.sampled_from(("Gemma-3-12B", "Llama-3.1-8B", "LFM2-1.2B", "DeepSeek-V2-Lite")),
)
def test_every_plan_fits(real: Real, free: int, host: int, parallel: int, name: str) -> None:
    """Whatever is free: a plan that fits with the headroom, or the one error."""
    memory = Memory((replace(CARD, free=free, total=32 * GIB),), HostMemory(64 * GIB, host))
    try:
        plan = plan_memory(real(name), memory, LoadOptions(parallel=parallel))
    except DoesNotFit:
        return
    assert_fits(plan)
    assert plan.ctx_size >= 4096


@settings(max_examples=30, deadline=None)
@given(free=st.integers(8 * GIB, 32 * GIB), more=st.integers(0, 16 * GIB))
def test_more_memory_is_never_worse(real: Real, free: int, more: int) -> None:
    """The context of a machine with more memory is at least as long."""

    def context(size: int) -> int:
        memory = Memory((replace(CARD, free=size, total=64 * GIB),), HOST)
        return plan_memory(real("Llama-3.1-8B"), memory, LoadOptions()).ctx_size

    assert context(free + more) >= context(free)


def assert_fits(plan: MemoryPlan) -> None:
    """In every place there is room for what is put there."""
    for gpu in (*range(len(plan.memory.gpus)), None):
        available = room(plan.memory, gpu)
        assert available is None or needed_in(plan.parts, gpu) <= available


def test_windowed_layers_keep_all_tokens_where_that_is_free(real: Real) -> None:
    """Where the context is hardly longer than the window; and wherever the user wants it."""

    def chosen(name: str, **options: int | bool) -> bool:
        fields = {"parallel": 4, **options}
        return plan_memory(real(name), ON_CPU, LoadOptions(**fields)).settings.swa_full  # type: ignore[arg-type]

    window = real("Gemma-3-4B").sliding_window
    assert chosen("Gemma-3-4B", ctx_size=window + 512)
    assert not chosen("Gemma-3-4B", ctx_size=window + 1024)
    assert chosen("Gemma-3-4B", ctx_size=window + 1024, swa_full=True)
    assert not chosen("Gemma-3-4B", ctx_size=512, swa_full=False)
    assert not chosen("Qwen3-8B", ctx_size=512, swa_full=True)
    free = plan_memory(real("Gemma-3-4B"), ON_CPU, LoadOptions(ctx_size=1024))
    without = plan_memory(real("Gemma-3-4B"), ON_CPU, LoadOptions(ctx_size=1024, swa_full=False))
    assert needed_in(free.parts, None) <= needed_in(without.parts, None)
