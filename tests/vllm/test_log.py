"""What vLLM says while it starts."""

from __future__ import annotations

import pytest

from rocllm.backends.vllm.log import VllmLog
from rocllm.server import Buffer

# vLLM 0.32 on the CPU, recorded.
CPU = """\
(EngineCore pid=10767) INFO 11-24 03:52:33 [core.py:133] Initializing a V1 LLM engine (v0.32.0) \
with config: model='/m', dtype=torch.bfloat16, device_config=cpu, seed=0, served_model_name=demo
Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  4.41it/s]
(Worker pid=11149) INFO 11-24 03:52:46 [default_loader.py:501] Loading weights took 0.23 seconds
(Worker pid=11149) INFO 11-24 03:52:48 [cpu_worker.py:260] Auto set (1.04/21.21) GiB for KV cache \
on node 0, with 2.12 GiB requested memory for the worker.
(EngineCore pid=10767) INFO 11-24 03:52:48 [kv_cache_utils.py:2327] CPU KV cache size: 48,512 \
tokens, Maximum concurrency for 2,048 tokens per request: 23.69x
"""
# From the source of vLLM 0.32: v1/worker/gpu_worker.py, v1/worker/gpu_model_runner.py.
GPU = """\
(EngineCore pid=7) INFO 11-24 03:52:33 [core.py:133] with config: device_config=cuda, seed=0
(Worker_TP0 pid=8) INFO 11-24 03:52:46 [gpu_model_runner.py:5150] Model loading took 7.5 GiB \
memory and 12.300000 seconds
(Worker_TP1 pid=9) INFO 11-24 03:52:46 [gpu_model_runner.py:5150] Model loading took 7.5 GiB \
memory and 12.400000 seconds
(Worker_TP0 pid=8) INFO 11-24 03:52:48 [gpu_worker.py:760] Available KV cache memory: 4.25 GiB
(EngineCore pid=7) INFO 11-24 03:52:48 [kv_cache_utils.py:2327] GPU KV cache size: 1,048,576 tokens
"""


def fed(text: str) -> VllmLog:
    log = VllmLog(parallel=4)
    for line in text.splitlines():
        log.feed(line)
    return log


def test_on_the_cpu() -> None:
    """Device, progress, cache, and the room in it."""
    log = fed(CPU)
    assert (log.device, log.room, log.loaded) == ("cpu", 48512, 0.5)
    assert log.report().buffers == (Buffer("CPU", "KV", round(1.04 * 2**30)),)
    assert log.slots is None


def test_on_gpus() -> None:
    """Each worker tells of its own GPU."""
    log = fed(GPU)
    assert (log.device, log.room) == ("cuda", 2**20)
    assert [(one.device, one.kind) for one in log.report().buffers] == [
        ("GPU0", "model"),
        ("GPU1", "model"),
        ("GPU0", "KV"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) INFO 11-24 [entry.py:140] Starting vLLM server on unix:/run/s.sock",
        "INFO:     Application startup complete.",
    ],
)
def test_it_serves(line: str) -> None:
    """After that nothing of interest follows."""
    assert fed(line).report().n_slots == 4
