"""Runs that are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.bench.made import report, subject

from rocllm.bench import keep_report, read_history, read_report, write_whole
from rocllm.errors import OptionsError


def test_runs_come_back_in_their_order(state_home: Path) -> None:
    """Every run is a file in the state directory, the oldest first, whole."""
    later = report(subject(50), started="2026-11-25T10:00:00+00:00")
    paths = [keep_report(one, os.environ) for one in (later, report())]
    assert {path.parent for path in paths} == {state_home / "rocllm" / "bench"}
    found = read_history(os.environ)
    assert [entry.report for entry in found.entries] == [report(), later]
    assert found.unreadable == {}
    assert sorted(os.listdir(paths[0].parent)) == sorted(path.name for path in paths)


def test_runs_of_one_second() -> None:
    """Two runs that began at once do not overwrite each other."""
    assert keep_report(report(), os.environ) != keep_report(report(), os.environ)
    assert len(read_history(os.environ).entries) == 2


def test_runs_of_a_model() -> None:
    """A part of the file's name finds the runs that have the model."""
    keep_report(report(subject(name="gemma"), subject(name="Qwen3-8B")), os.environ)
    keep_report(report(subject(name="gemma")), os.environ)
    assert len(read_history(os.environ, "GEMMA").entries) == 2
    assert len(read_history(os.environ, "qwen3-8b.gguf").entries) == 1
    assert read_history(os.environ, "llama").entries == ()


def test_a_broken_file_does_not_hide_the_others() -> None:
    """It is named, with the reason."""
    good = keep_report(report(), os.environ)
    bad = good.with_name("20260101T000000-00000000.json")
    bad.write_text(good.read_text()[:100])
    (good.parent / "notes.txt").write_text("mine")
    found = read_history(os.environ)
    assert [entry.path for entry in found.entries] == [good]
    assert list(found.unreadable) == [bad]
    assert "not JSON" in found.unreadable[bad]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays, and no half of a file is left beside it."""
    path = tmp_path / "report.json"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and a folder are said in words."""
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(OptionsError, match="cannot read"):
            read_report(path)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """What is no file, as /dev/stdout and /dev/null are, stays what it is."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """The file that it leads to is written."""
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    write_whole(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"
