"""What the name of a model file says: the model, how it is quantised, which part of it. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

SUFFIX = ".gguf"

# "%s-%05d-of-%05d.gguf" (llama_split_path in llama.cpp, src/llama.cpp, b11434).
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})", re.DOTALL)
# The labels of llama.cpp's `llama-quantize`, with the additions that publishers make: `_L` and
# `_XL` for larger embeddings, `UD-` for Unsloth's dynamic ones.
_QUANTIZATION = re.compile(
    r"(?<![a-z0-9])((?:UD-)?"
    r"(?:[IT]?Q[1-9]_(?:[01]|K|NL|XXS|XS|S|M)(?:_(?:XXL|XL|[SML0-9]))*|BF16|FP?16|FP?32"
    r"|MXFP4(?:_MOE)?|NVFP4))(?![a-z0-9])",
    re.IGNORECASE,
)

# Files beside the models: projectors, importance matrices, heads for speculative decoding (the
# names that llama.cpp goes by, common/download.cpp of b11434).
_COMPANION = re.compile(r"mmproj|imatrix|^(mtp|eagle3|dflash|dspark)-", re.IGNORECASE)

# Best first, by the quality that is left: llama.cpp's table of perplexities (tools/quantize,
# README.md). The unquantised formats come last: they take twice the memory of Q8_0 and its time,
# for a difference that nobody measures.
PREFERENCE = (
    *("Q8_K_XL", "Q8_0", "Q6_K_XL", "Q6_K_L", "Q6_K"),
    *("Q5_K_XL", "Q5_K_L", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0"),
    *("MXFP4_MOE", "MXFP4", "NVFP4"),
    *("Q4_K_XL", "Q4_K_L", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
    *("Q3_K_XL", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS"),
    *("Q2_K_XL", "Q2_K_L", "Q2_K", "IQ2_M", "IQ2_S", "Q2_K_S", "IQ2_XS", "IQ2_XXS"),
    *("TQ2_0", "IQ1_M", "TQ1_0", "IQ1_S"),
    *("BF16", "F16", "F32"),
)


class Name(NamedTuple):
    """A file's name in parts.

    stem: without suffix and number of the part. base: and without the quantisation.
    quantization: its label, in capitals; `None`: the name has none.
    part, parts: the number of the part, from 1, and how many there are.
    """

    stem: str
    base: str
    quantization: str | None
    part: int
    parts: int


def parse_name(file_name: str) -> Name:
    """Take the name of a file apart; folders before it do not belong to it.

    >>> parse_name("Qwen3-8B-Q4_K_M.gguf")
    Name(stem='Qwen3-8B-Q4_K_M', base='Qwen3-8B', quantization='Q4_K_M', part=1, parts=1)
    """
    stem = file_name[: -len(SUFFIX)] if file_name.lower().endswith(SUFFIX) else file_name
    part = parts = 1
    split = _SPLIT.fullmatch(stem)
    if split and 1 <= int(split[2]) <= int(split[3]):
        stem, part, parts = split[1], int(split[2]), int(split[3])
    found = last_quantization(stem)
    if found is None:
        return Name(stem, stem, None, part, parts)
    base = (stem[: found.start()].rstrip("-._ ") + stem[found.end() :]).strip("-._ ")
    return Name(stem, base or stem, label(found[0]), part, parts)


def is_companion(file_name: str) -> bool:
    """Whether the file is by its name no model, but what stands beside one."""
    return _COMPANION.search(file_name) is not None


def last_quantization(text: str) -> re.Match[str] | None:
    """The last label of a quantisation in a text."""
    found = list(_QUANTIZATION.finditer(text))
    return found[-1] if found else None


def label(quantization: str) -> str:
    """A label as it is usually written: in capitals, `F16` for `fp16`."""
    return quantization.upper().replace("FP16", "F16").replace("FP32", "F32")


def is_quantization(wanted: str, quantization: str | None) -> bool:
    """Whether somebody who asks for `wanted` means this one; `UD-` may be left away.

    >>> is_quantization("q4_k_xl", "UD-Q4_K_XL")
    True
    """
    return quantization is not None and label(wanted) in (
        quantization,
        quantization.removeprefix("UD-"),
    )


def rank(quantization: str | None) -> int:
    """The place in `PREFERENCE`; what is not there comes between the quantised and the rest."""
    known = (quantization or "").removeprefix("UD-")
    if known in PREFERENCE:
        return PREFERENCE.index(known)
    return PREFERENCE.index("BF16")
