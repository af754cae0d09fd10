"""Everything that is decided before a llama-server is started: device, engine, plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rocllm.backends.base import LoadRequest
from rocllm.devices import (
    Choice,
    Machine,
    child_environment,
    choose_devices,
    discover_devices,
)
from rocllm.doctor import name_cause
from rocllm.errors import ModelFileError, OffloadFailed, RocllmError
from rocllm.gguf import ModelInfo, read_model_info
from rocllm.memory import (
    MemoryPlan,
    matching,
    plan_memory,
    read_companions,
    read_measurements,
    read_memory,
)
from rocllm.options import LoadOptions
from rocllm.safetensors import find_directory
from rocllm.server import Names, ServerBinary, find_server, list_devices, name_unseen_gpu
from rocllm.units import format_bytes


@dataclass(frozen=True, slots=True)
class Decision:
    """How a model is run.

    options: what was asked for, with what recovery has changed. info: what the file says about
    itself. device_names: llama.cpp's names of the chosen GPUs. environ: for the child.
    """

    options: LoadOptions
    info: ModelInfo
    machine: Machine
    binary: ServerBinary
    choice: Choice
    device_names: tuple[str, ...]
    plan: MemoryPlan
    environ: Mapping[str, str]

    @property
    def names(self) -> Names:
        """What a diagnosis calls the GPUs and the memory."""
        gpus = {gpu.kfd_node: gpu.label for gpu in self.machine.devices if gpu.kfd_node is not None}
        return Names(gpus, _demand(self.plan))

    def name_cause(self, error: RocllmError) -> None:
        """Add to `error` the check of the doctor's that explains it, if one does."""
        name_cause(error, self.machine, self.environ, self.binary)


def decide(request: LoadRequest, options: LoadOptions) -> Decision:
    """Choose device, engine and plan. Raises the error that says why that cannot be."""
    _refuse_safetensors(request.path)
    info = read_model_info(request.path)
    machine = discover_devices(request.root, request.environ)
    binary: ServerBinary | None = None
    try:
        binary = find_server(options.llama_server, request.environ)
        choice = choose_devices(machine, options.devices)
        environ = child_environment(choice, request.environ)
        names = engine_devices(binary, choice, environ)
        known = matching(
            read_measurements(request.path, request.environ),
            engine_name(binary),
            [gpu.label for gpu in choice.devices],
        )
        memory = read_memory(choice.devices, request.root, machine)
        beside = read_companions(options, request.path)
        plan = plan_memory(info, memory, options, measurements=known, companions=beside)
    except RocllmError as exc:
        name_cause(exc, machine, request.environ, binary)
        raise
    return Decision(options, info, machine, binary, choice, names, plan, environ)


def _refuse_safetensors(path: Path) -> None:
    if find_directory(path) is not None:
        error = ModelFileError(
            f"{str(path)!r} is a model in safetensors format",
            why="llama.cpp runs GGUF files",
            remedy="load it with backend='vllm', or fetch a GGUF version of it",
        )
        error.cause = "other_backend"
        raise error


def _demand(plan: MemoryPlan) -> str:
    """What a plan takes where: `1.2 GiB in host memory, where 12.4 GiB were free`."""
    places: list[tuple[int | None, str, int | None]] = [
        (None, "host memory", plan.memory.host.free)
    ]
    places += [(i, gpu.label, gpu.free) for i, gpu in enumerate(plan.memory.gpus)]
    told = []
    for place, name, free in places:
        wanted = format_bytes(sum(part.size for part in plan.parts if part.gpu == place))
        room = "" if free is None else f", where {format_bytes(free)} were free"
        told.append(f"{wanted} in {name}{room}")
    return "; ".join(told)


def engine_name(binary: ServerBinary) -> str:
    """The engine in words, with its version: `native llama-server b11434-90e6a91`."""
    return f"{binary.kind} llama-server {binary.version}"


def engine_devices(
    binary: ServerBinary, choice: Choice, environ: Mapping[str, str]
) -> tuple[str, ...]:
    """llama.cpp's names of the chosen GPUs, as the engine itself lists them under our mask.

    A mask with a wrong token hides every GPU without a word, so the engine is asked before anything
    is loaded. Raises `OffloadFailed` when it does not see what was chosen.
    """
    if not choice.devices:
        return ()
    listing = list_devices(binary, environ)
    listed = listing.devices
    if len(listed) == len(choice.devices):
        return tuple(device.name for device in listed)
    wanted = ", ".join(f"{device.name} ({device.pci_address})" for device in choice.devices)
    seen = ", ".join(f"{device.name} ({device.description})" for device in listed) or "no GPU"
    failed = OffloadFailed(
        f"{wanted} was chosen, and {engine_name(binary)} sees {seen}",
        why="it was built without ROCm, or its ROCm libraries are missing or do not know this GPU",
        remedy="install a llama-server built for ROCm and set ROCM_LLAMA_SERVER_PATH to it; "
        "to run on the CPU, ask for it: device='cpu'",
        argv=(*binary.argv, "--list-devices"),
    )
    failed.cause = "no_gpu_visible"
    name_unseen_gpu(failed, listing.said)
    raise failed
