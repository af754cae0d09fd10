"""Which GPU is used, why, and what the child's environment makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rocllm.devices import (
    Access,
    Choice,
    Machine,
    child_environment,
    choose_devices,
    discover_devices,
)
from rocllm.errors import DeviceAccessDenied, NoDeviceFound, OptionsError
from rocllm.testing.fake_sysfs import (
    DESKTOP,
    RAPHAEL,
    RX_7700_XT,
    STRIX_HALO,
    FakeGpu,
    partitions,
    write_tree,
)

SECOND_XT = dataclasses.replace(
    RX_7700_XT, pci_address="0000:04:00.0", render_minor=130, card=2, vram_used=0
)
RX_7900_XTX = FakeGpu(
    device_id=0x744C,
    gfx_version=110000,
    pci_address="0000:43:00.0",
    render_minor=131,
    card=3,
    vram=25753026560,
    unique_id=0x9E7F4DE7AC7CF81B,
)


def machine(
    root: Path, gpus: Sequence[FakeGpu], environ: Mapping[str, str] | None = None
) -> Machine:
    """The machine with these GPUs."""
    return discover_devices(write_tree(root, gpus), environ or {})


def addresses(choice: Choice) -> list[str | None]:
    """PCI addresses of what was chosen."""
    return [device.pci_address for device in choice.devices]


def test_discrete_gpu_wins_over_an_integrated_one_with_more_memory(tmp_path: Path) -> None:
    """The integrated GPU is hidden, and the reasons say both."""
    choice = choose_devices(machine(tmp_path, DESKTOP))

    assert addresses(choice) == ["0000:03:00.0"]
    assert choice.device_names == ("ROCm0",)
    assert "the only discrete GPU" in choice.because[0]
    assert "0000:11:00.0" in choice.because[1]
    assert choice.problem is None


def test_mask_is_the_ordinal_wherever_the_discrete_gpu_comes(tmp_path: Path) -> None:
    """With an external GPU the integrated one is ordinal 0."""
    choice = choose_devices(machine(tmp_path, [RAPHAEL, RX_7700_XT]))

    assert addresses(choice) == ["0000:03:00.0"]
    assert choice.environment["ROCR_VISIBLE_DEVICES"] == "1"


def test_most_memory_then_most_of_it_free(tmp_path: Path) -> None:
    """Among discrete GPUs the larger one is taken, among equals the idle one."""
    equals = machine(tmp_path / "equals", [RX_7700_XT, SECOND_XT])
    larger = machine(tmp_path / "larger", [RX_7700_XT, SECOND_XT, RX_7900_XTX])

    assert addresses(choose_devices(equals)) == ["0000:04:00.0"]
    assert addresses(choose_devices(larger)) == ["0000:43:00.0"]
    assert "24.0 GiB" in choose_devices(larger).because[0]


def test_first_of_gpus_whose_memory_is_unknown(tmp_path: Path) -> None:
    """Unknown sizes are no reason for another order."""
    gpus = [dataclasses.replace(gpu, vram=None, card=None) for gpu in (RX_7700_XT, SECOND_XT)]

    assert addresses(choose_devices(machine(tmp_path, gpus))) == ["0000:03:00.0"]


def test_large_integrated_gpu_is_used_where_there_is_no_other(tmp_path: Path) -> None:
    """Strix Halo is what its owner bought it for."""
    assert addresses(choose_devices(machine(tmp_path, [STRIX_HALO]))) == ["0000:bf:00.0"]


def test_small_integrated_gpu_is_used_only_when_asked_for(tmp_path: Path) -> None:
    """Two compute units are slower than the processor, and crash."""
    found = machine(tmp_path, [RAPHAEL])
    choice = choose_devices(found)

    assert choice.devices == ()
    assert "unless it is asked for" in choice.because[0]
    assert addresses(choose_devices(found, ["0000:11:00.0"])) == ["0000:11:00.0"]


def test_cpu_hides_every_gpu_from_the_child(tmp_path: Path) -> None:
    """Set and empty is how ROCr hides all."""
    choice = choose_devices(machine(tmp_path, DESKTOP), ["CPU"])

    assert (choice.devices, choice.device_names) == ((), ())
    assert choice.because == ("the CPU was asked for",)
    environ = child_environment(choice, {"ROCR_VISIBLE_DEVICES": "0"})
    assert environ == {"ROCR_VISIBLE_DEVICES": ""}


def test_child_gets_one_mask_and_everything_else_of_the_environment(tmp_path: Path) -> None:
    """A second mask would count within the first."""
    environ = {
        "PATH": "/usr/bin",
        "HIP_VISIBLE_DEVICES": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "GPU_DEVICE_ORDINAL": "0",
        "GGML_CUDA_DEVICES": "4",
    }
    choice = choose_devices(machine(tmp_path, DESKTOP, environ), ["1"])

    assert child_environment(choice, environ) == {"PATH": "/usr/bin", "ROCR_VISIBLE_DEVICES": "1"}
    removed = {name for name, value in choice.environment.items() if value is None}
    assert removed == set(environ) - {"PATH"}


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({"HIP_VISIBLE_DEVICES": "0"}, ["0000:03:00.0"]),
        ({"HIP_VISIBLE_DEVICES": "1"}, ["0000:11:00.0"]),  # who hides the other has chosen
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, ["0000:11:00.0"]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_inherited_mask_is_a_restriction(
    tmp_path: Path, environ: dict[str, str], chosen: list[str]
) -> None:
    """What the user hid stays hidden, and the reasons name the variable."""
    choice = choose_devices(machine(tmp_path, DESKTOP, environ))

    assert addresses(choice) == chosen
    assert " and ".join(f"{name}={value}" for name, value in environ.items()) in choice.because[0]


def test_mask_meant_for_nvidia_does_not_choose_the_small_gpu(tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES=0 is common beside an NVIDIA card; it hides nothing of AMD here."""
    found = machine(tmp_path, [RAPHAEL], {"CUDA_VISIBLE_DEVICES": "0"})

    assert choose_devices(found).devices == ()


@pytest.mark.parametrize(
    "name",
    [
        "0000:43:00.0",
        " 43:00.0 ",
        "43:0",
        "2",
        "GPU-9e7f4de7ac7cf81b",
        "gpu-9E7F4DE7AC7CF81B",
    ],
)
def test_gpu_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    """PCI address with or without domain and function, ordinal, UUID, in either case."""
    found = machine(tmp_path, [RX_7700_XT, RAPHAEL, RX_7900_XTX])

    assert addresses(choose_devices(found, [name])) == ["0000:43:00.0"]


def test_several_gpus_of_one_kind(tmp_path: Path) -> None:
    """In the order asked for; a GPU named twice counts once."""
    found = machine(tmp_path, [RX_7700_XT, RAPHAEL, SECOND_XT])
    choice = choose_devices(found, ["2", "0000:03:00.0", "0"])

    assert addresses(choice) == ["0000:04:00.0", "0000:03:00.0"]
    assert choice.environment["ROCR_VISIBLE_DEVICES"] == "2,0"
    assert choice.device_names == ("ROCm0", "ROCm1")


@pytest.mark.parametrize(
    ("wanted", "error", "text"),
    [
        (["0", "1"], OptionsError, "different instruction sets: gfx1101, gfx1036"),
        (["cpu", "0"], OptionsError, "'cpu' is no name of a device"),
        (["ROCm0"], OptionsError, "no name of a device"),
        ([""], OptionsError, "no name of a device"),
        (["7"], NoDeviceFound, "1: 0000:11:00.0"),
        (["0000:99:00.0"], NoDeviceFound, "0: 0000:03:00.0"),
        (["GPU-0123456789abcdef"], NoDeviceFound, "there is no device"),
    ],
)
def test_names_that_cannot_be_served(
    tmp_path: Path, wanted: list[str], error: type[Exception], text: str
) -> None:
    """The message lists what there is."""
    with pytest.raises(error, match=text):
        choose_devices(machine(tmp_path, DESKTOP), wanted)


def test_wanted_gpu_that_a_mask_hides(tmp_path: Path) -> None:
    """The mask is not overridden; the message names it."""
    found = machine(tmp_path, DESKTOP, {"HIP_VISIBLE_DEVICES": "1"})

    with pytest.raises(NoDeviceFound, match="HIP_VISIBLE_DEVICES=1 hides it"):
        choose_devices(found, ["0000:03:00.0"])


def test_partition_is_named_by_ordinal(tmp_path: Path) -> None:
    """Partitions share address and UUID, so that only the ordinal tells them apart."""
    found = machine(tmp_path, [RX_7700_XT, *partitions(RX_7900_XTX, 2)])

    with pytest.raises(OptionsError, match="by ordinal: 1, 2"):
        choose_devices(found, ["0000:43:00.0"])
    assert choose_devices(found, ["2"]).environment["ROCR_VISIBLE_DEVICES"] == "2"


def test_gpu_that_may_not_be_opened_is_never_silently_the_cpu(tmp_path: Path) -> None:
    """Unasked, the CPU is used and the problem is told; asked for, it is an error."""
    root = write_tree(tmp_path, DESKTOP)
    found = discover_devices(root, {}, access=lambda path: Access("refused", "render"))
    choice = choose_devices(found)

    assert choice.devices == ()
    assert choice.problem is not None
    assert choice.because == (choice.problem.what,)
    assert "not in group render" in choice.problem.what
    with pytest.raises(DeviceAccessDenied, match="usermod -aG render"):
        choose_devices(found, ["0"])


def test_card_that_rocm_cannot_use(tmp_path: Path) -> None:
    """The reason is the card's, and asking for the card does not help."""
    found = machine(tmp_path, [dataclasses.replace(RX_7700_XT, kfd=False)])
    choice = choose_devices(found)

    assert choice.problem is not None
    assert "KFD did not accept it" in choice.because[0]
    with pytest.raises(NoDeviceFound, match="dmesg"):
        choose_devices(found, ["03:00.0"])


def test_card_without_driver_is_the_reason_for_the_cpu(tmp_path: Path) -> None:
    """One sentence says it, with the way out in the problem."""
    choice = choose_devices(machine(tmp_path, [FakeGpu(device_id=0x747E, driver=None, kfd=False)]))

    assert "has no driver" in choice.because[0]
    assert choice.problem is not None
    assert "modprobe" in str(choice.problem.remedy)


def test_no_gpu_at_all(tmp_path: Path) -> None:
    """Nothing to repair: one reason, no problem."""
    choice = choose_devices(discover_devices(tmp_path, {}))

    assert choice == Choice((), ("no AMD GPU was found",))
