"""Reading what a llama-server needs and what it is compiled for, without running it."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rocllm.doctor._bundles import covers, read_targets
from rocllm.doctor._elf import read_elf
from rocllm.doctor._engine_files import read_engine_files
from rocllm.doctor._libraries import Loader, parse_cache, system_loader
from rocllm.doctor.types import GfxTargets
from rocllm.server import find_server

GFX1100 = "hipv4-amdgcn-amd-amdhsa--gfx1100"
GFX90A = "hipv4-amdgcn-amd-amdhsa--gfx90a:xnack-"

Write = Callable[..., bytes]


def targets(data: bytes) -> GfxTargets:
    """The chips in a section that begins one byte into a file."""
    return read_targets(io.BytesIO(b"\0" + data), 1, len(data))


def test_elf_tells_what_it_needs(elf: Write) -> None:
    """Names, search directories and sections come out as they went in."""
    read = read_elf(
        io.BytesIO(elf(["liba.so.1", "libb.so"], runpath="$ORIGIN:/x", sections={".hip": b"code"}))
    )

    assert read is not None
    assert read.needed == ("liba.so.1", "libb.so")
    assert read.search == ("$ORIGIN", "/x")
    assert not read.overriding
    offset, size = read.sections[".hip"]
    assert size == 4
    assert offset > 0


def test_broken_elf_files_cost_nothing(elf: Write) -> None:
    """Cut anywhere or with any byte changed, the file is read or refused, and that is all."""
    whole = elf(["liba.so.1"], rpath="/x", sections={".hip_fatbin": b"code"})
    chance = random.Random(7)
    for length in range(len(whole)):
        read_elf(io.BytesIO(whole[:length]))
    for _ in range(2000):
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        read_elf(io.BytesIO(broken))
    assert read_elf(io.BytesIO(b"#!/bin/sh\n")) is None


def test_targets_of_all_bundles(bundle: Write) -> None:
    """Every source file of a library has a bundle of its own, and the last one counts too."""
    found = targets(bundle(GFX1100) * 3 + bundle(GFX1100, GFX90A))

    assert found == GfxTargets(frozenset({"gfx1100", "gfx90a"}), hidden=False)
    assert covers(found, "gfx90a")
    assert covers(found, "gfx1101") is False


@pytest.mark.parametrize(
    "header", [b"CCOB\2\0\1\0" + struct.pack("<IIQ", 9000, 90000, 1), b"CCOB\1\0\1\0"]
)
def test_compressed_bundles_hide_their_targets(bundle: Write, header: bytes) -> None:
    """They are stepped over, whether they tell their size or not, and nothing is denied."""
    found = targets(header.ljust(12288, b"\1") + bundle(GFX1100))

    assert found == GfxTargets(frozenset({"gfx1100"}), hidden=True)
    assert covers(found, "gfx1100")
    assert covers(found, "gfx1101") is None


@pytest.mark.parametrize(
    ("name", "chip", "answer"),
    [
        ("hip-amdgcn-amd-amdhsa-unknown-gfx11-generic", "gfx1151", True),
        ("hip-amdgcn-amd-amdhsa--gfx11-generic", "gfx1201", False),
        ("hipv4-amdgcn-amd-amdhsa--gfx9-4-generic", "gfx942", True),
        ("hip-spirv64-amd-amdhsa--amdgcnspirv", "gfx1201", True),
    ],
)
def test_code_for_families_of_chips(bundle: Write, name: str, chip: str, answer: bool) -> None:
    """One code object may be for several chips, or for all."""
    assert covers(targets(bundle(name)), chip) is answer


def test_bundles_that_lie_are_left() -> None:
    """A size or a count beyond the file ends the reading, and an empty section says nothing."""
    lie = b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<QQQQ", 2**64 - 1, 2**64 - 1, 2**63, 2**62)

    assert targets(lie) == GfxTargets(frozenset(), hidden=False)
    assert covers(targets(b""), "gfx1100") is None


def test_loader_finds_what_the_real_one_found() -> None:
    """Of this very process, whose libraries the kernel lists."""
    loader = system_loader(os.environ)
    assert loader.load(os.path.realpath(sys.executable))
    assert not loader.missing
    maps = Path("/proc/self/maps").read_text()
    for name in ("libc.so.6", "libm.so.6"):
        assert os.path.realpath(loader.found[name]) in maps


def test_search_order(tmp_path: Path, elf: Write) -> None:
    """DT_RPATH, LD_LIBRARY_PATH, DT_RUNPATH, cache; what is no library is passed over."""
    for folder in ("rpath", "named", "runpath", "cache"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "liba.so").write_bytes(elf())

    def found(**search: str) -> str:
        (tmp_path / "program").write_bytes(elf(["liba.so"], **search))
        loader = Loader(
            [f"{tmp_path}/named"], {"liba.so": [f"{tmp_path}/cache/liba.so"]}, default=()
        )
        loader.load(f"{tmp_path}/program")
        return Path(loader.found["liba.so"]).parent.name

    assert found(rpath="$ORIGIN/rpath") == "rpath"
    assert found(runpath="${ORIGIN}/runpath") == "named"
    (tmp_path / "named" / "liba.so").write_bytes(b"\x7fELF\x01 for 32 bits")
    assert found(runpath="${ORIGIN}/runpath") == "runpath"
    assert found() == "cache"


def test_cache_of_another_format() -> None:
    """A cut or foreign cache is an empty one."""
    header = b"glibc-ld.so.cache1.1" + struct.pack("<II20x", 1, 20)
    whole = header + struct.pack("<iIII8x", 0, 72, 80, 0) + b"liba.so\0/x/liba.so\0"

    assert parse_cache(b"ld.so-1.7.0\0\0" + whole) == {"liba.so": ["/x/liba.so"]}
    for length in range(len(whole)):
        parse_cache(whole[:length])
    assert parse_cache(b"\0" * 100) == {}


def test_build_with_a_hip_backend_beside_it(tmp_path: Path, elf: Write, bundle: Write) -> None:
    """Official builds load libggml-hip.so themselves; what that needs is needed, too."""
    rocm = tmp_path / "rocm"
    kernels = rocm / "rocblas" / "library"
    kernels.mkdir(parents=True)
    for chip in ("gfx1100", "gfx90a"):
        (kernels / f"TensileLibrary_lazy_{chip}.dat").touch()
    (rocm / "librocblas.so.5").write_bytes(elf(["libamdhip64.so.7"]))
    server = tmp_path / "llama-server"
    server.write_bytes(elf(["libggml.so"], runpath="$ORIGIN"))
    (tmp_path / "libggml.so").write_bytes(elf())
    (tmp_path / "libggml-hip.so").write_bytes(
        elf(["librocblas.so.5"], runpath="$ORIGIN", sections={".hip_fatbin": bundle(GFX1100)})
    )

    files = read_engine_files(str(server), {"LD_LIBRARY_PATH": str(rocm)})

    assert [missing.library for missing in files.missing] == ["libamdhip64.so.7"]
    assert files.missing[0].needed_by == f"{rocm}/librocblas.so.5"
    assert files.hip == f"{tmp_path}/libggml-hip.so"
    assert files.targets == GfxTargets(frozenset({"gfx1100"}), hidden=False)
    assert files.rocblas == str(kernels)
    assert files.rocblas_targets == {"gfx1100", "gfx90a"}


def test_user_space_that_repairs(tmp_path: Path, elf: Write) -> None:
    """Wheels beside a llama-server of the same environment; the export that is advised works."""
    site = tmp_path / "lib" / "python3.12" / "site-packages"
    core, math = site / "_rocm_sdk_core" / "lib", site / "_rocm_sdk_libraries_gfx110X_dgpu" / "lib"
    old = tmp_path / "rocm-6.3.3" / "lib"
    for folder in (core, math, old, tmp_path / "bin", site / "rocm_sdk_core-7.14.0.dist-info"):
        folder.mkdir(parents=True)
    (core / "libamdhip64.so.7").write_bytes(elf())
    (math / "librocblas.so.5").write_bytes(elf(["libamdhip64.so.7"]))
    (old / "libamdhip64.so.6").write_bytes(elf())
    server = tmp_path / "bin" / "llama-server"
    server.write_bytes(elf(["librocblas.so.5", "libamdhip64.so.7"]))

    (repair,) = read_engine_files(str(server), {"ROCM_PATH": str(old.parent)}).repairs
    assert repair.install.version == "7.14.0"
    assert repair.install.libraries == (str(core), str(math))
    assert repair.lacking == ()
    search = {"LD_LIBRARY_PATH": ":".join(repair.install.libraries)}
    assert read_engine_files(str(server), search).missing == ()

    (math / "librocblas.so.5").unlink()
    (repair,) = read_engine_files(str(server), {}).repairs
    assert repair.lacking == ("librocblas.so.5",)


def test_the_newest_user_space_repairs(tmp_path: Path, elf: Write) -> None:
    """Of those whose libraries have the right names; the user's variable wins."""
    server = tmp_path / "llama-server"
    server.write_bytes(elf(["libamdhip64.so.7"]))
    for version in ("7.2.0", "7.14.1"):
        site = tmp_path / version / "lib" / "python3" / "site-packages"
        core = site / "_rocm_sdk_core" / "lib"
        core.mkdir(parents=True)
        (core / "libamdhip64.so.7").write_bytes(elf())
        (site / f"rocm_sdk_core-{version}.dist-info").mkdir()
    environ = {"VIRTUAL_ENV": str(tmp_path / "7.2.0"), "CONDA_PREFIX": str(tmp_path / "7.14.1")}

    def first(environ: dict[str, str]) -> str | None:
        return read_engine_files(str(server), environ).repairs[0].install.version

    assert first(environ) == "7.14.1"
    named = f"{tmp_path}/7.2.0/lib/python3/site-packages/_rocm_sdk_core"
    assert first({**environ, "ROCM_PATH": named}) == "7.2.0"


def test_script_in_the_place_of_a_program(tmp_path: Path) -> None:
    """A wrapper hides what it starts."""
    (tmp_path / "llama-server").write_text("#!/bin/sh\nexec elsewhere\n")

    assert read_engine_files(f"{tmp_path}/llama-server", {}).script


def test_embedded_engine() -> None:
    """The real one, of the wheel: built for the CPU, with every library in place."""
    files = read_engine_files(find_server("embedded", os.environ).path, os.environ)

    assert not files.script
    assert files.missing == ()
    assert files.hip is None
    assert "libc.so.6" in files.libraries
