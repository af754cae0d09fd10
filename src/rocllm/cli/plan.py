"""`rocllm plan`: where every byte of a model would go, which context fits, and why."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rocllm.backends.decide import engine_name
from rocllm.catalog import resolve_companions, resolve_model
from rocllm.cli import _arguments as arguments
from rocllm.cli._session import chosen
from rocllm.cli._terminal import one_line
from rocllm.devices import choose_devices, discover_devices
from rocllm.errors import DoesNotFit, ModelFileError, OptionsError, RocllmError
from rocllm.gguf import ModelInfo, read_model_info
from rocllm.memory import (
    GpuMemory,
    Kind,
    Measurement,
    Memory,
    MemoryPlan,
    Part,
    matching,
    needed_in,
    place_name,
    plan_memory,
    read_companions,
    read_measurements,
    read_memory,
)
from rocllm.options import LoadOptions
from rocllm.safetensors import find_directory
from rocllm.server import find_server
from rocllm.units import format_bytes, parse_size

HELP = """Show where every byte of a model would go, which context fits, and why.

Nothing is loaded. With --memory the plan is for another machine.
"""

_BAR = 48
# Bytes of a GPU that somebody may mean.
_LEAST = 1 << 20
_GFX = re.compile(r"gfx[0-9a-f]{3,4}")
# How a kind is drawn, without colour and with it.
_LOOKS: dict[Kind, tuple[str, str]] = {
    "weights": ("█", "blue"),
    "KV cache": ("▓", "green"),
    "state": ("▓", "cyan"),
    "compute": ("▒", "yellow"),
    "staging": ("▒", "magenta"),
    "output": ("▒", "yellow"),
    "runtime": ("░", "red"),
}


def plan(
    ctx: typer.Context,
    model: arguments.Model,
    ctx_size: arguments.CtxSize = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", "--slots", "-np", help="Slots.", show_default=False)
    ] = None,
    n_gpu_layers: arguments.NGpuLayers = None,
    device: arguments.Device = None,
    cache_type_k: arguments.CacheTypeK = None,
    cache_type_v: arguments.CacheTypeV = None,
    flash_attn: arguments.FlashAttn = None,
    mmproj: arguments.Mmproj = None,
    model_draft: arguments.ModelDraft = None,
    n_gpu_layers_draft: arguments.NGpuLayersDraft = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory of a GPU that is not here, such as 16GiB.", show_default=False),
    ] = None,
    gfx: Annotated[
        str | None, typer.Option(help="What GPU that is, such as gfx1100.", show_default=False)
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="How many of them.", min=1, max=16, show_default=False)
    ] = None,
    root: Annotated[
        Path, typer.Option(help="Folder with another machine's /sys and /proc.")
    ] = Path("/"),
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan, print, and end with an error if it does not fit."""
    path = resolve_model(model, os.environ)
    if find_directory(path) is not None:
        raise ModelFileError(
            f"{str(path)!r} is a model in safetensors format",
            why="a plan is for llama.cpp; vLLM takes the share of each GPU that is free",
            remedy="run it with --backend vllm, which refuses what does not fit",
        )
    options = resolve_companions(path, chosen(LoadOptions, ctx.params), os.environ)
    beside = read_companions(options, path)
    info = read_model_info(path)
    if memory is not None:
        known: tuple[Measurement, ...] = ()
        there = _elsewhere(memory, gfx, gpus or 1, options, root)
    elif gfx is not None or gpus is not None:
        raise OptionsError(
            f"{'--gfx' if gfx is not None else '--gpus'} without --memory",
            why="they describe the GPUs of another machine, and how much memory these have decides",
            remedy="give --memory, such as --memory 16GiB",
        )
    else:
        there = _here(options, root)
        known = _measurements(path, there, options)
    problem: DoesNotFit | None = None
    try:
        planned = plan_memory(info, there, options, measurements=known, companions=beside)
    except DoesNotFit as exc:
        if exc.plan is None:
            raise
        planned, problem = exc.plan, exc
    if json_output:
        typer.echo(json.dumps(_as_json(path, info, planned, problem), indent=2))
    else:
        _print(Console(highlight=False, soft_wrap=True), path, planned, problem)
    if problem is not None:
        raise problem


def _elsewhere(memory: str, gfx: str | None, gpus: int, options: LoadOptions, root: Path) -> Memory:
    if root != Path("/"):
        raise OptionsError(
            "--root and --memory are both given",
            why="each describes another machine",
            remedy="give one of them",
        )
    if gfx is not None and not _GFX.fullmatch(gfx):
        raise OptionsError(
            f"--gfx {gfx!r} is no GPU target",
            why="ROCm writes them as gfx1100 or gfx90a",
            remedy="`rocllm devices` shows that of a GPU that is here",
        )
    if options.device is not None:
        raise OptionsError(
            "--device and --memory are both given",
            why="a device is one of this machine, --memory describes another",
            remedy="give one of them",
        )
    size = parse_size(memory)
    if size < _LEAST:
        raise OptionsError(
            f"--memory {memory!r} is {format_bytes(size)}",
            why="no GPU has as little",
            remedy="write the unit: --memory 16GiB",
        )
    name = gfx or "GPU"
    labels = [name] if gpus == 1 else [f"{name} {number}" for number in range(gpus)]
    return Memory(tuple(GpuMemory(label, gfx, size, size) for label in labels))


def _here(options: LoadOptions, root: Path) -> Memory:
    machine = discover_devices(root, os.environ)
    choice = choose_devices(machine, options.devices)
    return read_memory(choice.devices, root, machine)


def _measurements(path: Path, memory: Memory, options: LoadOptions) -> tuple[Measurement, ...]:
    """What loading took on this machine; the engine is asked for its version only if it matters."""
    known = read_measurements(path, os.environ)
    if not known:
        return ()
    try:
        engine = find_server(options.llama_server, os.environ)
    except RocllmError:
        return ()  # a plan needs no engine
    labels = [gpu.label for gpu in memory.gpus]
    return matching(known, engine_name(engine), labels)


def _places(planned: MemoryPlan) -> Iterator[int | None]:
    yield from range(len(planned.memory.gpus))
    yield None


def _as_json(
    path: Path, info: ModelInfo, planned: MemoryPlan, problem: DoesNotFit | None
) -> dict[str, Any]:
    return {
        "path": str(path),
        "model": info.name,
        "fits": problem is None,
        "ctx_size": planned.ctx_size,
        "parallel": planned.parallel,
        "n_gpu_layers": planned.n_gpu_layers,
        "settings": dataclasses.asdict(planned.settings),
        "places": [_place_as_json(planned, gpu) for gpu in _places(planned)],
        "because": list(planned.because),
        "remarks": list(planned.remarks),
        "would_fit": list(problem.would_fit) if problem else [],
    }


def _place_as_json(planned: MemoryPlan, gpu: int | None) -> dict[str, Any]:
    there = planned.memory.host if gpu is None else planned.memory.gpus[gpu]
    return {
        "place": place_name(planned.memory, gpu),
        "gpu": gpu,
        "total": there.total,
        "free": there.free,
        "needed": needed_in(planned.parts, gpu),
        "parts": [
            {"kind": part.kind, "of": part.of, "size": part.size, "source": part.source}
            for part in planned.parts
            if part.gpu == gpu
        ],
    }


def _print(console: Console, path: Path, planned: MemoryPlan, problem: DoesNotFit | None) -> None:
    settings = planned.settings
    count = settings.n_gpu_layers
    layers = {-1: "all layers on the GPU", 0: "on the CPU", 1: "1 layer on the GPU"}.get(
        count, f"{count} layers on the GPU"
    )
    console.print(Text(one_line(path.name), "bold"))
    console.print(Text(f"context {settings.ctx_size}, parallel {settings.parallel}, {layers}"))
    flash = "on" if settings.flash_attn else "off"
    cache = f"cache {settings.cache_type_k}/{settings.cache_type_v}"
    console.print(Text(f"{cache}, flash attention {flash}"))
    width = max(10, *(len(_label(part)) + 1 for part in planned.parts))
    for gpu in _places(planned):
        console.print()
        for row in _bar(planned, gpu):
            console.print(row)
        for part in planned.parts:
            if part.gpu == gpu:
                size = format_bytes(part.size)
                line = f" {_label(part):<{width}}{size:>10}  {part.source}"
                console.print(Text.assemble(_LOOKS[part.kind], line))
    if problem is None:
        console.print()
        for reason in (*planned.because, *planned.remarks):
            console.print(Text(one_line(reason)))


def _label(part: Part) -> str:
    return part.kind if part.of == "model" else f"{part.of} {part.kind}"


def _bar(planned: MemoryPlan, gpu: int | None) -> tuple[Text, ...]:
    there = planned.memory.host if gpu is None else planned.memory.gpus[gpu]
    needed = needed_in(planned.parts, gpu)
    in_use = there.total - there.free if there.total and there.free is not None else 0
    whole = max(there.total or 0, in_use + needed)
    bar = Text()
    done = in_use
    _fill(bar, "/", "dim", done, whole)
    for part in planned.parts:
        if part.gpu == gpu:
            done += part.size
            _fill(bar, *_LOOKS[part.kind], done, whole)
    _fill(bar, "·", "dim", whole, whole)
    name = Text(place_name(planned.memory, gpu), "bold")
    if there.free is None:  # a picture would say that there is as much as is needed
        return (name.append(f": {format_bytes(needed)} needed, how much is free is not known", ""),)
    numbers = f": {format_bytes(needed)} needed, {format_bytes(there.free)} free"
    return Text.assemble(name, (numbers, "")), Text.assemble("[", bar, "]")


def _fill(bar: Text, symbol: str, style: str, done: int, whole: int) -> None:
    """Draw until `done` of `whole`; what is there at all gets what rounding leaves it."""
    bar.append(symbol * (round(_BAR * done / whole) - len(bar) if whole else 0), style)
