"""What was measured: plain values, and their JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from rocllm.bench.machine import MachineInfo
from rocllm.bench.stats import Summary, summarize
from rocllm.bench.workloads import KINDS, Kind, Suite, Workload
from rocllm.errors import OptionsError

# To be raised when an older rocllm would misread a report.
SCHEMA = 1
# Where memory is that is on no GPU.
HOST = "host"

# The first file of a model in several; a file of Ollama's store, a commit in the Hub's cache.
_PART = re.compile(r"-00001-of-\d{5}$")
_DIGEST = re.compile(r"(?:sha256-[0-9a-f]{64}|[0-9a-f]{40})$")

Metric: TypeAlias = Literal[
    "load",
    "first_load",
    "decode",
    "server_decode",
    "client_ratio",
    "ttft",
    "prefill",
    "aggregate",
    "caller",
]


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Memory of one kind in one place, in bytes.

    place: a GPU, or `HOST`. allocated: what the engine says; `None`: it does not. planned: what was
    predicted; `None`: nothing was.
    """

    place: str
    kind: str
    allocated: int | None
    planned: int | None

    @property
    def size(self) -> int:
        """What the engine says, or else the prediction."""
        return self.allocated if self.allocated is not None else self.planned or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One workload, measured.

    kind, size, tokens: see `Workload`. slots, ctx_size: of the server; ctx_size: of one slot.
    samples: by metric; seconds (`load`, `first_load`, `ttft`) or tokens a second (the others):

    load: from the call of `load_model` to the loaded model; first_load: the first time, when the
        file may have come from the disk.
    decode: tokens after the first, over the time from the first to the end, on our clock;
        server_decode: the same on the server's; client_ratio: the first over the second.
    ttft: from sending the request to the first token, on our clock; of several callers the median.
    prefill: tokens of the prompt over the server's time for them.
    aggregate: tokens of all callers, over the time from the first request to the last end.
    caller: `decode` of the median caller.

    notes: what one should know. error, skipped: why it is incomplete, or not there.
    """

    kind: Kind
    size: int
    tokens: int
    slots: int
    ctx_size: int | None = None
    samples: Mapping[Metric, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str | None = None
    skipped: str | None = None

    def summary(self, metric: Metric) -> Summary | None:
        """Median and spread of a metric; `None` where it was not measured."""
        return summarize(self.samples.get(metric, ()))

    def __str__(self) -> str:
        return str(Workload(self.kind, self.size, self.tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with an engine and its options, and everything that was measured of it.

    file, file_size: of the model. name, architecture, quantization, parameter_count: what the file
    says. engine: its name in the suite; engine_version: what it says of itself. flash_attn,
    cache_type: as asked; `None`: rocllm's choice. devices: GPUs in use, none for the CPU. memory:
    of the first load. remarks: what was not as chosen. error: why nothing could be measured.
    """

    file: str
    file_size: int
    name: str | None
    architecture: str
    quantization: str | None
    parameter_count: int
    engine: str
    flash_attn: str | None = None
    cache_type: str | None = None
    engine_version: str | None = None
    devices: tuple[str, ...] = ()
    memory: tuple[MemoryPart, ...] = ()
    cells: tuple[Cell, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The model for people: its file, or what that says where the file's name tells nothing."""
        stem = _PART.sub("", self.file.removesuffix(".gguf"))
        if not _DIGEST.match(stem):
            return stem
        return " ".join(filter(None, (self.name, self.quantization))) or stem

    @property
    def build(self) -> str:
        """The last word with a digit of `engine_version`: `b11549`, or of vLLM `0.32.0`."""
        words = (self.engine_version or "").split()
        return next((word for word in reversed(words) if re.search(r"\d", word)), "")

    def cell(self, kind: Kind, size: int = 1) -> Cell | None:
        """The cell of a workload; `None`: it was not in the suite."""
        return next((one for one in self.cells if (one.kind, one.size) == (kind, size)), None)

    def summary(self, kind: Kind, metric: Metric, size: int | None = 1) -> Summary | None:
        """Median and spread of one metric of one workload; `None` as size: of none."""
        cell = self.cell(kind, size) if size is not None else None
        return cell.summary(metric) if cell else None

    def sizes(self, kind: Kind, metric: Metric) -> tuple[int, ...]:
        """The sizes for which a metric was measured."""
        return tuple(one.size for one in self.cells if one.kind == kind and one.summary(metric))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of `rocllm bench`.

    started: date and time, ISO 8601 in UTC. rocllm: its version. options: what else was chosen, as
    text. interrupted: it was ended before its time.
    """

    started: str
    rocllm: str
    machine: MachineInfo
    suite: Suite
    options: Mapping[str, str] = field(default_factory=dict)
    subjects: tuple[Subject, ...] = ()
    interrupted: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        """There is at least one figure in it."""
        return any(cell.samples for subject in self.subjects for cell in subject.cells)


def encode_report(report: Report) -> str:
    """The report as JSON, with median and spread beside the samples.

    >>> decode_report(encode_report(report), "it") == report  # doctest: +SKIP
    True
    """
    values = {"schema": SCHEMA, **asdict(report)}
    for cell in (cell for subject in values["subjects"] for cell in subject["cells"]):
        cell["samples"] = {name: _with_summary(each) for name, each in cell["samples"].items()}
    return json.dumps(values, indent=2, ensure_ascii=False)


def decode_report(text: str | bytes, source: str) -> Report:
    """A report from its JSON.

    source: where the text comes from, for messages.

    Raises `OptionsError` for what is no report, and for one of a newer rocllm.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _no_report(source, f"it is not JSON: {exc}") from exc
    if not isinstance(values, dict) or not isinstance(values.get("schema"), int):
        raise _no_report(source, "it has no field `schema` with a number")
    if values["schema"] > SCHEMA:
        raise OptionsError(
            f"{source} is of a newer rocllm",
            why=f"its schema is {values['schema']}, this version reads {SCHEMA} and older",
            remedy="upgrade rocllm: pip install --upgrade rocllm",
        )
    try:
        return _report(values)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise _no_report(source, f"{type(exc).__name__}: {exc}") from exc


def _with_summary(samples: tuple[float, ...]) -> dict[str, Any]:
    found = summarize(samples)
    return {
        "samples": samples,
        "median": found.median if found else None,
        "mad": found.mad if found else None,
    }


def _no_report(source: str, why: str) -> OptionsError:
    return OptionsError(
        f"{source} is no report of `rocllm bench`",
        why=why,
        remedy="give a file that `rocllm bench --json FILE` wrote",
    )


def _report(values: dict[str, Any]) -> Report:
    return Report(
        started=_text(values["started"]),
        rocllm=_text(values["rocllm"]),
        machine=_machine(values["machine"]),
        suite=_suite(values["suite"]),
        options={_text(name): _text(value) for name, value in values["options"].items()},
        subjects=tuple(map(_subject, values["subjects"])),
        interrupted=bool(values["interrupted"]),
        warnings=_texts(values["warnings"]),
    )


def _machine(values: dict[str, Any]) -> MachineInfo:
    load = values["load_average"]
    return MachineInfo(
        cpu=_text_or_none(values["cpu"]),
        cores=int(values["cores"]),
        memory=_whole_or_none(values["memory"]),
        gpus=_texts(values["gpus"]),
        system=_text(values["system"]),
        kernel=_text(values["kernel"]),
        python=_text(values["python"]),
        load_average=None if load is None else float(load),
    )


def _suite(values: dict[str, Any]) -> Suite:
    return Suite(
        decode_tokens=values["decode_tokens"],
        prompt_lengths=tuple(values["prompt_lengths"]),
        callers=tuple(values["callers"]),
        repetitions=values["repetitions"],
        warmups=values["warmups"],
        cell_seconds=float(values["cell_seconds"]),
        kinds=tuple(values["kinds"]),
    )


def _subject(values: dict[str, Any]) -> Subject:
    return Subject(
        file=_text(values["file"]),
        file_size=int(values["file_size"]),
        name=_text_or_none(values["name"]),
        architecture=_text(values["architecture"]),
        quantization=_text_or_none(values["quantization"]),
        parameter_count=int(values["parameter_count"]),
        engine=_text(values["engine"]),
        flash_attn=_text_or_none(values["flash_attn"]),
        cache_type=_text_or_none(values["cache_type"]),
        engine_version=_text_or_none(values["engine_version"]),
        devices=_texts(values["devices"]),
        memory=tuple(map(_memory_part, values["memory"])),
        cells=tuple(map(_cell, values["cells"])),
        remarks=_texts(values["remarks"]),
    )


def _memory_part(values: dict[str, Any]) -> MemoryPart:
    allocated, planned = map(_whole_or_none, (values["allocated"], values["planned"]))
    return MemoryPart(_text(values["place"]), _text(values["kind"]), allocated, planned)


def _cell(values: dict[str, Any]) -> Cell:
    if values["kind"] not in KINDS:
        raise ValueError(f"there is no workload {values['kind']!r}")
    return Cell(
        kind=values["kind"],
        size=int(values["size"]),
        tokens=int(values["tokens"]),
        slots=int(values["slots"]),
        ctx_size=_whole_or_none(values["ctx_size"]),
        samples=dict(_samples(values["samples"])),
        notes=_texts(values["notes"]),
        error=_text_or_none(values["error"]),
        skipped=_text_or_none(values["skipped"]),
    )


def _samples(values: dict[str, Any]) -> Iterator[tuple[Metric, tuple[float, ...]]]:
    for name in get_args(Metric):
        if name in values:
            samples = tuple(map(float, values[name]["samples"]))
            if not all(map(math.isfinite, samples)):
                raise ValueError(f"{name} has a sample that is no number")
            yield name, samples


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(values: list[object]) -> tuple[str, ...]:
    return tuple(map(_text, values))


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _whole_or_none(value: Any) -> int | None:
    return None if value is None else int(value)
