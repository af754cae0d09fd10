"""What loading a model really took, kept for the next plan.

It stands beside the model's entry in the catalogue's index, and holds as long as that: until size
or time of change of the model's files are others. One JSON file per model, because every load
writes, several processes at once, and the index is written as a whole. It is a cache: whatever goes
wrong with it costs accuracy only and is never an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from rocllm import env
from rocllm.catalog.index import Fingerprint, fingerprint_of
from rocllm.gguf import split_paths
from rocllm.memory.estimate import Kind, Owner, Part
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


class ReportedBuffer(Protocol):
    """A buffer as llama-server reports it: `rocllm.server.Buffer`. size: in bytes."""

    @property
    def device(self) -> str:
        """llama.cpp's name of it."""

    @property
    def kind(self) -> str:
        """llama.cpp's word."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def of(self) -> Owner:
        """Whose it is."""


def measured_parts(
    buffers: Iterable[ReportedBuffer], device_names: Sequence[str]
) -> tuple[Part, ...]:
    """Parts from the buffers that llama-server reported.

    device_names: llama.cpp's names of the GPUs, in order: `ROCm0`. What is on none of them is in
    host memory.

    Weights in host memory are left out: there llama.cpp reports which range of the file it has
    mapped, and copies of what it stores in another order, and neither is what they need.

    >>> measured_parts([Buffer("ROCm0", "KV", 1024)], ["ROCm0"])  # doctest: +SKIP
    (Part(gpu=0, kind='KV cache', size=1024, source='measured'),)
    """
    gpus = {name: index for index, name in enumerate(device_names)}
    sizes: dict[tuple[int | None, Kind, Owner], int] = {}
    for one in buffers:
        # A remote device is named with its address: RPC0[127.0.0.1:50052].
        gpu = gpus.get(one.device.split("[")[0])
        kind = _KINDS.get(one.kind)
        # A projector is not mapped: what it takes is what it has.
        mapped = gpu is None and kind == "weights" and one.of != "projector"
        if kind is not None and not mapped:
            sizes[gpu, kind, one.of] = sizes.get((gpu, kind, one.of), 0) + one.size
    return tuple(
        Part(gpu, kind, size, "measured", of) for (gpu, kind, of), size in sizes.items() if size
    )


def apply_measurements(
    parts: tuple[Part, ...], settings: Settings, measurements: Iterable[Measurement]
) -> tuple[Part, ...]:
    """`parts` with the sizes of an earlier load with the same settings.

    measurements: of the same engine and GPUs, the newest last.
    """
    for measurement in measurements:
        if measurement.settings == settings:
            known = {(part.gpu, part.kind, part.of): part for part in measurement.parts}
            parts = tuple(
                known.get((part.gpu, part.kind, part.of), part)
                for part in parts
                # The buffer that was measured holds what is staged, too.
                if part.kind != "staging" or (part.gpu, "compute", part.of) not in known
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
    """Everything known about a model, oldest first; nothing if its files have changed since."""
    try:
        kept = json.loads(_path(model, environ).read_bytes())
        if kept["fingerprint"] != _fingerprint(model):
            return ()
        return tuple(map(_decode, kept["loads"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()


def store_measurement(model: Path, measurement: Measurement, environ: Mapping[str, str]) -> None:
    """Keep a measurement in place of an earlier one of the same kind. Never raises."""
    fingerprint = _fingerprint(model)
    if not fingerprint:
        return
    stored = read_measurements(model, environ)
    if measurement in stored:
        return
    kept = [
        known
        for known in stored
        if (known.engine, known.gpus, known.settings)
        != (measurement.engine, measurement.gpus, measurement.settings)
    ]
    loads = [asdict(known) for known in (*kept, measurement)[-_MOST_KEPT:]]
    path = _path(model, environ)
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"fingerprint": fingerprint, "loads": loads}))
        temporary.replace(path)


def _fingerprint(model: Path) -> Fingerprint:
    return fingerprint_of(split_paths(model))


def _path(model: Path, environ: Mapping[str, str]) -> Path:
    """By the file that links lead to. A changed model takes the place of the one before."""
    real = os.fsencode(os.path.realpath(model))
    return env.cache_dir(environ) / "measured" / f"{hashlib.sha256(real).hexdigest()[:16]}.json"


def _decode(entry: Mapping[str, Any]) -> Measurement:
    settings = dict(entry["settings"])
    settings["split"] = tuple(settings["split"])
    settings["companions"] = tuple(settings["companions"])
    return Measurement(
        str(entry["engine"]),
        tuple(map(str, entry["gpus"])),
        Settings(**settings),
        tuple(_decode_part(part) for part in entry["parts"]),
    )


def _decode_part(entry: Mapping[str, Any]) -> Part:
    gpu, kind, size, of = entry["gpu"], entry["kind"], int(entry["size"]), entry["of"]
    known = kind in get_args(Kind) and of in get_args(Owner)
    if not (gpu is None or isinstance(gpu, int)) or not known or size < 0:
        raise ValueError(f"no part: {entry!r}")
    return Part(gpu, kind, size, "measured", of)
