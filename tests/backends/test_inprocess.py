"""The backend `inprocess`: what it refuses, what it leaves, and what the calling process keeps."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.integration.engine import tiny

import rocllm
from rocllm import env
from rocllm.backends.inprocess.caller import check_masks
from rocllm.errors import OptionsError, RocllmError, StartFailed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"llama_server": "/usr/bin/llama-server"}, "llama_server='/usr/bin/llama-server'"),
        ({"port": 8080}, "port=8080"),
        ({"host": "127.0.0.1"}, "host='127.0.0.1'"),
    ],
)
def test_what_it_has_not_is_refused(options: dict[str, object], said: str, tmp_path: Path) -> None:
    """With the option and the backend that has it, before anything is started."""
    path = tiny(tmp_path / "tiny.gguf")
    with pytest.raises(OptionsError, match=said) as caught:
        rocllm.load_model(path, backend="inprocess", **options)  # type: ignore[arg-type]
    assert "backend='rocm'" in str(caught.value)


def test_worker_is_an_option_of_this_backend_only(tmp_path: Path) -> None:
    """`rocm` always starts a llama-server, and says so."""
    path = tiny(tmp_path / "tiny.gguf")
    for worker in (True, False):
        with pytest.raises(OptionsError, match="inprocess"):
            rocllm.load_model(path, worker=worker)


def left() -> tuple[set[str], int, int]:
    """Directories of models, open files and threads."""
    directories = {str(path) for path in env.runtime_dirs(os.environ)[0].glob("rocllm-*")}
    return directories, len(os.listdir("/proc/self/fd")), threading.active_count()


def test_a_worker_leaves_nothing(demo_model: Path) -> None:
    """No process, directory, descriptor or thread, although streams were open."""
    before = left()
    for _ in range(3):
        with rocllm.load_model(
            demo_model, backend="inprocess", threads=1, ctx_size=256, parallel=2
        ) as model:
            info = model.info
            assert info.endpoint is None
            assert "worker" in info.engine
            assert {buffer.kind for buffer in info.buffers} >= {"model", "KV", "compute"}
            streams = [model.generate("1, 2, 3,", max_tokens=-1) for _ in range(3)]
            for stream in streams[:2]:
                next(stream)
        assert not Path(f"/proc/{info.pid}").exists()
    del stream, streams
    # What a killed model of an earlier test has left is removed when the next one starts.
    for mine, others in zip(left(), before, strict=True):
        assert mine <= others  # type: ignore[operator]


def test_a_broken_model_is_the_same_error_everywhere(tmp_path: Path) -> None:
    """In a worker and in the calling process as in a llama-server."""

    def change(metadata: dict[str, object], _tensors: object) -> None:
        metadata["general.architecture"] = "lxama"
        for key in [key for key in metadata if key.startswith("llama.")]:
            metadata[key.replace("llama.", "lxama.")] = metadata.pop(key)

    path = tiny(tmp_path / "tiny.gguf", change)  # type: ignore[arg-type]
    errors = []
    for options in (
        {"backend": "rocm", "llama_server": "embedded"},
        {"backend": "inprocess"},
    ):
        with pytest.raises(RocllmError, match="lxama") as caught:
            rocllm.load_model(path, **options)  # type: ignore[arg-type]
        errors.append((type(caught.value), caught.value.cause))
    told = run(
        "try:\n"
        f"    rocllm.load_model({str(path)!r}, backend='inprocess', worker=False)\n"
        "except rocllm.RocllmError as exc:\n"
        "    print(type(exc).__name__, exc.cause, 'lxama' in str(exc))\n"
    )
    assert told == f"{errors[0][0].__name__} {errors[0][1]} True"
    assert errors[0] == errors[1]


def run(script: str) -> str:
    """What a program of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import os, signal, rocllm\n{script}"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = "rocllm.load_model('demo', backend='inprocess', worker={worker}, threads=1, ctx_size=256)"


@pytest.mark.usefixtures("demo_model")
def test_the_calling_process_keeps_what_is_its_own() -> None:
    """Its handlers of signals, its log; two models at once; closed at once, or never used."""
    told = run(
        "os.environ['LLAMA_API_KEY'] = 'of another server'\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('terminated'))\n"
        f"with {LOAD.format(worker=False)} as one, {LOAD.format(worker=False)} as two:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted')\n"
        "    assert one.info.pid is None\n"
        "    one.close()\n"
        "    print(two.generate('1, 2, 3,', max_tokens=2).read().text)\n"
        "    assert two.tokenize('1')\n"
        f"{LOAD.format(worker=False)}.close()\n"
        "with open('/proc/self/maps') as maps:\n"
        "    assert '.gguf' not in maps.read()\n"
    )
    assert told.splitlines() == ["terminated", "interrupted", " 4"]


@pytest.mark.usefixtures("demo_model")
@pytest.mark.parametrize("worker", [True, False])
def test_after_a_fork(worker: bool) -> None:
    """A copy of the program asks the same worker; a model in the program is not in the copy."""
    told = run(
        "import warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # of a fork with threads\n"
        f"model = {LOAD.format(worker=worker)}\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        text = model.generate('1, 2, 3,', max_tokens=2).read().text\n"
        "    except rocllm.RocllmError as exc:\n"
        "        text = str(exc)\n"
        "    print('child:', text, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print('parent:', model.generate('1, 2, 3,', max_tokens=2).read().text)\n"
        "model.close()\n"
    )
    child, parent = told.split("parent:")
    assert parent.strip() == "4"
    assert ("forked from" in child) is not worker
    assert (child.strip() == "child:  4") is worker


def test_a_worker_ends_with_its_program(demo_model: Path) -> None:
    """However that ends."""
    script = f"model = {LOAD.format(worker=True)}\nprint(model.info.pid, flush=True)\n"
    program = subprocess.run(
        [sys.executable, "-c", f"import os, rocllm\n{script}os.kill(os.getpid(), 9)"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert program.returncode == -9
    with contextlib.suppress(ProcessLookupError):
        worker = os.pidfd_open(int(program.stdout))
        try:
            assert select.select([worker], [], [], 30)[0], "the worker lives"
        finally:
            os.close(worker)


def test_masks_of_another_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the program is to be started with; its environment is not changed."""
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    with pytest.raises(StartFailed) as caught:
        check_masks({"ROCR_VISIBLE_DEVICES": "GPU-1", "HIP_VISIBLE_DEVICES": None})
    assert "env -u HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES=GPU-1`" in str(caught.value)
    monkeypatch.delenv("HIP_VISIBLE_DEVICES")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "GPU-1")
    check_masks({"ROCR_VISIBLE_DEVICES": "GPU-1", "HIP_VISIBLE_DEVICES": None})
