"""Each check on machines that have, or have not, what it looks for."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from rocllm.devices import Choice, Machine, choose_devices, discover_devices
from rocllm.devices._access import Access
from rocllm.devices._sysfs import Tree, read_file
from rocllm.doctor import CHECKS, Finding, State, User, examine, run_checks
from rocllm.doctor._rocm import find_installs
from rocllm.doctor.types import (
    Engine,
    EngineFiles,
    Facts,
    GfxTargets,
    Missing,
    Repair,
    RocmInstall,
)
from rocllm.errors import BinaryNotFound, StartFailed
from rocllm.server import ListedDevice, ServerBinary
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

ANN = User("ann", 4242, frozenset({4242}))
KFD = "sys/class/kfd/kfd/topology"
NO_DRIVER = replace(RX_7700_XT, driver=None, kfd=False)
BINARY = ServerBinary("native", ("/opt/ls",), "/opt/ls", "b11434-1", {}, "found on PATH")


def by_id(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    """The findings by name of the check."""
    return {found.id: found for found in findings}


def write(root: Path, path: str, text: str | bytes = "") -> None:
    """A file of the machine."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(text.encode() if isinstance(text, str) else text)


def facts(tmp_path: Path, *gpus: FakeGpu, environ: dict[str, str] | None = None) -> Facts:
    """What discovery finds of these GPUs, taken for this machine."""
    machine = discover_devices(write_tree(tmp_path, gpus), environ or {})
    return Facts(machine=machine, choice=choose_devices(machine), environ=environ or {})


def test_ids_are_unique_and_every_check_answers() -> None:
    """On a machine that nothing is known of, no check fails and none raises."""
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    found = run_checks(Facts(machine=Machine(), choice=Choice((), ()), environ={}, here=False))
    assert [one.id for one in found] == [check.id for check in CHECKS]
    assert "fail" not in {one.state for one in found}


def test_every_check_is_documented() -> None:
    """Under its id, with what a failure means."""
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    ids = [check.id for check in CHECKS] + ["generation"]
    assert [name for name in ids if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("seed", range(20))
def test_hostile_machine(tmp_path: Path, seed: int) -> None:
    """Whatever is in the files, every check answers."""
    chance = random.Random(seed)
    root = write_tree(tmp_path, [*DESKTOP, NO_DRIVER])
    for path in (
        "proc/cmdline",
        "proc/meminfo",
        "proc/sys/kernel/osrelease",
        "etc/group",
        "etc/modprobe.d/a.conf",
        "sys/module/amdgpu/version",
        "sys/module/ttm/parameters/pages_limit",
        "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
        "opt/rocm/.info/version",
        "opt/rocm/lib/libamdhip64.so.6",
    ):
        write(root, path)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        fate = chance.randrange(6)
        if fate < 3:
            file.write_bytes(chance.randbytes(chance.choice((0, 1, 20, 3000))))
        elif fate == 3:
            file.unlink()
        elif fate == 4:
            file.unlink()
            file.symlink_to(file)

    assert len(examine(root, {"ROCM_PATH": "/../\x1b"}, user=ANN)) == len(CHECKS)


def test_good_machine_has_nothing_to_complain_of(tmp_path: Path) -> None:
    """A discrete and an integrated GPU; the first is used."""
    found = by_id(examine(write_tree(tmp_path, DESKTOP), {}))

    assert {one.state for one in found.values()} == {"ok", "unknown"}
    assert found["choice"].evidence.startswith("gfx1101, 12.0 GiB: 0000:03:00.0")
    assert found["kfd"].evidence == "KFD offers 2 GPUs: gfx1101, gfx1036"


@pytest.mark.parametrize(
    ("files", "evidence", "command"),
    [
        ({}, "has no driver", "sudo modprobe amdgpu"),
        ({"proc/cmdline": "quiet nomodeset"}, "started with nomodeset", None),
        ({"proc/cmdline": "modprobe.blacklist=a,amdgpu"}, "modprobe.blacklist=a,amdgpu", None),
        ({"etc/modprobe.d/b.conf": "# why\nblacklist amdgpu\n"}, "/etc/modprobe.d/b.conf", None),
        ({"etc/modprobe.d/b.conf": "blacklist amdgpu_x\n"}, "no driver", "sudo modprobe amdgpu"),
        (
            {
                "sys/module/ttm/x": "",
                "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": (
                    b"\6\0\0\0\1"
                ),
            },
            "Secure Boot is on",
            "sudo modprobe amdgpu",
        ),
        (
            {"sys/module/amdgpu/version": "6.8.5"},
            "though amdgpu is loaded",
            "sudo dmesg | grep -iE 'amdgpu|kfd'",
        ),
    ],
)
def test_why_a_card_has_no_driver(
    tmp_path: Path, files: dict[str, str | bytes], evidence: str, command: str | None
) -> None:
    """The cause is looked for, and the command is the one that helps against it."""
    root = write_tree(tmp_path, [NO_DRIVER], kfd=False)
    for path, text in files.items():
        write(root, path, text)
    driver = by_id(examine(root, {}))["driver"]

    assert driver.state == "fail"
    assert evidence in driver.evidence
    assert driver.command == command


@pytest.mark.parametrize(
    ("device_id", "kfd", "says"),
    [
        (0x6617, False, "GCN 1"),  # an R7 240
        (0x6798, True, "GCN 1"),
        (0x6640, False, "no /sys/class/kfd"),
        (0x67DF, True, "KFD did not accept it"),
    ],
)
def test_a_card_that_rocm_never_took(tmp_path: Path, device_id: int, kfd: bool, says: str) -> None:
    """No kernel option is advised where none would help."""
    card = replace(RX_7700_XT, device_id=device_id, kfd=False)
    found = by_id(examine(write_tree(tmp_path, [card], kfd=kfd), {}))["kfd"]
    assert found.state == "fail"
    assert says in found.evidence
    assert ("CONFIG_HSA_AMD" in str(found.remedy)) is (says == "no /sys/class/kfd")


@pytest.mark.parametrize(("name", "word"), [("radeon", "radeon"), ("vfio-pci", "virtual")])
def test_other_drivers(tmp_path: Path, name: str, word: str) -> None:
    """Alone they are a failure; beside a card that works they are worth a word."""
    other = replace(RX_7700_XT, driver=name, kfd=False, pci_address="0000:04:00.0", card=1)
    alone = by_id(examine(write_tree(tmp_path / "1", [other]), {}))["driver"]
    beside = by_id(examine(write_tree(tmp_path / "2", [RX_7700_XT, other]), {}))["driver"]

    assert (alone.state, beside.state) == ("fail", "warn")
    assert word in alone.evidence


def test_no_gpu_and_no_kfd(tmp_path: Path) -> None:
    """Of the checks that build upon each other only the one that explains it fails."""
    write(tmp_path, "sys/bus/pci/devices/0000:00:00.0/vendor", "0x8086")
    none = by_id(examine(tmp_path, {}))
    without = by_id(examine(write_tree(tmp_path / "2", [RX_7700_XT], kfd=False), {}))
    rejected = by_id(examine(write_tree(tmp_path / "3", [replace(RX_7700_XT, kfd=False)]), {}))

    assert [one.id for one in none.values() if one.state == "fail"] == ["pci"]
    assert [one.id for one in without.values() if one.state == "fail"] == ["kfd"]
    assert "/sys/class/kfd" in without["kfd"].evidence
    assert "atomics" in rejected["kfd"].evidence


def test_wsl(tmp_path: Path) -> None:
    """Its kernel names itself."""
    write(tmp_path, "proc/sys/kernel/osrelease", "6.6.87.2-microsoft-standard-WSL2\n")
    write(tmp_path, "dev/dxg")
    found = by_id(examine(tmp_path, {}))

    assert found["wsl"].state == "fail"
    assert found["pci"].state == "unknown"


def test_container_that_hides_gpus(tmp_path: Path) -> None:
    """Nodes that the device cgroup refuses are counted, and the way to start it is told."""
    root = write_tree(tmp_path, DESKTOP)
    write(root, ".dockerenv")
    found = by_id(examine(root, {}, read=refusing(root, [2], read_file)))

    assert found["hidden-gpus"].state == "warn"
    assert "1 GPU hidden" in found["hidden-gpus"].evidence
    assert found["container"].state == "warn"
    assert "docker run --device /dev/kfd" in str(found["container"].command)
    assert "--group-add" in str(found["container"].command)


def test_missing_device_files(tmp_path: Path) -> None:
    """Without /dev/kfd nothing works; without a render node that GPU is left out."""
    root = write_tree(tmp_path, DESKTOP)
    (root / "dev/dri/renderD129").unlink()
    assert by_id(examine(root, {}))["render-devices"].state == "warn"
    (root / "dev/kfd").unlink()
    bare = by_id(examine(root, {}))["kfd-device"]
    write(root, "run/.containerenv")
    inside = by_id(examine(root, {}))["kfd-device"]

    assert (bare.state, inside.state) == ("fail", "fail")
    assert "udevadm" in str(bare.command)
    assert inside.remedy == "start it with --device /dev/kfd"


class TestPermissions:
    """Who may open the device files; the files are real, the user is given."""

    def machine(self, tmp_path: Path, mode: int, group: str = "", members: str = "") -> Path:
        """A desktop whose device files have this mode, and a group of this name."""
        root = write_tree(tmp_path, DESKTOP)
        for path in ("dev/kfd", "dev/dri/renderD128", "dev/dri/renderD129"):
            (root / path).chmod(mode)
        if group:
            gid = (root / "dev/kfd").stat().st_gid
            write(root, "etc/group", f"root:x:77777:\n{group}:x:{gid}:{members}\n")
        return root

    @pytest.fixture(autouse=True)
    def _own_group(self, tmp_path: Path) -> None:
        """Files that belong to group 0 are for their owner; as root another group is taken."""
        if os.getuid() == 0:
            os.chown(tmp_path, -1, 993)
            tmp_path.chmod(0o2755)  # its files inherit the group

    def test_open_to_all(self, tmp_path: Path) -> None:
        """As some distributions have it."""
        found = by_id(examine(self.machine(tmp_path, 0o666, "render"), {}, user=ANN))

        assert found["kfd-device"].state == found["render-devices"].state == "ok"
        assert "group render, gid " in found["kfd-device"].evidence
        assert found["render-devices"].evidence.endswith(" and 1 more")

    def test_not_in_the_group(self, tmp_path: Path) -> None:
        """The exact command, which --fix may run, and that it takes a new login."""
        found = by_id(examine(self.machine(tmp_path, 0o660, "render"), {}, user=ANN))

        assert found["kfd-device"].state == "fail"
        assert found["kfd-device"].command == "sudo usermod -aG render ann"
        assert found["kfd-device"].fixes
        assert "log out and in again" in str(found["kfd-device"].remedy)
        assert found["render-devices"].command == "sudo usermod -aG render ann"
        assert found["choice"].state == "unknown"

    def test_old_session(self, tmp_path: Path) -> None:
        """In the group by the database and not in this session: there is nothing to run."""
        root = self.machine(tmp_path, 0o660, "render", "bob,ann")
        kfd = by_id(examine(root, {}, user=ANN))["kfd-device"]

        assert kfd.state == "fail"
        assert "this session is older" in kfd.evidence
        assert kfd.command is None
        assert not kfd.fixes

    def test_in_the_group(self, tmp_path: Path) -> None:
        """The session has the group."""
        root = self.machine(tmp_path, 0o660, "render", "ann")
        gid = (root / "dev/kfd").stat().st_gid
        found = by_id(examine(root, {}, user=replace(ANN, groups=frozenset({gid}))))

        assert found["kfd-device"].state == found["render-devices"].state == "ok"

    def test_group_without_a_name(self, tmp_path: Path) -> None:
        """In a container the number is what counts."""
        root = self.machine(tmp_path, 0o660)
        write(root, ".dockerenv")
        kfd = by_id(examine(root, {}, user=ANN))["kfd-device"]

        gid = (root / "dev/kfd").stat().st_gid
        assert f"group without a name, gid {gid}" in kfd.evidence
        assert kfd.remedy == f"start the container with --group-add {gid}"
        assert not kfd.fixes

    def test_closed_to_the_group(self, tmp_path: Path) -> None:
        """No membership helps."""
        kfd = by_id(examine(self.machine(tmp_path, 0o600, "render"), {}, user=ANN))["kfd-device"]

        assert "closed to everybody but its owner" in kfd.evidence
        assert "/etc/udev/rules.d" in str(kfd.command)

    def test_one_refused_file_stops_all(self, tmp_path: Path) -> None:
        """Even that of a GPU which nobody wants to use."""
        root = self.machine(tmp_path, 0o666, "render")
        (root / "dev/dri/renderD129").chmod(0o660)
        render = by_id(examine(root, {}, user=ANN))["render-devices"]

        assert render.state == "fail"
        assert "renderD129" in render.evidence
        assert "stops all GPUs" in render.evidence


@pytest.mark.parametrize(
    ("environ", "check", "state", "evidence", "command"),
    [
        ({}, "masks", "ok", "none set", None),
        (
            {"HIP_VISIBLE_DEVICES": "-1"},
            "masks",
            "fail",
            "hides every GPU",
            "unset HIP_VISIBLE_DEVICES",
        ),
        ({"HIP_VISIBLE_DEVICES": "0"}, "masks", "ok", "leaves 1 of 2", None),
        ({"HIP_VISIBLE_DEVICES": "1"}, "masks", "warn", "discrete GPU is hidden", None),
        (
            {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"},
            "masks",
            "fail",
            "counts within",
            "unset ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES",
        ),
        ({"ROCR_VISIBLE_DEVICES": "0,7"}, "masks", "warn", "'7' is none of the GPUs", None),
        (
            {"HSA_OVERRIDE_GFX_VERSION": "11.0.0"},
            "override",
            "warn",
            "take gfx1101 for another chip",
            "unset HSA_OVERRIDE_GFX_VERSION",
        ),
        (
            {"HSA_OVERRIDE_GFX_VERSION_1": ""},
            "override",
            "warn",
            "HSA_OVERRIDE_GFX_VERSION_1=",
            "unset HSA_OVERRIDE_GFX_VERSION_1",
        ),
    ],
)
def test_environment(
    tmp_path: Path,
    environ: dict[str, str],
    check: str,
    state: State,
    evidence: str,
    command: str | None,
) -> None:
    """Masks and overrides are the user's; what they do is told, and how to be rid of them."""
    found = by_id(examine(write_tree(tmp_path, DESKTOP), environ))[check]

    assert found.state == state
    assert evidence in found.evidence
    if command is not None:
        assert found.command == command


def test_small_integrated_gpu_is_not_chosen(tmp_path: Path) -> None:
    """It is told how to use it all the same."""
    choice = by_id(examine(write_tree(tmp_path, [RAPHAEL]), {}))["choice"]

    assert choice.state == "warn"
    assert choice.command == "rocllm run --device 0000:11:00.0 MODEL"


@pytest.mark.parametrize(
    ("release", "remedy"), [("6.8.0-45-generic", "Linux 6.10"), ("6.12.1", "ttm.pages_limit")]
)
def test_integrated_gpu_with_little_memory(tmp_path: Path, release: str, remedy: str) -> None:
    """What helps depends on the kernel."""
    root = write_tree(tmp_path, [replace(STRIX_HALO, bank=1 << 29, vram=1 << 29)])
    write(root, "proc/sys/kernel/osrelease", release)
    write(root, "proc/meminfo", "MemTotal:       32000000 kB\nMemFree: 1 kB\n")
    memory = by_id(examine(root, {}))["gpu-memory"]

    assert memory.state == "warn"
    assert "512 MiB of 30.5 GiB system memory" in memory.evidence
    assert remedy in str(memory.remedy)


def test_memory_of_the_card_that_would_be_used(tmp_path: Path) -> None:
    """Though no GPU may be opened, the integrated one beside the card is none to care for."""
    root = write_tree(tmp_path, DESKTOP)
    machine = discover_devices(root, {}, access=lambda _: Access("refused", "render"))
    here = Facts(machine=machine, choice=choose_devices(machine), environ={})
    assert here.choice.devices == ()
    memory = by_id(run_checks(here))["gpu-memory"]

    assert memory.state == "ok"
    assert memory.evidence.startswith("0000:03:00.0: 12.0 GiB")


def test_limit_of_gtt_is_compared(tmp_path: Path) -> None:
    """GTT may be smaller than the kernel option allows, as the kernel caps it."""
    root = write_tree(tmp_path, [STRIX_HALO])
    write(root, "sys/module/ttm/parameters/pages_limit", str(120 << 18))
    memory = by_id(examine(root, {}))["gpu-memory"]

    assert memory.state == "ok"
    assert "(GTT 105 GiB, ttm.pages_limit allows 120 GiB)" in memory.evidence


@pytest.mark.parametrize(
    ("options", "state", "evidence"),
    [
        ("quiet ttm.pages_limit=27262976", "ok", "ttm.pages_limit=27262976"),
        ("amdgpu.gtt_size=100000", "warn", "no option of amdgpu"),
        ("amdgpu.gttsize=100000", "warn", "deprecated"),
        ("amd_iommu=off", "warn", "amd_iommu=off"),
        ("quiet", "ok", "none that concerns"),
    ],
)
def test_kernel_options(tmp_path: Path, options: str, state: State, evidence: str) -> None:
    """Those that stop the driver, and those that do nothing."""
    root = write_tree(tmp_path, [STRIX_HALO])
    write(root, "proc/cmdline", options)
    found = by_id(examine(root, {}))["kernel-options"]

    assert found.state == state
    assert evidence in found.evidence


def test_kernel_of_strix_halo(tmp_path: Path) -> None:
    """ROCm needs what new kernels tell of; the version number is not asked."""
    root = write_tree(tmp_path, [STRIX_HALO])
    write(root, "proc/sys/kernel/osrelease", "6.12.1")
    assert by_id(examine(root, {}))["kernel"].state == "warn"
    properties = root / f"{KFD}/nodes/1/properties"
    properties.write_text(f"{properties.read_text()}cwsr_size 17084416\n")
    assert by_id(examine(root, {}))["kernel"].state == "ok"


def test_sleeping_and_broken_cards(tmp_path: Path) -> None:
    """Sleep is normal, an error is not."""
    asleep = write_tree(tmp_path / "1", [replace(RX_7700_XT, runtime_status="suspended")])
    broken = write_tree(tmp_path / "2", [replace(RX_7700_XT, runtime_status="error")])

    assert "asleep, which is normal" in by_id(examine(asleep, {}))["power"].evidence
    assert by_id(examine(broken, {}))["power"].state == "fail"


def test_partitions_are_one_card(tmp_path: Path) -> None:
    """It is named once."""
    gpu = replace(RX_7700_XT, device_id=0x74A1, gfx_version=90402)
    pci = by_id(examine(write_tree(tmp_path, partitions(gpu, 8)), {}))["pci"]

    assert pci.evidence == "0000:03:00.0 (Instinct MI300X)"


def test_rocm_installs(tmp_path: Path) -> None:
    """Each version once, whichever links lead to it, in the layouts of AMD and distributions."""
    write(tmp_path, "sys/x")
    write(tmp_path, "opt/rocm-6.3.3/lib/libamdhip64.so.6")
    write(tmp_path, "opt/rocm-6.3.3/.info/version", "6.3.3-74\n")
    write(tmp_path, "usr/lib64/libamdhip64.so.7")
    (tmp_path / "opt/rocm").symlink_to("rocm-6.3.3")
    assert by_id(examine(tmp_path, {}))["rocm"].evidence == (
        "6.3.3 (/opt/rocm/lib); version unknown (/usr/lib64)"
    )
    (tmp_path / "opt/rocm").unlink()
    write(tmp_path, "opt/rocm/core-7.14/lib/libamdhip64.so.7")
    assert "7.14 (/opt/rocm/core-7.14/lib)" in by_id(examine(tmp_path, {}))["rocm"].evidence


HIP = EngineFiles(
    path="/opt/ls",
    libraries={"libc.so.6": "/lib/libc.so.6"},
    hip="/opt/libggml-hip.so",
    targets=GfxTargets(frozenset({"gfx1100", "gfx1101"}), hidden=False),
    rocblas="/opt/rocm/lib/rocblas/library",
    rocblas_targets=frozenset({"gfx1101", "gfx90a"}),
)


@pytest.mark.parametrize(
    ("files", "check", "state", "evidence"),
    [
        (HIP, "libraries", "ok", "all 1 found"),
        (HIP, "gpu-code", "ok", "code for gfx1100, gfx1101; the GPU is gfx1101"),
        (HIP, "rocblas", "ok", "kernels for gfx1101, gfx90a"),
        (
            replace(HIP, missing=(Missing("libhipblas.so.3", "/opt/libggml-hip.so"),)),
            "libraries",
            "fail",
            "libggml-hip.so needs libhipblas.so.3, not found; installed: 6.3.3",
        ),
        (
            replace(HIP, missing=(Missing("libvulkan.so.1", "/opt/libggml-vulkan.so"),)),
            "libraries",
            "warn",
            "Vulkan backend does not work",
        ),
        (
            replace(HIP, targets=GfxTargets(frozenset({"gfx1030"}), hidden=False)),
            "gpu-code",
            "fail",
            "not for gfx1101",
        ),
        (
            replace(HIP, targets=GfxTargets(frozenset(), hidden=True)),
            "gpu-code",
            "unknown",
            "compressed",
        ),
        (replace(HIP, rocblas_targets=frozenset({"gfx1030"})), "rocblas", "fail", "not for gfx11"),
        (replace(HIP, rocblas_targets=frozenset()), "rocblas", "unknown", "does not tell"),
        (EngineFiles(path="/opt/ls"), "gpu-code", "fail", "built for the CPU"),
        (EngineFiles(path="/opt/ls", vulkan=True), "gpu-code", "warn", "Vulkan"),
        (EngineFiles(path="/opt/ls", script=True), "gpu-code", "unknown", "is a script"),
        (EngineFiles(path="/opt/ls", script=True), "libraries", "unknown", "is a script"),
        (
            replace(
                HIP,
                libraries={
                    "libamdhip64.so.7": "/opt/rocm-7.2/lib/libamdhip64.so.7",
                    "librocblas.so.5": "/opt/rocm/core-7.14/lib/librocblas.so.5",
                },
            ),
            "rocm",
            "warn",
            "would mix libraries of ROCm 7.2 and 7.14",
        ),
    ],
)
def test_files_of_the_engine(
    tmp_path: Path, files: EngineFiles, check: str, state: State, evidence: str
) -> None:
    """Against the chip of the GPU that is chosen, and of no other."""
    here = facts(tmp_path, *DESKTOP)
    installs = (RocmInstall("6.3.3", (str(tmp_path / "lib"),)),)
    found = by_id(run_checks(replace(here, engine_files=files, installs=installs)))[check]

    assert found.state == state
    assert evidence in found.evidence


@pytest.mark.parametrize(
    ("value", "code", "kernels", "states"),
    [
        # Ubuntu's ROCm 6 on a small card: no code for it, and that of its big sister runs.
        ("11.0.0", "gfx1100", "gfx1100", ("ok", "ok", "ok")),
        ("11.0.0", "gfx1101", "gfx1101", ("warn", "fail", "fail")),
        ("9.0.10", "gfx90a", "gfx1100", ("ok", "ok", "fail")),
        ("11.0", "gfx1100", "gfx1101", ("warn", "fail", "ok")),
        ("", "gfx1101", "gfx1101", ("warn", "ok", "ok")),
    ],
)
@pytest.mark.parametrize("suffix", ["", "_1"])
def test_code_is_wanted_for_the_chip_that_rocm_sees(
    tmp_path: Path, suffix: str, value: str, code: str, kernels: str, states: tuple[State, ...]
) -> None:
    """An override that helps is no failure, and one that hides the chip is."""
    files = replace(
        HIP,
        targets=GfxTargets(frozenset({code}), hidden=False),
        rocblas_targets=frozenset({kernels}),
    )
    here = facts(tmp_path, *DESKTOP, environ={f"HSA_OVERRIDE_GFX_VERSION{suffix}": value})
    found = by_id(run_checks(replace(here, engine_files=files)))
    assert tuple(found[one].state for one in ("override", "gpu-code", "rocblas")) == states


def test_wheels_of_rocm(tmp_path: Path) -> None:
    """The runtime and the libraries of one environment are one user space; a part is none."""
    write(tmp_path, "opt/x")
    site = "home/ann/env/lib/python3.12/site-packages"
    write(tmp_path, f"{site}/_rocm_sdk_core/lib/libamdhip64.so.7")
    write(tmp_path, f"{site}/_rocm_sdk_libraries_gfx110X_dgpu/lib/librocblas.so.5")
    write(tmp_path, f"{site}/_rocm_sdk_libraries_gfx110X_dgpu/lib/cmake/x")
    write(tmp_path, f"{site}/rocm_sdk_core-7.14.0rc1.dist-info/METADATA")
    write(tmp_path, "usr/lib/python3/dist-packages/_rocm_sdk_libraries/lib/librocblas.so.5")
    found = by_id(examine(tmp_path, {"VIRTUAL_ENV": "/home/ann/env"}))["rocm"]

    assert found.evidence == (
        f"7.14.0rc1 (/{site}/_rocm_sdk_core/lib, /{site}/_rocm_sdk_libraries_gfx110X_dgpu/lib)"
    )
    assert "none found" in by_id(examine(tmp_path, {}))["rocm"].evidence
    server = "/home/ann/env/bin/llama-server"
    inside = f"/{site}/llama_cpp/bin/llama-server"
    for engine in (server, inside):
        assert len(find_installs(Tree(str(tmp_path)), {}, engine)) == 1, engine


def test_rocm_of_fedora(tmp_path: Path) -> None:
    """rocBLAS is apart, by family of chips, and that is no mixture with the runtime."""
    write(tmp_path, "usr/lib64/libamdhip64.so.6")
    write(tmp_path, "usr/lib64/rocm/gfx11/lib/librocblas.so.4")
    write(tmp_path, "usr/lib64/rocm/llvm/lib/libLLVM.so")
    found = find_installs(Tree(str(tmp_path)), {})
    assert [one.libraries for one in found] == [("/usr/lib64",), ("/usr/lib64/rocm/gfx11/lib",)]

    libraries = {
        "libamdhip64.so.6": "/usr/lib64/libamdhip64.so.6",
        "librocblas.so.4": "/usr/lib64/rocm/gfx11/lib/librocblas.so.4",
    }
    here = facts(tmp_path / "m", RX_7700_XT)
    files = replace(HIP, libraries=libraries)
    rocm = by_id(run_checks(replace(here, engine_files=files, installs=found)))["rocm"]
    assert rocm.state == "ok"
    assert rocm.evidence.count(", used") == 2


def test_which_rocm_is_used(tmp_path: Path) -> None:
    """Of several one is; what llama-server brings itself is named, too."""
    installs = tuple(
        RocmInstall(version, (f"/opt/rocm-{version}/lib",)) for version in ("6.3.3", "7.2.0")
    )
    here = replace(facts(tmp_path, RX_7700_XT), installs=installs)

    def said(path: str) -> str:
        files = replace(HIP, libraries={"librocblas.so.5": path})
        return by_id(run_checks(replace(here, engine_files=files)))["rocm"].evidence

    assert said("/opt/rocm-7.2.0/lib/librocblas.so.5") == (
        "6.3.3 (/opt/rocm-6.3.3/lib), not used; 7.2.0 (/opt/rocm-7.2.0/lib), used"
    )
    assert said("/opt/llama/librocblas.so.5").endswith("lib), not used; /opt/llama, used")


def missing_hipblas(tmp_path: Path, *repairs: Repair) -> Finding:
    """What is said of a machine on which libhipblas is missing."""
    files = replace(
        HIP, missing=(Missing("libhipblas.so.3", "/opt/libggml-hip.so"),), repairs=repairs
    )
    here = replace(facts(tmp_path / "m", RX_7700_XT), engine_files=files)
    return by_id(run_checks(here))["libraries"]


def test_library_that_is_there_and_not_searched(tmp_path: Path) -> None:
    """The command names the directories: of the chip's family, where each has its own."""
    wheels = RocmInstall("7.14", ("/e/_rocm_sdk_core/lib", "/e/_rocm_sdk_libraries/lib"))
    found = missing_hipblas(tmp_path, Repair(wheels))
    assert found.state == "fail"
    assert found.command == (
        "export LD_LIBRARY_PATH=/e/_rocm_sdk_core/lib:/e/_rocm_sdk_libraries/lib"
        '"${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"'
    )
    assert "(ROCm 7.14) have what is missing and are not searched" in found.evidence

    families = (
        Repair(RocmInstall(None, (f"/usr/lib64/rocm/{family}/lib",)))
        for family in ("gfx1", "gfx10", "gfx11", "gfx9")
    )
    command = missing_hipblas(tmp_path / "2", *families).command
    assert command is not None
    assert "=/usr/lib64/rocm/gfx11/lib" in command


def test_user_space_that_is_not_complete(tmp_path: Path) -> None:
    """What would be missing even so is named."""
    core = RocmInstall("7.14", ("/e/_rocm_sdk_core/lib",))
    found = missing_hipblas(tmp_path, Repair(core, ("libhipblas.so.3",)))
    assert found.command is None
    assert "in LD_LIBRARY_PATH it would still lack libhipblas.so.3" in found.evidence
    assert "install ROCm 7 or later" in str(found.remedy)


@pytest.mark.parametrize(
    ("engine", "check", "state", "evidence"),
    [
        (Engine(binary=BINARY), "llama-server", "ok", "native b11434-1, /opt/ls (found on PATH)"),
        (
            Engine(error=BinaryNotFound("there is none", why="looked at: PATH", remedy="get one")),
            "llama-server",
            "fail",
            "there is none; looked at: PATH",
        ),
        (
            Engine(binary=BINARY, listed=(ListedDevice("ROCm0", "RX 7700 XT", 1, 1),)),
            "server-devices",
            "ok",
            "ROCm0 (RX 7700 XT)",
        ),
        (
            Engine(binary=BINARY, listed=(), words=("Failed to open /dev/dri/renderD128",)),
            "server-devices",
            "fail",
            "sees no GPU; it said: Failed to open /dev/dri/renderD128",
        ),
        (
            Engine(binary=BINARY, listed=(ListedDevice("ROCm0", "a", 1, 1),) * 2),
            "server-devices",
            "fail",
            "ROCm0 (a), ROCm0 (a)",
        ),
        (
            Engine(binary=BINARY, listing_error=StartFailed("it died", why="no idea")),
            "server-devices",
            "fail",
            "it died; no idea",
        ),
    ],
)
def test_engine(tmp_path: Path, engine: Engine, check: str, state: State, evidence: str) -> None:
    """What it says of itself, and whether it sees the GPU."""
    found = by_id(run_checks(replace(facts(tmp_path, *DESKTOP), engine=engine)))[check]

    assert found.state == state
    assert evidence in found.evidence
