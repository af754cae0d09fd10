"""Tells what vLLM a Python has, without importing it, which would take ten seconds.

Run as a program by that Python, which need not have rocllm.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
from typing import Any


def _folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return pathlib.Path(places[0] if places else "/nonexistent")


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _value(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\b[^=\n]*=(?:[^=\n]*=)?\s*'([^']*)'", text, re.MULTILINE)
    return found.group(1) if found else None


def probe() -> dict[str, Any]:
    """Versions, what PyTorch was built for, and whether the server knows UNIX sockets."""
    vllm, torch = _folder("vllm"), _read(_folder("torch") / "version.py")
    arguments = ("entrypoints/launchers/cli_args.py", "entrypoints/openai/cli_args.py")
    return {
        "vllm": _value(_read(vllm / "_version.py"), "__version__"),
        "torch": _value(torch, "__version__"),
        "hip": _value(torch, "hip"),
        "cuda": _value(torch, "cuda"),
        "uds": any("uds:" in _read(vllm / name) for name in arguments),
    }


if __name__ == "__main__":
    print(json.dumps(probe()))  # noqa: T201 - the answer
