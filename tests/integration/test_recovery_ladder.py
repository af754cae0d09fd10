"""Recovery with the real server behind a wrapper that fails as a GPU would."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest

import rocllm
from rocllm.errors import RocllmError, RocllmWarning, ServerCrashed
from rocllm.options import RestartPolicy
from rocllm.testing.fake_llama_server import write_fake_llama_server
from rocllm.testing.fake_sysfs import DESKTOP, write_tree


def wrapper(folder: Path, cases: str) -> Path:
    """The embedded server, unless a `case` of the shell's on its arguments matches first."""
    path = folder / "llama-server"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\n'
        f'exec {sys.executable} -m rocllm.server.embedded "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def abort(said: str) -> str:
    """What a server does that gives up."""
    return f'echo "{said}" >&2; kill -ABRT $$'


def test_flash_attention_that_fails_is_turned_off(demo_model: Path, tmp_path: Path) -> None:
    """The load goes well all the same, and says what was changed and why."""
    fails = abort("ggml_cuda_compute_forward: FLASH_ATTN_EXT failed")
    server = wrapper(tmp_path, f'*"--flash-attn auto"*) {fails};;')
    with pytest.warns(RocllmWarning, match="flash attention is off"):
        model = rocllm.load_model(demo_model, ctx_size=512, threads=1, llama_server=server)
    with model:
        assert model.generate("1, 2,", max_tokens=2).read().text
        (note,) = model.info.recovered
    assert "flash attention does not work" in note


def test_never_after_a_reset(demo_model: Path, tmp_path: Path) -> None:
    """It is started once, and the error says what to do."""
    log = tmp_path / "starts"
    fails = abort("HW Exception by GPU node-1 (Agent handle: 0x5a) reason :GPU Hang")
    server = wrapper(tmp_path, f"*--model*) echo start >> {log}; {fails};;")
    with pytest.raises(RocllmError, match="reset") as caught:
        rocllm.load_model(
            demo_model, ctx_size=512, threads=1, llama_server=server, cpu_fallback=True
        )
    assert caught.value.cause == "gpu_reset"
    assert log.read_text() == "start\n"


GPU = "ROCm0: AMD Radeon RX 7800 XT (16368 MiB, 16000 MiB free)"


@pytest.mark.parametrize("allowed", [True, False])
def test_the_cpu_only_where_it_is_allowed(demo_model: Path, tmp_path: Path, allowed: bool) -> None:
    """A GPU that the build has no kernels for."""
    lists = f'*--list-devices*) printf "Available devices:\\n  {GPU}\\n"; exit 0;;'
    fails = f'*"--device ROCm0"*) {abort("ROCm error: invalid device function")};;'
    server = wrapper(tmp_path, f"{lists}\n{fails}")
    environ = {**os.environ, "ROCM_LLAMA_SERVER_PATH": str(server)}
    root = write_tree(tmp_path / "root", DESKTOP)

    def load() -> rocllm.TextModel:
        return rocllm.load_model(
            demo_model, ctx_size=512, threads=1, environ=environ, root=root, cpu_fallback=allowed
        )

    if not allowed:
        with pytest.raises(RocllmError, match="not built for this GPU") as caught:
            load()
        assert caught.value.cause == "wrong_gfx"
        return
    with pytest.warns(RocllmWarning, match="the CPU is used"):
        model = load()
    with model:
        assert model.info.devices == ()
        assert model.generate("1, 2,", max_tokens=2).read().text
        assert "not built for this GPU" in model.info.recovered[0]


def test_a_gpu_that_fails_again_and_again(demo_model: Path, tmp_path: Path) -> None:
    """A fault may pass; after as many restarts as are allowed it counts as one that does not."""
    fault = "Memory access fault by GPU node-1 (Agent handle: 0x1) on address 0x2."
    faulty = write_fake_llama_server(
        tmp_path / "faulty",
        devices=["0000:03:00.0"],
        die_after_tokens=2,
        signal=signal.SIGABRT,
        stderr=f"{fault}\n",
    )
    lists = f'*--list-devices*) printf "Available devices:\\n  {GPU}\\n"; exit 0;;'
    server = wrapper(tmp_path, f'{lists}\n*"--device ROCm0"*) exec {faulty} "$@";;')
    with rocllm.load_model(
        demo_model,
        ctx_size=512,
        threads=1,
        environ={**os.environ, "ROCM_LLAMA_SERVER_PATH": str(server)},
        root=write_tree(tmp_path / "root", DESKTOP),
        restart=RestartPolicy(max_restarts=2, backoff=0.0),
        cpu_fallback=True,
    ) as model:
        for _ in range(3):
            assert model.info.devices
            with pytest.raises(ServerCrashed, match="GPU 0000:03:00"):
                model.generate("1, 2,", max_tokens=4).read()
        assert len(model.generate("1, 2,", max_tokens=4).read().tokens) == 4
        assert model.info.devices == ()
        (note,) = model.info.recovered
        assert note.startswith("the CPU is used, after: ")
