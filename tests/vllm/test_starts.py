"""What is decided and said before a vLLM serves: with a Python that only pretends to have it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.safetensors.made import write_model

import rocllm
from rocllm import backends
from rocllm.backends import LoadRequest
from rocllm.backends.vllm.command import build_command
from rocllm.backends.vllm.decide import decide, require_device
from rocllm.backends.vllm.find import find_vllm
from rocllm.endpoint import Endpoint
from rocllm.errors import (
    AddressInUse,
    BackendUnavailable,
    ModelFileError,
    NoDeviceFound,
    OffloadFailed,
    OptionsError,
    UnsupportedArchitecture,
)
from rocllm.options import LoadOptions
from rocllm.testing.fake_sysfs import DESKTOP, RX_7700_XT, write_tree

CPU_BUILD = {"vllm": "0.32.0", "torch": "2.13.0+cpu", "hip": None, "cuda": None, "uds": True}
ROCM_BUILD = {**CPU_BUILD, "torch": "2.11.0+rocm7.2", "hip": "7.2.53211"}
SECOND_XT = dataclasses.replace(
    RX_7700_XT, pci_address="0000:04:00.0", render_minor=130, card=2, vram_used=0
)
LARGER = dataclasses.replace(SECOND_XT, vram=2 * (RX_7700_XT.vram or 0))


def fake_python(folder: Path, told: dict[str, Any], says: str = "", status: int = 1) -> Path:
    """A program that answers the probe, and as a server says something and ends."""
    folder.mkdir(exist_ok=True)
    (folder / "says").write_text(says)
    (folder / "told").write_text(json.dumps(told))
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/calls\n'
        f'if [ "$1" = -m ]; then cat {folder}/says >&2; exit {status}; fi\ncat {folder}/told\n'
    )
    python.chmod(0o755)
    return python


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def environ(python: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "ROCM_VLLM_PYTHON": str(python), **more}


def request(model: Path, python: Path, root: Path = Path("/"), **options: Any) -> LoadRequest:
    return LoadRequest(model, LoadOptions(**options), environ(python), root)


def test_a_python_without_vllm(tmp_path: Path) -> None:
    """What to install is said, and where to say where it is."""
    python = fake_python(tmp_path / "bin", {**CPU_BUILD, "vllm": None})
    with pytest.raises(BackendUnavailable) as caught:
        find_vllm(environ(python))
    assert "pip install vllm" in str(caught.value)
    assert "ROCM_VLLM_PYTHON" in str(caught.value)


def test_without_any_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python is looked at, too; the backend says why it is not available."""
    monkeypatch.delenv("ROCM_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    backend = backends.get("vllm")
    assert not backend.available()
    assert "pip install vllm" in (backend.why_not() or "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho oops >&2; exit 3\n", "oops"),
        ("#!/bin/sh\necho '[]'\n", "did not answer"),
        ("nothing to execute", ""),
    ],
)
def test_what_is_no_python(text: str, said: str, tmp_path: Path) -> None:
    """A wrong path is answered with what became of it."""
    wrong = tmp_path / "wrong"
    wrong.write_text(text)
    wrong.chmod(0o755)
    with pytest.raises(BackendUnavailable, match="not a Python") as caught:
        find_vllm(environ(wrong))
    assert said in str(caught.value)
    with pytest.raises(BackendUnavailable, match="No such file"):
        find_vllm(environ(tmp_path / "nothing"))


def test_the_probe_is_told_no_secret(tmp_path: Path) -> None:
    """It gets of the user's environment what the server gets."""
    python = fake_python(tmp_path / "bin", CPU_BUILD)
    text = python.read_text()
    python.write_text(text.replace("\n", '\n[ -z "$HF_TOKEN$AWS_SECRET_ACCESS_KEY" ] || exit\n', 1))
    asked = environ(python, HF_TOKEN="hf_1", AWS_SECRET_ACCESS_KEY="2")
    assert find_vllm(asked).version == "0.32.0"


def test_the_probe_reads_a_real_tree(tmp_path: Path) -> None:
    """Versions and build are read from files; nothing is imported."""
    site = tmp_path / "site"
    (site / "vllm/entrypoints/openai").mkdir(parents=True)
    (site / "vllm/__init__.py").write_text("raise SystemExit('imported')")
    (site / "vllm/_version.py").write_text("version: str\n__version__ = version = '0.20.1'\n")
    (site / "vllm/entrypoints/openai/cli_args.py").write_text("class A:\n    uds: str = ''\n")
    (site / "torch").mkdir()
    (site / "torch/__init__.py").write_text("raise SystemExit('imported')")
    (site / "torch/version.py").write_text(
        "__version__ = '2.11.0+rocm7.2'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.2'\n"
    )
    found = find_vllm(environ(Path(sys.executable), PYTHONPATH=str(site)))
    assert (found.version, found.build, found.has_uds) == ("0.20.1", "rocm", True)
    assert found.name == "vLLM 0.20.1 (rocm)"


def test_a_build_for_cuda_is_refused(tmp_path: Path) -> None:
    """It is what the package index gives unless told otherwise."""
    python = fake_python(tmp_path / "bin", {**CPU_BUILD, "cuda": "12.9"})
    with pytest.raises(BackendUnavailable, match="built for CUDA"):
        find_vllm(environ(python))


def test_arguments_of_the_users(tmp_path: Path) -> None:
    """As a shell would take them apart."""
    python = fake_python(tmp_path / "bin", CPU_BUILD)
    found = find_vllm(environ(python, ROCM_VLLM_ARGS="--seed 3 --x 'a b'"))
    assert found.extra_args == ("--seed", "3", "--x", "a b")
    with pytest.raises(OptionsError, match="ROCM_VLLM_ARGS"):
        find_vllm(environ(python, ROCM_VLLM_ARGS="'"))


def test_the_right_gpu(tmp_path: Path, model: Path) -> None:
    """The discrete one, pinned as for llama-server; the share of its memory that is free."""
    python = fake_python(tmp_path / "bin", ROCM_BUILD)
    decision = decide(request(model, python, write_tree(tmp_path / "root", DESKTOP)), LoadOptions())
    assert [gpu.pci_address for gpu in decision.choice.devices] == ["0000:03:00.0"]
    assert decision.environ["ROCR_VISIBLE_DEVICES"] == "0"
    assert decision.settings.fraction is not None
    assert 0.5 < decision.settings.fraction <= 0.92


def test_two_equal_gpus_share_each_layer(tmp_path: Path, model: Path) -> None:
    """Two of a kind do; two different ones are refused, with the backend that can."""
    python = fake_python(tmp_path / "bin", ROCM_BUILD)
    equal = write_tree(tmp_path / "equal", (RX_7700_XT, SECOND_XT))
    both = LoadOptions(device=["0000:03:00.0", "0000:04:00.0"])
    assert decide(request(model, python, equal), both).settings.n_gpus == 2
    mixed = write_tree(tmp_path / "mixed", (RX_7700_XT, LARGER))
    with pytest.raises(OptionsError, match="different kinds") as caught:
        decide(request(model, python, mixed), both)
    assert "rocm" in str(caught.value)


def test_the_cpu_is_never_silent(tmp_path: Path, model: Path) -> None:
    """A build for the CPU is not used beside a GPU unless the user has said so."""
    root = write_tree(tmp_path / "root", DESKTOP)
    asked = request(model, fake_python(tmp_path / "bin", CPU_BUILD), root)
    with pytest.raises(OffloadFailed, match="runs on the CPU only"):
        decide(asked, LoadOptions())
    assert decide(asked, LoadOptions(device="cpu")).notes == ()
    fallen = decide(asked, LoadOptions(cpu_fallback=True))
    assert fallen.settings.n_gpus == 0
    assert "the CPU is used" in fallen.notes[0]


def test_a_build_for_rocm_needs_a_gpu(tmp_path: Path, model: Path) -> None:
    """It cannot run on the CPU, asked or not."""
    asked = request(
        model, fake_python(tmp_path / "bin", ROCM_BUILD), write_tree(tmp_path / "root", ())
    )
    with pytest.raises(NoDeviceFound, match="needs a GPU"):
        decide(asked, LoadOptions())
    with pytest.raises(OptionsError, match="device='cpu'"):
        decide(asked, LoadOptions(device="cpu"))


def test_a_build_for_rocm_is_available_where_a_gpu_is(tmp_path: Path) -> None:
    """What could never load a model is not called available; one for the CPU always can."""
    installed = find_vllm(environ(fake_python(tmp_path / "bin", ROCM_BUILD)))
    nothing = write_tree(tmp_path / "nothing", ())
    with pytest.raises(NoDeviceFound, match="needs a GPU"):
        require_device(installed, os.environ, nothing)
    require_device(installed, os.environ, write_tree(tmp_path / "desktop", DESKTOP))
    for_cpu = find_vllm(environ(fake_python(tmp_path / "other", CPU_BUILD)))
    require_device(for_cpu, os.environ, nothing)


def test_models_of_other_kinds(tmp_path: Path, model: Path, demo_model: Path) -> None:
    """Each backend names the other for what it does not take."""
    python = fake_python(tmp_path / "bin", CPU_BUILD)
    with pytest.raises(ModelFileError, match="is a GGUF file") as caught:
        rocllm.load_model("demo", backend="vllm", environ=environ(python))
    assert "backend='rocm'" in str(caught.value)
    assert caught.value.cause == "other_backend"
    with pytest.raises(ModelFileError, match="safetensors format") as caught:
        rocllm.load_model(model)
    assert "backend='vllm'" in str(caught.value)
    assert caught.value.cause == "other_backend"
    with pytest.raises(ModelFileError, match="not a model that vLLM runs"):
        rocllm.load_model(python, backend="vllm", environ=environ(python))


def test_one_of_its_files_stands_for_the_model(tmp_path: Path, model: Path) -> None:
    """As the file of a GGUF model does."""
    python = fake_python(tmp_path / "bin", CPU_BUILD)
    asked = request(model / "model.safetensors", python, write_tree(tmp_path / "root", ()))
    assert decide(asked, LoadOptions()).directory == model


def test_the_command(tmp_path: Path, model: Path) -> None:
    """A private socket; everything that matters is said; secrets are neither passed nor shown."""
    python = fake_python(tmp_path / "bin", CPU_BUILD)
    secrets = {"HF_TOKEN": "hf_x", "VLLM_API_KEY": "theirs", "AWS_SECRET": "y"}
    chosen = {"VLLM_ROCM_USE_AITER": "1", "HF_HOME": "/hf", "VLLM_LOGGING_LEVEL": "ERROR"}
    options = LoadOptions(ctx_size=512, parallel=2, threads=3, device="cpu")
    asked = dataclasses.replace(
        request(model, python), environ=environ(python, **secrets, **chosen), options=options
    )
    decision = decide(asked, options)
    run_dir = Path("/run/user/1000/rocllm-12345678")
    command = build_command(decision, Endpoint.unix(run_dir / "s.sock"), run_dir)
    assert command.argv[:5] == (
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model)),
    )
    assert ("--uds", str(run_dir / "s.sock")) == tuple(command.argv[7:9])
    assert "--max-model-len" in command.argv
    environment = command.environ
    assert not {"HF_TOKEN", "VLLM_API_KEY", "AWS_SECRET", "VLLM_LOGGING_LEVEL"} & {*environment}
    assert environment["VLLM_ROCM_USE_AITER"] == "1"
    assert environment["HF_HOME"] == "/hf"
    assert (environment["HF_HUB_OFFLINE"], environment["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert environment["TMPDIR"] == str(run_dir)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    tcp = Endpoint.tcp("127.0.0.1", 8123, api_key="secret")
    other = build_command(decision, tcp, Path("/x" * 60))
    assert tuple(other.argv[7:11]) == ("--host", "127.0.0.1", "--port", "8123")
    assert other.environ["VLLM_API_KEY"] == "secret"
    assert not any("secret" in part for part in other.argv)
    assert other.environ.get("TMPDIR") != "/x" * 60


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "  Value error, Model architectures ['LxamaForCausalLM'] are not supported for now.",
            UnsupportedArchitecture,
        ),
        ("api_server.py: error: unrecognized arguments: --no-such-option", OptionsError),
    ],
)
def test_a_server_that_ends(said: str, kind: type[Exception], tmp_path: Path, model: Path) -> None:
    """Its last words become the error, and nothing of it is left."""
    run = tmp_path / "run"
    run.mkdir()
    python = fake_python(tmp_path / "bin", CPU_BUILD, f"{said}\n")
    with pytest.raises(kind, match="vLLM could not load"):
        rocllm.load_model(
            model, backend="vllm", device="cpu", environ=environ(python, XDG_RUNTIME_DIR=str(run))
        )
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(("options", "starts"), [({"host": "127.0.0.1"}, 3), ({"port": 8321}, 1)])
def test_a_port_that_is_taken_meanwhile(
    options: dict[str, Any], starts: int, tmp_path: Path, model: Path
) -> None:
    """Three tries where the port is ours to choose, one where it is the user's."""
    said = "OSError: [Errno 98] Address already in use\n"
    python = fake_python(tmp_path / "bin", CPU_BUILD, said)
    with pytest.raises(AddressInUse):
        rocllm.load_model(model, backend="vllm", device="cpu", environ=environ(python), **options)
    calls = (tmp_path / "bin/calls").read_text().splitlines()
    ports = [call.split("--port ")[1].split()[0] for call in calls if call.startswith("-m")]
    assert len(ports) == starts
