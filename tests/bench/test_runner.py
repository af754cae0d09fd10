"""Measuring, with servers that misbehave: what can be measured is, and the rest says why not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.safetensors.made import write_model

from rocllm.bench import Engine, Report, Setup, Step, Suite, run_suite
from rocllm.errors import InvalidGGUF
from rocllm.options import LoadOptions
from rocllm.testing.fake_llama_server import write_fake_llama_server

SUITE = Suite(decode_tokens=8, prompt_lengths=(4, 16), callers=(1, 2), repetitions=2)

Run = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Run:
    """Measure a fake server with the given switches.

    Its tokens come apart: of what comes in one piece no rate can be told.
    """

    def measure(
        suite: Suite = SUITE,
        options: LoadOptions | None = None,
        on_step: Callable[[Step], None] | None = None,
        flash_attn: Any = None,
        cache_type: str | None = None,
        **switches: Any,
    ) -> Report:
        switches = {"token_seconds": 0.01, **switches}
        server = write_fake_llama_server(tmp_path / "llama-server", **switches)
        engine = Engine("fake", str(server))
        setup = Setup(tiny_model, engine, flash_attn, cache_type)
        return run_suite([setup], suite, options, on_step=on_step)

    return measure


def test_every_cell_is_measured(run: Run) -> None:
    """All workloads, each with so many samples as the suite says, on its number of slots."""
    report = run()
    (subject,) = report.subjects
    assert [str(cell) for cell in subject.cells] == [
        "load",
        "decode",
        "prompt of 4 tokens",
        "prompt of 16 tokens",
        "1 caller",
        "2 callers",
    ]
    assert [cell.error or cell.skipped for cell in subject.cells] == [None] * 6
    for kind, metric in (
        ("load", "load"),
        ("decode", "decode"),
        ("decode", "client_ratio"),
        ("prompt", "ttft"),
        ("prompt", "prefill"),
        ("concurrent", "aggregate"),
        ("concurrent", "caller"),
    ):
        for cell in subject.cells:
            if cell.kind == kind:
                assert len(cell.samples[metric]) == 2, (str(cell), metric)  # type: ignore[index]
    assert [cell.slots for cell in subject.cells] == [1, 1, 1, 1, 1, 2]
    assert subject.engine_version is not None
    assert not report.interrupted


def test_a_crash_costs_its_cell_only(run: Run) -> None:
    """A server that dies while it decodes still has its loads and prompts measured."""
    report = run(die_after_tokens=4, signal=11)
    (subject,) = report.subjects
    failed = {str(cell) for cell in subject.cells if cell.error is not None}
    assert failed == {"decode", "1 caller", "2 callers"}
    assert subject.summary("load", "load") is not None
    prompt = subject.cell("prompt", 16)
    assert prompt is not None
    assert len(prompt.samples["ttft"]) == 2
    decode = subject.cell("decode")
    assert decode is not None
    assert decode.error is not None
    assert "signal" in decode.error.lower() or "died" in decode.error.lower()


def test_a_server_that_does_not_start(run: Run) -> None:
    """The first cell has the error, the others of the session say that it is the reason."""
    report = run(exit_status=1, stderr="error: no kernel image\n")
    (subject,) = report.subjects
    assert not report.measured
    assert subject.cells[0].error is not None
    assert all("could not be loaded" in (cell.skipped or "") for cell in subject.cells[1:5])
    assert subject.cells[5].error is not None


def test_prompts_that_do_not_fit_are_skipped(run: Run) -> None:
    """The model has a context of 512 tokens, the user may give less: no crash, but a reason."""
    suite = Suite(prompt_lengths=(16, 511, 512), kinds=("prompt",), repetitions=1, warmups=0)
    (subject,) = run(suite).subjects
    assert [cell.skipped is None for cell in subject.cells] == [True, True, False]
    assert subject.cells[2].skipped == "it needs 513 tokens of context, and a slot has 512"
    (subject,) = run(suite, LoadOptions(ctx_size=256)).subjects
    assert [cell.skipped is None for cell in subject.cells] == [True, False, False]


def test_a_combination_that_there_is_not(run: Run) -> None:
    """A quantised V cache without flash attention is refused by the options, in every cell."""
    (subject,) = run(flash_attn="off", cache_type="q8_0").subjects
    assert all(cell.error or cell.skipped for cell in subject.cells)
    assert "flash attention" in (subject.cells[0].error or "")


def test_an_engine_that_is_missing(tiny_model: Path) -> None:
    """Its problem is the reason for every cell, and nothing is started."""
    setup = Setup(tiny_model, Engine("gone", problem="it is gone"))
    (subject,) = run_suite([setup], SUITE).subjects
    assert {cell.skipped for cell in subject.cells} == {"it is gone"}
    assert subject.engine_version is None


def test_a_model_in_safetensors_format(tmp_path: Path) -> None:
    """It is read before anything is loaded, as a GGUF file is; a snapshot of the Hub has a name."""
    folder = tmp_path / "models--me--tiny" / "snapshots" / ("0" * 40)
    setup = Setup(write_model(folder), Engine("vllm", problem="it is gone", backend="vllm"))
    (subject,) = run_suite([setup], SUITE).subjects
    assert (subject.architecture, subject.quantization) == ("llama", "BF16")
    assert subject.title == "me/tiny BF16"


def test_ctrl_c_keeps_what_there_is(run: Run) -> None:
    """Samples before the interrupt stay, those of the unfinished cell included."""

    def interrupt(step: Step) -> None:
        if step.workload.kind == "prompt" and step.repetition == 2:
            raise KeyboardInterrupt

    report = run(on_step=interrupt)
    assert report.interrupted
    (subject,) = report.subjects
    assert [str(cell) for cell in subject.cells] == ["load", "decode", "prompt of 4 tokens"]
    assert len(subject.cells[1].samples["decode"]) == 2
    assert len(subject.cells[2].samples["ttft"]) == 1
    assert "interrupted" in subject.cells[2].notes


def test_ctrl_c_while_callers_wait(run: Run) -> None:
    """Their streams are ended, so that nobody waits for answers that do not come."""
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(step: Step) -> None:
        if step.cell is None:
            threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()

    suite = Suite(kinds=("concurrent",), callers=(3,), repetitions=1)
    report = run(suite, on_step=interrupt, hang_after_tokens=2)
    assert report.interrupted
    assert "interrupted" in report.subjects[0].cells[-1].notes


def test_a_cell_has_its_time(run: Run) -> None:
    """When its time is over a cell makes do with what it has, and says so."""
    suite = Suite(prompt_lengths=(4,), kinds=("prompt",), repetitions=9, cell_seconds=1e-6)
    (cell,) = run(suite).subjects[0].cells
    assert len(cell.samples["ttft"]) == 1
    assert cell.notes == ("1 of 9 repetitions: its time was over",)


def test_a_broken_model_ends_the_run_at_once(tmp_path: Path) -> None:
    """A file that is no model is found before anything is measured."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(InvalidGGUF):
        run_suite([Setup(path, Engine("any"))], SUITE)


def test_steps_are_told(run: Run) -> None:
    """Whoever shows progress hears of every measurement and of every finished cell."""
    steps: list[Step] = []
    run(Suite(kinds=("decode",), decode_tokens=4, repetitions=2), on_step=steps.append)
    assert [step.repetition for step in steps if step.cell is None] == [0, 1, 2]
    assert [str(step.cell) for step in steps if step.cell is not None] == ["decode"]
