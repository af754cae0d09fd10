"""`rocllm bench` without a model: reports in, words and exit codes out."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.bench.made import report, subject
from typer.testing import CliRunner

from rocllm import env
from rocllm.bench import Report, encode_report, keep_report, read_history, read_report
from rocllm.cli.bench import bench
from rocllm.errors import BackendUnavailable, ModelNotFound, OptionsError
from rocllm.testing.fake_llama_server import write_fake_llama_server

REGRESSED = 7


def run(*arguments: object) -> Any:
    """The result of the command; an error of rocllm is raised."""
    app = typer.Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(path: Path, made: Report) -> Path:
    """A report in a file."""
    path.write_text(encode_report(made))
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A report of 100 tok/s."""
    return written(tmp_path / "A.json", report(subject(100)))


@pytest.fixture
def after(tmp_path: Path) -> Path:
    """A report of 80 tok/s, from a later build."""
    slower = subject(80, engine_version="native llama-server b11999")
    return written(tmp_path / "B.json", report(slower))


def test_compare_says_what_changed(before: Path, after: Path) -> None:
    """Every figure with its change, and the build that differs; it succeeds without a limit."""
    result = run("--compare", before, after)
    assert result.exit_code == 0
    assert "decode: decode" in result.stdout
    assert "-20.0 %" in result.stdout
    assert "worse" in result.stdout
    assert "b11434-90e6a91 → native llama-server b11999" in result.stdout


@pytest.mark.parametrize(("percent", "code"), [("10", REGRESSED), ("30", 0)])
def test_a_regression_fails(before: Path, after: Path, percent: str, code: int) -> None:
    """Over the given percentage the exit code is not 0, and the figures are named."""
    result = run("--compare", before, after, "--max-regression", percent)
    assert result.exit_code == code
    assert ("worse by more than 10 %: load: load; decode: decode" in result.stderr) == bool(code)
    assert run("--compare", after, before, "--max-regression", "0").exit_code == 0


def test_comparison_as_json(before: Path, after: Path) -> None:
    """Standard output is JSON and nothing else; the table goes to standard error."""
    result = run("--compare", before, after, "--json", "-")
    answer = json.loads(result.stdout)
    decode = next(one for one in answer["changes"] if one["metric"] == "decode")
    assert decode["verdict"] == "worse"
    assert decode["old"] == {"n": 5, "median": 100.0, "mad": 1.0}


def test_a_report_is_shown_again(before: Path, tmp_path: Path) -> None:
    """With everything that a run can write: tables, Markdown, charts."""
    result = run(before, "--markdown", tmp_path / "r.md", "--charts", tmp_path / "c")
    assert result.exit_code == 0
    assert "9000 ± 90" in result.stdout
    assert "weights 286 MiB (planned)" in result.stdout
    assert (tmp_path / "r.md").read_text().startswith("| model |")
    assert (tmp_path / "c" / "throughput.png").exists()


def test_history_and_last() -> None:
    """Kept runs are listed; `last` is the newest, and compares with the one before it."""
    assert "no run is kept" in run("--history").stdout
    with pytest.raises(OptionsError, match="no two runs"):
        run("--compare", "last")
    keep_report(report(subject(100)), os.environ)
    keep_report(report(subject(50), started="2026-11-25T00:00:00+00:00"), os.environ)
    assert "50.0 ± 0.5" in run("last").stdout
    assert "-50.0 %" in run("--compare", "last").stdout
    listed = run("--history", "gemma").stdout
    assert listed.index("100.0 ± 1.0") < listed.index("50.0 ± 0.5")
    assert len(json.loads(run("--history", "--json", "-").stdout)) == 2
    assert "no run is kept of a model like 'llama'" in run("--history", "llama").stdout


def test_history_names_what_it_left_out(state_home: Path) -> None:
    """A report of a newer version is not hidden without a word."""
    path = keep_report(report(), os.environ)
    newer = path.read_text().replace('"schema": 1', '"schema": 99')
    path.with_name("20270101T000000-00000000.json").write_text(newer)
    result = run("--history")
    assert "gemma-3-4b" in result.stdout
    assert "20270101T000000-00000000.json was left out" in result.stderr
    assert "newer rocllm" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["A.json", "--json", "-", "--markdown", "-"], "both go to standard output"),
        (["A.json", "--json", "no/such/folder/x.json"], "no folder"),
        (["A.json", "--max-regression", "5"], "something to compare with"),
        (["A.json", "B.json"], "one report at a time"),
        (["A.json", "demo"], "one report at a time"),
        (["--history", "a", "b"], "one model at most"),
        (["missing.json"], "cannot read"),
        (["--compare", "missing.json", "demo"], "cannot read"),
        (["--compare", "last", "x.gguf"], "no earlier run"),
        (["last"], "no run is kept"),
        (["x.gguf", "--callers", "1,two"], "'two' is no whole number"),
        (["x.gguf", "--callers", "0"], "callers must be whole numbers"),
        (["x.gguf", "--only", "speed"], "no workload 'speed'"),
    ],
)
def test_what_cannot_be_meant(arguments: list[str], message: str) -> None:
    """Each has a sentence of its own, before anything is measured."""
    with pytest.raises(OptionsError, match=message):
        run(*arguments)


def test_other_bad_values(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is not there, a cache type and an attention that there is not."""
    with pytest.raises(ModelNotFound):
        run("/nowhere/x.gguf")
    server = write_fake_llama_server(tiny_model.with_name("llama-server"))
    monkeypatch.setenv(env.LLAMA_SERVER_PATH, str(server))
    with pytest.raises(OptionsError, match="on, off, auto; got 'maybe'"):
        run(tiny_model, "--flash-attn", "maybe")
    with pytest.raises(OptionsError, match="q9_9"):
        run(tiny_model, "--cache-types", "f16,q9_9")


def test_charts_without_matplotlib(before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out at the beginning, not after an hour."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendUnavailable, match=r"rocllm\[charts\]"):
        run("/nowhere/x.gguf", "--charts", "charts")


def test_measured_and_compared(tiny_model: Path, tmp_path: Path) -> None:
    """A run is kept, and the next is compared with it; engines have rows of their own."""
    server = write_fake_llama_server(tmp_path / "llama-server")
    engines = f"one={server},two={server},three=/nowhere/llama-server"
    arguments = (tiny_model, "--quick", "--engines", engines, "--only", "prompt,load")
    first = run(*arguments, "--json", tmp_path / "new.json")
    assert first.exit_code == 0
    made = read_report(tmp_path / "new.json")
    assert [one.engine for one in made.subjects] == ["one", "two", "three"]
    assert {cell.skipped is None for cell in made.subjects[2].cells} == {False}
    assert read_history(os.environ).entries[0].report == made
    again = run(*arguments, "--compare", "last", "--quiet")
    assert again.exit_code == 0
    assert "prompt of 64 tokens: prefill" in again.stdout
    assert len(read_history(os.environ).entries) == 2


def test_nothing_measured_fails(tiny_model: Path, tmp_path: Path) -> None:
    """A server that cannot start is an error in the end, with the reason in the table."""
    server = write_fake_llama_server(tmp_path / "llama-server", exit_status=1)
    result = run(tiny_model, "--quick", "--engines", server)
    assert result.exit_code == 5
    assert "could not be loaded" in result.stdout
    assert read_history(os.environ).entries == ()


def test_ctrl_c_writes_what_there_is(tiny_model: Path, tmp_path: Path) -> None:
    """The loads were measured when callers hung: they are written and kept, no server is left."""
    server = write_fake_llama_server(tmp_path / "llama-server", hang_after_tokens=1)
    target = tmp_path / "partial.json"
    arguments = [str(tiny_model), "--quick", "--engines", str(server), "--json", str(target)]
    with subprocess.Popen(
        [sys.executable, "-m", "rocllm", "bench", *arguments, "--only", "load,concurrent"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        seen, deadline = b"", time.monotonic() + 60
        while b"load: done" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([process.stderr], [], [], 0.1)[0]:
                seen += process.stderr.read() or b""
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    made = read_report(target)
    assert made.interrupted
    (one,) = made.subjects
    assert one.summary("load", "load") is not None
    assert read_history(os.environ).entries[0].report == made
