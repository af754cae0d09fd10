"""What loading a model really took, kept for the next plan.

One JSON file per model file under the cache directory. It is a cache: whatever goes wrong with it
costs accuracy only and is never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rocllm import env
from rocllm.memory.estimate import Kind, Part
from rocllm.memory.settings import Settings

# llama.cpp's names of buffers (`… buffer size = …` in its log), and ours.
_KINDS: Mapping[str, Kind] = {
    "model": "weights",
    "KV": "KV cache",
    "RS": "state",
    "compute": "compute",
    "output": "output",
}
_MOST_KEPT = 32  # per model file


@dataclass(frozen=True, slots=True)
class Measurement:
    """The buffers of one load.

    engine: kind and version of the llama-server. gpus: labels of the GPUs; none: the CPU.
    """

    engine: str
    gpus: tuple[str, ...]
    settings: Settings
    parts: tuple[Part, ...]


def measured_parts(
    buffers: Iterable[tuple[str, str, int]], device_names: Sequence[str]
) -> tuple[Part, ...]:
    """Parts from the buffers that llama-server reported: device, kind, bytes.

    device_names: llama.cpp's names of the GPUs, in order: `ROCm0`. What is on none of them is in
    host memory.

    Weights in host memory are left out: there llama.cpp reports which range of the file it has
    mapped, and copies of what it stores in another order, and neither is what they need.

    >>> measured_parts([("ROCm0", "KV", 1024)], ["ROCm0"])
    (Part(gpu=0, kind='KV cache', size=1024, source='measured'),)
    """
    sizes: dict[tuple[int | None, Kind], int] = {}
    for device, name, size in buffers:
        # A remote device is named with its address: RPC0[127.0.0.1:50052].
        gpu = {name: index for index, name in enumerate(device_names)}.get(device.split("[")[0])
        kind = _KINDS.get(name)
        if kind is not None and (gpu is not None or kind != "weights"):
            sizes[gpu, kind] = sizes.get((gpu, kind), 0) + size
    return tuple(Part(gpu, kind, size, "measured") for (gpu, kind), size in sizes.items() if size)


def apply_measurements(
    parts: tuple[Part, ...], settings: Settings, measurements: Iterable[Measurement]
) -> tuple[Part, ...]:
    """`parts` with the sizes of an earlier load with the same settings.

    measurements: of the same engine and GPUs, the newest last.
    """
    for measurement in measurements:
        if measurement.settings == settings:
            known = {(part.gpu, part.kind): part for part in measurement.parts}
            parts = tuple(
                known.get((part.gpu, part.kind), part)
                for part in parts
                # The buffer that was measured holds what is staged, too.
                if part.kind != "staging" or (part.gpu, "compute") not in known
            )
    return parts


def matching(
    measurements: Iterable[Measurement], engine: str, gpus: Sequence[str]
) -> tuple[Measurement, ...]:
    """Those of one engine on certain GPUs."""
    return tuple(
        known for known in measurements if known.engine == engine and known.gpus == tuple(gpus)
    )


def read_measurements(model: Path, environ: Mapping[str, str]) -> tuple[Measurement, ...]:
    """Everything known about a model file, oldest first; nothing if the file has changed since."""
    path = _path(model, environ)
    if path is None:
        return ()
    try:
        return tuple(_decode(entry) for entry in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()


def store_measurement(model: Path, measurement: Measurement, environ: Mapping[str, str]) -> None:
    """Keep a measurement in place of an earlier one of the same kind. Never raises."""
    path = _path(model, environ)
    if path is None:
        return
    kept = [
        known
        for known in read_measurements(model, environ)
        if (known.engine, known.gpus, known.settings)
        != (measurement.engine, measurement.gpus, measurement.settings)
    ]
    text = json.dumps([asdict(known) for known in (*kept, measurement)[-_MOST_KEPT:]])
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)


def _path(model: Path, environ: Mapping[str, str]) -> Path | None:
    try:
        status = model.stat()
    except (OSError, ValueError):
        return None
    key = [os.path.realpath(model), status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return env.cache_dir(environ) / "measured" / f"{digest}.json"


def _decode(entry: Mapping[str, Any]) -> Measurement:
    settings = dict(entry["settings"])
    settings["split"] = tuple(settings["split"])
    return Measurement(
        str(entry["engine"]),
        tuple(map(str, entry["gpus"])),
        Settings(**settings),
        tuple(_decode_part(part) for part in entry["parts"]),
    )


def _decode_part(entry: Mapping[str, Any]) -> Part:
    gpu, kind, size = entry["gpu"], entry["kind"], int(entry["size"])
    if not (gpu is None or isinstance(gpu, int)) or kind not in get_args(Kind) or size < 0:
        raise ValueError(f"no part: {entry!r}")
    return Part(gpu, kind, size, "measured")
