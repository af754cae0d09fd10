"""Limits of the system, on the real engine: memory, threads, open files."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.engine import engine_after, load, tiny

from rocllm.errors import OutOfMemory, RocllmError, StartFailed
from rocllm.options import RestartPolicy

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]


def memory(pid: int | None, name: str) -> int:
    """Bytes of address space: `VmSize` is what it has now, `VmPeak` the most that it has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def peak(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The address space that a load takes at most, in bytes."""
    with load(tiny(tmp_path_factory.mktemp("peak") / "model.gguf")) as model:
        return memory(model.info.pid, "VmPeak")


@pytest.mark.parametrize("percent", [2, 5, 10, 20, 30, 40, 50])
def test_too_little_address_space(tmp_path: Path, peak: int, percent: int) -> None:
    """Wherever it ends, in the loader, in Python, in a thread or in llama.cpp: it is named."""
    script = f"ulimit -v {peak // 1024 * percent // 100}"
    server = engine_after(script, tmp_path / "llama-server")
    error: RocllmError | None = None
    try:
        load(tiny(tmp_path / "model.gguf"), llama_server=server).close()
    except (OutOfMemory, StartFailed) as exc:
        error = exc
    if error is None:
        # How much is taken beyond the libraries depends on which thread allocates first.
        assert percent >= 30
        return
    assert error.cause in ("out_of_host_memory", "thread_limit")
    assert isinstance(error, OutOfMemory) is (error.cause == "out_of_host_memory")
    assert not error.retryable


def test_the_weights_do_not_fit(tmp_path: Path, demo_model: Path, peak: int) -> None:
    """It says what was planned, too."""
    script = f"ulimit -v {(peak + demo_model.stat().st_size // 2) // 1024}"
    with pytest.raises(OutOfMemory, match=r"planned: .* in host memory") as caught:
        load(demo_model, llama_server=engine_after(script, tmp_path / "llama-server"))
    assert caught.value.cause == "out_of_host_memory"
    assert not caught.value.retryable


def test_memory_runs_out_while_generating(demo_model: Path, tmp_path: Path) -> None:
    """The request ends and says why; once there is memory again the same server answers."""
    # With an arena for each thread glibc has reserved addresses that a limit no longer touches.
    server = engine_after("export MALLOC_ARENA_MAX=1", tmp_path / "llama-server")
    with load(demo_model, ctx_size=512, llama_server=server) as model:
        pid = model.info.pid
        assert pid is not None
        size, unlimited = memory(pid, "VmSize"), resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_AS, (size, unlimited))
        with pytest.raises(RocllmError) as caught:
            model.generate("1, 2, 3,", max_tokens=64).read()
        assert caught.value.cause == "out_of_host_memory"
        assert not caught.value.retryable
        resource.prlimit(pid, resource.RLIMIT_AS, (unlimited, unlimited))
        assert model.generate("1, 2, 3,", max_tokens=4).read().text
        assert model.info.pid == pid


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of the kernel that may take next to no memory: who asks for it is killed."""
    for hierarchy, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", hierarchy, f"rocllm-test-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                # To write into a file that is not there fails: the kernel makes all files.
                (group / limit).write_text(str(2**20))
            except OSError:
                group.rmdir()
                raise
            break
    else:
        pytest.skip("needs the right to make a control group with a limit of memory")
    yield group
    deadline = time.monotonic() + 10
    while True:  # it is in use until the last process in it has been reaped
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def test_the_kernel_kills_it_while_it_generates(demo_model: Path, memory_group: Path) -> None:
    """An answer that is under way ends with the cause and its text; nothing is started again."""
    again = RestartPolicy(max_restarts=3)
    with load(demo_model, ctx_size=4096, parallel=2, restart=again) as model:
        stream = model.generate("1, 2, 3,", max_tokens=4000, grammar='root ::= " a" root')
        next(stream)
        (memory_group / "cgroup.procs").write_text(str(model.info.pid))
        with pytest.raises(OutOfMemory, match="while serving") as caught:
            model.generate("hello " * 1_000_000, max_tokens=4).read()
        assert caught.value.cause == "killed_by_oom"
        assert caught.value.exit_status == -signal.SIGKILL
        assert not caught.value.retryable
        with pytest.raises(OutOfMemory) as broken:
            stream.read()
        assert broken.value.cause == "killed_by_oom"
        assert broken.value.text.startswith(" ")
        with pytest.raises(OutOfMemory):
            model.generate("1, 2, 3,", max_tokens=4).read()
        assert model.state == "failed"


def test_the_kernel_kills_it_while_it_loads(
    demo_model: Path, memory_group: Path, tmp_path: Path
) -> None:
    """The control group's limit is named as what can be raised."""
    script = f"echo $$ >{memory_group}/cgroup.procs"
    with pytest.raises(OutOfMemory, match="limit of its control group") as caught:
        load(demo_model, llama_server=engine_after(script, tmp_path / "llama-server"))
    assert caught.value.cause == "killed_by_oom"
    assert not caught.value.retryable


def test_a_request_for_which_memory_does_not_suffice(demo_model: Path) -> None:
    """The server refuses it; nothing is wrong with what was asked."""
    with load(demo_model, ctx_size=512) as model:
        pid = model.info.pid
        assert pid is not None
        model.generate("1, 2, 3,", max_tokens=2).read()
        size = memory(pid, "VmSize")
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
        with pytest.raises(RocllmError) as caught:
            model.generate("hello " * 1_000_000, max_tokens=4).read()
        assert caught.value.cause == "out_of_host_memory"
        assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize("limit", [3, 4, 5])
def test_too_few_open_files(tmp_path: Path, limit: int) -> None:
    """In the loader, and in llama.cpp."""
    with pytest.raises(StartFailed) as caught:
        load(
            tiny(tmp_path / "model.gguf"),
            llama_server=engine_after(f"ulimit -n {limit}", tmp_path / "llama-server"),
        )
    assert caught.value.cause == "open_files_limit"
