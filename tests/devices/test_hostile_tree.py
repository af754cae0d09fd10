"""Whatever a tree holds, discovery and choice end with an answer."""

from __future__ import annotations

import dataclasses
import errno
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocllm.devices import (
    choose_devices,
    discover_devices,
    find_spill,
    process_memory,
    read_sample,
)
from rocllm.devices._sysfs import read_file
from rocllm.testing.fake_sysfs import (
    DESKTOP,
    RX_7700_XT,
    SENSORS,
    partitions,
    write_process,
    write_tree,
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A desktop with a partitioned card beside it."""
    other = dataclasses.replace(
        RX_7700_XT,
        pci_address="0000:43:00.0",
        render_minor=140,
        card=2,
        runtime_status="active",
        gpu_id=9,
        files=SENSORS,
    )
    root = write_tree(tmp_path_factory.mktemp("tree"), [*DESKTOP, *partitions(other, 4)])
    write_process(root, 7, "a", other, kfd=5, drm_memory_vram="1 KiB", amd_evicted_vram="1 KiB")
    return root


_NUMBERS = st.integers(-(2**70), 2**70).map(lambda number: str(number).encode())
_NAMES = st.sampled_from(
    b"simd_count location_id gfx_target_version drm_render_minor unique_id device_id domain"
    b" size_in_bytes heap_type PCI_SLOT_NAME PCI_ID PCI_CLASS DRIVER".split()
)
_LINES = st.builds(
    lambda name, separator, value: name + separator + value,
    _NAMES,
    st.sampled_from([b" ", b"="]),
    _NUMBERS | st.binary(max_size=12),
)
_CONTENT = st.binary(max_size=200) | _NUMBERS | st.lists(_LINES, max_size=8).map(b"\n".join)
_FAULTS = st.sampled_from([errno.EPERM, errno.EACCES, errno.EIO, errno.EBUSY, errno.ENODATA])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_garbage_and_faults_in_any_file(tree: Path, data: st.DataObject) -> None:
    """Each file may hold anything, or fail in any way that files fail."""
    paths = sorted(str(path) for path in tree.rglob("*") if path.is_file())
    answers = data.draw(st.dictionaries(st.sampled_from(paths), _CONTENT | _FAULTS, max_size=12))

    def read(path: str) -> bytes:
        answer = answers.get(path)
        if isinstance(answer, int):
            raise OSError(answer, "fault", path)
        return read_file(path) if answer is None else answer

    machine = discover_devices(tree, {"HIP_VISIBLE_DEVICES": "0,1"}, read=read)
    choice = choose_devices(machine)

    assert all(device in machine.devices for device in choice.devices)
    ordinals = [device.ordinal for device in machine.devices if device.ordinal is not None]
    assert ordinals == list(range(len(ordinals)))
    assert all(device.name.isprintable() for device in machine.devices)

    uses = process_memory(machine.devices, root=tree, read=read)
    assert all(use.vram >= 0 and use.name.isprintable() for use in uses)
    for device in machine.devices:
        memory = read_sample(device, root=tree, read=read).memory
        assert memory.free is None or 0 <= memory.free <= (memory.total or 0)
        find_spill(device, memory, uses)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("0123,- GPUgpuabcXx"), max_size=20))
def test_any_mask(tree: Path, text: str) -> None:
    """A mask leaves some of the GPUs, each once, in some order."""
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        visible = discover_devices(tree, {variable: text}).visible

        assert len(set(visible)) == len(visible)
        assert set(visible) <= set(range(6))


def test_directories_where_files_should_be() -> None:
    """Trees from bug reports are made by hand."""
    with tempfile.TemporaryDirectory() as folder:
        for path in ("sys/class/kfd/kfd/topology/nodes/1/properties", "sys/class/drm/card0/device"):
            (Path(folder) / path).mkdir(parents=True)
        (Path(folder) / "sys/class/kfd/kfd/topology/nodes/²").mkdir()

        assert discover_devices(folder, {}).devices == ()
