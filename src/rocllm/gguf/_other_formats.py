"""What a file is that should be a GGUF file and is not, judged by its first bytes."""

from __future__ import annotations

import re
from typing import NamedTuple

# Enough to tell every format below.
N_BYTES = 512

_CONVERT = "fetch a GGUF version of the model, or make one with llama.cpp's convert_hf_to_gguf.py"
_FETCH_FILE = "fetch the file itself, not the page about it"


class Guess(NamedTuple):
    """What the file looks like, and what to do about it."""

    what: str
    remedy: str


_BEGINNINGS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
    (rb"(?i)\s*<(!doctype html|html|head|body)", "a web page", _FETCH_FILE),
    (rb"\s*<\?xml", "an XML document, perhaps a server's error message", _FETCH_FILE),
    (rb"\s*[{\[]", "JSON, perhaps a server's error message", _FETCH_FILE),
    (rb"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint", _CONVERT),
    (rb"\x80[\x02-\x05]", "a Python pickle, perhaps a PyTorch checkpoint", _CONVERT),
    (rb"\x89HDF", "an HDF5 file", _CONVERT),
    (
        rb"(?s).{7}\x00\{",
        "a safetensors file",
        f"load its folder with backend='vllm', or {_CONVERT}",
    ),
    (rb"lmgg|fmgg|tjgg|algg", "a GGML file from before GGUF (August 2023)", _CONVERT),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd|\xfd7zXZ|BZh", "a compressed file", "unpack it first"),
    (rb"\x7fELF", "a program", "give the path of a .gguf file"),
)


def guess_format(head: bytes) -> Guess:
    """What a file that begins with `head` looks like.

    >>> guess_format(b"<!DOCTYPE html><html>").what
    'a web page'
    """
    if not head:
        return Guess("empty", "download it again")
    for pattern, what, remedy in _BEGINNINGS:
        if re.match(pattern, head):
            return Guess(what, remedy)
    if not head.strip(b"\0"):
        return Guess("all zeros at its beginning: the download did not finish", "download it again")
    text = head.decode(errors="ignore")
    if len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\r\n\t" for c in text):
        return Guess(f"a text that begins with {text[:40]!r}", "give the path of a .gguf file")
    return Guess(
        f"of a format that rocllm does not know (it begins with {head[:4]!r}, a GGUF file with "
        "b'GGUF')",
        "give the path of a .gguf file",
    )
