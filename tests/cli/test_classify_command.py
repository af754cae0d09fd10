"""`rocllm classify` as a user meets it: files of any kind, kills, bad rows, exit codes."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.engine import tiny

from rocllm.testing.fake_llama_server import write_fake_llama_server

ROCLLM = (sys.executable, "-m", "rocllm", "classify")
DEADLINE = 150.0
TEMPLATE = "Review: {text}\nSentiment:"
LABELS = ("--labels", "positive, negative,neutral")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A model, and a server for it that says anything, always the same."""
    folder = tmp_path_factory.mktemp("engine")
    server = write_fake_llama_server(folder / "llama-server")
    model = tiny(folder / "tiny.gguf")
    return str(model), "--llama-server", str(server), "--device", "cpu"


def write_rows(path: Path, count: int, *, bad: bool = True) -> Path:
    """A JSONL file; every hundredth row is a bad one."""
    with path.open("w") as file:
        for number in range(count):
            if bad and number % 100 == 37:
                file.write('{"text": broken\n' if number % 200 == 37 else '{"id": 1}\n')
            else:
                file.write(json.dumps({"id": number, "text": f"film number {number}"}) + "\n")
    return path


def classify(
    *arguments: object, stdin: bytes = b"", code: int = 0
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    done = subprocess.run(
        (*ROCLLM, *map(str, arguments)),
        input=stdin,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode()
    return done


def asking(engine: tuple[str, ...], file: object, *more: object) -> tuple[object, ...]:
    """Arguments for an ordinary run."""
    model, *options = engine
    return (model, file, "--template", TEMPLATE, *LABELS, *options, *more)


@pytest.fixture(scope="module")
def undisturbed(engine: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 2,000 rows and what becomes of them in one run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    rows = write_rows(folder / "rows.jsonl", 2000)
    done = classify(*asking(engine, rows, "-o", folder / "out.jsonl"))
    assert b"1,980 rows classified, 20 rejected" in done.stderr
    assert b"line 38: it is not JSON" in done.stderr
    assert b"line 138: there is no field 'text'; there are: id" in done.stderr
    assert done.stderr.count(b"\nline ") == 10
    return folder


def test_every_row_is_there_once(undisturbed: Path) -> None:
    """Good ones as they were with what the model says, bad ones with their line, all in order."""
    rows = (undisturbed / "rows.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in (undisturbed / "out.jsonl").read_text().splitlines()]
    rejected = [
        json.loads(line)
        for line in (undisturbed / "out.jsonl.rejects.jsonl").read_text().splitlines()
    ]
    bad = {each["line"] for each in rejected}
    assert [each["row"] for each in rejected] == [rows[each["line"] - 1] for each in rejected]
    good = [json.loads(row) for line, row in enumerate(rows, 1) if line not in bad]
    assert len(answers) == len(good) == 1980
    for answer, row in zip(answers, good, strict=True):
        assert row.items() <= answer.items()
        probabilities = answer["probabilities"]
        assert list(probabilities) == ["positive", "negative", "neutral"]
        assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert (
            probabilities[answer["label"]] == answer["probability"] == max(probabilities.values())
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_and_started_again(
    engine: tuple[str, ...], undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Several times, at any place: the files become those of an undisturbed run."""
    out = tmp_path / "out.jsonl"
    arguments = asking(engine, undisturbed / "rows.jsonl", "-o", out)
    for size in (0, 1, 70_000, 200_000):
        process = subprocess.Popen(
            (*ROCLLM, *map(str, arguments)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda size=size: out.exists() and out.stat().st_size >= size, process)
            process.send_signal(number)
            assert process.wait(DEADLINE) == (-9 if number == signal.SIGKILL else 143)
        finally:
            process.kill()
            process.wait()
        assert out.stat().st_size < (undisturbed / "out.jsonl").stat().st_size
    done = classify(*arguments)
    assert b"rows are done already" in done.stderr
    for name in ("out.jsonl", "out.jsonl.rejects.jsonl"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
    again = classify(*arguments)
    assert b"device:" not in again.stderr  # there was nothing to load a model for
    assert b"1,980 rows classified, 20 rejected" in again.stderr


def test_ctrl_c_says_how_to_go_on(engine: tuple[str, ...], tmp_path: Path) -> None:
    """The rows so far are there, and counted."""
    rows, out = write_rows(tmp_path / "rows.jsonl", 50_000), tmp_path / "out"
    process = subprocess.Popen(
        (*ROCLLM, *map(str, asking(engine, rows, "-o", out))),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for(lambda: out.exists() and out.stat().st_size > 10_000, process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=DEADLINE)[1].decode()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    told = re.search(r"([\d,]+) rows are done; the same command goes on after them", said)
    assert told is not None, said
    bad = (tmp_path / "out.rejects.jsonl").read_bytes().count(b"\n")
    assert int(told[1].replace(",", "")) == out.read_bytes().count(b"\n") + bad


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_hundred_thousand_rows_in_constant_memory(
    engine: tuple[str, ...], tmp_path: Path
) -> None:
    """The memory that the command takes is that for a tenth of the rows."""
    script = (
        "import resource, sys; from rocllm.cli import app\n"
        "app(sys.argv[1:], prog_name='rocllm', standalone_mode=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    kilobytes = []
    for count in (10_000, 100_000):
        rows = write_rows(tmp_path / f"{count}.jsonl", count)
        out = tmp_path / f"{count}.out"
        # Labels that begin with different letters, the tokens of this server: one request a row.
        arguments = asking(engine, rows, "-o", out, "-q", "-np", "16", "--labels", "a,b")
        done = subprocess.run(
            (sys.executable, "-c", script, "classify", *map(str, arguments)),
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        with out.open() as file:
            assert sum(1 for _ in file) == count * 99 // 100
        kilobytes.append(int(done.stdout))
    assert kilobytes[1] - kilobytes[0] < 4096


def test_csv_and_lines(engine: tuple[str, ...], tmp_path: Path) -> None:
    """A table stays a table; lines become JSON; names of columns with a prefix."""
    table = tmp_path / "rows.csv"
    table.write_text('label,text\na,"one\ntwo"\nb\nc,three\n')
    out = tmp_path / "out.csv"
    classify(*asking(engine, table, "-o", out, "--field-prefix", "model_"))
    with out.open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert [(each["label"], each["text"]) for each in answers] == [
        ("a", "one\ntwo"),
        ("c", "three"),
    ]
    for each in answers:
        best = each["model_label"]
        assert best in ("positive", "negative", "neutral")
        assert each[f"model_probability_{best}"] == each["model_probability"]
    rejected = json.loads((tmp_path / "out.csv.rejects.jsonl").read_text())
    assert rejected == {
        "line": 4,
        "error": "it has 1 cells, and the header has 2",
        "row": ["b"],
    }
    done = classify(*asking(engine, "-"), stdin=b"three\r\none\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["three", "one"]
    assert lines[0]["label"] == answers[1]["model_label"]


def test_labels_and_template_from_files(engine: tuple[str, ...], tmp_path: Path) -> None:
    """They say the same as those on the command line."""
    (tmp_path / "labels").write_bytes(b"\xef\xbb\xbfpositive\r\n\r\nnegative\r\n neutral\r\n")
    (tmp_path / "template").write_text(TEMPLATE + "\n")
    model, *options = engine
    files = ("--labels-file", tmp_path / "labels", "--template-file", tmp_path / "template")
    rows = b"one\ntwo\nthree\n"
    assert classify(model, "-", *files, *options, stdin=rows).stdout == (
        classify(*asking(engine, "-"), stdin=rows).stdout
    )


def test_what_cannot_be_meant(engine: tuple[str, ...], tmp_path: Path) -> None:
    """Said with exit code 2 before a model is loaded, in words; nothing is written."""
    table, labelled = tmp_path / "t.csv", tmp_path / "l.jsonl"
    table.write_text("id,text\n1,one\n")
    lines = tmp_path / "t.txt"
    lines.write_text("one\n")
    labelled.write_text('{"text": "x", "label": "y"}\n')
    (tmp_path / "empty.csv").touch()
    (tmp_path / "header.csv").write_text("id,text\n")
    (tmp_path / "latin").write_bytes(b"\xe4,b")
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("has no field", (table, *LABELS, "--template", "Sentiment:")),
        ("no column 'review'", (table, *LABELS, "--template", "{review}")),
        ("the columns are: id, text", (table, *LABELS, "--template", "{review}")),
        ("the columns are: text", (lines, *LABELS, "--template", "{review}")),
        ("the template '' has no field", (table, *LABELS, "--template", "")),
        ("--system without --chat", (table, *LABELS, "--system", "Be brief.")),
        ("--rejects must be a file", (table, *LABELS, "--rejects", "-")),
        ("there are no labels", (table,)),
        ("the only label is 'a'", (table, "--labels", "a")),
        ("'a' is given twice", (table, "--labels", "a,b,a")),
        ("are both given", (table, *LABELS, "--labels-file", table)),
        ("is not UTF-8", (table, "--labels-file", tmp_path / "latin")),
        ("unknown encoding 'klingon'", (table, *LABELS, "--encoding", "klingon")),
        ("unknown --format 'xml'", (table, *LABELS, "--format", "xml")),
        ("must be one character", (table, *LABELS, "--delimiter", "ab")),
        ("No such file", (tmp_path / "none.csv", *LABELS)),
        ("Is a directory", (tmp_path, *LABELS)),
        ("it is empty", (tmp_path / "empty.csv", *LABELS)),
        ("it has a header, and nothing else", (tmp_path / "header.csv", *LABELS)),
        ("different files", (table, *LABELS, "-o", table)),
        ("have a field 'label' already", (labelled, *LABELS)),
    ]
    model, *options = engine
    out = tmp_path / "out"
    for words, arguments in cases:
        more = () if "-o" in arguments else ("-o", out)
        done = classify(model, *arguments, *options, *more, code=2)
        assert words in done.stderr.decode(), (words, done.stderr)
        assert b"device:" not in done.stderr
    assert not out.exists()
    assert table.read_text() == "id,text\n1,one\n"


def test_no_good_row_is_an_error(engine: tuple[str, ...], tmp_path: Path) -> None:
    """The bad rows are in their file all the same, also those that the server refuses."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('broken\n{"text": "' + "long " * 200 + '"}\n')
    done = classify(*asking(engine, rows, "-o", tmp_path / "out", "--ctx-size", "256"), code=2)
    assert b"not one of 2 rows could be classified" in done.stderr
    second = json.loads((tmp_path / "out.rejects.jsonl").read_text().splitlines()[1])
    assert second["line"] == 2
    assert "the context of a slot 256" in second["error"]


def test_a_reader_that_goes_away(engine: tuple[str, ...], tmp_path: Path) -> None:
    """`| head -1` gets its line, and no complaint."""
    rows = write_rows(tmp_path / "rows.jsonl", 5000)
    process = subprocess.Popen(
        (*ROCLLM, *map(str, asking(engine, rows, "-q"))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert b'"label"' in process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    complaints = [line for line in process.stderr if not line.startswith((b"line ", b"more "))]
    process.stderr.close()
    assert complaints == []


def test_a_bar_with_rate_and_time_left(engine: tuple[str, ...], tmp_path: Path) -> None:
    """On a terminal, and gone at the end; bad rows stand above it."""
    rows = write_rows(tmp_path / "rows.jsonl", 3000)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        (*ROCLLM, *map(str, asking(engine, rows, "-o", tmp_path / "out"))),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    seen = b"".join(_read_on(leader))
    assert process.wait(DEADLINE) == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert re.search(r"\d+% [\d,]+ rows, [\d,.]+ rows/s \d+:\d\d:\d\d", text), text
    assert "line 38: it is not JSON" in text
    assert "2,970 rows classified, 30 rejected" in text


def _read_on(descriptor: int) -> Iterator[bytes]:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                data = b""
            if not data:
                break
            yield data
    os.close(descriptor)


def test_on_the_real_server(demo_model: Path, tmp_path: Path) -> None:
    """Killed in the middle and started again: the rows of one run, and sensible ones."""
    moods = {"wonderful": "positive", "terrible": "negative"}
    rows = tmp_path / "rows.csv"
    with rows.open("w") as file:
        file.write("id,text\n")
        for number in range(60):
            mood = list(moods)[number % 2]
            file.write(f"{number},A {mood} film. I give it {number} points.\n")
    model = ("demo", rows, "--template", TEMPLATE, "--labels", "positive,negative")
    threads = ("--threads", 1, "--parallel", 4, "--ctx-size", 256)
    classify(*model, *threads, "-o", tmp_path / "whole.csv")
    out = tmp_path / "out.csv"
    process = subprocess.Popen(
        (*ROCLLM, *map(str, (*model, *threads, "-o", out))),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") > 5, process)
    finally:
        process.kill()
        process.wait()
    classify(*model, *threads, "-o", out)
    answers, whole = read_table(out), read_table(tmp_path / "whole.csv")
    assert [each["id"] for each in answers] == [str(number) for number in range(60)]
    right = 0
    for each, other in zip(answers, whole, strict=True):
        assert each["label"] == other["label"]
        assert float(each["probability"]) == pytest.approx(float(other["probability"]), abs=1e-4)
        right += moods[each["text"].split()[1]] == each["label"]
    assert right >= 55


def read_table(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
