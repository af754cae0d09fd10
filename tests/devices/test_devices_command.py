"""`rocllm devices`, as a person and as a program sees it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rocllm import env
from rocllm.cli.devices import devices
from rocllm.errors import OptionsError
from rocllm.testing.fake_sysfs import DESKTOP, RX_7700_XT, FakeGpu, write_tree

_NO_MASKS = dict.fromkeys(
    (
        env.ROCR_VISIBLE_DEVICES,
        env.HIP_VISIBLE_DEVICES,
        env.CUDA_VISIBLE_DEVICES,
        env.GPU_DEVICE_ORDINAL,
        env.GGML_CUDA_DEVICES,
        env.HSA_OVERRIDE_GFX_VERSION,
    )
)


def run(root: Path, *arguments: str, **environ: str) -> str:
    """Standard output of the command, piped."""
    app = typer.Typer()
    app.command()(devices)
    result = CliRunner().invoke(
        app, ["--root", str(root), *arguments], env={**_NO_MASKS, **environ}
    )
    if result.exception is not None:
        raise result.exception
    return result.stdout


def as_json(root: Path, **environ: str) -> dict[str, Any]:
    """What programs get."""
    answer: dict[str, Any] = json.loads(run(root, "--json", **environ))
    return answer


def test_json_is_what_others_build_on(tmp_path: Path) -> None:
    """The names of the fields are a promise; what is not known is null."""
    answer = as_json(write_tree(tmp_path, DESKTOP))

    assert answer["devices"][0] == {
        "kfd_node": 1,
        "ordinal": 0,
        "gfx_target": "gfx1101",
        "name": "Radeon RX 7700/7800 XT",
        "pci_address": "0000:03:00.0",
        "device_id": "0x747e",
        "uuid": None,
        "render_minor": 128,
        "integrated": False,
        "integrated_because": "gfx1101 exists only on cards",
        "vram_total": 12868124672,
        "usable_memory": 12868124672,
        "used_memory": 1491832832,
        "asleep": None,
        "problems": [],
    }
    assert answer["chosen"] == ["0000:03:00.0"]
    assert len(answer["because"]) == 2
    assert answer["environment"] == {
        "ROCR_VISIBLE_DEVICES": "0",
        "HIP_VISIBLE_DEVICES": None,
        "CUDA_VISIBLE_DEVICES": None,
        "GPU_DEVICE_ORDINAL": None,
        "GGML_CUDA_DEVICES": None,
    }


def test_masks_of_the_shell_can_be_tried_on_a_tree(tmp_path: Path) -> None:
    """They are the user's question about the other machine."""
    answer = as_json(write_tree(tmp_path, DESKTOP), HIP_VISIBLE_DEVICES="1")

    assert answer["chosen"] == ["0000:11:00.0"]
    assert answer["environment"]["ROCR_VISIBLE_DEVICES"] == "1"


def test_table_fits_80_columns_without_ornaments(tmp_path: Path) -> None:
    """Piped output holds no colour and no box; every GPU is one line."""
    output = run(write_tree(tmp_path, DESKTOP), COLUMNS="80")
    table = output.splitlines()[:3]

    assert all(len(line) <= 80 for line in table)
    assert output.isascii()
    assert "\x1b" not in output
    words = "0 0000:03:00.0 Radeon RX 7700/7800 XT gfx1101 discrete 12.0 GiB 1.4 GiB"
    assert table[1].split() == words.split()
    assert "chosen: 0000:03:00.0" in output
    assert "llama-server runs with ROCR_VISIBLE_DEVICES=0\n" in output


def test_problems_come_with_their_remedies(tmp_path: Path) -> None:
    """Of the machine, and of each device, which is named."""
    gpus = [
        dataclasses.replace(RX_7700_XT, kfd=False),
        FakeGpu(device_id=0x6818, driver="radeon", kfd=False, pci_address="0000:04:00.0", card=1),
    ]
    output = run(write_tree(tmp_path, gpus))

    assert "chosen: the CPU\n" in output
    assert "problem: 0000:04:00.0 (AMD, PCI device 0x6818) is driven by radeon" in output
    assert "problem: 0000:03:00.0 (Radeon RX 7700/7800 XT): ROCm cannot use it" in output
    assert output.count("  remedy: ") == 2


def test_names_are_not_taken_for_markup(tmp_path: Path) -> None:
    """A board may be called anything."""
    gpu = dataclasses.replace(RX_7700_XT, product_name="Radeon [bold]X[/bold]")

    assert "[bold]X[/bold]" in run(write_tree(tmp_path, [gpu]))


def test_root_that_is_no_machine(tmp_path: Path) -> None:
    """A path with a typing mistake is not a machine without GPUs."""
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(OptionsError, match="no folder"):
        run(tmp_path / "nowhere")
    with pytest.raises(OptionsError, match="no folder"):
        run(file)
    with pytest.raises(OptionsError, match="it has no folder `sys`"):
        run(tmp_path)
