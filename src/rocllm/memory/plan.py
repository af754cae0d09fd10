"""Decide context, slots, layers and split. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rocllm.errors import DoesNotFit, ModelFileError, OptionsError
from rocllm.gguf import ModelInfo
from rocllm.memory.alternatives import would_fit
from rocllm.memory.available import Memory
from rocllm.memory.companions import NO_COMPANIONS, Companions
from rocllm.memory.estimate import Part
from rocllm.memory.explain import reasons, remarks, shortage
from rocllm.memory.fit import (
    DEFAULT_CTX_SIZE,
    Attempt,
    Request,
    checkpoints_for,
    room,
    search,
    settings_for,
    try_settings,
    with_slots,
)
from rocllm.memory.kv import check_cache_types
from rocllm.memory.layers import shape_of
from rocllm.memory.measured import Measurement
from rocllm.memory.settings import Settings
from rocllm.options import LoadOptions


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will be loaded with, where each byte goes, and why.

    settings: everything that decides how much memory it takes. parts: what it takes, by place and
    kind. memory: what there was. because: the reasons, a sentence each. remarks: what one should
    know about the numbers.
    """

    settings: Settings
    parts: tuple[Part, ...]
    memory: Memory
    because: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def ctx_size(self) -> int:
        """Tokens of one slot."""
        return self.settings.ctx_size

    @property
    def parallel(self) -> int:
        """Slots."""
        return self.settings.parallel

    @property
    def n_gpu_layers(self) -> int:
        """Layers on GPUs; -1: all, 0: none."""
        return self.settings.n_gpu_layers


def plan_memory(
    model: ModelInfo,
    memory: Memory,
    options: LoadOptions,
    *,
    measurements: Sequence[Measurement] = (),
    companions: Companions = NO_COMPANIONS,
) -> MemoryPlan:
    """The longest useful context that really fits; what the user fixed stays fixed.

    memory: what is free now, on the GPUs to use and on the host; no GPUs: the CPU is used.
    measurements: what loading this model with this engine on these GPUs took before.
    companions: what is loaded beside it, as `read_companions` tells.

    The context is the model's own, or the longest of 4096, 8192, 16384, … that fits with all
    slots, with all layers on the GPU; where not even 4096 does, fewer layers. Without a GPU it also
    stays modest: see `CPU_CONTEXT_SHARE`. It is 4096 (or the model's own, if that is less) when
    nobody knows how much memory is free. Slots that nobody asked for: see `SLOTS`.

    Raises `DoesNotFit`, `ModelFileError` for a file without weights, `OptionsError` for a context
    that the model does not have, for GPU layers without a GPU, for GPUs of different kinds, and for
    a cache type that the model cannot have.

    >>> plan_memory(info, read_memory([]), LoadOptions(ctx_size=2048)).ctx_size  # doctest: +SKIP
    2048
    """
    request = Request(shape_of(model), memory, options, tuple(measurements), companions)
    _check(request)
    known = all(room(memory, gpu) is not None for gpu in _places(request))
    attempt = with_slots(request, search(request)) if known else _default(request)
    if attempt.lacks:
        raise _does_not_fit(request, attempt)
    return _plan(request, attempt, known=known)


def _places(request: Request) -> Sequence[int | None]:
    """The places whose free memory decides."""
    return range(request.n_gpus) if request.n_gpus else (None,)


def _default(request: Request) -> Attempt:
    options = request.options
    layers = options.n_gpu_layers
    if layers is None:
        layers = -1 if request.n_gpus else 0
    ctx_size = options.ctx_size or min(DEFAULT_CTX_SIZE, request.longest)
    return try_settings(request, settings_for(request, ctx_size, layers))


def _plan(request: Request, attempt: Attempt, *, known: bool) -> MemoryPlan:
    checkpoints = checkpoints_for(request, attempt)
    attempt = replace(attempt, settings=replace(attempt.settings, checkpoints=checkpoints))
    return MemoryPlan(
        attempt.settings,
        attempt.parts,
        request.memory,
        reasons(request, attempt, known=known),
        remarks(request, attempt),
    )


def _check(request: Request) -> None:
    options, info = request.options, request.shape.info
    if not info.tensors:
        raise ModelFileError(
            f"{info.name or 'the file'} holds a vocabulary and no weights",
            why="it is for tests of tokenizers",
            remedy="fetch the model itself",
        )
    longest = info.context_length
    if options.ctx_size is not None and longest and options.ctx_size > longest:
        raise OptionsError(
            f"ctx_size={options.ctx_size} is more than the model has",
            why=f"it was trained for {longest} tokens (context_length in the file)",
            remedy=f"use ctx_size={longest} or less",
        )
    for name in ("n_gpu_layers", "n_gpu_layers_draft"):
        if getattr(options, name) and not request.n_gpus:
            raise OptionsError(
                f"{name}={getattr(options, name)}, but no GPU is used",
                why="the model would run on the CPU without a word",
                remedy=f"see `rocllm devices`; leave {name} away to run on the CPU",
            )
    check_cache_types(request.shape, settings_for(request, DEFAULT_CTX_SIZE, 0))
    targets = {gpu.gfx_target for gpu in request.memory.gpus}
    if len(targets) > 1:
        raise OptionsError(
            "GPUs of different kinds cannot be used together",
            why="they have different instruction sets: "
            + ", ".join(sorted(target or "unknown" for target in targets)),
            remedy="choose GPUs of one kind",
        )


def _does_not_fit(request: Request, attempt: Attempt) -> DoesNotFit:
    info = request.shape.info
    name = " ".join(part for part in (info.name, info.quantization) if part) or "the model"
    settings = attempt.settings
    what, why = shortage(request, attempt, attempt.lacks[0])
    count = settings.n_gpu_layers
    layers = f", {count} layer{'s' * (count != 1)} on the GPU" if count > 0 else ""
    found = would_fit(request)
    return DoesNotFit(
        f"{name} does not fit with a context of {settings.ctx_size} tokens, "
        f"parallel {settings.parallel}{layers}; {what}",
        why=why,
        remedy=f"this would fit: {'; or '.join(found)}"
        if found
        else "use a smaller model, or a machine with more memory",
        would_fit=found,
        plan=_plan(request, attempt, known=True),
    )
