"""What loading took is kept, used, and never in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from rocllm import env
from rocllm.catalog.facts import Facts
from rocllm.catalog.index import Index, fingerprint_of
from rocllm.gguf import ModelInfo
from rocllm.memory import (
    GpuMemory,
    HostMemory,
    Measurement,
    Memory,
    Part,
    Settings,
    matching,
    measured_parts,
    plan_memory,
    read_measurements,
    store_measurement,
)
from rocllm.options import LoadOptions
from rocllm.server import Buffer

Real: TypeAlias = Callable[..., ModelInfo]

GIB = 2**30
SETTINGS = Settings(ctx_size=4096, n_gpu_layers=-1, split=(3, 4))
MEASUREMENT = Measurement("native b1", ("card",), SETTINGS, (Part(0, "compute", 123, "measured"),))

STORED = (
    '[{"engine":"x","gpus":[],"settings":{"ctx_size":1,"split":[],"companions":[]},'
    '"parts":[{"gpu":null,"kind":"compute","size":123,"of":"model"}]}]'
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that a measurement belongs to."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home of its own."""
    return {"HOME": str(tmp_path / "home")}


def test_what_is_stored_is_read(model: Path, environ: dict[str, str]) -> None:
    """The same values come back, whatever path leads to the file."""
    store_measurement(model, MEASUREMENT, environ)
    link = model.with_name("link.gguf")
    link.symlink_to(model)

    assert read_measurements(model, environ) == (MEASUREMENT,)
    assert read_measurements(link, environ) == (MEASUREMENT,)


def test_another_load_of_the_same_kind_replaces(model: Path, environ: dict[str, str]) -> None:
    """Other settings stand beside it; the same ones take its place; the oldest are dropped."""
    other = replace(MEASUREMENT, settings=replace(SETTINGS, ctx_size=8192))
    newer = replace(MEASUREMENT, parts=(Part(0, "compute", 456, "measured"),))
    for one in (MEASUREMENT, other, newer):
        store_measurement(model, one, environ)
    assert read_measurements(model, environ) == (other, newer)

    for number in range(40):
        settings = replace(SETTINGS, parallel=number + 1)
        store_measurement(model, replace(MEASUREMENT, settings=settings), environ)
    kept = read_measurements(model, environ)
    assert len(kept) == 32
    assert kept[-1].settings.parallel == 40


def test_a_changed_file_is_another_model(model: Path, environ: dict[str, str]) -> None:
    """By size or by time; what was known of it is dropped, not kept for ever."""
    store_measurement(model, MEASUREMENT, environ)
    status = model.stat()
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert read_measurements(model, environ) == ()

    store_measurement(model, replace(MEASUREMENT, engine="native b2"), environ)
    assert len(list((env.cache_dir(environ) / "measured").iterdir())) == 1
    model.write_bytes(b"GGUF and more")
    assert read_measurements(model, environ) == ()


def test_a_clock_that_jumps_changes_nothing(model: Path, environ: dict[str, str]) -> None:
    """Times are compared for equality only: a file from the future is like any other."""
    os.utime(model, ns=(2**62, 2**62))
    store_measurement(model, MEASUREMENT, environ)
    assert read_measurements(model, environ) == (MEASUREMENT,)
    os.utime(model, ns=(0, 0))
    assert read_measurements(model, environ) == ()


def test_every_part_of_a_model_counts(tmp_path: Path, environ: dict[str, str]) -> None:
    """A model in several files has changed when one of them has."""
    first, second = (tmp_path / f"big-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"GGUF")
    second.write_bytes(b"GGUF")
    store_measurement(first, MEASUREMENT, environ)
    assert read_measurements(first, environ) == (MEASUREMENT,)

    second.write_bytes(b"GGUF again")
    assert read_measurements(first, environ) == ()


def test_they_hold_as_long_as_the_index(model: Path, environ: dict[str, str]) -> None:
    """Measurements hold exactly as long as the model's entry in the catalogue's index."""
    index = Index(env.cache_dir(environ) / "models.json")
    index.put(model, fingerprint_of([model]), Facts(quantization="Q4_0"))
    store_measurement(model, MEASUREMENT, environ)

    for content, holds in ((b"GGUF", True), (b"GGUF2", False)):
        status = model.stat()
        model.write_bytes(content)
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (index.get(model, fingerprint_of([model])) is not None) is holds
        assert bool(read_measurements(model, environ)) is holds


def test_only_the_same_engine_and_gpus_count() -> None:
    """Another build lays out its buffers in another way."""
    assert matching([MEASUREMENT], "native b1", ["card"]) == (MEASUREMENT,)
    assert matching([MEASUREMENT], "native b2", ["card"]) == ()
    assert matching([MEASUREMENT], "native b1", []) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        "[1]",
        '[{"engine": "x"}]',
        '[{"engine":"x","gpus":[],"settings":{"split":[],"companions":[],"wrong":1},"parts":[]}]',
        STORED.replace("compute", "nonsense"),
        STORED.replace("123", "-1"),
        STORED.replace("123", '"much"'),
        STORED.replace('"model"', '"nobody"'),
        "[" * 100_000,
        "\ud800",
    ],
)
def test_a_broken_store_is_an_empty_one(model: Path, environ: dict[str, str], text: str) -> None:
    """And the next measurement makes it whole again."""
    store_measurement(model, MEASUREMENT, environ)
    (path,) = (env.cache_dir(environ) / "measured").iterdir()
    fingerprint = json.loads(path.read_text())["fingerprint"]
    if text.startswith("[{"):
        text = f'{{"fingerprint": {fingerprint}, "loads": {text}}}'
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    assert read_measurements(model, environ) == ()
    store_measurement(model, MEASUREMENT, environ)
    assert read_measurements(model, environ) == (MEASUREMENT,)


def test_no_place_to_store_is_no_error(model: Path, tmp_path: Path) -> None:
    """A home that is a file, and a model that is gone."""
    (tmp_path / "file").write_text("")
    environ = {"HOME": str(tmp_path / "file")}
    store_measurement(model, MEASUREMENT, environ)
    assert read_measurements(model, environ) == ()

    store_measurement(tmp_path / "gone.gguf", MEASUREMENT, {"HOME": str(tmp_path)})
    assert read_measurements(tmp_path / "gone.gguf", {"HOME": str(tmp_path)}) == ()


def test_nothing_is_left_beside_the_store(model: Path, environ: dict[str, str]) -> None:
    """The file is written under another name and then put in place, and it is JSON."""
    store_measurement(model, MEASUREMENT, environ)
    (path,) = (env.cache_dir(environ) / "measured").iterdir()
    assert path.suffix == ".json"
    assert json.loads(path.read_text())["loads"][0]["engine"] == "native b1"


def test_buffers_become_parts() -> None:
    """Two caches of a windowed model are one; what is on no GPU is the host's."""
    buffers = [
        Buffer("CPU_Mapped", "model", 5),
        Buffer("RPC0[127.0.0.1:50052]", "model", 10),
        Buffer("RPC0[127.0.0.1:50052]", "KV", 1),
        Buffer("RPC0[127.0.0.1:50052]", "KV", 2),
        Buffer("ROCm_Host", "compute", 7),
        Buffer("CPU", "output", 3),
        Buffer("CPU", "RS", 0),
        Buffer("CPU", "something new", 9),
        Buffer("RPC0[127.0.0.1:50052]", "KV", 4, "draft"),
        Buffer("CPU_Mapped", "model", 6, "draft"),
        Buffer("CPU", "model", 8, "projector"),
    ]
    assert measured_parts(buffers, ["RPC0"]) == (
        Part(0, "weights", 10, "measured"),
        Part(0, "KV cache", 3, "measured"),
        Part(None, "compute", 7, "measured"),
        Part(None, "output", 3, "measured"),
        Part(0, "KV cache", 4, "measured", "draft"),
        Part(None, "weights", 8, "measured", "projector"),
    )


def test_the_next_plan_uses_it(real: Real) -> None:
    """The compute buffer turned out larger than predicted: that context is not chosen again."""
    info = real("Llama-3.1-8B")
    memory = Memory((GpuMemory("card", "gfx1100", 16 * GIB, 16 * GIB),), HostMemory())
    first = plan_memory(info, memory, LoadOptions())
    assert first.ctx_size == 65536
    took = Measurement(
        "native b1", ("card",), first.settings, (Part(0, "compute", 4 * GIB, "measured"),)
    )

    second = plan_memory(info, memory, LoadOptions(), measurements=[took])
    assert second.ctx_size == 32768

    fixed = LoadOptions(ctx_size=65536)
    larger = Memory((GpuMemory("card", "gfx1100", 24 * GIB, 24 * GIB),), HostMemory())
    third = plan_memory(info, larger, fixed, measurements=[took])
    sources = {(part.gpu, part.kind): part.source for part in third.parts}
    assert sources[0, "compute"] == "measured"
    assert sources[0, "KV cache"] == "predicted"
    assert sources[0, "runtime"] == "assumed"


def test_what_is_staged_is_in_the_measured_buffer(real: Real) -> None:
    """Counted once, not twice."""
    info = real("Llama-3.1-8B")
    memory = Memory((GpuMemory("card", "gfx1100", 16 * GIB, 16 * GIB),), HostMemory())
    options = LoadOptions(ctx_size=4096, n_gpu_layers=20)
    first = plan_memory(info, memory, options)
    assert any(part.kind == "staging" for part in first.parts)
    took = Measurement(
        "native b1", ("card",), first.settings, (Part(0, "compute", GIB, "measured"),)
    )

    second = plan_memory(info, memory, options, measurements=[took])
    assert not any(part.kind == "staging" for part in second.parts)
