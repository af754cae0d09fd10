"""Rows of any file, good and bad, each with its line; templates."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest

from rocllm.cli import _rows
from rocllm.cli._rows import Row, Rows, Template
from rocllm.errors import OptionsError


def read(data: bytes, kind: Any, encoding: str = "utf-8", delimiter: str = ",") -> list[Row]:
    """Every row of a file."""
    return list(Rows(io.BytesIO(data), kind, encoding, delimiter))


def test_json_lines() -> None:
    """Objects; empty lines are passed over and counted; the rest is bad, with its line."""
    data = b'{"a": 1}\n\n[1]\r\n{"a":\n"x"\nnull\n{"b": "\xc3\xa4"}\r\n{"c": "\xff"}\n{"d": 2}'
    rows = read(data, "jsonl")
    assert [(row.line, dict(row.values)) for row in rows if row.error is None] == [
        (1, {"a": 1}),
        (7, {"b": "ä"}),
        (9, {"d": 2}),
    ]
    errors = {row.line: row.error for row in rows if row.error}
    assert errors[3] == "it is a JSON list, and not an object"
    assert "it is not JSON" in (errors[4] or "")
    assert errors[5] == "it is a JSON str, and not an object"
    assert errors[6] == "it is a JSON NoneType, and not an object"
    assert errors[8] == "byte 0xff is none of the encoding's"
    assert rows[-1].end == len(data)
    assert [row.source for row in rows[:2]] == ['{"a": 1}', "[1]"]


def test_csv() -> None:
    """Cells with line ends in them; rows that have too few or too many cells, or bad quotes."""
    data = b'id,text\n1,"two\nlines"\n\n2,"a ""quote"""\n3\n4,x,y\n5,"bad" quote\n6,last\r\n7,"open'
    rows = read(data, "csv")
    assert [(row.line, dict(row.values)) for row in rows if row.error is None] == [
        (2, {"id": "1", "text": "two\nlines"}),
        (5, {"id": "2", "text": 'a "quote"'}),
        (9, {"id": "6", "text": "last"}),
    ]
    errors = {row.line: row.error for row in rows if row.error}
    assert errors[6] == "it has 1 cells, and the header has 2"
    assert errors[7] == "it has 3 cells, and the header has 2"
    assert "it is not CSV" in (errors[8] or "")
    assert "it is not CSV" in (errors[10] or "")
    assert rows[-1].end == len(data)


@pytest.mark.parametrize("rest", ["", '6,"six"\n', '6,"six\nand more"\n7,seven'])
def test_a_quote_that_is_never_closed_costs_its_own_row(rest: str) -> None:
    """Those behind it are rows, whatever they hold; the bad one is kept as it was written."""
    data = f'id,text\n1,"one"\n2,"two\n3,three\n\n4,x,y\n5,five\n{rest}'.encode()
    rows = read(data, "csv")
    assert [(row.line, row.source) for row in rows[:5]] == [
        (2, ["1", "one"]),
        (3, '2,"two'),
        (4, ["3", "three"]),
        (6, ["4", "x", "y"]),
        (7, ["5", "five"]),
    ]
    assert [bool(row.error) for row in rows[:5]] == [False, True, False, True, False]
    assert [row.source for row in rows[5:]] == [
        row.source for row in read(b"a,b\n" + rest.encode(), "csv")
    ]
    ends = [row.end for row in rows]
    assert ends == sorted(ends)
    assert ends[:2] == [len(b'id,text\n1,"one"\n'), len(b'id,text\n1,"one"\n2,"two\n')]
    assert ends[-1] == len(data)


def test_tabs_and_other_delimiters() -> None:
    """Whatever separates the cells."""
    assert dict(read(b"a\tb\n1,5\t2\n", "csv", delimiter="\t")[0].values) == {"a": "1,5", "b": "2"}


def test_lines() -> None:
    """The text of each, whatever is in it but a line end."""
    rows = read('one, "two"\r\n\nthree\u2028four\n'.encode(), "lines")
    assert [(row.line, row.values) for row in rows] == [
        (1, {"text": 'one, "two"'}),
        (3, {"text": "three\u2028four"}),
    ]


def test_encodings() -> None:
    """As it is said; the mark before UTF-8 is no part of the first column's name."""
    assert read("a,b\nä,ö\n".encode("latin-1"), "csv", "latin-1")[0].source == ["ä", "ö"]
    assert read("a,b\nä,ö\n".encode("utf-16"), "csv", "utf-16")[0].source == ["ä", "ö"]
    assert dict(read(b"\xef\xbb\xbfa,b\n1,2\n", "csv")[0].values) == {"a": "1", "b": "2"}
    for unknown in ("klingon", "hex"):
        with pytest.raises(OptionsError, match=f"unknown encoding '{unknown}'"):
            read(b"", "lines", unknown)
    with pytest.raises(OptionsError, match="line 1 and what follows cannot be read"):
        read(b"\xff\xfea\x00\x00\xd8\n", "lines", "utf-16")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "lines"])
def test_an_empty_file_has_no_rows(kind: str) -> None:
    """Nor has one of empty lines."""
    assert read(b"", kind) == read(b"\n\r\n\n", kind) == []


@pytest.mark.parametrize(("data", "words"), [(b"a,a\n1,2\n", "is there twice"), (b'"a\n', "CSV")])
def test_a_header_that_is_none(data: bytes, words: str) -> None:
    """Nothing can be read without it."""
    with pytest.raises(OptionsError, match=words):
        read(data, "csv")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "lines"])
def test_a_line_without_end_is_passed_over(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one bad row, and not in memory; the next one is read."""
    monkeypatch.setattr(_rows, "_MAX_LINE", 100)
    head, row = (b"a\n", b"1\n") if kind == "csv" else (b"", b'{"a": 1}\n')
    rows = read(head + row + b"x" * 1050 + b"\n" + row, kind)
    assert [bool(each.error) for each in rows] == [False, True, False]
    assert "more than 100 characters" in (rows[1].error or "")
    assert rows[2].line == rows[1].line + 1
    assert len(rows[1].source) < 10


def test_a_quote_that_is_never_closed_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over many lines: memory is bounded."""
    monkeypatch.setattr(_rows, "_MAX_LINE", 200)
    endless = itertools.islice(itertools.repeat(b"12345678,\n"), 100)
    rows = read(b'a\n"' + b"".join(endless), "csv")
    assert "field larger than field limit" in (rows[0].error or "")
    assert rows[0].line == 2


def test_templates() -> None:
    """Fields by name, in any number; braces; numbers and lists as JSON has them."""
    template = Template("{{{a}}} of {b}: {a}, {strange name!x:y}\n")
    assert template.fields == ("a", "b", "strange name!x:y")
    values = {"a": "A", "b": [1, "ä"], "strange name!x:y": True, "unused": None}
    assert template.render(values) == '{A} of [1, "ä"]: A, true\n'
    assert template.ends_in_space
    assert not Template("{a}").ends_in_space
    assert not Template("\n{a}").ends_in_space


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no field", "has no field"),
        ("", "has no field"),
        ("{{a}}", "has no field"),
        ("{} {a}", "without a name"),
        ("{a", "cannot be read"),
        ("a} {b}", "cannot be read"),
    ],
)
def test_templates_that_are_none(text: str, words: str) -> None:
    """Each in its own words."""
    with pytest.raises(OptionsError, match=words):
        Template(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"b": 1, "c": 2}, "no field 'a'; there are: b, c"),
        ({"a": None}, "'a' is null"),
        ({}, "none"),
    ],
)
def test_a_row_without_the_field(values: Any, words: str) -> None:
    """What it has is said."""
    with pytest.raises(ValueError, match=words):
        Template("{a}").render(values)
