"""What was chosen against what the child says."""

from __future__ import annotations

import pytest

from rocllm.backends.verify import verify_devices
from rocllm.devices import Device
from rocllm.errors import OffloadFailed
from rocllm.server import LoadReport, UsedDevice

CARD = Device(
    name="Radeon RX 7800 XT",
    pci_address="0000:03:00.0",
    integrated=False,
    integrated_because="gfx1101 exists only on cards",
)
RIGHT = UsedDevice("ROCm0", "AMD Radeon RX 7800 XT", "0000:03:00.0")
WRONG = UsedDevice("ROCm0", "AMD Radeon Graphics", "0000:0d:00.0")


def test_the_chosen_card_is_used() -> None:
    """Nothing to say."""
    report = LoadReport(devices=(RIGHT,), offloaded_layers=33, total_layers=33)
    assert verify_devices((CARD,), -1, report) == ()


def test_another_card_is_used() -> None:
    """The warning names both."""
    report = LoadReport(devices=(WRONG,), offloaded_layers=33, total_layers=33)
    (warning,) = verify_devices((CARD,), -1, report)
    assert "0000:03:00.0" in warning
    assert "0000:0d:00.0" in warning


def test_a_server_that_tells_no_address_is_believed() -> None:
    """An unknown address is not a difference."""
    used = UsedDevice("ROCm0", "AMD Radeon RX 7800 XT", None)
    report = LoadReport(devices=(used,), offloaded_layers=33, total_layers=33)
    assert verify_devices((CARD,), -1, report) == ()


@pytest.mark.parametrize(
    "report",
    [
        LoadReport(),
        LoadReport(devices=(RIGHT,), offloaded_layers=0, total_layers=33),
    ],
)
def test_offloading_that_did_not_happen_is_an_error(report: LoadReport) -> None:
    """A chosen GPU that is not used is never passed over."""
    with pytest.raises(OffloadFailed, match="nothing on a GPU"):
        verify_devices((CARD,), -1, report)


def test_no_layers_wanted_none_there() -> None:
    """With n_gpu_layers=0 nothing has to be on the GPU."""
    report = LoadReport(devices=(RIGHT,), offloaded_layers=0, total_layers=33)
    assert verify_devices((CARD,), 0, report) == ()


def test_a_gpu_where_the_cpu_was_chosen() -> None:
    """It works, and is not what was chosen: a warning that names both."""
    (warning,) = verify_devices((), 0, LoadReport(devices=(RIGHT,)))
    assert "CPU" in warning
    assert "ROCm0" in warning
