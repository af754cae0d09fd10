"""What a vLLM server says about itself while it starts. Pure.

The lines are those of vLLM 0.32: `v1/worker/gpu_worker.py`, `v1/worker/cpu_worker.py`,
`v1/worker/gpu_model_runner.py`, `v1/core/kv_cache_utils.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rocllm.server import Buffer
from rocllm.server.report import LoadReportBuilder

_SHARDS = re.compile(r"Loading safetensors checkpoint shards:\s+(\d+)% Completed")
_DEVICE = re.compile(r"device_config=(\w+)")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) GiB")
_CACHE = re.compile(
    r"Available KV cache memory: ([\d.]+) GiB|set \(([\d.]+)/[\d.]+\) GiB for KV cache"
)
_ROOM = re.compile(r"KV cache size: ([\d,]+) tokens")
_SERVING = "Starting vLLM server on"
_STARTED = "Application startup complete"


@dataclass(slots=True)
class VllmLog(LoadReportBuilder):
    """Feed it the server's lines in order.

    loaded: 0 until the first file is read: what vLLM fills with memory before is its own.
    device: `cpu` or `cuda`, as PyTorch calls AMD's GPUs, too. room: tokens that the cache holds.
    """

    loaded: float | None = 0.0
    device: str | None = None
    room: int | None = None
    parallel: int = 1

    def feed(self, line: str) -> None:
        """Take one line of the log."""
        if match := _SHARDS.search(line):
            self.loaded = int(match[1]) / 100
        elif match := _DEVICE.search(line):
            self.device = match[1]
        elif match := _WEIGHTS.search(line):
            self._note("model", match[1])
        elif match := _CACHE.search(line):
            self._note("KV", match[1] or match[2])
        elif match := _ROOM.search(line):
            self.room = int(match[1].replace(",", ""))
        elif _SERVING in line or _STARTED in line:
            self.slots = self.parallel

    def _note(self, kind: str, gibibytes: str) -> None:
        """Of several workers, each with a GPU of its own, in the order in which they tell."""
        rank = sum(buffer.kind == kind for buffer in self.buffers)
        name = "CPU" if self.device == "cpu" else f"GPU{rank}"
        self.buffers.append(Buffer(name, kind, round(float(gibibytes) * 2**30)))
