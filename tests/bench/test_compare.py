"""What changed between two runs, and what is only noise."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from tests.bench.made import MACHINE, around, cell, report, subject

from rocllm.bench import Cell, Change, Comparison, MemoryPart, Report, Suite, compare_reports
from rocllm.bench.report import HOST
from rocllm.errors import OptionsError


def only(*cells: Cell, **fields: Any) -> Report:
    """A report of one subject with these cells."""
    return report(subject(cells=cells, memory=(), **fields))


def the(comparison: Comparison) -> Change:
    (change,) = comparison.changes
    return change


def test_the_same_is_the_same() -> None:
    """A report compared with itself has neither changes nor differences."""
    comparison = compare_reports(report(), report())
    assert {change.verdict for change in comparison.changes} == {"same"}
    assert comparison.differences == ()
    assert comparison.regressions(0) == ()


def test_noise_is_no_change() -> None:
    """Medians that are as far apart as the samples are say nothing, even at 5 %."""
    old, new = around(100, 0.02), around(95, 0.02)
    change = the(
        compare_reports(only(cell("decode", decode=old)), only(cell("decode", decode=new)))
    )
    assert change.percent == pytest.approx(-5)
    assert change.verdict == "same"


def test_steady_figures_that_moved_are_a_change() -> None:
    """The same 5 % with a fifth of the noise are a change; 2 % are too little to matter."""
    old = only(cell("decode", decode=around(100, 0.004)))
    assert the(compare_reports(old, only(cell("decode", decode=around(95, 0.004))))).verdict == (
        "worse"
    )
    little = the(compare_reports(old, only(cell("decode", decode=around(98, 0.0001)))))
    assert little.verdict == "same"


@pytest.mark.parametrize(
    ("kind", "metric", "faster"),
    [("load", "load", 0.5), ("prompt", "ttft", 0.5), ("prompt", "prefill", 2.0)],
)
def test_more_is_not_always_better(kind: str, metric: str, faster: float) -> None:
    """Seconds are better when there are fewer, rates when there are more."""
    old, new = only(cell(kind, 1, **{metric: 1.0})), only(cell(kind, 1, **{metric: faster}))
    assert the(compare_reports(old, new)).verdict == "better"
    back = compare_reports(new, old)
    assert the(back).verdict == "worse"
    assert the(back).worse_percent > 0
    assert back.regressions(10) == back.changes


def test_a_regression_has_a_size() -> None:
    """Only what is worse by more than allowed counts."""
    comparison = compare_reports(
        only(cell("decode", decode=100.0)), only(cell("decode", decode=90.0))
    )
    assert comparison.regressions(9.9) == comparison.changes
    assert comparison.regressions(10.1) == ()


def test_names_say_of_which_subject() -> None:
    """Where there are several; of one the workload says it all."""
    one = [subject(cells=(cell("decode", decode=99.0),), flash_attn=each) for each in ("on", "off")]
    comparison = compare_reports(report(*one), report(*one))
    assert [comparison.name(change) for change in comparison.changes[:1]] == [
        "flash attention on, decode: decode"
    ]
    alone = compare_reports(report(one[0]), report(one[0]))
    assert alone.name(alone.changes[0]) == "decode: decode"


def test_few_samples_are_not_judged() -> None:
    """Two samples do not tell how much noise there is."""
    comparison = compare_reports(
        only(cell("decode", decode=(100.0, 100.0))), only(cell("decode", decode=(50.0, 50.0)))
    )
    assert the(comparison).verdict == "too few samples"
    assert comparison.regressions(10) == ()


def test_what_failed_now_is_lost() -> None:
    """A cell that was measured and fails now is a regression, whatever the limit."""
    broken = only(cell("decode", error="the server died"))
    comparison = compare_reports(only(cell("decode", decode=100.0)), broken)
    assert the(comparison).verdict == "lost"
    assert comparison.regressions(1000) == comparison.changes


def test_memory_is_compared_too() -> None:
    """It has no noise: more than 3 % is a change."""
    old = report(subject(memory=(MemoryPart(HOST, "KV cache", 1000, 1000),)))
    new = report(subject(memory=(MemoryPart(HOST, "KV cache", 1040, 1000),)))
    (change,) = (one for one in compare_reports(old, new).changes if one.metric == "memory")
    assert (change.verdict, change.percent) == ("worse", pytest.approx(4))


def test_like_is_compared_with_like() -> None:
    """Subjects belong together by model, engine and options, in whatever order they stand."""
    on, off = subject(100, flash_attn="on"), subject(50, flash_attn="off")
    comparison = compare_reports(report(on, off), report(off, on))
    assert {change.verdict for change in comparison.changes} == {"same"}
    assert {change.subject for change in comparison.changes} == {
        "flash attention on",
        "flash attention off",
    }


def test_answers_of_other_lengths_are_not_compared() -> None:
    """Callers that got 16 tokens say nothing about callers that got 128."""
    old = only(cell("concurrent", 4, aggregate=100.0, tokens=16))
    with pytest.raises(OptionsError, match="nothing to compare"):
        compare_reports(old, only(cell("concurrent", 4, aggregate=100.0)))


def test_several_models_of_which_none_is_in_both() -> None:
    """Then the message says what is in each."""
    old, new = (report(subject(name=f"{x}1"), subject(name=f"{x}2")) for x in "ab")
    with pytest.raises(OptionsError, match="a1 with native") as caught:
        compare_reports(old, new)
    assert "b2" in str(caught.value)


def test_differences_are_said() -> None:
    """Another machine, build, model, suite or option is named, and so is a busy machine."""
    old = report()
    new = report(
        subject(name="other", engine_version="native llama-server b11999", engine="mine"),
        machine=dataclasses.replace(MACHINE, cores=8, kernel="6.9.0"),
        rocllm="0.2.0",
        suite=Suite(decode_tokens=64),
        options={"threads": "1"},
        warnings=("busy",),
        interrupted=True,
    )
    text = "\n".join(compare_reports(old, new).differences)
    for part in (
        "machine: Radeon RX 7800 XT (gfx1101), 32 cores of AMD Ryzen 9 7950X → Radeon RX 7800 XT",
        "kernel: 6.8.0 → 6.9.0",
        "rocllm: 0.1.0 → 0.2.0",
        "model: gemma-3-4b-it-Q4_K_M.gguf → other.gguf",
        "engine: native llama-server b11434-90e6a91 → native llama-server b11999",
        "tokens of an answer: 128 → 64",
        "options: none → threads=1",
        "the second run was interrupted",
        "the second run: busy",
    ):
        assert part in text


def test_the_test_is_as_strict_as_it_says() -> None:
    """Of pairs of runs without a difference fewer than one in twenty looks like one."""
    draw = random.Random(1)

    def noisy() -> tuple[float, ...]:
        return tuple(draw.gauss(100, 2) for _ in range(5))

    old = only(*(cell("prompt", n, prefill=noisy()) for n in range(1, 401)))
    new = only(*(cell("prompt", n, prefill=noisy()) for n in range(1, 401)))
    changes = compare_reports(old, new).changes
    assert len(changes) == 400
    assert sum(change.verdict != "same" for change in changes) < 20
