"""The public door: what `import rocllm` offers and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rocllm

# Heavy, or none of the library's business: imported when something that needs it is used.
_NOT_AT_IMPORT = {"asyncio", "email", "http", "json", "rich", "ssl", "subprocess", "typer"}


def test_all_is_sorted_and_without_doubles() -> None:
    """`__all__` reads like an index."""
    assert rocllm.__all__ == sorted(set(rocllm.__all__))


@pytest.mark.parametrize("name", rocllm.__all__)
def test_every_name_is_there(name: str) -> None:
    """A promised name can be imported, says what it is for, and is listed by `dir`."""
    value = getattr(rocllm, name)
    assert value.__doc__
    assert name in dir(rocllm)


def test_all_is_what_type_checkers_see() -> None:
    """The imports written for type checkers and `__all__` are the same names."""
    assert rocllm.__file__ is not None
    tree = ast.parse(Path(rocllm.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(rocllm.__all__)


def test_unknown_names_are_refused() -> None:
    """A misspelt name is an `AttributeError`, as in any module."""
    with pytest.raises(AttributeError, match="'load_modle'"):
        _ = rocllm.load_modle


def test_import_is_light() -> None:
    """`import rocllm` does no work and brings in nothing heavy."""
    code = "import sys; before = set(sys.modules); import rocllm; print(*set(sys.modules) - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    ).stdout.split()
    assert "rocllm" in loaded
    assert _NOT_AT_IMPORT.isdisjoint(name.partition(".")[0] for name in loaded)


def test_the_library_does_not_need_the_command_line() -> None:
    """Loading every public name leaves typer and rich alone."""
    code = "import sys\nfrom rocllm import *\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    ).stdout.split()
    assert "rocllm.errors" in loaded
    assert {"rich", "typer"}.isdisjoint(loaded)
