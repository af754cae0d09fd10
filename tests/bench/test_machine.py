"""The machine of a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.bench.made import MACHINE

from rocllm.bench import describe_machine
from rocllm.testing.fake_sysfs import DESKTOP, write_tree


def test_what_the_files_say(tmp_path: Path) -> None:
    """Processor, memory, GPUs, kernel and load come from the tree that is given."""
    write_tree(tmp_path, DESKTOP)
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD  Ryzen 7 7700 8-Core Processor\n",
        "proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 512 kB\n",
        "proc/loadavg": "7.50 1.00 0.50 1/100 42\n",
        "proc/sys/kernel/osrelease": "6.9.1\n",
        "etc/os-release": 'NAME=x\nPRETTY_NAME="Fedora 43"\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = describe_machine({}, tmp_path)
    assert found.cpu == "AMD Ryzen 7 7700 8-Core Processor"
    assert found.processor.endswith("of AMD Ryzen 7 7700")
    assert found.memory == 1024 * 1024
    assert "gfx1101" in found.gpus[0]
    assert (found.kernel, found.system, found.load_average) == ("6.9.1", "Fedora 43", 7.5)


def test_an_empty_tree(tmp_path: Path) -> None:
    """What cannot be read is unknown, and no error."""
    found = describe_machine({}, tmp_path)
    assert (found.cpu, found.memory, found.gpus, found.load_average) == (None, None, (), None)
    assert found.warnings == ()
    assert found.name == f"{found.cores} core{'s' if found.cores > 1 else ''}"


def test_a_busy_machine_is_said() -> None:
    """More than a quarter of the cores at work when the run begins is worth a warning."""
    assert dataclasses.replace(MACHINE, cores=4, load_average=1.0).warnings == ()
    (warning,) = dataclasses.replace(MACHINE, cores=4, load_average=1.1).warnings
    assert "1.1 on 4 cores" in warning


def test_equal_gpus_are_counted() -> None:
    """Two of a kind are named once."""
    twins = dataclasses.replace(MACHINE, gpus=MACHINE.gpus * 2)
    assert twins.name.startswith("2 × Radeon RX 7800 XT (gfx1101), 32 cores")
