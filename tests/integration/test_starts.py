"""How often a server is started, and when: behind a wrapper that fails at first."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.integration.test_recovery_ladder import wrapper

import rocllm
from rocllm.errors import AddressInUse, StartTimeout
from rocllm.testing.fake_llama_server import write_fake_llama_server
from rocllm.testing.fake_sysfs import DESKTOP, write_tree

TAKEN = "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1"


def counting(log: Path, then: str) -> str:
    """Note the start and its port, and do `then`."""
    note = f'echo "$*" | sed "s/.*--port \\([0-9]*\\).*/\\1/" >> {log}'
    return f"*--model*) {note}; {then};;"


@pytest.mark.parametrize("failures", [2, 3])
def test_a_taken_port_is_replaced_twice(demo_model: Path, tmp_path: Path, failures: int) -> None:
    """Three tries, each with a port of its own."""
    log = tmp_path / "ports"
    fails = f'[ $(wc -l < {log}) -le {failures} ] && {{ echo "{TAKEN}"; exit 1; }}'
    server = wrapper(tmp_path, counting(log, fails))

    def load() -> rocllm.TextModel:
        return rocllm.load_model(
            demo_model, ctx_size=512, threads=1, llama_server=server, host="127.0.0.1"
        )

    if failures == 3:
        with pytest.raises(AddressInUse):
            load()
    else:
        with load() as model:
            assert model.generate("1, 2,", max_tokens=2).read().text
    ports = log.read_text().split()
    assert len(ports) == len(set(ports)) == 3


@pytest.mark.parametrize(
    ("then", "error", "given"),
    [
        (f'echo "{TAKEN}"; exit 1', AddressInUse, {"port": 1025}),
        ("exec sleep 60", StartTimeout, {"host": "127.0.0.1", "load_mode": "mmap"}),
    ],
)
def test_started_once(
    demo_model: Path, tmp_path: Path, then: str, error: type[Exception], given: dict[str, object]
) -> None:
    """A port that the user named stays, and a time-out is no reason to try another."""
    log = tmp_path / "ports"
    server = wrapper(tmp_path, counting(log, then))
    with pytest.raises(error):
        rocllm.load_model(
            demo_model,
            ctx_size=512,
            llama_server=server,
            start_timeout=0.5,
            **given,  # type: ignore[arg-type]
        )
    assert len(log.read_text().split()) == 1


def test_memory_is_given_back_before_a_restart(demo_model: Path, tmp_path: Path) -> None:
    """A driver frees memory some time after the process has ended; a restart waits for it."""
    root = write_tree(tmp_path / "root", DESKTOP)
    used = next(root.glob("sys/class/drm/card0/device/mem_info_vram_used"))
    before, log = used.read_text().strip(), tmp_path / "seen"
    fake = write_fake_llama_server(tmp_path / "fake", devices=("0000:03:00.0",))
    # What stands for the driver: it frees the memory half a second after the process has ended.
    driver = tmp_path / "driver"
    driver.write_text(
        f"#!/bin/sh\nwhile kill -0 $1; do sleep 0.05; done\nsleep 0.5\necho {before} > {used}\n"
    )
    server = tmp_path / "llama-server"
    takes = f"cat {used} >> {log}; echo 9000000000 > {used}"
    server.write_text(
        f'#!/bin/sh\ncase "$*" in *--model*) {takes}\n'
        f"env -i setsid sh {driver} $$ > /dev/null 2>&1 &\n"
        f';; esac\nexec {fake} "$@"\n'
    )
    server.chmod(0o700)
    with rocllm.load_model(demo_model, ctx_size=512, root=root, llama_server=server) as model:
        assert model.info.devices, "it is on the GPU"
        for _ in range(2):
            assert model.info.pid is not None
            os.kill(model.info.pid, signal.SIGKILL)
            assert model.generate("1, 2,", max_tokens=2).read().text
    assert log.read_text().split() == [before] * 3


def test_what_is_wrong_with_the_gpu_is_said(demo_model: Path, tmp_path: Path) -> None:
    """A model runs on it all the same."""
    root = write_tree(tmp_path / "root", DESKTOP)
    server = write_fake_llama_server(tmp_path / "llama-server", devices=("0000:03:00.0",))
    environ = {**os.environ, "HSA_OVERRIDE_GFX_VERSION": "11.0.0"}
    with pytest.warns(rocllm.RocllmWarning, match="HSA_OVERRIDE_GFX_VERSION"):
        model = rocllm.load_model(
            demo_model, ctx_size=512, root=root, environ=environ, llama_server=server
        )
    with model:
        assert any("HSA_OVERRIDE_GFX_VERSION" in note for note in model.info.warnings)


def test_listening_for_other_machines_is_said(demo_model: Path) -> None:
    """It is what the user asked for, and worth a warning."""
    with pytest.warns(rocllm.RocllmWarning, match=r"0\.0\.0\.0 is reachable from other machines"):
        model = rocllm.load_model(demo_model, ctx_size=512, threads=1, host="0.0.0.0")
    with model:
        assert model.generate("1, 2,", max_tokens=2).read().text
