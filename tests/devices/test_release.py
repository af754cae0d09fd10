"""The wait until a card has given back the memory of a process that has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rocllm.devices import Device, Release, discover_devices, wait_memory_released
from rocllm.testing.fake_sysfs import RX_7700_XT, partitions, write_tree

_USED = "sys/class/drm/card0/device/mem_info_vram_used"
_GIB = 1024**3


class Machine:
    """A card, and what happens to it while somebody sleeps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 0.0
        self.then: Callable[[float], int] = lambda now: 0
        self.devices = discover_devices(write_tree(root, [RX_7700_XT]), {}).devices

    def sleep(self, seconds: float) -> None:
        """The driver works meanwhile."""
        self.now += seconds
        (self.root / _USED).write_text(str(self.then(self.now)))

    def wait(
        self,
        expected: int | None,
        timeout: float = 5.0,
        pid: int | None = None,
        devices: tuple[Device, ...] | None = None,
    ) -> Release:
        """Wait on this card's clock."""
        (self.root / _USED).write_text(str(self.then(self.now)))
        devices = self.devices if devices is None else devices
        return wait_memory_released(
            devices,
            [expected for _ in devices],
            timeout,
            pid=pid,
            root=self.root,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_waits_until_the_memory_is_back(machine: Machine) -> None:
    """The driver frees it piece by piece after the process is gone."""
    machine.then = lambda now: max(_GIB, 9 * _GIB - int(now * 20 * _GIB))
    release = machine.wait(_GIB)

    assert release.complete
    assert release.left == (0,)
    assert 0.35 <= release.seconds <= 0.45
    assert str(release) == f"the memory was given back after {release.seconds * 1000:.0f} ms"


def test_a_little_more_is_the_desktop(machine: Machine) -> None:
    """A window that opened meanwhile does not make it wait."""
    machine.then = lambda now: _GIB + 60 * 1024**2

    assert machine.wait(_GIB) == Release(0.0, (0,))


def test_it_ends_at_the_timeout(machine: Machine) -> None:
    """Memory that keeps moving is not waited for any longer than that."""
    machine.then = lambda now: 4 * _GIB - int(now * 1000)
    release = machine.wait(_GIB, timeout=2.0)

    assert not release.complete
    assert release.seconds == pytest.approx(2.0)
    assert str(release) == "3.0 GiB of GPU memory are still in use after 2.00 s"


def test_what_another_program_took_is_not_waited_for(machine: Machine) -> None:
    """When nothing has changed for a second, the rest is not the process's."""
    machine.then = lambda now: 9 * _GIB if now < 0.4 else 3 * _GIB
    release = machine.wait(_GIB, timeout=60.0, pid=4711)

    assert not release.complete
    assert release.seconds == pytest.approx(1.4, abs=0.1)


def test_it_waits_longer_while_the_kernel_knows_the_process(machine: Machine) -> None:
    """A GPU that hangs is reset first; the driver frees nothing for seconds, and then all."""
    entry = machine.root / "sys/class/kfd/kfd/proc/4711"
    entry.mkdir(parents=True)

    def freed(now: float) -> int:
        if now > 10.0:
            entry.rmdir()
            return 0
        return 9 * _GIB

    machine.then = freed
    release = machine.wait(_GIB, timeout=60.0, pid=4711)

    assert release.complete
    assert release.seconds == pytest.approx(10.0, abs=0.1)


def test_no_device_no_wait(machine: Machine) -> None:
    """A model on the CPU has nothing to give back here."""
    assert machine.wait(_GIB, devices=()) == Release(0.0, ())


def test_what_is_not_known_is_not_waited_for(machine: Machine, tmp_path: Path) -> None:
    """Neither a use that cannot be read, nor one that was not known before the load."""
    machine.then = lambda now: 9 * _GIB
    assert machine.wait(None) == Release(0.0, (0,))

    parts = discover_devices(write_tree(tmp_path / "parts", partitions(RX_7700_XT, 2)), {}).devices
    assert machine.wait(_GIB, devices=parts) == Release(0.0, (0, 0))


def test_each_device_has_its_expectation(machine: Machine) -> None:
    """A list of another length is a mistake of the caller."""
    with pytest.raises(ValueError, match="argument 2 is longer"):
        wait_memory_released(machine.devices, [1, 2], root=machine.root)
