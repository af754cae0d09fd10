"""`rocllm backends`, and `--backend` of the other commands, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rocllm import backends, env
from rocllm.cli import backends as command
from rocllm.errors import BackendUnavailable
from rocllm.testing.fake_llama_server import write_fake_llama_server

PROBE = {"vllm": "0.32.0", "torch": "2.13.0+cpu", "hip": None, "cuda": None, "uds": True}


def rocllm(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        (sys.executable, "-m", "rocllm", *arguments),
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **environ},
        check=False,
    )


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """What the command says, by name; the default comes first."""
    command.backends(json_output=True)
    rows = json.loads(capsys.readouterr().out)["backends"]
    assert rows[0]["default"]
    return {row["name"]: row for row in rows}


@pytest.fixture
def _nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without llama-server, without xllamacpp and without vLLM."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in (env.LLAMA_SERVER_PATH, env.VLLM_PYTHON):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_nothing")
def test_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Each says what it lacks and what to install."""
    rows = listed(capsys)
    for name, remedy in {
        "rocm": "rocllm[embedded]",
        "inprocess": "rocllm[embedded]",
        "vllm": "pip install vllm",
    }.items():
        assert not rows[name]["available"]
        assert rows[name]["engine"] is None
        assert remedy in rows[name]["why_not"]
    command.backends(json_output=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "rocm no there is no llama-server to run" in shown


@pytest.mark.usefixtures("_nothing")
def test_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A llama-server of the user's, or a vLLM, and its version."""
    server = write_fake_llama_server(tmp_path / "llama-server")
    monkeypatch.setenv(env.LLAMA_SERVER_PATH, str(server))
    rows = listed(capsys)
    assert rows["rocm"]["engine"].startswith("native llama-server")
    assert [name for name, row in rows.items() if row["available"]] == ["rocm"]
    monkeypatch.delenv(env.LLAMA_SERVER_PATH)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{json.dumps(PROBE)}'\n")
    python.chmod(0o755)
    monkeypatch.setenv(env.VLLM_PYTHON, str(python))
    rows = listed(capsys)
    assert rows["vllm"]["engine"] == "vLLM 0.32.0 (cpu)"
    assert [name for name, row in rows.items() if row["available"]] == ["vllm"]


def test_all_that_this_machine_has() -> None:
    """In a table for people; the embedded engine serves two of them."""
    done = rocllm("backends")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line[:1].strip()}
    assert "yes, the default" in rows["rocm"]
    assert "llama.cpp without HTTP, xllamacpp" in rows["inprocess"]


def test_a_broken_one_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package of another, which cannot be imported, does not take the others with it."""
    get = backends.get

    def broken(name: str) -> backends.Backend:
        if name == "vllm":
            raise BackendUnavailable("backend 'vllm' cannot be imported: no module named 'x'")
        return get(name)

    monkeypatch.setattr(backends, "get", broken)
    rows = listed(capsys)
    assert "no module named 'x'" in rows["vllm"]["why_not"]
    assert rows["inprocess"]["available"]


@pytest.mark.usefixtures("demo_model")
def test_run_and_classify_on_another_backend(tmp_path: Path) -> None:
    """The answer comes from it, and an unknown one is answered with those that there are."""
    done = rocllm("run", "demo", "Hello!", "-n", "4", "--backend", "inprocess", "-t", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "llama.cpp in a worker process" in done.stderr
    rows = tmp_path / "rows.txt"
    rows.write_text("good\nbad\n")
    labels = ("--labels", "positive,negative", "--backend", "inprocess", "-t", "1")
    done = rocllm("classify", "demo", str(rows), *labels)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    wrong = rocllm("chat", "demo", "--backend", "inproces")
    assert wrong.returncode == 2
    assert "did you mean 'inprocess'?" in wrong.stderr


@pytest.mark.usefixtures("demo_model")
def test_a_model_of_the_wrong_kind(tmp_path: Path) -> None:
    """The backend that would take it is named."""
    done = rocllm("run", "demo", "Hello!", "--backend", "vllm")
    assert done.returncode == 3
    assert "backend='rocm'" in done.stderr
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for backend in ("rocm", "inprocess"):
        done = rocllm("run", str(tmp_path), "Hello!", "--backend", backend)
        assert done.returncode == 3
        assert "backend='vllm'" in done.stderr
