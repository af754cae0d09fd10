"""How much memory is free, read from trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rocllm.devices import discover_devices
from rocllm.memory import GpuMemory, HostMemory, read_memory
from rocllm.testing.fake_sysfs import DESKTOP, STRIX_HALO, write_tree

MEMINFO = "MemTotal:       32768 kB\nMemFree:  100 kB\nMemAvailable:   16384 kB\n"
MIB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    """A machine with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def host(root: Path, files: dict[str, str]) -> HostMemory:
    """The host memory of such a machine."""
    return read_memory((), write(root, files)).host


def test_available_memory_is_what_counts(tmp_path: Path) -> None:
    """Not what is free: the kernel gives back its caches."""
    assert host(tmp_path, {"proc/meminfo": MEMINFO}) == HostMemory(32 * MIB, 16 * MIB)


@pytest.mark.parametrize("text", ["", "MemTotal:\nMemAvailable: much kB", "\0\xff"])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, text: str) -> None:
    """No file, half a file, rubbish: None, never an error."""
    assert read_memory((), tmp_path).host == HostMemory(None, None)
    assert host(tmp_path, {"proc/meminfo": text}) == HostMemory(None, None)


def test_a_container_has_what_its_group_may_use(tmp_path: Path) -> None:
    """Version 2: the limit less what is used, where pages of files do not count as used."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": str(8 * MIB),
        "sys/fs/cgroup/memory.current": str(6 * MIB),
        "sys/fs/cgroup/memory.stat": f"anon {4 * MIB}\nfile {2 * MIB}\n",
    }
    assert host(tmp_path, files) == HostMemory(8 * MIB, 4 * MIB)


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    """A group is limited by those around it, and one without a limit limits nothing."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user.slice/app.scope\n",
        "sys/fs/cgroup/user.slice/app.scope/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/app.scope/memory.current": "1\n",
        "sys/fs/cgroup/user.slice/memory.max": str(4 * MIB),
        "sys/fs/cgroup/user.slice/memory.current": str(MIB),
    }
    assert host(tmp_path, files) == HostMemory(4 * MIB, 3 * MIB)


def test_tmpfs_is_used_and_a_soft_limit_is_one(tmp_path: Path) -> None:
    """What lies in /dev/shm cannot be dropped; above `memory.high` everything is slowed down."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": str(8 * MIB),
        "sys/fs/cgroup/memory.current": str(6 * MIB),
        "sys/fs/cgroup/memory.stat": f"file {5 * MIB}\nshmem {4 * MIB}\n",
    }
    assert host(tmp_path, files) == HostMemory(8 * MIB, 3 * MIB)
    files["sys/fs/cgroup/memory.high"] = str(7 * MIB)
    assert host(tmp_path, files) == HostMemory(7 * MIB, 2 * MIB)
    files["sys/fs/cgroup/memory.max"] = "max\n"
    assert host(tmp_path, files) == HostMemory(7 * MIB, 2 * MIB)


def test_version_1(tmp_path: Path) -> None:
    """Other names, a controller in the list, and a huge number for no limit."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "12:cpu,memory:/docker/x\n3:pids:/\nnonsense\n",
        "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": str(10 * MIB),
        "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": str(11 * MIB),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    }
    assert host(tmp_path, files) == HostMemory(10 * MIB, 0)


def test_a_path_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    """A group of another namespace is written with dots."""
    write(tmp_path, {"secret/memory.max": "1", "secret/memory.current": "0"})
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/../../../secret\n"}
    assert host(tmp_path, files) == HostMemory(32 * MIB, 16 * MIB)


def test_a_card_has_what_nobody_uses(tmp_path: Path) -> None:
    """Of the VRAM of a discrete GPU what is in use is taken off."""
    devices = discover_devices(write_tree(tmp_path, DESKTOP), {}).devices
    gpu = read_memory(devices[:1], tmp_path).gpus[0]

    assert gpu == GpuMemory(
        label=devices[0].label,
        gfx_target="gfx1101",
        total=12868124672,
        free=12868124672 - 1491832832,
        shared=False,
        device="0",
    )


def test_an_integrated_gpu_uses_the_hosts_memory(tmp_path: Path) -> None:
    """Where KFD allocates from GTT, that is ordinary memory."""
    devices = discover_devices(write_tree(tmp_path, [STRIX_HALO]), {}).devices
    gpu = read_memory(devices, tmp_path).gpus[0]

    assert gpu.shared
    assert gpu.total == 112742891520
