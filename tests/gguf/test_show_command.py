"""`rocllm show`, as a person and as a program reads it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.safetensors.made import CONFIG, write_model

from rocllm.testing.gguf_writer import Tensor, Typed, Value, encode_header, write_gguf
from rocllm.testing.tiny_models import tiny_llama


def run_show(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rocllm", "show", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def show_as_json(path: Path) -> dict[str, Any]:
    """What `--json` prints, read by a strict parser."""
    done = run_show(path, "--json")
    assert done.returncode == 0, done.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    parsed: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    return parsed


def test_a_model_for_people(demo_model: Path) -> None:
    """The facts of the demo model, one on a line, without colour."""
    done = run_show("demo")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    facts = {label: text.strip() for label, text in lines.items()}
    assert facts["architecture"] == "llama"
    assert facts["parameters"] == "134.5M (label: 135M)"
    assert facts["quantization"] == "Q4_1, 5.74 bits per weight"
    assert facts["context length"] == "8,192 tokens"
    assert facts["layers"] == "30"
    assert facts["heads"] == "9, keys and values 3, head size 64"
    assert facts["vocabulary"] == "49,152 tokens (gpt2)"
    assert facts["chat template"] == "yes"
    assert facts["license"] == "apache-2.0"
    assert demo_model.name in facts["file"]
    assert "\x1b" not in done.stdout


def test_everything_as_json(tmp_path: Path) -> None:
    """All metadata and all tensors; arrays by type and count unless they are short."""
    metadata, tensors = tiny_llama()
    more: dict[str, Value] = {
        "x.inf": math.inf,
        "x.nans": Typed("float32", [math.nan, 1.0]),
        "x.long": ["t"] * 2000,
        "x.large": 2**64 - 1,
        "x.text": "\x1b[31m \ud83e\udd99".encode("utf-16", "surrogatepass").decode("utf-16"),
    }
    path = write_gguf(tmp_path / "m.gguf", metadata | more, tensors)
    shown = show_as_json(path)
    assert shown["metadata"]["x.inf"] == "inf"
    assert shown["metadata"]["x.nans"] == ["nan", 1.0]
    assert shown["metadata"]["x.long"] == {"type": "string", "count": 2000}
    assert shown["metadata"]["x.large"] == 2**64 - 1
    assert shown["metadata"]["x.text"] == more["x.text"]
    assert set(shown["metadata"]) == {*metadata, *more}
    assert [tensor["name"] for tensor in shown["tensors"]] == [tensor.name for tensor in tensors]
    assert shown["tensors"][0]["shape"] == [64, 285]
    assert shown["model"]["head_count_kv"] == [2, 2]
    assert shown["files"][0]["file_size"] == path.stat().st_size
    assert shown["problem"] is None


def test_a_hostile_text_does_not_reach_the_terminal(tmp_path: Path) -> None:
    """Escape sequences and line breaks in a name are shown as such."""
    metadata, tensors = tiny_llama()
    metadata["general.name"] = "evil\x1b[2J\nchat template  yes"
    path = write_gguf(tmp_path / "m.gguf", metadata, tensors)
    done = run_show(path)
    assert done.stdout.splitlines()[0].endswith("evil^[[2J^Jchat template  yes")
    assert "\x1b" not in done.stdout


def test_a_file_that_is_not_a_model(tmp_path: Path) -> None:
    """What can be read is shown, with the reason why it is no model."""
    path = write_gguf(tmp_path / "m.gguf", {"general.type": "mmproj"}, [Tensor("v", (4,))])
    done = run_show(path)
    assert done.returncode == 0
    assert "1 metadata keys, 1 tensors" in done.stdout
    assert "is not a language model: it is the image or audio part of a model" in done.stdout
    shown = show_as_json(path)
    assert shown["model"] is None
    assert "mmproj" in shown["problem"]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_broken_file(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Three lines on stderr, nothing on stdout, the exit code for model files."""
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_header({"a": 1}, n_keys=2) + bytes(3))
    done = run_show(path, *arguments)
    assert done.returncode == 3
    assert done.stdout == ""
    assert "is broken at byte" in done.stderr
    assert len(done.stderr.splitlines()) == 3


def test_a_model_in_safetensors_format(tmp_path: Path) -> None:
    """The same facts, from its configuration and headers, and the backend that runs it."""
    directory = write_model(tmp_path / "Tiny-1M", {**CONFIG, "rope_theta": math.inf})
    done = run_show(directory)
    assert done.returncode == 0, done.stderr
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert facts["quantization"].strip() == "BF16, 16.00 bits per weight"
    assert facts["format"].strip() == "safetensors, for --backend vllm"
    shown = show_as_json(directory / "model.safetensors")
    assert shown["model"]["block_count"] == 2
    assert shown["metadata"]["rope_theta"] == "inf"
    done = run_show(directory, "--template")
    assert "no chat template" in done.stdout
