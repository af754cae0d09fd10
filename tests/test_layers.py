"""The layer rule of docs/design.md: imports go down, never sideways, never in a circle."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parents[1] / "src" / "rocllm"

_LAYERS = (
    {"__version__", "errors", "options", "results", "endpoint", "env", "frames", "units"},
    {"devices", "gguf"},
    {"safetensors"},
    {"catalog"},
    {"memory"},
    {"server", "client"},
    {"doctor"},
    {"backends"},
    {"text"},
    {"bench"},
    {"cli", "gateway", "testing"},
    {"__main__"},
)
_RANK = {package: rank for rank, layer in enumerate(_LAYERS) for package in layer}
# For tests only: nothing else may import it.
_FOR_TESTS = "testing"
# The public door and the command line import what they need when they need it.
_LAZY = {"rocllm", "rocllm.__main__", "rocllm.cli"}
# Packages that are not in the standard library, and who may use them.
_THIRD_PARTY = {
    "httpx2": "catalog",  # what huggingface_hub raises when there is no network
    "huggingface_hub": "catalog",
    "matplotlib": "bench",
    "pytest": "testing",
    "rich": "cli",
    "typer": "cli",
    "xllamacpp": "server",
}

# Who runs programs, with the environment and the leash of docs/security.md: a server, a question
# to a program, and the user's own pip and repairs, which are told all that he tells them.
_RUNNERS = {
    "rocllm.server._spawn",
    "rocllm.server.ask",
    "rocllm.catalog.pip_download",
    "rocllm.cli.doctor",
}


@dataclass(frozen=True, slots=True)
class _Import:
    source: str
    target: str
    line: int
    in_function: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def _modules(root: Path) -> dict[str, Path]:
    modules = {}
    for path in root.rglob("*.py"):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _imports(root: Path) -> list[_Import]:
    """Every import that runs, by module; of our own names the module that they live in."""
    modules = _modules(root)
    found = []
    for source, path in modules.items():
        for node, in_function in _statements(ast.parse(path.read_text()), in_function=False):
            for name in _targets(node, source, path.name == "__init__.py"):
                module = name.rpartition(".")[0]
                # `from rocllm import load_model` is not a way round the layers.
                target = name if name in modules or module == root.name else module
                found.append(_Import(source, target, node.lineno, in_function))
    return found


def _statements(
    node: ast.AST, in_function: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, in_function
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    for child in ast.iter_child_nodes(node):
        yield from _statements(child, in_function)


def _targets(node: ast.Import | ast.ImportFrom, source: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"{alias.name}." for alias in node.names]
    base = node.module or ""
    if node.level:
        # One dot is the package itself; each further one its parent.
        parts = [*source.split("."), *([""] if is_package else [])][: -node.level]
        base = ".".join(part for part in (*parts, base) if part)
    return [f"{base}.{alias.name}" for alias in node.names]


def _package(module: str) -> str:
    """`rocllm.server.process` -> `server`; the public door has none."""
    return module.partition(".")[2].partition(".")[0]


def _own(found: list[_Import], root: Path) -> list[_Import]:
    return [one for one in found if one.target.split(".")[0] == root.name]


def _may_import(source: str, target: str) -> bool:
    if source == target or source == "":
        return True
    if target == _FOR_TESTS:
        return False
    # A package without a layer is named by the first test below.
    above, below = (_RANK.get(name, len(_LAYERS)) for name in (source, target))
    return below < above or below == above == 0


def _upward(root: Path) -> list[str]:
    return [
        str(one)
        for one in _own(_imports(root), root)
        if not _may_import(_package(one.source), _package(one.target))
    ]


def _hidden(root: Path) -> list[str]:
    return [
        str(one)
        for one in _own(_imports(root), root)
        if one.in_function and one.source not in _LAZY
    ]


def _foreign(root: Path) -> list[str]:
    wrong = []
    for one in _imports(root):
        name = one.target.split(".")[0]
        if name == root.name or name in sys.stdlib_module_names:
            continue
        if _THIRD_PARTY.get(name) != _package(one.source):
            wrong.append(str(one))
    return wrong


def _circle(root: Path) -> list[str]:
    graph: dict[str, set[str]] = {}
    for one in _own(_imports(root), root):
        if not one.in_function:
            graph.setdefault(one.source, set()).add(one.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as exc:
        return list(exc.args[1])
    return []


def _runners(root: Path) -> list[str]:
    names = ("subprocess.Popen(", "subprocess.run(", "check_output(", "posix_spawn", "os.system(")
    return [
        module
        for module, path in _modules(root).items()
        if module not in _RUNNERS
        and _package(module) != _FOR_TESTS
        and any(name in path.read_text() for name in names)
    ]


def test_every_package_has_a_layer() -> None:
    """A new package is given its place in the order before anything else."""
    assert {_package(module) for module in _modules(_SOURCE)} - {""} <= set(_RANK)


def test_imports_go_down() -> None:
    """A module imports from lower layers and from its own package."""
    assert _upward(_SOURCE) == []


def test_no_circles() -> None:
    """No module imports itself, however far round."""
    assert _circle(_SOURCE) == []


def test_no_hidden_imports() -> None:
    """Our own modules are imported at the top of a file, where everybody sees them."""
    assert _hidden(_SOURCE) == []


def test_the_core_needs_the_standard_library_only() -> None:
    """Other packages are used in the one place that is named for each."""
    assert _foreign(_SOURCE) == []


def test_programs_are_run_in_few_places() -> None:
    """Who needs an answer of a program asks in `server/ask.py`."""
    assert _runners(_SOURCE) == []


@pytest.mark.parametrize(
    ("module", "text", "check"),
    [
        ("client/sync.py", "from rocllm.server import process", _upward),
        ("server/process.py", "import rocllm.text", _upward),
        ("gguf/reader.py", "from ..devices import discover", _upward),
        ("gguf/__init__.py", "from ..devices import discover", _upward),
        ("text/model.py", "from rocllm import testing", _upward),
        ("text/model.py", "from rocllm import load_model", _upward),
        ("text/model.py", "import rocllm", _upward),
        ("text/model.py", "def f():\n    from rocllm import env", _hidden),
        ("text/model.py", "import numpy.linalg", _foreign),
        ("text/model.py", "import typer", _foreign),
        ("text/model.py", "import subprocess\nsubprocess.run(())", _runners),
        ("env.py", "from rocllm.units import x", _circle),
        ("text/model.py", "from . import helper", _circle),
        ("text/model.py", "from rocllm.text import name_in_init", _circle),
    ],
)
def test_the_checks_find_what_they_look_for(
    module: str, text: str, check: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    """Each check fails on a tree that breaks its rule, and passes without the offender."""
    root = tmp_path / "rocllm"
    files = {"units.py": "import os\nfrom rocllm import __version__, env\n"}
    files["text/helper.py"] = (
        "if TYPE_CHECKING:\n    from rocllm import cli\nimport rocllm.text.model"
    )
    files["text/__init__.py"] = "from rocllm.text.model import f"
    for name in ("client", "server", "gguf", "devices", "testing", "cli"):
        files[f"{name}/__init__.py"] = ""
    files |= {"__init__.py": "", "env.py": "", "devices/discover.py": "", "server/process.py": ""}
    files.setdefault(module, "")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    assert check(root) == []
    (root / module).write_text(text)
    assert len(check(root)) > 0
