"""How a model fits: context, slots, layers, and where every byte goes."""

from rocllm.memory.available import GpuMemory, HostMemory, Memory, gpu_memory, read_memory
from rocllm.memory.companions import Companions, read_companions
from rocllm.memory.estimate import Kind, Owner, Part, Source, estimate_parts, needed_in
from rocllm.memory.explain import place_name
from rocllm.memory.fit import DEFAULT_CTX_SIZE, room
from rocllm.memory.layers import Shape, shape_of
from rocllm.memory.measured import (
    Measurement,
    matching,
    measured_parts,
    read_measurements,
    store_measurement,
)
from rocllm.memory.plan import MemoryPlan, plan_memory
from rocllm.memory.settings import Settings

__all__ = [
    "DEFAULT_CTX_SIZE",
    "Companions",
    "GpuMemory",
    "HostMemory",
    "Kind",
    "Measurement",
    "Memory",
    "MemoryPlan",
    "Owner",
    "Part",
    "Settings",
    "Shape",
    "Source",
    "estimate_parts",
    "gpu_memory",
    "matching",
    "measured_parts",
    "needed_in",
    "place_name",
    "plan_memory",
    "read_companions",
    "read_measurements",
    "read_memory",
    "room",
    "shape_of",
    "store_measurement",
]
