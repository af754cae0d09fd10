"""`rocllm models`, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

from rocllm.testing.gguf_writer import write_gguf

WriteModel: TypeAlias = Callable[..., Path]

_SECONDS = 30


def _run(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "rocllm", "models", *arguments],
        env=environ,
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path, write_model: WriteModel, write_other: WriteModel) -> Path:
    """A folder with models of all kinds, one with a name that would colour the terminal."""
    folder = tmp_path / "m"
    name = "Qwen3-30B-A3B-Instruct-2507-UD-Q4_K_XL-with-a-name-that-goes-on-and-on.gguf"
    write_model(folder / "one" / name, **{"tokenizer.chat_template": "x"})
    write_other(folder / "one" / "mmproj-F16.gguf", "mmproj", "clip")
    write_model(folder / os.fsdecode(b"red\x1b[31m\nname\xff-Q8_0.gguf"), "Q8_0")
    (folder / "bad\n.gguf").write_bytes(b"<html>")
    return folder


def test_table(folder: Path, environ: dict[str, str]) -> None:
    """It fits 80 columns, says all, and nothing in it that a terminal would obey."""
    done = _run({**environ, "COLUMNS": "80"}, str(folder))
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    table, _, problem = text.partition("not usable: ")
    assert max(map(len, table.splitlines())) <= 80
    for part in ("your folders", "llama", "Q8_0", "512", "mmproj", "no template", "KiB"):
        assert part in table
    assert "bad^J.gguf: it is a web page" in problem
    assert "\x1b" not in text
    width = table.index("arch")  # of the column with the names
    names = "".join(line[:width].strip() for line in table.splitlines())
    assert "red^[[31m^Jname<U+DCFF>-Q8_0" in names


def test_names_are_whole_where_they_are_searched(folder: Path, environ: dict[str, str]) -> None:
    """In a pipe nothing is folded."""
    environ.pop("COLUMNS", None)
    name = b"Qwen3-30B-A3B-Instruct-2507-UD-Q4_K_XL-with-a-name-that-goes-on-and-on"
    assert name in _run(environ, str(folder)).stdout


def test_the_key_that_is_wrong_is_named(folder: Path, environ: dict[str, str]) -> None:
    """And not only what is wrong with it."""
    write_gguf(folder / "nokey.gguf", {"general.name": "x"}, [])
    text = _run(environ, str(folder)).stdout.decode()
    assert "the key 'general.architecture' is missing: every model needs this key" in text


def test_json(folder: Path, environ: dict[str, str]) -> None:
    """It is complete, and gives paths of any bytes back."""
    done = _run(environ, "--json", str(folder))
    models = json.loads(done.stdout)["models"]
    assert len(models) == 3
    red = next(model for model in models if model["name"].startswith("red"))
    assert os.path.isfile(red["path"])
    assert red["quantization"] == "Q8_0"
    long = next(model for model in models if model["name"].startswith("Qwen3"))
    assert [os.path.basename(path) for path in long["mmproj"]] == ["mmproj-F16.gguf"]
    assert (long["chat_template"], long["context_length"]) == (True, 512)
    assert long["names"] == [long["name"]]
    bad = next(model for model in models if model["problem"])
    assert bad["problem"].startswith("it is a web page")
    assert bad["architecture"] is None


def test_nothing_there(environ: dict[str, str]) -> None:
    """Without any model there is a next step."""
    done = _run(environ)
    assert done.stdout == b"no models; fetch one: rocllm pull demo\n"
    assert json.loads(_run(environ, "--json").stdout) == {"models": []}
