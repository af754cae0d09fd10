"""Backends by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rocllm import backends
from rocllm.backends import Backend, LoadedModel, LoadRequest, registry
from rocllm.errors import BackendUnavailable, OptionsError


class Mine:
    """The least that a backend is."""

    name = "mine"

    def available(self) -> bool:
        return False

    def why_not(self) -> str | None:
        return "it is only a test"

    def load(self, request: LoadRequest) -> LoadedModel:
        raise BackendUnavailable("it is only a test")


@pytest.fixture(autouse=True)
def _forget_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_rocm_is_the_default() -> None:
    """The first backend is found through its entry point, once."""
    backend = backends.default()
    assert backend.name == "rocm"
    assert isinstance(backend, Backend)
    assert backends.get("rocm") is backend
    assert "rocm" in backends.list()


def test_rocm_is_available_here() -> None:
    """Available and why_not agree."""
    backend = backends.default()
    assert backend.available()
    assert backend.why_not() is None


def test_rocm_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any llama-server the reason lists where it was looked for, and what to install."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ROCM_LLAMA_SERVER_PATH", raising=False)
    monkeypatch.setattr("rocllm.server.binary.embedded_installed", lambda: False)
    backend = backends.default()
    assert not backend.available()
    reason = backend.why_not()
    assert reason is not None
    assert "pip install 'rocllm[embedded]'" in reason
    assert "/nowhere" in reason


def test_a_registered_backend_is_found() -> None:
    """What is registered is found under its name, listed, and replaces an older one."""
    mine, newer = Mine(), Mine()
    backends.register(mine)
    assert backends.get("mine") is mine
    assert {"mine", "rocm"} <= set(backends.list())
    assert list(backends.list()) == sorted(backends.list())
    backends.register(newer)
    assert backends.get("mine") is newer


def test_wrong_names_and_objects_are_refused() -> None:
    """A typo names the nearest backend; what is no backend is refused."""
    with pytest.raises(OptionsError, match="did you mean 'rocm'"):
        backends.get("rcom")
    with pytest.raises(OptionsError, match="is not a backend"):
        backends.register(object())  # type: ignore[arg-type]


def test_another_package_offers_one(tmp_path: Path) -> None:
    """An entry point of an installed package is enough; a broken one is told, not hidden."""
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rocllm.backends]\nother = other:Other\nbroken = not_there:Backend\n"
    )
    (tmp_path / "other.py").write_text(
        "class Other:\n"
        "    name = 'other'\n"
        "    def available(self): return True\n"
        "    def why_not(self): return None\n"
        "    def load(self, request): raise NotImplementedError\n"
    )
    script = (
        "from rocllm import backends, errors\n"
        "print({'broken', 'other', 'rocm'} <= {*backends.list()})\n"
        "print(backends.get('other').available())\n"
        "try: backends.get('broken')\n"
        "except errors.BackendUnavailable as exc: print(exc.what)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", script),
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    listed, available, broken = done.stdout.splitlines()
    assert (listed, available) == ("True", "True")
    assert "not_there" in broken
