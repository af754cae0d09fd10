"""Which engines are measured against each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.safetensors.made import write_model

from rocllm import env
from rocllm.bench import Engine, find_engines, fitting, setups
from rocllm.errors import BinaryNotFound, ModelFileError, OptionsError
from rocllm.testing.fake_llama_server import write_fake_llama_server


@pytest.fixture
def server(tmp_path: Path) -> str:
    """A llama-server that answers."""
    return str(write_fake_llama_server(tmp_path / "llama-server"))


def test_engines_by_name(server: str) -> None:
    """`native` is the server of the environment; others are given by path, with a name or not."""
    environ = {**os.environ, env.LLAMA_SERVER_PATH: server}
    found = find_engines(["native", f"vulkan={server}", server, "embedded"], environ)
    assert found == (
        Engine("native", server),
        Engine("vulkan", server),
        Engine(server, server),
        Engine("embedded", "embedded"),
    )
    assert find_engines([], environ) == (Engine("native", server),)
    assert find_engines(["rocm"], environ) == (Engine("rocm", server),)


def test_another_backend_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name, if it can run here; the default one looks for its llama-server."""
    assert find_engines(["inprocess"], os.environ) == (Engine("inprocess", backend="inprocess"),)
    monkeypatch.delenv(env.VLLM_PYTHON, raising=False)
    good, bad = find_engines(["inprocess", "vllm"], os.environ)
    assert good.problem is None
    assert bad.problem is not None
    assert "no vLLM" in bad.problem


def test_one_that_is_missing_has_a_problem(server: str) -> None:
    """The others are measured all the same."""
    good, bad = find_engines([f"a={server}", "b=/nowhere/llama-server"], os.environ)
    assert good.problem is None
    assert bad.problem is not None
    assert "/nowhere/llama-server" in bad.problem


def test_none_that_works() -> None:
    """With nothing to measure the first reason is the error."""
    with pytest.raises(BinaryNotFound, match="/nowhere/x"):
        find_engines(["/nowhere/x", "/nowhere/y"], os.environ)
    with pytest.raises(OptionsError, match="no native llama-server"):
        find_engines(["native"], {**os.environ, "PATH": "/nowhere"})


def test_names_are_different(server: str) -> None:
    """Reports would not tell two of one name apart."""
    with pytest.raises(OptionsError, match="two engines have the name 'x'"):
        find_engines([f"x={server}", f"x={server}"], os.environ)


def test_a_model_is_measured_with_engines_of_its_kind(tmp_path: Path, tiny_model: Path) -> None:
    """An engine for none of them stays, for its cells say why; of another's nobody knows."""
    directory = write_model(tmp_path / "model")
    llama, vllm, other = (
        Engine("a", "embedded"),
        Engine("vllm", backend="vllm"),
        Engine("x", backend="x"),
    )
    both = fitting(setups([tiny_model, directory], [llama, vllm]))
    assert [(one.model, one.engine) for one in both] == [(tiny_model, llama), (directory, vllm)]
    assert len(fitting(setups([tiny_model], [llama, vllm]))) == 2
    with pytest.raises(ModelFileError, match="safetensors format") as caught:
        fitting(setups([tiny_model, directory], [llama]))
    assert "--backend vllm" in str(caught.value)
    assert len(fitting(setups([tiny_model, directory], [other]))) == 2
