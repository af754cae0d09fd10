"""A failed load names the check that explains it, and none that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rocllm.devices import Access, Machine, OtherCard, choose_devices, discover_devices
from rocllm.doctor import Finding, cheap_findings, explain_failure, launch_warnings, name_cause
from rocllm.errors import (
    DeviceAccessDenied,
    InvalidGGUF,
    NoDeviceFound,
    OffloadFailed,
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    StartFailed,
)
from rocllm.server import ServerBinary
from rocllm.testing.fake_sysfs import DESKTOP, RX_7700_XT, STRIX_HALO, FakeGpu, write_tree

OVERRIDE = {"HSA_OVERRIDE_GFX_VERSION": "11.0.0"}


def machine(root: Path, *gpus: FakeGpu) -> Machine:
    """What discovery finds."""
    return discover_devices(write_tree(root, gpus), {})


def states(findings: tuple[Finding, ...]) -> dict[str, str]:
    """State by id of the check."""
    return {found.id: found.state for found in findings}


def test_cheap_findings_are_complaints_only(tmp_path: Path) -> None:
    """A good machine has none, and nothing is read or run for them."""
    assert cheap_findings(machine(tmp_path, *DESKTOP), {}) == ()
    assert states(cheap_findings(machine(tmp_path, *DESKTOP), OVERRIDE)) == {"override": "warn"}
    assert states(cheap_findings(Machine(), {})) == {}


def test_denied_device_file(tmp_path: Path) -> None:
    """Discovery has seen it, so it costs nothing more."""
    root = write_tree(tmp_path, DESKTOP)
    denied = discover_devices(root, {}, access=lambda path: Access("refused", "render"))
    findings = cheap_findings(denied, {})
    cause = explain_failure(DeviceAccessDenied("no"), findings)

    assert cause is not None
    assert cause.id == "kfd-device"
    assert "permission denied" in cause.evidence


@pytest.mark.parametrize(
    ("error", "environ", "cause"),
    [
        (OffloadFailed("nothing on a GPU"), OVERRIDE, "override"),
        (StartFailed("x", why="ROCm error: invalid device function"), OVERRIDE, "override"),
        (ServerCrashed("x", output=("Memory access fault by GPU node-1",)), OVERRIDE, "override"),
        (StartFailed("x", why="the file is not a GGUF file"), OVERRIDE, None),
        (InvalidGGUF("x"), OVERRIDE, None),
        (OutOfMemory("x"), OVERRIDE, None),
        (OffloadFailed("x"), {}, None),
        (NoDeviceFound("x"), {"HIP_VISIBLE_DEVICES": "-1"}, "masks"),
    ],
)
def test_which_check_explains(
    tmp_path: Path, error: RocllmError, environ: dict[str, str], cause: str | None
) -> None:
    """What has nothing to do with the error is not blamed for it."""
    root = write_tree(tmp_path, DESKTOP)
    findings = cheap_findings(discover_devices(root, environ), environ)
    found = explain_failure(error, findings)

    assert (found.id if found else None) == cause


def test_memory_of_an_apu(tmp_path: Path) -> None:
    """The carve-out alone is what many run out of."""
    small = machine(tmp_path, replace(STRIX_HALO, bank=1 << 29, vram=1 << 29))
    found = explain_failure(OutOfMemory("x"), cheap_findings(small, {}))

    assert found is not None
    assert found.id == "gpu-memory"


def test_failed_check_comes_before_a_warning() -> None:
    """A certain cause is named before a possible one."""
    possible = Finding("warn", "set", id="libraries", group="rocm")
    certain = Finding("fail", "other chip", id="gpu-code", group="rocm")

    assert explain_failure(OffloadFailed("x"), [possible, certain]) is certain


def test_error_is_completed(
    tmp_path: Path, elf: Callable[..., bytes], bundle: Callable[..., bytes]
) -> None:
    """The files of llama-server are read, and the error says what they lack and what to do."""
    code = bundle("hipv4-amdgcn-amd-amdhsa--gfx1030")
    server = tmp_path / "llama-server"
    server.write_bytes(elf(["libggml-hip.so"], runpath="$ORIGIN"))
    (tmp_path / "libggml-hip.so").write_bytes(elf(sections={".hip_fatbin": code}))
    binary = ServerBinary("native", (str(server),), str(server), "b1", {}, "asked for")
    error = OffloadFailed("it sees no GPU", why="it may be built without ROCm")

    name_cause(error, machine(tmp_path / "m", RX_7700_XT), {}, binary)

    assert str(error).splitlines() == [
        "it sees no GPU",
        "it may be built without ROCm",
        "`rocllm doctor`, check gpu-code: libggml-hip.so has code for gfx1030, not for gfx1101",
        "use a llama-server that is built for it, or one with Vulkan",
    ]


def test_error_without_a_cause_stays(tmp_path: Path) -> None:
    """Nothing is added, and the remedy is kept."""
    error = OffloadFailed("x", remedy="y")
    name_cause(error, machine(tmp_path, RX_7700_XT), {})

    assert str(error) == "x\ny"


@pytest.fixture
def rocm_server(
    tmp_path: Path, elf: Callable[..., bytes], bundle: Callable[..., bytes]
) -> Callable[..., ServerBinary]:
    """A llama-server with code for the given chips, and kernels of rocBLAS for them."""

    def write(*chips: str, kernels: tuple[str, ...] | None = None) -> ServerBinary:
        folder = tmp_path / "engine"
        (folder / "rocblas/library").mkdir(parents=True)
        code = bundle(*(f"hipv4-amdgcn-amd-amdhsa--{chip}" for chip in chips))
        server = folder / "llama-server"
        server.write_bytes(elf(["libggml-hip.so"], runpath="$ORIGIN"))
        hip = elf(["librocblas.so.5"], runpath="$ORIGIN", sections={".hip_fatbin": code})
        (folder / "libggml-hip.so").write_bytes(hip)
        (folder / "librocblas.so.5").write_bytes(elf())
        for chip in chips if kernels is None else kernels:
            (folder / f"rocblas/library/TensileLibrary_lazy_{chip}.dat").touch()
        return ServerBinary("native", (str(server),), str(server), "b1", {}, "asked for")

    return write


WriteServer = Callable[..., ServerBinary]


def warned(
    found: Machine, binary: ServerBinary, environ: dict[str, str], *wanted: str
) -> tuple[str, ...]:
    """What is said after a load on the chosen device."""
    return launch_warnings(found, choose_devices(found, wanted), environ, binary)


@pytest.mark.parametrize("gpus", [(RX_7700_XT,), DESKTOP, (STRIX_HALO,)])
def test_a_good_machine_is_silent(
    tmp_path: Path, rocm_server: WriteServer, gpus: tuple[FakeGpu, ...]
) -> None:
    """Whatever else is in it: an integrated GPU that is not used, an APU."""
    server = rocm_server("gfx1101", "gfx1151")
    assert warned(machine(tmp_path / "m", *gpus), server, {}) == ()


def test_what_may_be_as_it_should_is_not_said(tmp_path: Path, rocm_server: WriteServer) -> None:
    """A card for virtual machines, GPUs hidden from a container, one without a driver."""
    server = rocm_server("gfx1101")
    found = machine(tmp_path / "m", RX_7700_XT)
    other = OtherCard("0000:41:00.0", "1002:744c", "vfio-pci")
    assert warned(replace(found, other_cards=(other,), hidden=2), server, {}) == ()
    assert states(cheap_findings(replace(found, other_cards=(other,)), {})) == {"driver": "warn"}


def test_nothing_is_said_where_the_cpu_is_used(tmp_path: Path, rocm_server: WriteServer) -> None:
    """By wish, or because there is nothing else; the engine's files are not even looked at."""
    nowhere = ServerBinary("native", ("/nowhere",), "/nowhere", "b1", {}, "asked for")
    assert warned(machine(tmp_path / "m", *DESKTOP), nowhere, OVERRIDE, "cpu") == ()
    assert warned(Machine(), nowhere, OVERRIDE) == ()


def test_what_is_said_though_it_runs(tmp_path: Path, rocm_server: WriteServer) -> None:
    """An override and what it leads to, a lack of kernels; each with a remedy."""
    found = machine(tmp_path / "m", RX_7700_XT)
    server = rocm_server("gfx1101", kernels=("gfx1030",))
    override, code, rocblas = warned(found, server, OVERRIDE)
    assert override == (
        "HSA_OVERRIDE_GFX_VERSION=11.0.0, though llama-server has code for gfx1101: it is not "
        "needed: unset HSA_OVERRIDE_GFX_VERSION"
    )
    assert "not for gfx1101, which HSA_OVERRIDE_GFX_VERSION makes gfx1100" in code
    assert "gfx1101" in rocblas


def test_the_device_that_is_used_counts(tmp_path: Path, rocm_server: WriteServer) -> None:
    """The carve-out of an integrated GPU matters when that was chosen, and only then."""
    small = replace(STRIX_HALO, bank=1 << 29, vram=1 << 29)
    server = rocm_server("gfx1101", "gfx1151")
    found = machine(tmp_path / "m", RX_7700_XT, small)
    assert warned(found, server, {}) == ()
    integrated = next(one for one in found.devices if one.integrated)
    (told,) = warned(found, server, {}, str(integrated.pci_address))
    assert "512 MiB" in told
