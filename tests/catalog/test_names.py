"""What names of files say, and which models a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from rocllm.catalog.match import Entry, match_name
from rocllm.catalog.names import PREFERENCE, is_quantization, parse_name, rank


@pytest.mark.parametrize(
    ("file", "base", "quantization"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.GGUF", "SmolLM2-135M-Instruct", "Q4_1"),
        ("gemma-3-4b-it-q4_0.gguf", "gemma-3-4b-it", "Q4_0"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "Qwen3-30B-A3B", "UD-Q4_K_XL"),
        ("phi-4.fp16.gguf", "phi-4", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b", "MXFP4"),
        ("Mixtral-8x7B-IQ2_XXS-imat.gguf", "Mixtral-8x7B-imat", "IQ2_XXS"),
        ("Q4_K_M.gguf", "Q4_K_M", "Q4_K_M"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Phi-3-mini-4k-instruct-q4", None),
        ("user_repo_Q5_K_S_v2.gguf", "user_repo_v2", "Q5_K_S"),
        ("Qwen3-Q4_Kind.gguf", "Qwen3-Q4_Kind", None),
        (".gguf", "", None),
        ("a\nb-q8_0.gguf", "a\nb", "Q8_0"),
    ],
)
def test_quantization_in_a_name(file: str, base: str, quantization: str | None) -> None:
    """The label that publishers put into names is found, and nothing that only looks like it."""
    name = parse_name(file)
    assert (name.base, name.quantization) == (base, quantization)
    assert (name.part, name.parts) == (1, 1)


def test_a_part_of_a_model() -> None:
    """The number of the part is not part of the name; a number that cannot be is."""
    assert parse_name("big-Q8_0-00002-of-00003.gguf")[:1] == ("big-Q8_0",)
    assert parse_name("big-Q8_0-00002-of-00003.gguf")[3:] == (2, 3)
    assert parse_name("big-00004-of-00003.gguf")[3:] == (1, 1)
    assert parse_name("big-00000-of-00003.gguf").stem == "big-00000-of-00003"


def test_order_of_preference() -> None:
    """Better quantisations come first, unknown ones after them, unquantised files last."""
    assert rank("Q8_0") < rank("UD-Q6_K_XL") < rank("Q4_K_M") < rank("IQ1_S") < rank("F16")
    assert rank("Q4_0_4_8") == rank(None) <= rank("BF16")
    assert len(set(PREFERENCE)) == len(PREFERENCE)


def test_asking_for_a_quantization() -> None:
    """In any letters, and without the prefix of dynamic ones."""
    assert is_quantization("q4_k_m", "Q4_K_M")
    assert is_quantization("fp16", "F16")
    assert is_quantization("Q4_K_XL", "UD-Q4_K_XL")
    assert not is_quantization("UD-Q4_K_M", "Q4_K_M")
    assert not is_quantization("Q4_0", None)


def _entry(name: str, *more: str) -> Entry:
    return Entry(Path(f"/m/{name}.gguf"), (name, *more), parse_name(name).quantization)


_ENTRIES = [
    _entry("Qwen3-8B-Q4_K_M", "Qwen/Qwen3-8B-GGUF:Q4_K_M"),
    _entry("Qwen3-8B-Q8_0", "Qwen/Qwen3-8B-GGUF:Q8_0"),
    _entry("qwen3-4b"),
    _entry("qwen3-4b-instruct"),
    Entry(Path("/o/sha256-0"), ("llama3.2:latest", "llama3.2"), None),
    Entry(Path("/o/sha256-1"), ("llama3.2:1b",), None),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("qwen3-4b", ["qwen3-4b"]),
        ("qwen3-4b.gguf", ["qwen3-4b"]),
        ("QWEN3-4B", ["qwen3-4b"]),
        ("qwen3-4b-", ["qwen3-4b-instruct"]),
        ("Qwen3-8B:Q8_0", ["Qwen3-8B-Q8_0"]),
        ("qwen3-8:q4_k_m", ["Qwen3-8B-Q4_K_M"]),
        ("qwen3:q4_k_m", ["Qwen3-8B-Q4_K_M"]),
        ("Qwen/Qwen3-8B-GGUF:q8_0", ["Qwen3-8B-Q8_0"]),
        ("qwen3-8b", ["Qwen3-8B-Q4_K_M", "Qwen3-8B-Q8_0"]),
        ("llama3.2", ["llama3.2:latest"]),
        ("llama3.2:1b", ["llama3.2:1b"]),
        ("qwen3-4b:Q8_0", []),
        ("Qwen3-8B:Q2_K", []),
        ("8B", []),
    ],
)
def test_which_models_a_name_means(wanted: str, found: list[str]) -> None:
    """The exact name wins; then other letters, `NAME:QUANTIZATION`, the beginning of a name."""
    assert [entry.names[0] for entry in match_name(wanted, _ENTRIES)] == found
