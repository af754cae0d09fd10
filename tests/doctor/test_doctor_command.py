"""`rocllm doctor`, as a person and as a program sees it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from rocllm import env
from rocllm.cli.doctor import doctor
from rocllm.errors import OptionsError
from rocllm.testing.fake_sysfs import DESKTOP, RX_7700_XT, FakeGpu, write_tree

_CLEAN = dict.fromkeys(
    (
        env.ROCR_VISIBLE_DEVICES,
        env.HIP_VISIBLE_DEVICES,
        env.CUDA_VISIBLE_DEVICES,
        env.HSA_OVERRIDE_GFX_VERSION,
        env.LLAMA_SERVER_PATH,
    )
)
_DEADLINE = 20.0


def run(*arguments: str, **environ: str) -> Result:
    """The command, piped."""
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, arguments, env={**_CLEAN, **environ})


def test_json_is_what_others_build_on(tmp_path: Path) -> None:
    """The names of the fields and the states are a promise."""
    write_tree(tmp_path, DESKTOP)
    result = run("--root", str(tmp_path), "--json", HSA_OVERRIDE_GFX_VERSION="11.0.0")
    answer: dict[str, Any] = json.loads(result.stdout)

    assert result.exit_code == 0
    assert answer["healthy"] is True
    assert answer["counts"]["warn"] == 1
    assert answer["findings"][13] == {
        "id": "override",
        "group": "choice",
        "state": "warn",
        "evidence": "HSA_OVERRIDE_GFX_VERSION=11.0.0 makes ROCm take gfx1101 for another chip",
        "remedy": "unset it unless llama-server lacks your chip; current builds have nearly all of"
        " them",
        "command": "unset HSA_OVERRIDE_GFX_VERSION",
        "fixes": False,
    }
    assert {one["state"] for one in answer["findings"]} == {"ok", "warn", "unknown"}


def test_text_fits_80_columns(tmp_path: Path) -> None:
    """Piped it holds no colour; a failure makes the exit code 4, and its remedy is in one piece."""
    card = FakeGpu(device_id=0x747E, driver=None, kfd=False)
    result = run("--root", str(write_tree(tmp_path, [card], kfd=False)), COLUMNS="80")
    lines = result.stdout.splitlines()

    assert result.exit_code == 4
    assert all(len(line) <= 80 for line in lines)
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    assert "  fail  driver          0000:03:00.0 has no driver" in lines
    assert "        $ sudo modprobe amdgpu" in lines
    assert lines[-1] == "23 checks: 1 failed (driver), 2 ok, 20 unknown"


def test_what_is_not_known_is_told_together(tmp_path: Path) -> None:
    """Once for each reason and group."""
    result = run("--root", str(write_tree(tmp_path, [RX_7700_XT])))

    assert "  ?     libraries, gpu-code, rocblas: it is not looked at" in result.stdout


def test_values_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """What the environment holds is shown without its control characters."""
    root = str(write_tree(tmp_path, DESKTOP))
    result = run("--root", root, HSA_OVERRIDE_GFX_VERSION="\x1b]0;x\x07\udc80")

    assert "HSA_OVERRIDE_GFX_VERSION=^[]0;x^G<U+DC80>" in result.stdout


def test_options_that_cannot_be_meant(tmp_path: Path) -> None:
    """A root that is no machine, and a fix for another machine."""
    for arguments in (["--root", str(tmp_path)], ["--fix", "--json"]):
        assert isinstance(run(*arguments).exception, OptionsError)
    (tmp_path / "sys").mkdir()
    assert isinstance(run("--root", str(tmp_path), "--fix").exception, OptionsError)


def test_this_machine(demo_model: Path) -> None:
    """The real thing: the engine is found and answers, and nothing is asked without a terminal."""
    result = run("--fix", "--json")
    assert isinstance(result.exception, OptionsError)
    result = run("--json", ROCM_LLAMA_SERVER_PATH="", PATH="/nowhere")
    found = {one["id"]: one for one in json.loads(result.stdout)["findings"]}

    assert found["platform"]["state"] == "ok"
    assert found["llama-server"]["evidence"].startswith("embedded ")
    assert found["libraries"]["state"] == "ok"
    assert found["generation"]["state"] in ("ok", "warn")
    assert "The capital of France is Paris" in found["generation"]["evidence"]
    assert result.exit_code == (0 if json.loads(result.stdout)["healthy"] else 4)


def test_without_generation() -> None:
    """It is left out when that is asked for; a server that is not there is a failure."""
    result = run("--no-run", "--json", ROCM_LLAMA_SERVER_PATH="/nowhere/llama-server")
    found = {one["id"]: one for one in json.loads(result.stdout)["findings"]}

    assert result.exit_code == 4
    assert found["generation"]["evidence"] == "left out (--no-run)"
    assert found["llama-server"]["state"] == "fail"
    assert found["libraries"]["state"] == "unknown"


def test_server_that_does_not_start(tmp_path: Path, elf: Callable[..., bytes]) -> None:
    """Its libraries are looked at all the same: a missing one is the usual reason."""
    server = tmp_path / "llama-server"
    server.write_bytes(elf(["libhipblas.so.3"]))
    server.chmod(0o755)
    result = run("--no-run", "--json", ROCM_LLAMA_SERVER_PATH=str(server))
    found = {one["id"]: one for one in json.loads(result.stdout)["findings"]}

    assert found["llama-server"]["state"] == "fail"
    assert found["libraries"]["state"] == "fail"
    assert "llama-server needs libhipblas.so.3, not found" in found["libraries"]["evidence"]
    assert "ROCm 7 or later" in found["libraries"]["remedy"]


@pytest.mark.parametrize(("answer", "done"), [("y", True), ("n", False), ("", False)])
def test_fix_asks_at_a_terminal(tmp_path: Path, answer: str, done: bool) -> None:
    """The command is shown first; only a yes runs it."""
    mark = tmp_path / "mark"
    code = f"from rocllm.cli.doctor import _offer; _offer('touch {mark}', 'touch it, then log in')"
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stderr=subprocess.PIPE)
    try:
        os.write(ours, f"{answer}\n".encode())
        said = child.communicate(timeout=_DEADLINE)[1].decode()
    finally:
        child.kill()
        os.close(ours)
        os.close(theirs)

    assert said.startswith(f"fix: touch {mark}\n")
    assert mark.exists() is done
    assert ("done; now log in\n" in said) is done


@pytest.mark.parametrize("key", [b"\x03", b"\x04"])
def test_fix_is_left_with_a_key(tmp_path: Path, key: bytes) -> None:
    """Ctrl-C at the question ends the program with 130, Ctrl-D is a no; nothing is run."""
    mark = tmp_path / "mark"
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from rocllm.__main__ import main; from rocllm.cli import doctor\n"
        f"command = doctor.Verdict('fail', 'x', 'y', 'touch {mark}', True)\n"
        "doctor.examine = lambda *_: (doctor.finding('a', 'b', command),)\n"
        "sys.argv[1:] = ['doctor', '--fix', '--no-run']; main()"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert child.stderr is not None
        said = b""
        while not said.endswith(b"run it? [y/N]: "):
            byte = os.read(child.stderr.fileno(), 1)
            assert byte, said
            said += byte
        os.write(ours, key)
        child.communicate(timeout=_DEADLINE)
    finally:
        child.kill()
        os.close(ours)
        os.close(theirs)

    assert child.returncode == (130 if key == b"\x03" else 4)
    assert not mark.exists()


def test_fix_runs_nothing_without_a_terminal(tmp_path: Path) -> None:
    """A pipe cannot agree."""
    mark = tmp_path / "mark"
    code = f"from rocllm.cli.doctor import _offer; _offer('touch {mark}', None)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="y\n",
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        check=True,
    )

    assert "not run: standard input is no terminal" in done.stderr
    assert not mark.exists()
