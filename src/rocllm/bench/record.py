"""What has been measured so far: kept sample by sample, so that nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rocllm.backends import LoadedInfo
from rocllm.bench.machine import gpu_name
from rocllm.bench.memory import memory_parts
from rocllm.bench.report import Cell, MemoryPart, Metric, Subject
from rocllm.bench.workloads import Setup, Workload
from rocllm.gguf import ModelInfo
from rocllm.options import LoadOptions


@dataclass(slots=True)
class Tally:
    """A cell while it is being measured."""

    workload: Workload
    slots: int
    ctx_size: int | None = None
    samples: dict[Metric, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    skipped: str | None = None

    def add(self, sample: Mapping[Metric, float]) -> None:
        for name, value in sample.items():
            self.samples.setdefault(name, []).append(value)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def cell(self) -> Cell:
        return Cell(
            kind=self.workload.kind,
            size=self.workload.size,
            tokens=self.workload.tokens,
            slots=self.slots,
            ctx_size=self.ctx_size,
            samples={name: tuple(values) for name, values in self.samples.items()},
            notes=tuple(self.notes),
            error=self.error,
            skipped=self.skipped,
        )


@dataclass(slots=True)
class Record:
    """A subject while it is being measured."""

    number: int
    setup: Setup
    model: ModelInfo
    tallies: list[Tally] = field(default_factory=list)
    loaded: LoadedInfo | None = None
    memory: tuple[MemoryPart, ...] = ()
    remarks: dict[str, None] = field(default_factory=dict)

    def saw(self, info: LoadedInfo, options: LoadOptions) -> None:
        if self.loaded is None:
            self.loaded = info
            self.memory = memory_parts(info, options)
        self.remarks.update(dict.fromkeys((*info.warnings, *info.recovered)))

    def subject(self) -> Subject:
        setup, model, info = self.setup, self.model, self.loaded
        return Subject(
            file=setup.model.name,
            file_size=model.file_size,
            name=model.name,
            architecture=model.architecture,
            quantization=model.quantization,
            parameter_count=model.parameter_count,
            engine=setup.engine.name,
            flash_attn=setup.flash_attn,
            cache_type=setup.cache_type,
            engine_version=info.engine if info else None,
            devices=tuple(map(gpu_name, info.devices)) if info else (),
            memory=self.memory,
            cells=tuple(tally.cell() for tally in self.tallies),
            remarks=tuple(self.remarks),
        )
