"""What the kernel tells about a child's end, on trees of files as the kernel makes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rocllm.server.diagnose import Evidence
from rocllm.server.evidence import look_after, look_before

PID = 4711
# Seconds since boot.
NOW = 1000.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: NOW)


def put(root: Path, path: str, text: str) -> Path:
    """A file of the tree."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def record(seconds: float, text: str) -> str:
    """A line of /dev/kmsg."""
    return f"6,1234,{round(seconds * 1e6)},-;{text}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:03:00.0\n"


def test_a_control_group_that_counts_a_kill(tmp_path: Path) -> None:
    """Version 2, with its limit."""
    put(tmp_path, f"proc/{PID}/cgroup", "0::/user.slice/app.scope\n")
    group = "sys/fs/cgroup/user.slice/app.scope"
    events = put(tmp_path, f"{group}/memory.events", "low 0\nhigh 0\nmax 9\noom 0\noom_kill 2\n")
    put(tmp_path, f"{group}/memory.max", "2147483648\n")
    before = look_before(PID, tmp_path)
    assert look_after(before, tmp_path).killed_by_oom is None
    events.write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\n")
    told = look_after(before, tmp_path).killed_by_oom
    assert told is not None
    assert "app.scope has counted a kill for want of memory, limit 2.0 GiB" in told


def test_version_1(tmp_path: Path) -> None:
    """The controller has a hierarchy of its own, and no limit is a large number."""
    put(tmp_path, f"proc/{PID}/cgroup", "9:cpu,cpuacct:/jobs/2\n4:memory:/jobs/1\n0::/\n")
    put(tmp_path, "sys/fs/cgroup/memory/jobs/2/memory.oom_control", "oom_kill 5\n")
    group = "sys/fs/cgroup/memory/jobs/1"
    said = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
    control = put(tmp_path, f"{group}/memory.oom_control", said.format(0))
    put(tmp_path, f"{group}/memory.limit_in_bytes", "9223372036854771712\n")
    before = look_before(PID, tmp_path)
    control.write_text(said.format(1))
    told = look_after(before, tmp_path).killed_by_oom
    assert told is not None
    assert told.endswith("jobs/1 has counted a kill for want of memory")


@pytest.mark.parametrize("path", ["/made/by/the/host", "/../../outside", "/"])
def test_inside_a_container(tmp_path: Path, path: str) -> None:
    """The path is the host's; the group of the container is at the top."""
    put(tmp_path, f"proc/{PID}/cgroup", f"0::{path}\n")
    events = put(tmp_path, "sys/fs/cgroup/memory.events", "oom_kill 0\n")
    before = look_before(PID, tmp_path)
    events.write_text("oom_kill 1\n")
    assert look_after(before, tmp_path).killed_by_oom is not None


def test_the_log_names_the_process(tmp_path: Path) -> None:
    """A kill of another process, or one before, is not ours."""
    killed = f"Out of memory: Killed process {PID} (llama-server) total-vm:9kB"
    log = put(
        tmp_path,
        "dev/kmsg",
        record(NOW - 50, killed) + record(NOW + 1, killed.replace(str(PID), "1")),
    )
    before = look_before(PID, tmp_path)
    assert look_after(before, tmp_path).killed_by_oom is None
    log.write_text(log.read_text() + record(NOW + 2, killed))
    assert look_after(before, tmp_path).killed_by_oom == f"the kernel's log says: {killed}"


def test_what_the_log_says_of_gpus_and_of_the_child(tmp_path: Path) -> None:
    """Nothing else is kept, and nothing from before."""
    ours = [
        "amdgpu 0000:03:00.0: amdgpu: GPU reset begin!",
        f"llama-server[{PID}]: segfault at 0 ip 00007f sp 00007f error 4 in libggml-hip.so",
    ]
    others = ["usb 1-1: new device", "bash[1]: segfault at 0"]
    records = [record(NOW + 1, text) for text in (*ours, *others)]
    put(tmp_path, "dev/kmsg", record(NOW - 50, ours[0]) + "".join(records) + "garbage\n\n")
    assert look_after(look_before(PID, tmp_path), tmp_path).kernel_log == tuple(ours)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """No evidence is no error."""
    for root in (tmp_path, tmp_path / "nowhere"):
        before = look_before(PID, root)
        assert look_after(before, root) == Evidence()
    put(tmp_path, f"proc/{PID}/cgroup", "garbage\n0::/x\n4:memory\n")
    put(tmp_path, "sys/fs/cgroup/x/memory.events", "oom_kill many\n\xff\n")
    (tmp_path / "dev/kmsg").mkdir(parents=True)
    before = look_before(PID, tmp_path)
    assert look_after(before, tmp_path) == Evidence()


def test_on_this_machine() -> None:
    """Whatever it lets us read, there is no kill and no error; no descriptor stays open."""
    open_before = len(os.listdir("/proc/self/fd"))
    assert look_after(look_before(os.getpid())).killed_by_oom is None
    assert len(os.listdir("/proc/self/fd")) == open_before
