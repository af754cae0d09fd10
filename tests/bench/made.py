"""Reports with made-up figures."""

from __future__ import annotations

from typing import Any

from rocllm.bench import Cell, MachineInfo, MemoryPart, Report, Subject, Suite
from rocllm.bench.report import HOST, Metric

MACHINE = MachineInfo(
    cpu="AMD Ryzen 9 7950X 16-Core Processor",
    cores=32,
    memory=64 * 2**30,
    gpus=("Radeon RX 7800 XT (gfx1101)",),
    system="Ubuntu 24.04",
    kernel="6.8.0",
    python="3.12.3",
    load_average=0.1,
)


def around(middle: float, spread: float = 0.01) -> tuple[float, ...]:
    """Five samples whose median is `middle` and whose deviation is `spread` of it."""
    return tuple(middle * (1 + spread * step) for step in (-2, 1, 0, -1, 3))


def cell(kind: Any, size: int = 1, **fields: Any) -> Cell:
    """A cell; samples are given by metric: a number stands for five samples around it."""
    known = set(Cell.__dataclass_fields__)
    samples: dict[Metric, tuple[float, ...]] = {
        name: value if isinstance(value, tuple) else around(value)  # type: ignore[misc]
        for name, value in fields.items()
        if name not in known
    }
    tokens = {"load": 0, "prompt": 1}.get(kind, 128)
    slots = size if kind == "concurrent" else 1
    rest = {name: value for name, value in fields.items() if name in known}
    values = {"tokens": tokens, "slots": slots, "ctx_size": 4096, "samples": samples, **rest}
    return Cell(kind=kind, size=size, **values)


def subject(speed: float = 100.0, *, name: str = "gemma-3-4b-it-Q4_K_M", **fields: Any) -> Subject:
    """A model that decodes `speed` tokens a second."""
    cells = (
        cell("load", load=200 / speed, first_load=(9.0,)),
        cell("decode", decode=speed, server_decode=speed, client_ratio=1.0),
        *(cell("prompt", n, ttft=n / speed / 90, prefill=speed * 90) for n in (128, 512, 2048)),
        *(
            cell("concurrent", n, aggregate=speed * n**0.6, caller=speed / n**0.4, ttft=0.02)
            for n in (1, 2, 4, 8)
        ),
    )
    values: dict[str, Any] = {
        "file": f"{name}.gguf",
        "file_size": 2_489_757_856,
        "name": "Gemma 3 4B It",
        "architecture": "gemma3",
        "quantization": "Q4_K_M",
        "parameter_count": 3_880_263_168,
        "engine": "native",
        "engine_version": "native llama-server b11434-90e6a91",
        "devices": MACHINE.gpus,
        "memory": (
            MemoryPart(MACHINE.gpus[0], "weights", 2_400_000_000, 2_400_000_000),
            MemoryPart(MACHINE.gpus[0], "KV cache", 500_000_000, 500_000_000),
            MemoryPart(HOST, "weights", None, 300_000_000),
        ),
        "cells": cells,
        **fields,
    }
    return Subject(**values)


def report(*subjects: Subject, **fields: Any) -> Report:
    """A report of these subjects, or of one."""
    values: dict[str, Any] = {
        "started": "2026-11-24T03:15:00+00:00",
        "rocllm": "0.1.0",
        "machine": MACHINE,
        "suite": Suite(),
        "subjects": subjects or (subject(),),
        **fields,
    }
    return Report(**values)
