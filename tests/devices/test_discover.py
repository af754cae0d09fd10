"""Discovery on machines of every kind that people have."""

from __future__ import annotations

import dataclasses
import doctest
import errno
import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from rocllm.devices import Access, Device, Machine, discover_devices
from rocllm.devices._chips import gfx_name
from rocllm.devices._sysfs import read_file
from rocllm.testing.fake_sysfs import (
    DESKTOP,
    RAPHAEL,
    RX_7700_XT,
    STRIX_HALO,
    FakeGpu,
    partitions,
    refusing,
    write_tree,
)

MI300X = FakeGpu(
    device_id=0x74A1,
    gfx_version=90402,
    pci_address="0000:05:00.0",
    vram=206141652992,
    simd_count=1216,
    simd_per_cu=4,
    unique_id=0xE3AA140F9A5F9E31,
)
VEGA_56 = FakeGpu(device_id=0x687F, pci_address="0000:0b:00.0", vram=8573157376, on_card=True)


def look(root: Path, gpus: Sequence[FakeGpu] = (), **how: object) -> Machine:
    """The machine with these GPUs, and no masks."""
    return discover_devices(write_tree(root, gpus, **how), {})  # type: ignore[arg-type]


def only(machine: Machine) -> Device:
    """The one device of the machine."""
    (device,) = machine.devices
    return device


@pytest.mark.parametrize(
    ("version", "name"),
    [
        (90010, "gfx90a"),
        (90012, "gfx90c"),
        (90402, "gfx942"),
        (100306, "gfx1036"),
        (110001, "gfx1101"),
        (110501, "gfx1151"),
        (120001, "gfx1201"),
        (0, None),
        (10**12, None),
    ],
)
def test_gfx_name_prints_minor_and_stepping_in_hexadecimal(version: int, name: str | None) -> None:
    """110501 is gfx1151; printing the digits as they come would name chips that do not exist."""
    assert gfx_name(version) == name


def test_desktop_with_a_discrete_and_an_integrated_gpu(tmp_path: Path) -> None:
    """The integrated GPU offers more memory than the card, and is told apart all the same."""
    discrete, inside = look(tmp_path, DESKTOP).devices

    assert (discrete.ordinal, discrete.gfx_target, discrete.integrated) == (0, "gfx1101", False)
    assert (discrete.usable_memory, discrete.used_memory) == (12868124672, 1491832832)
    assert discrete.memory_pool == "vram"
    assert (discrete.device_id, discrete.pci_address) == ("0x747e", "0000:03:00.0")
    assert discrete.cu_count == 54
    assert (inside.ordinal, inside.gfx_target, inside.integrated) == (1, "gfx1036", True)
    assert (inside.usable_memory, inside.memory_pool) == (65498251264, "gtt")
    assert inside.integrated_because == "gfx1036 exists only inside a processor"


def test_cards_are_joined_by_render_node_whatever_their_number(tmp_path: Path) -> None:
    """DRM numbers cards in another order than KFD: here card0 is the integrated GPU."""
    gpus = (dataclasses.replace(RX_7700_XT, card=1), dataclasses.replace(RAPHAEL, card=0))
    discrete, inside = look(tmp_path, gpus).devices

    assert (discrete.card, discrete.vram_total) == (1, 12868124672)
    assert (inside.card, inside.vram_total) == (0, 536870912)


def test_nodes_are_taken_in_numeric_order(tmp_path: Path) -> None:
    """Node 10 comes after node 9, not after node 1."""
    gpus = [
        dataclasses.replace(MI300X, pci_address=f"0000:{bus:02x}:00.0", card=bus, render_minor=bus)
        for bus in range(1, 13)
    ]
    devices = look(tmp_path, gpus).devices

    assert [device.kfd_node for device in devices] == list(range(1, 13))
    assert [device.ordinal for device in devices] == list(range(12))
    assert devices[9].pci_address == "0000:0a:00.0"


def test_processor_node_may_be_missing(tmp_path: Path) -> None:
    """On the Steam Deck the GPU can be node 0."""
    device = only(look(tmp_path, [STRIX_HALO], cpu_nodes=0))

    assert (device.kfd_node, device.ordinal) == (0, 0)


def test_partitions_share_address_and_uuid_and_have_their_share_of_memory(tmp_path: Path) -> None:
    """The kernel puts the partition's number into the address; the card's figures are not its."""
    devices = look(tmp_path, partitions(MI300X, 8)).devices

    assert {device.pci_address for device in devices} == {"0000:05:00.0"}
    assert {device.uuid for device in devices} == {"GPU-e3aa140f9a5f9e31"}
    assert {device.usable_memory for device in devices} == {206141652992 // 8}
    assert [device.render_minor for device in devices] == list(range(128, 136))
    assert [device.vram_total for device in devices] == [206141652992] + [None] * 7
    assert not any(device.integrated for device in devices)
    assert all(device.partitioned for device in devices)


def test_share_of_a_partition_is_no_sign_of_an_apu(tmp_path: Path) -> None:
    """A container that sees one partition sees a bank smaller than the card's VRAM."""
    unknown = dataclasses.replace(MI300X, device_id=0x74FF)
    second = partitions(unknown, 4)[1]
    device = only(look(tmp_path, [dataclasses.replace(second, card=0)]))

    assert not device.integrated
    assert device.partitioned


def test_old_kernel_without_gfx_version(tmp_path: Path) -> None:
    """Before Linux 5.15 the name of the chip tells the instruction set, else the PCI id."""
    named = dataclasses.replace(MI300X, device_id=0x6862, gfx_version=None, asic="vega10")
    by_id = dataclasses.replace(VEGA_56, render_minor=129, card=1)
    first, second = look(tmp_path, [named, by_id]).devices

    assert (first.gfx_target, first.integrated) == ("gfx900", False)
    assert (second.gfx_target, second.integrated) == ("gfx900", False)


def test_chip_that_nobody_knows_says_so(tmp_path: Path) -> None:
    """No gfx version, no known name, no known PCI id: the GPU is listed, with a problem."""
    device = only(look(tmp_path, [FakeGpu(device_id=0xFFF0, card=None)]))

    assert device.gfx_target is None
    assert "instruction set" in str(device.problems[0])
    assert (device.integrated, device.integrated_because) == (
        False,
        "nothing tells; taken for a card",
    )


def test_memory_that_the_processor_cannot_see_counts(tmp_path: Path) -> None:
    """Without resizable BAR the bank has heap type 2."""
    r9700 = FakeGpu(
        device_id=0x7551,
        gfx_version=120001,
        vram=34208743424,
        heap_type=2,
        unique_id=7,
        card=None,
    )
    device = only(look(tmp_path, [r9700]))

    assert (device.gfx_target, device.usable_memory) == ("gfx1201", 34208743424)
    assert device.uuid == "GPU-0000000000000007"


@pytest.mark.parametrize(
    ("bank", "gtt", "usable", "pool", "used"),
    [
        (112742891520, 112742891520, 112742891520, "gtt", 2),  # Linux 6.10 and later
        (112742891520, 66571993088, 66571993088, "gtt", 2),  # GTT is capped, the bank is not
        (1073741824, 66571993088, 1073741824, "vram", 1),  # Linux up to 6.9: the carve-out
        (1073741824, None, 1073741824, "vram", 1),
    ],
)
def test_memory_of_an_integrated_gpu(
    tmp_path: Path, bank: int, gtt: int | None, usable: int, pool: str, used: int
) -> None:
    """It is the carve-out or system memory, never both, and the right counter tells its use."""
    gpu = dataclasses.replace(STRIX_HALO, bank=bank, gtt=gtt, vram_used=1, gtt_used=2)
    device = only(look(tmp_path, [gpu]))

    assert (device.usable_memory, device.memory_pool, device.used_memory) == (usable, pool, used)


def test_small_carve_out_is_a_problem_with_a_way_out(tmp_path: Path) -> None:
    """On old kernels an integrated GPU has next to no memory for ROCm."""
    device = only(look(tmp_path, [dataclasses.replace(STRIX_HALO, bank=STRIX_HALO.vram)]))

    assert "1.0 GiB" in device.problems[0].what
    assert "6.10" in str(device.problems[0].remedy)


@pytest.mark.parametrize(
    ("gpu", "integrated", "because"),
    [
        (dataclasses.replace(MI300X, device_id=0x74A0), True, "PCI device 0x74a0 is an APU"),
        (MI300X, False, "PCI device 0x74a1 is a card"),
        (
            FakeGpu(device_id=0xFFF0, gfx_version=130000, vram=8, on_card=True),
            False,
            "the driver tells of memory on a card",
        ),
        (
            FakeGpu(device_id=0xFFF0, gfx_version=130000, vram=8, bank=80),
            True,
            "KFD offers other memory than the VRAM",
        ),
        (
            FakeGpu(device_id=0xFFF0, gfx_version=130000, vram=8),
            False,
            "KFD offers exactly the VRAM",
        ),
    ],
)
def test_integrated_or_discrete_by_the_best_evidence(
    tmp_path: Path, gpu: FakeGpu, integrated: bool, because: str
) -> None:
    """The chip, then what the driver shows for cards only, then whose memory KFD offers."""
    device = only(look(tmp_path, [gpu]))

    assert (device.integrated, device.integrated_because) == (integrated, because)


@pytest.mark.parametrize("with_kfd", [True, False])
def test_card_without_kfd_node(tmp_path: Path, with_kfd: bool) -> None:
    """It is listed, named, has no ordinal, and the problem tells why ROCm cannot use it."""
    gpu = dataclasses.replace(VEGA_56, kfd=False, unique_id=0x0123456789ABCDEF)
    device = only(look(tmp_path, [gpu], kfd=with_kfd))

    assert (device.kfd_node, device.ordinal, device.gfx_target) == (None, None, None)
    assert (device.name, device.device_id) == ("Radeon RX Vega 56/64", "0x687f")
    assert (device.uuid, device.vram_total) == ("GPU-0123456789abcdef", 8573157376)
    assert (device.usable_memory, device.integrated) == (None, False)
    assert ("did not accept" if with_kfd else "no /sys/class/kfd") in device.problems[0].what


def test_kfd_alone_is_enough(tmp_path: Path) -> None:
    """Containers may hide /sys/class/drm: the GPU is used, and what DRM would tell is unknown."""
    device = only(look(tmp_path, [dataclasses.replace(RX_7700_XT, card=None)]))

    assert (device.ordinal, device.usable_memory) == (0, 12868124672)
    assert (device.vram_total, device.used_memory, device.asleep) == (None, None, None)


def test_other_drivers_and_no_driver(tmp_path: Path) -> None:
    """Cards of AMD that amdgpu does not run are problems, not devices."""
    machine = look(
        tmp_path,
        [
            FakeGpu(device_id=0x6818, driver="radeon", kfd=False),
            FakeGpu(device_id=0x747E, driver=None, kfd=False, pci_address="0000:04:00.0"),
            FakeGpu(
                device_id=0x744C,
                driver="vfio-pci",
                kfd=False,
                card=None,
                pci_address="0000:05:00.0",
            ),
        ],
    )

    assert machine.devices == ()
    assert [(card.pci_address, card.driver) for card in machine.other_cards] == [
        ("0000:03:00.0", "radeon"),
        ("0000:04:00.0", None),
        ("0000:05:00.0", "vfio-pci"),
    ]
    assert "driven by radeon" in str(machine.problems[0])
    assert "modprobe amdgpu" in str(machine.problems[1])
    assert "virtual machine" in str(machine.problems[2])


def test_nomodeset_is_blamed_for_a_missing_driver(tmp_path: Path) -> None:
    """The kernel's options are those of the tree."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("root=/dev/sda1 ro nomodeset\n")
    machine = look(tmp_path, [FakeGpu(device_id=0x747E, driver=None, kfd=False)])

    assert machine.problems[0].remedy == "boot without the kernel option nomodeset"


def test_nvidia_beside_an_integrated_amd_gpu(tmp_path: Path) -> None:
    """Other makers' cards are none of our business."""
    nvidia = FakeGpu(device_id=0x2684, vendor=0x10DE, driver="nvidia", kfd=False)
    machine = look(tmp_path, [nvidia, RAPHAEL])

    assert only(machine).gfx_target == "gfx1036"
    assert machine.other_cards == ()


def test_sound_of_a_graphics_card_is_no_card(tmp_path: Path) -> None:
    """AMD makes more than GPUs, and the HDMI output has a PCI function of its own."""
    root = write_tree(tmp_path, [RX_7700_XT])
    sound = root / "sys/bus/pci/devices/0000:03:00.1"
    sound.mkdir()
    (sound / "uevent").write_text("PCI_CLASS=40300\nPCI_ID=1002:AB30\nPCI_SLOT_NAME=0000:03:00.1")

    assert discover_devices(root, {}).problems == ()


def test_nodes_that_a_container_may_not_read_are_counted_and_skipped(tmp_path: Path) -> None:
    """ROCr skips them too, so that ordinals count readable GPUs only."""
    gpus = [
        dataclasses.replace(MI300X, pci_address=f"0000:0{n}:00.0", render_minor=127 + n, card=n)
        for n in (1, 2, 3)
    ]
    root = write_tree(tmp_path, gpus)
    for minor in (128, 130):  # a container has only the device files that it was given
        (root / f"dev/dri/renderD{minor}").unlink()
    machine = discover_devices(root, {}, read=refusing(root, {1, 3}, read_file))

    assert machine.hidden == 2
    assert (only(machine).kfd_node, only(machine).ordinal) == (2, 0)
    assert machine.other_cards == ()
    assert "2 GPUs are hidden from this container" in str(machine.problems[0])


def test_gpu_without_its_render_node_is_skipped_by_rocr(tmp_path: Path) -> None:
    """Sysfs may show the whole host while /dev has one GPU; the ordinals follow /dev."""
    root = write_tree(tmp_path, DESKTOP)
    (root / "dev/dri/renderD128").unlink()
    discrete, inside = discover_devices(root, {}).devices

    assert (discrete.ordinal, inside.ordinal) == (None, 0)
    assert "/dev/dri/renderD128 is missing" in discrete.problems[0].what


def test_tree_without_device_files_is_believed(tmp_path: Path) -> None:
    """A bug report may hold /sys alone."""
    root = write_tree(tmp_path, [dataclasses.replace(RX_7700_XT, driver=None)])
    (root / "dev/kfd").unlink()
    machine = discover_devices(root, {})

    assert only(machine).ordinal == 0
    assert machine.denied is None


@pytest.mark.parametrize("path", ["/dev/kfd", "/dev/dri/renderD129"])
def test_one_refused_file_keeps_the_process_from_all_gpus(tmp_path: Path, path: str) -> None:
    """ROCr gives up at the first file that it may not open, even that of the GPU not wanted."""
    root = write_tree(tmp_path, DESKTOP)
    machine = discover_devices(
        root,
        {},
        access=lambda asked: Access("refused", "render") if asked == path else Access("allowed"),
    )

    assert machine.denied is not None
    assert path in machine.denied.what
    assert "sudo usermod -aG render" in str(machine.denied.remedy)
    assert [device.ordinal for device in machine.devices] == [0, 1]


@pytest.mark.parametrize("code", [errno.EIO, errno.EBUSY, errno.ENODEV])
def test_node_that_fails_is_reported(tmp_path: Path, code: int) -> None:
    """A GPU in reset answers with errors; the others are found."""
    root = write_tree(tmp_path, DESKTOP)

    def read(path: str) -> bytes:
        if path.endswith("nodes/1/properties"):
            raise OSError(code, "failed", path)
        return read_file(path)

    machine = discover_devices(root, {}, read=read)

    assert [device.kfd_node for device in machine.devices] == [2, None]
    assert "KFD node 1 cannot be read" in [problem.what for problem in machine.problems]


def test_topology_that_changes_meanwhile_is_read_again(tmp_path: Path) -> None:
    """Hot-plug between two reads must not leave a mixture of both."""
    root = write_tree(tmp_path, [RX_7700_XT])
    reads: list[str] = []

    def read(path: str) -> bytes:
        reads.append(path)
        if path.endswith("generation_id"):
            return b"1" if sum(map(path.__eq__, reads)) == 1 else b"2"
        return read_file(path)

    machine = discover_devices(root, {}, read=read)

    assert machine.generation == 2
    assert sum(path.endswith("nodes/1/properties") for path in reads) == 2


def test_sleeping_card_is_known_and_its_sensors_are_left_alone(tmp_path: Path) -> None:
    """Reading a sensor wakes a card, on most kernels."""
    root = write_tree(tmp_path, [dataclasses.replace(RX_7700_XT, runtime_status="suspended")])
    touched: list[str] = []

    def read(path: str) -> bytes:
        touched.append(Path(path).name)
        return read_file(path)

    assert only(discover_devices(root, {}, read=read)).asleep is True
    assert not {"gpu_busy_percent", "pp_dpm_sclk", "pcie_bw"} & set(touched)
    assert not any("hwmon" in name or name == "kfd" for name in touched)


def test_wsl_is_recognised(tmp_path: Path) -> None:
    """There GPUs have no sysfs; saying "no GPU" alone would not help."""
    for path, text in {"proc/sys/kernel/osrelease": "6.6-Microsoft-WSL2", "dev/dxg": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    machine = discover_devices(tmp_path, {})

    assert machine.wsl
    assert "WSL" in machine.problems[0].what


def test_names_come_from_the_board_then_from_libdrm(tmp_path: Path) -> None:
    """libdrm's table tells an XT from an XTX by the revision."""
    (tmp_path / "usr/share/libdrm").mkdir(parents=True)
    (tmp_path / "usr/share/libdrm/amdgpu.ids").write_text(
        "# comment\n1.0.0\n744C,\tC8,\tAMD Radeon RX 7900 XTX\n"
    )
    xtx = FakeGpu(device_id=0x744C, gfx_version=110000, revision=0xC8)
    board = dataclasses.replace(
        xtx,
        product_name="AMD W7900\x1b[31m",
        pci_address="0000:04:00.0",
        render_minor=129,
        card=1,
    )
    names = [device.name for device in look(tmp_path, [xtx, board]).devices]

    assert names == ["Radeon RX 7900 XTX", "W7900 [31m"]


def test_override_of_the_chip_is_reported(tmp_path: Path) -> None:
    """HIP then sees another chip than KFD does."""
    root = write_tree(tmp_path, DESKTOP)
    machine = discover_devices(root, {"HSA_OVERRIDE_GFX_VERSION_1": "11.0.0"})

    assert "HSA_OVERRIDE_GFX_VERSION_1=11.0.0" in machine.problems[0].what


def test_machine_without_gpu(tmp_path: Path) -> None:
    """Nothing there is nothing wrong."""
    assert discover_devices(tmp_path, {}) == Machine()


@pytest.mark.parametrize("name", ["_chips", "_masks", "_memory", "choose", "discover"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    """What the documentation shows is what happens."""
    result = doctest.testmod(importlib.import_module(f"rocllm.devices.{name}"))

    assert (result.failed, result.attempted > 0) == (0, True)
