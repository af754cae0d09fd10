"""The benchmarks can be started, and say clearly what is missed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.made import MACHINE

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("all", "figures"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the benchmarks share."""
    spec = importlib.util.spec_from_file_location("figures", FOLDER / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_explains_itself(name: str) -> None:
    """And so has no import that fails, with nothing but what tests need installed."""
    done = subprocess.run(
        (sys.executable, FOLDER / f"{name}.py", "--help"), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"--" in done.stdout


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    """Before anything is measured."""
    done = subprocess.run(
        (sys.executable, FOLDER / "all.py", "nothing"), capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"no benchmark nothing; there are: batch, " in done.stderr


def test_figures_next_to_what_is_wanted(
    figures: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Said at once, and again in the table of all."""
    monkeypatch.setitem(os.environ, figures.VARIABLE, str(tmp_path / "figures"))
    figures.tell(figures.Figure("speed", "9 tok/s", "10 tok/s", 0.9, least=0.99))
    figures.tell(figures.Figure("cost", "7.2 µs", "5 µs", 7.25, " µs", 1, most=15))
    figures.tell(figures.Figure("other", "1 s", "2 s", 0.5))
    assert capsys.readouterr().out.splitlines() == [
        "speed: 0.900, wanted at least 0.99: missed",
        "cost: 7.2 µs, wanted at most 15 µs: met",
        "other: 0.500",
    ]
    told = figures.told(tmp_path / "figures")
    assert [one.missed for one in told] == [True, False, False]
    assert figures.table(told).splitlines()[2:] == [
        "| speed | 9 tok/s | 10 tok/s | 0.900 | at least 0.99 | missed |",
        "| cost | 7.2 µs | 5 µs | 7.2 µs | at most 15 µs | met |",
        "| other | 1 s | 2 s | 0.500 |  |  |",
    ]


def test_the_conditions_are_told(figures: ModuleType) -> None:
    """Machine, versions and date."""
    text = figures.conditions(MACHINE, "2026-11-28")
    assert text.startswith("Measured on 2026-11-28: Radeon RX 7800 XT (gfx1101), 32 cores of ")
    for words in ("Ubuntu 24.04", "kernel 6.8.0", "Python 3.12.3", "llama-server ", "xllamacpp "):
        assert words in text
