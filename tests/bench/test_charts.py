"""Charts: that they are drawn, of the right size, and say what they should."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.bench.made import cell, report, subject

from rocllm.bench import MemoryPart, Report, write_charts
from rocllm.bench.charts import _COLOURS, _MARKERS, _wrapped
from rocllm.bench.report import HOST
from rocllm.errors import BackendUnavailable

SIX = report(*(subject(20.0 * 2**n, name=f"model-{n}-with-a-rather-long-name") for n in range(6)))


def sizes(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("made", [report(), SIX], ids=["one", "six"])
def test_three_charts_in_two_forms(made: Report, tmp_path: Path) -> None:
    """Each chart is a PNG that is large enough for print, and an SVG that is XML."""
    paths = write_charts(made, tmp_path / "new" / "charts")
    assert [path.name for path in paths] == [
        f"{name}.{form}"
        for name in ("throughput", "first_token", "memory")
        for form in ("png", "svg")
    ]
    for path in paths:
        if path.suffix == ".png":
            width, height = sizes(path)
            assert width == 1520
            assert 400 < height < 3000
        else:
            root = ElementTree.parse(path).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # Text is drawn as paths, but matplotlib names each of them in a comment.
    svg = paths[1].read_text()
    assert "Throughput by number of callers" in svg
    assert "callers at once, each in a slot of its own" in svg
    assert "Radeon RX 7800 XT (gfx1101)" in svg


def test_the_same_report_gives_the_same_files(tmp_path: Path) -> None:
    """A chart under version control changes only when its figures do."""
    one, two = (write_charts(report(), tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_only_what_was_measured(tmp_path: Path) -> None:
    """A chart without figures is not drawn; one point is enough for one."""
    only = report(subject(cells=(cell("prompt", 64, ttft=(0.5,)),), memory=()))
    assert [path.name for path in write_charts(only, tmp_path)] == [
        "first_token.png",
        "first_token.svg",
    ]
    nothing = report(subject(cells=(cell("decode", error="died"),), memory=()))
    assert write_charts(nothing, tmp_path / "none") == ()
    assert not (tmp_path / "none").exists()


def test_memory_is_told_in_the_bars(tmp_path: Path) -> None:
    """Sizes of the parts and of the whole; no colour in the legend that is nowhere to be seen."""
    card = "Radeon RX 7800 XT (gfx1101)"
    memory = (
        MemoryPart(card, "weights", 2_400_000_000, 2_400_000_000),
        MemoryPart(card, "output", 600_000, 600_000),
        MemoryPart(HOST, "weights", None, 300_000_000),
    )
    write_charts(report(subject(cells=(), memory=memory)), tmp_path)
    svg = (tmp_path / "memory.svg").read_text()
    for text in ("2.2 GiB", "286 MiB", "GPU", "host", "weights", "too small to be seen: output"):
        assert f"{text} -->" in svg
    assert "<!-- output -->" not in svg


def test_names_break_where_they_are_read() -> None:
    """Between what they say, and otherwise in lines of the same length."""
    assert _wrapped("flash attention off, cache q8_0") == "flash attention off,\ncache q8_0"
    assert _wrapped("Mistral-Nemo-12B-Instruct-Q4_K_M") == "Mistral-Nemo-12B-\nInstruct-Q4_K_M"


def test_lines_can_be_told_apart() -> None:
    """Seven colours and seven markers, none twice."""
    assert len(set(_COLOURS)) == len(set(_MARKERS)) == 7


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'rocllm\[charts\]'"):
        write_charts(report(), tmp_path)
