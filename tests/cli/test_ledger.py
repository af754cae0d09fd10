"""The output of a run that was ended anywhere, and goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.cli._ledger import Ledger, Records
from rocllm.cli._rows import Format, Row, Rows
from rocllm.errors import OptionsError
from rocllm.results import ClassifyResult

JOB = {"template": "{text}", "labels": {"a": "a", "b": "b"}}
INPUTS: dict[Format, bytes] = {
    "jsonl": (
        b'{"text": "one \\"1\\"", "n": 1.50}\nbroken\n{ }\n\n{"text": "\xc3\xa4", "n": 1e400 }\n'
        b'{"text": "one \\"1\\"", "n": 1.50}\n[]\n[]\n{"text": "last"}'
    ),
    "csv": (
        b'text,n\n"two\nlines, ""quoted""",1\nx\n"\r",2\n,\n"two\nlines, ""quoted""",1\ny\nlast,3\n'
    ),
    "lines": b'one\n\xff\ntwo, "three"\n\none\nx\xff\nlast',
}


def result(row: Row) -> ClassifyResult:
    """Any result, always the same for the same row."""
    share = (len(str(row.source)) % 7) / 10 + 0.2
    label = "a" if share > 0.5 else "b"
    return ClassifyResult(0, "", label=label, probabilities={"a": share, "b": 1 - share})


class Run:
    """Runs over one input, in one folder."""

    def __init__(self, folder: Path, kind: Format, data: bytes | None = None) -> None:
        self.out, self.bad = folder / "out", folder / "bad"
        self.kind: Format = kind
        self.data = INPUTS[kind] if data is None else data
        self.events: list[tuple[str, int]] = []

    def __call__(self, job: Any = JOB, *, stop_after: int = 1000, overwrite: bool = False) -> int:
        """Do up to `stop_after` rows; how many were done."""
        rows = Rows(io.BytesIO(self.data), self.kind, "utf-8")
        first = next(iter(rows))
        records = Records(rows, ("a", "b"), "")
        done = 0
        with Ledger(records, io.BytesIO(), self.out, self.bad, job, overwrite=overwrite) as ledger:
            left = ledger.resume(self._again(first, rows))
            self._note(self.out)
            while done < stop_after and (row := next(left, None)) is not None:
                done += 1
                if row.error is None:
                    ledger.write(row, result(row))
                    self._note(self.out)
                else:
                    ledger.reject(row, row.error)
                    self._note(self.bad)
        return done

    @staticmethod
    def _again(first: Row, rows: Rows) -> Iterator[Row]:
        yield first
        yield from rows

    def _note(self, path: Path) -> None:
        self.events.append((path.name, path.stat().st_size if path.exists() else 0))

    @property
    def files(self) -> tuple[bytes, bytes]:
        return self.out.read_bytes(), self.bad.read_bytes()


@pytest.mark.parametrize("kind", INPUTS)
def test_a_run_that_is_not_disturbed(kind: Format, tmp_path: Path) -> None:
    """Every row is in one of the two files, as it was."""
    run = Run(tmp_path, kind)
    rows = list(Rows(io.BytesIO(run.data), kind, "utf-8"))
    assert run() == len(rows)
    out, bad = run.files
    good = [row for row in rows if row.error is None]
    assert len(good) >= 3
    rejected = [json.loads(line) for line in bad.splitlines()]
    assert [(each["line"], each["error"]) for each in rejected] == [
        (row.line, row.error) for row in rows if row.error
    ]
    assert rejected[0]["row"] == next(row.source for row in rows if row.error)
    if kind == "csv":
        head, *records = csv.reader(io.StringIO(out.decode(), newline=""))
        assert head == [
            *("text", "n", "label", "probability", "margin", "probability_a", "probability_b")
        ]
        assert [record[:2] for record in records] == [row.source for row in good]
        assert all(float(r[5]) + float(r[6]) == pytest.approx(1) for r in records)
    else:
        answers = [json.loads(line) for line in out.splitlines()]
        for answer, row in zip(answers, good, strict=True):
            assert row.values.items() <= answer.items()
            assert answer["probabilities"][answer["label"]] == answer["probability"]
    if kind == "jsonl":
        assert out.startswith(b'{"text": "one \\"1\\"", "n": 1.50, "label": ')
        assert b'"n": 1e400, "label"' in out
        assert b'\n{"label": ' in out


@pytest.mark.parametrize("kind", INPUTS)
def test_a_run_that_ends_anywhere_goes_on(kind: Format, tmp_path: Path) -> None:
    """After any byte that was written, in the order of writing, both files become the same."""
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole", kind)
    total = whole()
    out, bad = whole.files
    cuts = [(0, 0)]
    for name, size in whole.events:
        before = cuts[-1]
        after = (size, before[1]) if name == "out" else (before[0], size)
        for place in range(1, max(after[0] - before[0], after[1] - before[1]) + 1):
            grown = min(before[0] + place, after[0]), min(before[1] + place, after[1])
            cuts.append(grown)
    assert cuts[-1] == (len(out), len(bad))
    for number, (good, rejected) in enumerate(cuts):
        run = Run(tmp_path, kind)
        run.out.write_bytes(out[:good])
        run.bad.write_bytes(bad[:rejected])
        (tmp_path / "out.job.json").write_text(json.dumps(JOB))
        done = run()
        assert run.files == (out, bad), f"cut {number} at {good} and {rejected}"
        # No row that was written whole is done again.
        assert done <= total - bad[:rejected].count(b"\n")


def test_many_interruptions(tmp_path: Path) -> None:
    """One row a run, and in the end the same as in one run; then there is nothing to do."""
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole", "jsonl")
    total = whole()
    run = Run(tmp_path, "jsonl")
    assert [run(stop_after=1) for _ in range(total + 2)] == [*[1] * total, 0, 0]
    assert run.files == whole.files


def test_rows_that_are_added_to_the_input_are_done(tmp_path: Path) -> None:
    """The same command over a longer file does what is new."""
    run = Run(tmp_path, "lines", b"one\ntwo\n")
    assert run() == 2
    run.data += b"three\n"
    assert run() == 1
    assert run.out.read_bytes().count(b"\n") == 3


def test_another_job_or_input_is_refused(tmp_path: Path) -> None:
    """Nothing of the output is lost; --overwrite begins anew."""
    run = Run(tmp_path, "jsonl")
    run()
    before = run.files
    with pytest.raises(OptionsError, match=r"begun with template '\{text\}', not '\{other\}'"):
        run({**JOB, "template": "{other}"})
    run.data = b'{"text": "another"}\n'
    with pytest.raises(OptionsError, match="is not the output of this input"):
        run()
    run.data = INPUTS["jsonl"].splitlines(keepends=True)[0]
    with pytest.raises(OptionsError, match="more than the input's 1 rows"):
        run()
    assert run.files == before
    run.data = INPUTS["jsonl"]
    run({**JOB, "template": "{other}"}, overwrite=True)
    assert run.files == before


@pytest.mark.parametrize("name", ["out", "bad"])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    """An output, or a file for bad rows, that no run of ours has begun."""
    (tmp_path / name).write_text("important\n")
    with pytest.raises(OptionsError, match=f"{name} is there already"):
        Run(tmp_path, "lines")()
    assert (tmp_path / name).read_text() == "important\n"


def test_a_csv_output_with_other_columns_is_refused(tmp_path: Path) -> None:
    """Its rows would not fit."""
    run = Run(tmp_path, "csv")
    run()
    run.data = run.data.replace(b"text,n", b"text,m")
    with pytest.raises(OptionsError, match="columns are not those"):
        run()


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    """The rows of the first are left alone; when it has ended the second may go on."""
    run = Run(tmp_path, "lines", b"one\ntwo\nthree\n")
    assert run(stop_after=1) == 1
    before = run.out.read_bytes()
    rows = Rows(io.BytesIO(run.data), run.kind, "utf-8")
    records = Records(rows, ("a", "b"), "")
    with Ledger(records, io.BytesIO(), run.out, run.bad, JOB, overwrite=False):
        with pytest.raises(OptionsError, match="out is being written by another run"):
            run()
        assert run.out.read_bytes() == before
    assert run() == 2


@pytest.mark.parametrize("done", [0, 2])
def test_a_run_takes_nothing_from_another(tmp_path: Path, done: int) -> None:
    """Neither what the first is made of, when it has no row yet, nor its rows."""
    run = Run(tmp_path, "lines", b"one\n\xff\ntwo\n")
    run(stop_after=done)
    files = [run.out, run.bad, tmp_path / "out.job.json"]
    other = {**JOB, "template": "{other}"}
    rows = Rows(io.BytesIO(run.data), run.kind, "utf-8")
    with Ledger(
        Records(rows, ("a", "b"), ""), io.BytesIO(), run.out, run.bad, JOB, overwrite=False
    ) as first:
        left = first.resume(iter(rows))
        before = [path.read_bytes() if path.exists() else None for path in files]
        for overwrite in (False, True):
            with pytest.raises(OptionsError, match="out is being written by another run"):
                run(other, overwrite=overwrite)
        assert [path.read_bytes() if path.exists() else None for path in files] == before
        for row in left:
            first.reject(row, row.error) if row.error else first.write(row, result(row))
    assert run.out.read_bytes().count(b"\n") == 2
    assert run() == 0


def test_names_that_clash(tmp_path: Path) -> None:
    """A field of the input is not written over."""
    rows = Rows(io.BytesIO(b'{"label": 1}\n{"margin": 1}\n{"x": 1}\n'), "jsonl", "utf-8")
    plain, prefixed = Records(rows, ("a", "b"), ""), Records(rows, ("a", "b"), "model_")
    found = list(rows)
    assert [plain.clash(row) for row in found] == ["label", "margin", None]
    assert [prefixed.clash(row) for row in found] == [None, None, None]
    assert b'"model_label": ' in prefixed.encode(found[0], result(found[0]))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """It is said before anything is done."""
    run = Run(tmp_path, "lines")
    run.out = tmp_path / "nowhere" / "out"
    with pytest.raises(OptionsError, match="cannot be written"):
        run()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """What was written stays, and the same command goes on."""
    (tmp_path / "whole").mkdir()
    whole = Run(tmp_path / "whole", "lines")
    whole()
    run = Run(tmp_path, "lines")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole.files[0]) - 30, limits[1]))
    try:
        with pytest.raises(OptionsError, match="cannot be written: File too large") as caught:
            run()
        assert caught.value.remedy == "make room; the same command goes on where this one ended"
        with pytest.raises(OptionsError) as caught:
            run(overwrite=True)
        assert "; the same command without --overwrite goes on where" in str(caught.value.remedy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not run.out.read_bytes().endswith(b"\n")
    run()
    assert run.files == whole.files


@pytest.mark.parametrize("name", ["out", "bad"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    """A pipe cannot be read again, and a folder not at all."""
    for make in (os.mkfifo, os.mkdir):
        run = Run(tmp_path, "lines")
        make(tmp_path / name)
        with pytest.raises(OptionsError, match=f"{name} is not a file"):
            run()
        (tmp_path / name).unlink() if make is os.mkfifo else (tmp_path / name).rmdir()
