"""How much memory a GPU has, and how much is in use."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import rocllm
from rocllm.devices import Device, VramInfo, discover_devices, vram_info
from rocllm.devices._sysfs import read_file
from rocllm.memory import read_memory
from rocllm.testing.fake_sysfs import (
    RAPHAEL,
    RX_7700_XT,
    STRIX_HALO,
    FakeGpu,
    partitions,
    write_tree,
)

_CARD = "sys/class/drm/card0/device"
_GIB = 1024**3


def only(root: Path, *gpus: FakeGpu) -> Device:
    """The first device of a machine with these GPUs."""
    return discover_devices(write_tree(root, gpus), {}).devices[0]


def test_a_card_counts_its_vram(tmp_path: Path) -> None:
    """Total, used and free belong together, and what else the driver counts stands beside them."""
    gpu = replace(
        RX_7700_XT,
        gtt_used=150_000_000,
        files={"mem_info_vis_vram_total": 268435456, "mem_info_vis_vram_used": 16613376},
    )
    device = only(tmp_path, gpu)

    assert rocllm.vram_info(device, root=tmp_path) == VramInfo(
        pool="vram",
        total=12868124672,
        used=1491832832,
        free=12868124672 - 1491832832,
        vram_total=12868124672,
        vram_used=1491832832,
        visible_total=268435456,
        visible_used=16613376,
        gtt_total=65498251264,
        gtt_used=150_000_000,
    )


def test_it_is_the_use_of_now(tmp_path: Path) -> None:
    """Not the one of when the devices were found."""
    device = only(tmp_path, RX_7700_XT)
    (tmp_path / _CARD / "mem_info_vram_used").write_text("12000000000\n")

    assert vram_info(device, root=tmp_path).used == 12000000000
    assert vram_info(device, root=tmp_path).free == 868124672


def test_an_integrated_gpu_counts_system_memory(tmp_path: Path) -> None:
    """What the firmware has set aside is not what ROCm allocates from; it is shown all the same."""
    device = only(tmp_path, replace(STRIX_HALO, vram_used=400_000_000, gtt_used=10 * _GIB))
    info = vram_info(device, root=tmp_path)

    assert (info.pool, info.total, info.used) == ("gtt", 112742891520, 10 * _GIB)
    assert info.free == 112742891520 - 10 * _GIB
    assert (info.vram_total, info.vram_used) == (1073741824, 400_000_000)
    assert info.total == read_memory([device], tmp_path).gpus[0].total


def test_system_memory_is_free_only_if_the_kernel_can_give_it(tmp_path: Path) -> None:
    """On an integrated GPU other programs use the same memory without the driver knowing."""
    device = only(tmp_path, replace(STRIX_HALO, gtt_used=0))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 125829120 kB\nMemAvailable:   4194304 kB\n")

    assert vram_info(device, root=tmp_path).free == 4 * _GIB


def test_a_carve_out_that_rocm_uses_counts_itself(tmp_path: Path) -> None:
    """An integrated GPU on a kernel before 6.10 has the part that the firmware has set aside."""
    gpu = replace(RAPHAEL, bank=RAPHAEL.vram, vram_used=100_000_000, gtt_used=7)
    info = vram_info(only(tmp_path, gpu), root=tmp_path)

    assert (info.pool, info.total, info.used) == ("vram", 536870912, 100_000_000)


def test_free_is_never_negative(tmp_path: Path) -> None:
    """The files are read one after the other, and a driver may be wrong."""
    device = only(tmp_path, replace(RX_7700_XT, vram_used=13_000_000_000))
    info = vram_info(device, root=tmp_path)

    assert (info.total, info.used, info.free) == (12868124672, 12868124672, 0)


def test_a_total_that_changes_meanwhile_is_read_again(tmp_path: Path) -> None:
    """A card that is reset or partitioned between two reads does not give halves of both."""
    device = only(tmp_path, RX_7700_XT)
    totals = iter((b"99", b"2000", b"2000"))
    uses = iter((b"98", b"1000"))

    def changing(path: str) -> bytes:
        if path.endswith("vram_total") and "vis" not in path:
            return next(totals)
        if path.endswith("vram_used") and "vis" not in path:
            return next(uses)
        return read_file(path)

    info = vram_info(device, root=tmp_path, read=changing)

    assert (info.vram_total, info.vram_used) == (2000, 1000)


def test_a_partition_has_no_use_of_its_own(tmp_path: Path) -> None:
    """The counters are those of the whole card; a share of them is nobody's."""
    instinct = FakeGpu(
        device_id=0x74A1, gfx_version=90402, vram=192 * _GIB, vram_used=_GIB, gtt=_GIB
    )
    first, second = discover_devices(write_tree(tmp_path, partitions(instinct, 2)), {}).devices

    info = vram_info(first, root=tmp_path)
    assert (info.total, info.used, info.free) == (96 * _GIB, None, None)
    assert info.vram_used == _GIB
    assert vram_info(second, root=tmp_path) == VramInfo(pool="vram", total=96 * _GIB)


def test_a_card_that_rocm_cannot_use_shows_its_counters(tmp_path: Path) -> None:
    """Of an integrated GPU without KFD nothing tells which memory would count."""
    device = only(tmp_path, replace(STRIX_HALO, kfd=False, gtt_used=5))
    info = vram_info(device, root=tmp_path)

    assert (info.pool, info.total, info.used, info.free) == (None, None, None, None)
    assert (info.gtt_total, info.gtt_used) == (112742891520, 5)


def test_a_card_that_was_taken_out_has_no_memory(tmp_path: Path) -> None:
    """Everything is unknown, not zero."""
    device = only(tmp_path, RX_7700_XT)
    (tmp_path / _CARD).rename(tmp_path / "gone")

    assert vram_info(device, root=tmp_path) == VramInfo()


def test_another_card_in_its_place_is_not_it(tmp_path: Path) -> None:
    """The kernel gives the number of a card that was taken out to the next one."""
    device = only(tmp_path, RX_7700_XT)
    write_tree(tmp_path, [replace(RX_7700_XT, pci_address="0000:46:00.0")])

    assert vram_info(device, root=tmp_path) == VramInfo()


def _absent(path: Path) -> None:
    path.unlink()


def _garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00 many\n")


def _negative(path: Path) -> None:
    path.write_text("-1\n")


def _too_long(path: Path) -> None:
    path.write_text("9" * 5000)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [_absent, _garbage, _negative, _too_long, _folder])
def test_what_cannot_be_read_is_none(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    """Never an error, and nothing made up from the rest."""
    device = only(tmp_path, RX_7700_XT)
    spoil(tmp_path / _CARD / "mem_info_vram_used")
    info = vram_info(device, root=tmp_path)

    assert (info.total, info.used, info.free) == (12868124672, None, None)
    assert info.vram_total == 12868124672


@pytest.mark.parametrize("code", ["EPERM", "EIO", "EBUSY", "ENODEV", "ENODATA"])
def test_a_driver_that_refuses_is_no_error(code: str, tmp_path: Path) -> None:
    """As it does while it resets the card, or in a container."""
    device = only(tmp_path, RX_7700_XT)

    def refused(path: str) -> bytes:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), path)

    info = vram_info(device, root=tmp_path, read=refused)

    assert info == VramInfo(pool="vram", total=device.usable_memory)
