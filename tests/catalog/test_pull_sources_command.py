"""`rocllm pull` from the Hub and from addresses, as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from rocllm.catalog import Fit
from rocllm.cli.pull import judge_fit
from rocllm.gguf import read_model_info
from rocllm.memory import GpuMemory, HostMemory, Memory
from rocllm.testing.fake_hub import FakeHub
from rocllm.testing.model_shapes import Mix, q4_k_m, q8_0
from rocllm.testing.model_zoo import real_model

WriteModel: TypeAlias = Callable[..., Path]

_SECONDS = 30
_COMMAND = (sys.executable, "-m", "rocllm", "pull")


@pytest.fixture
def hub(tmp_path: Path, write_model: WriteModel) -> Iterator[FakeHub]:
    """A Hub with one repository, and a file."""
    contents = {
        f"m-{name}.gguf": write_model(tmp_path / name, name).read_bytes()
        for name in ("Q8_0", "Q4_K_M")
    }
    with FakeHub({"user/repo": contents}, {"m.gguf": contents["m-Q8_0.gguf"]}) as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str], hub: FakeHub) -> dict[str, str]:
    """The environment of a user for whom that is the Hub."""
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return environ | more | {"ROCLLM_TEST_SESSION": os.environ["ROCLLM_TEST_SESSION"]}


def _run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def test_from_the_hub(environ: dict[str, str]) -> None:
    """The path on stdout; on stderr the choice in one line, and progress."""
    done = _run(environ, "hf:user/repo", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.removesuffix("\n"))
    assert (path.name, path.read_bytes()[:4]) == ("m-Q8_0.gguf", b"GGUF")
    choice, begin, *_, end = done.stderr.splitlines()
    assert choice.startswith("taking Q8_0 (")
    assert choice.endswith("of the host's memory with a context of 512 tokens")
    assert begin.startswith("Fetching the model (")
    assert end == "  100 %"


GIB = 2**30


@pytest.mark.parametrize(
    ("name", "mix", "card", "words"),
    [
        ("Qwen3-8B", q8_0, 16, "with a context of 40960 tokens"),
        ("Qwen3-8B", q4_k_m, 8, "with a context of 16384 tokens"),
        ("Gemma-3-27B", q4_k_m, 16, "17.2 GiB needed with a context of 4096 tokens"),
        ("Gemma-3-27B", q4_k_m, 24, "with a context of 65536 tokens"),
    ],
)
def test_what_fits_is_planned(tmp_path: Path, name: str, mix: Mix, card: int, words: str) -> None:
    """As `rocllm plan` does, and wholly on the GPU: layers on the host do not count as fitting."""
    path = real_model(name, mix).write(tmp_path / "model.gguf")
    memory = Memory((GpuMemory("card", "gfx1100", card * GIB, card * GIB),), HostMemory(64 * GIB))
    fit = judge_fit(memory, read_model_info(path), path.stat().st_size)
    assert fit == Fit("needed" not in words, words)


def test_what_is_not_known_goes_by_its_size() -> None:
    """A rule of thumb, and it says so."""
    memory = Memory((), HostMemory(8 * GIB, 8 * GIB))
    assert judge_fit(memory, None, 6 * GIB) == Fit(
        True, "by the size of its file: about 7.9 GiB with a context"
    )
    assert not judge_fit(memory, None, 7 * GIB).fits


def test_from_an_address(environ: dict[str, str], hub: FakeHub) -> None:
    """A wrong checksum is an error in words, with the exit code of a model file."""
    url = f"{hub.url}/files/m.gguf"
    done = _run(environ, url, "--sha256", "0" * 64)
    assert (done.returncode, done.stdout) == (3, "")
    assert "its sha256 is" in done.stderr
    done = _run(environ, url)
    assert Path(done.stdout.removesuffix("\n")).name == "m.gguf"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["hf:user/none"], 3, "no such repository"),
        (["user/repo"], 3, "did you mean 'hf:user/repo'?"),
        (["https://host/m.gguf", "--sha256", "12"], 2, "64 hexadecimal digits"),
    ],
)
def test_errors(arguments: list[str], code: int, words: str, environ: dict[str, str]) -> None:
    """Each is said in words, without a traceback."""
    done = _run(environ, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("source", "sent", "code"),
    [("hf:user/repo:Q8_0", signal.SIGINT, 130), ("URL", signal.SIGTERM, 143)],
)
def test_interrupted(
    source: str, sent: signal.Signals, code: int, hub: FakeHub, environ: dict[str, str]
) -> None:
    """Stopped in the middle: no traceback, no file at its place; the next call finishes it."""
    model = f"{hub.url}/files/m.gguf" if source == "URL" else source
    hub.switches.stall_after = 50_000
    with subprocess.Popen(
        [*_COMMAND, model], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert hub.stalled.wait(_SECONDS)
        process.send_signal(sent)
        output, errors = process.communicate(timeout=_SECONDS)
    assert (process.returncode, output) == (code, "")
    assert "Traceback" not in errors
    assert not list(Path(environ["HOME"]).rglob("*.gguf"))
    hub.switches.stall_after = None
    assert _run(environ, model).returncode == 0
