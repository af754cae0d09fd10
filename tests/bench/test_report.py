"""Reports as JSON: there and back, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from tests.bench.made import cell, report, subject

from rocllm.bench import Suite, decode_report, encode_report
from rocllm.bench.report import SCHEMA
from rocllm.errors import OptionsError


def test_there_and_back() -> None:
    """Nothing is lost on the way through JSON."""
    odd = subject(
        name="ünïcode",
        quantization=None,
        devices=(),
        remarks=("a note",),
        cells=(
            cell("decode", error="it died\nbecause"),
            cell("prompt", 9, skipped="too long", ctx_size=None),
            cell("concurrent", 2, aggregate=(1.5,), notes=("interrupted",)),
        ),
    )
    full = report(
        subject(),
        odd,
        interrupted=True,
        warnings=("busy",),
        options={"threads": "1"},
        suite=Suite(kinds=("load",), callers=(3,)),
    )
    assert decode_report(encode_report(full), "it") == full


def test_json_for_other_programs() -> None:
    """The samples are there, with median and deviation beside them."""
    values = json.loads(encode_report(report()))
    assert values["schema"] == SCHEMA
    decode = values["subjects"][0]["cells"][1]["samples"]["decode"]
    assert decode["samples"] == [98.0, 101.0, 100.0, 99.0, 103.0]
    assert (decode["median"], decode["mad"]) == (100.0, 1.0)


def _change(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", KeyError),
        ("schema", "1"),
        ("machine", None),
        ("machine.cores", "many"),
        ("subjects", 3),
        ("subjects.0.file", None),
        ("subjects.0.cells.0.kind", "speed"),
        ("subjects.0.cells.0.samples", 3),
        ("subjects.0.cells.0.samples.load.samples", ["fast"]),
        ("subjects.0.cells.0.samples.load.samples", [float("nan")]),
        ("subjects.0.memory.0.allocated", {}),
        ("suite.callers", None),
        ("warnings", [1]),
    ],
)
def test_what_is_no_report(path: str, value: Any) -> None:
    """A file that somebody has tampered with is named, and does not crash the program."""
    values = json.loads(encode_report(report()))
    _change(values, path, value)
    with pytest.raises(OptionsError, match=r"broken\.json"):
        decode_report(json.dumps(values), "broken.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe\x00"])
def test_what_is_no_json(text: str | bytes) -> None:
    """Neither is a file that is cut off, empty or binary."""
    with pytest.raises(OptionsError, match="no report"):
        decode_report(text, "it")


def test_a_newer_schema() -> None:
    """A report of a later version is not misread: the answer is to upgrade."""
    text = encode_report(report()).replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}')
    with pytest.raises(OptionsError, match="newer rocllm") as caught:
        decode_report(text, "it")
    assert "upgrade" in str(caught.value)


def test_more_fields_than_we_know() -> None:
    """Fields that a later version adds within the schema are passed over."""
    values = json.loads(encode_report(report()))
    values["extra"] = values["subjects"][0]["extra"] = 1
    values["subjects"][0]["cells"][0]["samples"]["watts"] = {"samples": [1.0]}
    assert decode_report(json.dumps(values), "it") == report()


@pytest.mark.parametrize(
    ("file", "name", "title"),
    [
        ("SmolLM2-135M.Q4_1.gguf", "whatever", "SmolLM2-135M.Q4_1"),
        ("big-Q4_K_M-00001-of-00003.gguf", None, "big-Q4_K_M"),
        (f"sha256-{'0' * 64}", "Llama 3", "Llama 3 Q4_K_M"),
        (f"sha256-{'0' * 64}", None, "Q4_K_M"),
    ],
)
def test_title(file: str, name: str | None, title: str) -> None:
    """A model goes by its file; Ollama's files are named by what is in them."""
    assert dataclasses.replace(subject(), file=file, name=name).title == title
