"""`rocllm plan`, as a person and as a program reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.safetensors.made import write_model
from typer.testing import CliRunner, Result

from rocllm.cli.plan import plan
from rocllm.errors import DoesNotFit, ModelFileError, ModelNotFound, OptionsError
from rocllm.testing.fake_sysfs import RX_7700_XT, STRIX_HALO, write_tree
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.model_zoo import real_model
from rocllm.testing.tiny_models import tiny_mmproj


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3.1 8B in Q4_K_M, without its weights."""
    folder = tmp_path_factory.mktemp("plan")
    return real_model("Llama-3.1-8B").write(folder / "llama.gguf")


def run(*arguments: str | Path) -> Result:
    """The command, piped."""
    app = typer.Typer()
    app.command()(plan)
    return CliRunner().invoke(app, list(map(str, arguments)))


def as_json(*arguments: str | Path) -> dict[str, Any]:
    """What programs get."""
    result = run(*arguments, "--json")
    assert result.exception is None, result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_a_machine_that_is_not_this_one(llama: Path) -> None:
    """Nothing of this machine is looked at: two cards are described, and the host is unknown."""
    answer = as_json(llama, "--memory", "6GiB", "--gfx", "gfx1100", "--gpus", "2")

    assert answer["fits"] is True
    assert (answer["ctx_size"], answer["n_gpu_layers"]) == (32768, -1)
    assert [place["place"] for place in answer["places"]] == [
        "gfx1100 0",
        "gfx1100 1",
        "host memory",
    ]
    first, second, host = answer["places"]
    assert first["total"] == first["free"] == 6 * 2**30
    assert host["free"] is None
    assert sum(answer["settings"]["split"]) == 33
    for place in answer["places"]:
        assert place["needed"] == sum(part["size"] for part in place["parts"])
        assert all(part["source"] in ("predicted", "assumed") for part in place["parts"])
    assert second["needed"] < 6 * 2**30


def test_a_person_sees_where_each_byte_goes(llama: Path) -> None:
    """A bar for each place, its parts with their sizes and where these come from, and why."""
    result = run(llama, "--memory", "16GiB", "--gfx", "gfx1100")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()

    assert lines[0] == "llama.gguf"
    assert lines[1].startswith("context 65536, parallel 1, all layers on the GPU")
    place = lines.index("gfx1100: 13.2 GiB needed, 16.0 GiB free")
    bar = lines[place + 1]
    drawn = bar[bar.index("[") + 1 : bar.index("]")]
    assert len(drawn) == 48
    assert drawn.count("█") == 13
    assert drawn.count("▓") == 24
    assert max(map(len, lines[:-3])) <= 80
    assert "▓ KV cache     8.0 GiB  predicted" in lines
    assert "░ runtime      768 MiB  assumed" in lines
    assert "host memory: 634 MiB needed, how much is free is not known" in lines
    assert any("128 KiB a token; 131072 would fit with q8_0" in line for line in lines)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--gfx", "gfx1100"), "--gfx without --memory"),
        (("--gpus", "2"), "--gpus without --memory"),
        (("--memory", "16GiB", "--root", "/proc"), "--root and --memory"),
        (("--memory", "16GiB", "--gfx", "banana"), "'banana' is no GPU target"),
    ],
)
def test_half_of_another_machine(llama: Path, arguments: tuple[str, ...], says: str) -> None:
    """It is not taken for this one."""
    result = run(llama, *arguments)
    assert isinstance(result.exception, OptionsError)
    assert says in str(result.exception)


def test_a_gpu_that_is_full(llama: Path) -> None:
    """What is free is what is free, also where it is less than what is to stay free."""
    result = run(llama, "--memory", "100MiB", "--gfx", "gfx1100", "--ctx", "4096", "-ngl", "1")
    assert "100 MiB is free, and 256 MiB are to stay free" in str(result.exception)


def test_what_does_not_fit_is_shown_and_fails(llama: Path) -> None:
    """The numbers first, then the error with the ways out; the same for programs."""
    arguments = (llama, "--memory", "4GiB", "--n-gpu-layers", "-1")
    result = run(*arguments)
    assert isinstance(result.exception, DoesNotFit)
    assert "5.7 GiB needed, 4.0 GiB free" in result.stdout

    result = run(*arguments, "--json")
    assert isinstance(result.exception, DoesNotFit)
    answer = json.loads(result.stdout)
    assert answer["fits"] is False
    assert answer["would_fit"] == list(result.exception.would_fit) != []


def test_another_machines_tree(llama: Path, tmp_path: Path) -> None:
    """The GPU of a bug report is planned for, with what was free on it."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 32000000 kB\nMemAvailable: 30000000 kB\n")
    answer = as_json(llama, "--root", write_tree(tmp_path, [RX_7700_XT]))
    assert answer["n_gpu_layers"] == -1
    assert answer["places"][0]["free"] == RX_7700_XT.vram - RX_7700_XT.vram_used  # type: ignore[operator]
    assert answer["places"][1]["free"] == 30000000 * 1024

    on_cpu = as_json(llama, "--root", tmp_path, "--device", "cpu")
    assert on_cpu["n_gpu_layers"] == 0
    assert len(on_cpu["places"]) == 1


def test_an_integrated_gpus_tree(llama: Path, tmp_path: Path) -> None:
    """Its memory is the host's: 105 GiB of GTT are worth no more than what is available."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 14000000 kB\n")
    answer = as_json(llama, "--root", write_tree(tmp_path, [STRIX_HALO]))
    assert answer["ctx_size"] == 32768
    assert any("integrated GPU uses host memory" in remark for remark in answer["remarks"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "lots"), "'lots' is no size"),
        (("--memory", "16"), "write the unit: --memory 16GiB"),
        (("--memory", "8GiB", "--device", "0"), "both given"),
        (("--cache-type-k", "q3"), "cache_type_k must be one of"),
        (("--ctx-size", "1000000"), "more than the model has"),
    ],
)
def test_wrong_options(llama: Path, arguments: tuple[str, ...], message: str) -> None:
    """They are named."""
    result = run(llama, *arguments)
    assert isinstance(result.exception, OptionsError)
    assert message in str(result.exception)


def test_what_is_loaded_beside_it(llama: Path, tmp_path: Path) -> None:
    """A draft model and a projector have lines of their own, for persons and for programs."""
    mmproj = write_gguf(tmp_path / "mmproj.gguf", *tiny_mmproj())
    arguments = (llama, "--memory", "16GiB", "--draft", llama, "-ngld", "9", "--mmproj", mmproj)
    answer = as_json(*arguments)
    assert answer["settings"]["n_gpu_layers_draft"] == 9
    gpu, host = answer["places"]
    assert {part["of"] for part in gpu["parts"]} == {"model", "draft", "projector"}
    assert gpu["needed"] == sum(part["size"] for part in gpu["parts"])
    assert any((part["of"], part["kind"]) == ("draft", "KV cache") for part in host["parts"])

    lines = run(*arguments).stdout.splitlines()
    assert any(line.startswith("▓ draft KV cache ") for line in lines)
    assert any(line.startswith("█ projector weights ") for line in lines)


def test_the_projector_beside_it(llama: Path) -> None:
    """With auto it is found, and where there is none that is an error and no plan without it."""
    result = run(llama, "--memory", "16GiB", "--mmproj", "auto")
    assert isinstance(result.exception, ModelNotFound)
    mmproj = write_gguf(llama.parent / "mmproj-llama.gguf", *tiny_mmproj())
    try:
        answer = as_json(llama, "--memory", "16GiB", "--mmproj", "auto")
    finally:
        mmproj.unlink()
    assert any(part["of"] == "projector" for part in answer["places"][0]["parts"])


def test_a_model_in_safetensors_format(tmp_path: Path) -> None:
    """It is for vLLM, which plans by itself."""
    result = run(write_model(tmp_path / "model"))
    assert isinstance(result.exception, ModelFileError)
    assert "--backend vllm" in str(result.exception)
