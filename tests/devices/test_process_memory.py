"""Which process holds how much of a GPU, and whether VRAM has spilled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rocllm.devices import (
    Device,
    ProcessMemory,
    VramInfo,
    discover_devices,
    find_spill,
    process_memory,
    vram_info,
)
from rocllm.testing.fake_sysfs import (
    RAPHAEL,
    RX_7700_XT,
    FakeGpu,
    partitions,
    write_process,
    write_tree,
)

_MIB = 1024**2
_GIB = 1024**3
_CARD = replace(RX_7700_XT, gpu_id=5093, vram_used=3 * _GIB, gtt_used=100 * _MIB)
_INSIDE = replace(RAPHAEL, gpu_id=777, gtt_used=_GIB)


def devices(root: Path, *gpus: FakeGpu) -> tuple[Device, ...]:
    """Those of a machine with these GPUs."""
    return discover_devices(write_tree(root, gpus or (_CARD,)), {}).devices


def uses(root: Path, *found: Device) -> list[tuple[str | None, int, str, int]]:
    """Address, process, name, VRAM."""
    return [
        (use.device.pci_address, use.pid, use.name, use.vram)
        for use in process_memory(found, root=root)
    ]


def test_the_largest_comes_first_on_each_device(tmp_path: Path) -> None:
    """Names and numbers of those who hold memory."""
    found = devices(tmp_path, _CARD, _INSIDE)
    write_process(tmp_path, 10, "Xorg", _CARD, client=1, drm_memory_vram="40960 KiB")
    write_process(tmp_path, 20, "llama-server", _CARD, client=2, drm_memory_vram="2 MiB")
    write_process(tmp_path, 20, "llama-server", _CARD, client=3, drm_memory_vram="4194304 KiB")
    write_process(tmp_path, 30, "my (odd) name", _INSIDE, client=1, drm_memory_vram="512")
    write_process(tmp_path, 40, "bash", _CARD)

    assert uses(tmp_path, *found) == [
        ("0000:03:00.0", 20, "llama-server", 4 * _GIB + 2 * _MIB),
        ("0000:03:00.0", 10, "Xorg", 40 * _MIB),
        ("0000:11:00.0", 30, "my (odd) name", 512),
    ]


def test_a_file_that_is_open_twice_counts_once(tmp_path: Path) -> None:
    """Descriptors are duplicated, and inherited; the driver's client number tells."""
    found = devices(tmp_path)
    for pid in (20, 20, 21):
        write_process(tmp_path, pid, "python", _CARD, client=7, drm_memory_vram="1024 KiB")
    write_process(tmp_path, 22, "other", _CARD, client=8, drm_memory_vram="2048 KiB")

    assert uses(tmp_path, *found) == [
        ("0000:03:00.0", 22, "other", 2 * _MIB),
        ("0000:03:00.0", 20, "python", _MIB),
    ]


def test_client_numbers_of_two_devices_are_not_the_same(tmp_path: Path) -> None:
    """Each device counts its clients from one."""
    found = devices(tmp_path, _CARD, _INSIDE)
    write_process(tmp_path, 20, "a", _CARD, client=1, drm_memory_vram="1 KiB")
    write_process(tmp_path, 20, "a", _INSIDE, client=1, drm_memory_vram="2 KiB")

    assert [use[3] for use in uses(tmp_path, *found)] == [1024, 2048]


def test_kfd_and_fdinfo_overlap(tmp_path: Path) -> None:
    """Whether fdinfo has what ROCm allocates depends on the kernel: the larger one is right."""
    found = devices(tmp_path)
    write_process(tmp_path, 1, "old", _CARD, client=1, kfd=_GIB, drm_memory_vram="100 KiB")
    write_process(tmp_path, 2, "new", _CARD, client=2, kfd=_MIB, drm_memory_vram="2048 KiB")
    write_process(tmp_path, 3, "root's", _CARD, kfd=5)

    assert [use[1:] for use in uses(tmp_path, *found)] == [
        (1, "old", _GIB),
        (2, "new", 2 * _MIB),
        (3, "root's", 5),
    ]


def test_kfd_is_not_asked_of_a_process_that_has_ended(tmp_path: Path) -> None:
    """Kernels have crashed on that while they cleaned up."""
    found = devices(tmp_path)
    write_process(tmp_path, 1, "zombie", _CARD, state="Z", kfd=_GIB)
    write_process(tmp_path, 2, "gone", _CARD, kfd=_GIB)
    (tmp_path / "proc/2/stat").unlink()

    assert process_memory(found, root=tmp_path) == ()


def test_in_a_container_kfd_means_other_processes(tmp_path: Path) -> None:
    """KFD has the host's numbers; in a namespace of its own these are other processes'."""
    found = devices(tmp_path)
    write_process(tmp_path, 1, "init", _CARD, kfd=_GIB)
    own = tmp_path / "proc/self/ns/pid"
    own.parent.mkdir(parents=True)
    own.symlink_to("pid:[4026531836]")
    assert len(process_memory(found, root=tmp_path)) == 1

    own.unlink()
    own.symlink_to("pid:[4026532741]")
    assert process_memory(found, root=tmp_path) == ()


def test_keys_of_newer_kernels(tmp_path: Path) -> None:
    """Since 6.13 what is resident has a name of its own; the rest is read where it is."""
    found = devices(tmp_path)
    write_process(
        tmp_path,
        9,
        "new",
        _CARD,
        drm_total_vram="900 KiB",
        drm_resident_vram="300 KiB",
        drm_memory_vram="1 KiB",
        drm_resident_gtt="34880 KiB",
        amd_evicted_vram="600 KiB",
    )

    assert process_memory(found, root=tmp_path) == (
        ProcessMemory(
            device=found[0],
            pid=9,
            name="new",
            vram=300 * 1024,
            gtt=34880 * 1024,
            evicted=600 * 1024,
        ),
    )


def test_partitions_are_told_apart_by_their_render_node(tmp_path: Path) -> None:
    """They share the PCI address."""
    parts = partitions(_CARD, 2)
    found = devices(tmp_path, *parts)
    write_process(tmp_path, 9, "a", parts[1], drm_memory_vram="1 KiB")

    (use,) = process_memory(found, root=tmp_path)
    assert use.device == found[1]


def test_only_some_processes(tmp_path: Path) -> None:
    """Such as one's own children."""
    found = devices(tmp_path)
    for pid in (1, 2, 3):
        write_process(tmp_path, pid, "a", _CARD, client=pid, drm_memory_vram="1 KiB")

    assert [use.pid for use in process_memory(found, pids={2, 4}, root=tmp_path)] == [2]


@pytest.mark.parametrize("line", ["", "many KiB", "-1 KiB", "1 TiB", "9" * 400])
def test_lines_that_cannot_be_are_left_out(line: str, tmp_path: Path) -> None:
    """And other drivers' files are not ours."""
    found = devices(tmp_path)
    write_process(tmp_path, 1, "a", _CARD, drm_memory_vram=line, drm_memory_gtt="1 KiB")
    write_process(tmp_path, 2, "b", _CARD, drm_driver="i915", drm_memory_vram="1 KiB")

    assert [(use.pid, use.vram, use.gtt) for use in process_memory(found, root=tmp_path)] == [
        (1, 0, 1024)
    ]


def test_names_cannot_write_on_a_terminal(tmp_path: Path) -> None:
    """A process names itself."""
    found = devices(tmp_path)
    write_process(tmp_path, 1, "\x1b[2Jx\u202e", _CARD, drm_memory_vram="1 KiB")

    assert process_memory(found, root=tmp_path)[0].name.isprintable()


def test_this_machine_can_be_looked_at(tmp_path: Path) -> None:
    """On the real `/proc`, whatever runs there: processes of all users, some ending meanwhile."""
    for use in process_memory(devices(tmp_path)):
        assert use.vram >= 0


def spill_of(root: Path, gpu: FakeGpu, **memory: str) -> str | None:
    """In words, of a card that a llama-server uses."""
    found = devices(root, gpu)
    if memory:
        write_process(root, 4711, "llama-server", gpu, **memory)
    spill = find_spill(found[0], vram_info(found[0], root=root), process_memory(found, root=root))
    return None if spill is None else spill.what


def test_a_spill_that_a_process_tells_of(tmp_path: Path) -> None:
    """What it wants in VRAM and the driver has put elsewhere, wherever the card stands."""
    assert spill_of(tmp_path, _CARD, drm_memory_vram="3 MiB", amd_evicted_vram="1572864 KiB") == (
        "1.5 GiB of the video memory of llama-server (4711) are in system memory"
    )


def test_a_few_buffers_elsewhere_are_no_spill(tmp_path: Path) -> None:
    """63 MiB are a window that nobody looks at."""
    assert spill_of(tmp_path, _CARD, drm_memory_vram="3 MiB", amd_evicted_vram="64512 KiB") is None


def test_a_process_that_tells_makes_a_spill_certain(tmp_path: Path) -> None:
    """And its size is what it tells."""
    found = devices(tmp_path, _CARD)
    write_process(tmp_path, 4711, "a", _CARD, drm_memory_vram="3 MiB", amd_evicted_vram="99 MiB")
    uses = process_memory(found, root=tmp_path)
    spill = find_spill(found[0], vram_info(found[0], root=tmp_path), uses)
    assert spill is not None
    assert (spill.certain, spill.size) == (True, 99 * _MIB)


def test_a_spill_that_the_totals_suggest(tmp_path: Path) -> None:
    """Where no process tells: a full card that uses much system memory; said as a suspicion."""
    full = replace(_CARD, vram_used=_CARD.vram, gtt_used=3 * _GIB)

    assert spill_of(tmp_path, full) == (
        "VRAM is full (12.0 GiB of 12.0 GiB) and the card uses 3.0 GiB of system memory: video "
        "memory may have been moved there"
    )


@pytest.mark.parametrize(
    "gpu",
    [
        replace(_CARD, vram_used=11 * _GIB, gtt_used=3 * _GIB),  # not full
        replace(_CARD, vram_used=_CARD.vram, gtt_used=680 * _MIB),  # a desktop's and transfers
        replace(_CARD, vram_used=None, gtt_used=3 * _GIB),
        replace(_CARD, vram_used=_CARD.vram, gtt_used=None),
        replace(_INSIDE, vram_used=_INSIDE.vram, gtt_used=50 * _GIB, card=0),
    ],
)
def test_no_spill(gpu: FakeGpu, tmp_path: Path) -> None:
    """Half of the evidence is none, and an integrated GPU has nothing but system memory."""
    assert spill_of(tmp_path, gpu) is None


def test_a_process_that_tells_outweighs_the_totals(tmp_path: Path) -> None:
    """Its pinned buffers explain the system memory; 12 MiB free and nothing evicted is no spill."""
    full = replace(_CARD, vram_used=_CARD.vram, gtt_used=3 * _GIB)

    assert spill_of(tmp_path, full, drm_memory_vram="11 MiB", amd_evicted_vram="0 KiB") is not None
    told = {"drm_memory_vram": "11534336 KiB", "amd_evicted_vram": "0 KiB", "client": 2}
    assert spill_of(tmp_path, full, **told) is None  # type: ignore[arg-type]


def test_what_to_do_about_a_spill(tmp_path: Path) -> None:
    """It comes with the words, and with how sure it is."""
    (device,) = devices(tmp_path)
    memory = VramInfo(vram_total=100, vram_used=96, gtt_used=_GIB)
    spill = find_spill(device, memory)

    assert spill is not None
    assert (spill.certain, spill.size) == (False, _GIB)
    assert str(spill).endswith(
        "use a smaller context, fewer GPU layers or a smaller model, or end other programs"
    )
