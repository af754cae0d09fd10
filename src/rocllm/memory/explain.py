"""A plan in words. Pure."""

from __future__ import annotations

from rocllm.memory.alternatives import longer_with_q8_0
from rocllm.memory.available import Memory
from rocllm.memory.compute import CHECKED
from rocllm.memory.estimate import GPU_RUNTIME, Part
from rocllm.memory.fit import (
    CPU_CONTEXT_SHARE,
    GPU_HEADROOM,
    SLOTS_SHARE,
    Attempt,
    Lack,
    Request,
    held,
    host_headroom,
    settings_for,
    try_settings,
)
from rocllm.memory.kv import bytes_per_token, checkpoint_size
from rocllm.units import format_bytes


def reasons(request: Request, attempt: Attempt, *, known: bool) -> tuple[str, ...]:
    """Why this context and these layers, a sentence each. known: how much memory is free is."""
    because = [_context(request, attempt, known)]
    settings = attempt.settings
    if settings.parallel > 1 and request.options.parallel is None:
        taken = sum(held(attempt.parts, gpu) for gpu in range(request.n_gpus))
        because.append(
            f"{settings.parallel} slots, for as many callers at once: together they hold "
            f"{format_bytes(taken)}, no more than 1/{SLOTS_SHARE} of what is free"
        )
    if request.n_gpus and request.options.n_gpu_layers is None and settings.n_gpu_layers > 0:
        because.append(_partly(request, attempt))
    if settings.split:
        counts = " and ".join(map(str, settings.split))
        because.append(f"split over {request.n_gpus} GPUs: {counts} layers")
    return tuple(because)


def remarks(request: Request, attempt: Attempt) -> tuple[str, ...]:
    """What one should know about the numbers, a sentence each."""
    notes = []
    info = request.shape.info
    if request.n_gpus:
        notes.append(
            f"{format_bytes(GPU_HEADROOM)} of each GPU stay free; what the ROCm runtime takes "
            f"there, {format_bytes(GPU_RUNTIME)}, is assumed and has not been verified"
        )
        if request.options.flash_attn != "on" and attempt.settings.flash_attn:
            notes.append(
                "flash attention is taken to work there; if llama.cpp switches it off, the compute "
                "buffers are larger"
            )
    if request.memory.host.free is not None:
        notes.append(
            f"{format_bytes(host_headroom(request.memory))} of host memory stay free for other "
            "programs"
        )
    if any(gpu.shared for gpu in request.memory.gpus):
        notes.append("the integrated GPU uses host memory, so both together must fit there")
    one, count = checkpoint_size(request.shape, attempt.settings), attempt.settings.checkpoints
    if one and count:
        notes.append(
            f"with many requests, saved states of the cache, {count} a slot, take up to "
            f"{format_bytes(one * count)} more of host memory"
        )
    elif one:
        notes.append(
            "host memory has no room for saved states: each question is read from the start"
        )
    draft = request.companions.draft
    if draft is not None and draft.info.context_length < attempt.settings.ctx_size:
        notes.append(
            f"the draft model was trained for {draft.info.context_length} tokens, and guesses "
            "badly beyond them"
        )
    if info.architecture not in CHECKED:
        notes.append(
            f"the compute buffers of {info.architecture} models are an estimate: the formulas were "
            "checked with others"
        )
    return tuple(notes)


def shortage(request: Request, attempt: Attempt, lack: Lack) -> tuple[str, str]:
    """What does not fit where, and what it is made of."""
    place = place_name(request.memory, lack.gpu)
    what = f"{place}: {format_bytes(lack.needed)} needed, {format_bytes(lack.room)} there for it"
    memory = request.memory
    there = memory.host if lack.gpu is None else memory.gpus[lack.gpu]
    headroom = GPU_HEADROOM if lack.gpu is not None else host_headroom(memory)
    free = lack.room + headroom if there.free is None else there.free
    # Host memory holds the parts of an integrated GPU, too.
    shared = (
        ()
        if lack.gpu is not None
        else tuple(number for number, gpu in enumerate(memory.gpus) if gpu.shared)
    )
    listed = "; ".join(filter(None, [_listed(attempt.parts, gpu) for gpu in (lack.gpu, *shared)]))
    why = f"{listed}; {format_bytes(free)} is free, and {format_bytes(headroom)} are to stay free"
    return what, why


def place_name(memory: Memory, gpu: int | None) -> str:
    """What to call a place: the GPU's label, or host memory."""
    return "host memory" if gpu is None else memory.gpus[gpu].label


def _listed(parts: tuple[Part, ...], gpu: int | None) -> str:
    return ", ".join(f"{part.kind} {format_bytes(part.size)}" for part in parts if part.gpu == gpu)


def _context(request: Request, attempt: Attempt, known: bool) -> str:
    settings = attempt.settings
    # llama.cpp has whole blocks only.
    text = f"context of {settings.cells} tokens"
    if settings.parallel > 1:
        text = f"{settings.parallel} slots, each with a {text}"
    if request.options.ctx_size is not None:
        rounded = settings.cells != settings.ctx_size
        return f"{text}: " + (f"{settings.ctx_size}, rounded up" if rounded else "asked for")
    if settings.ctx_size == request.longest:
        return f"{text}: the model's own"
    if not known:
        return f"{text}: the default, because it is not known how much memory is free"
    if settings.n_gpu_layers > 0 and request.options.n_gpu_layers is None:
        return f"{text}: the shortest step, as even so not all layers fit on the GPU"
    per_token = format_bytes(bytes_per_token(request.shape, settings))
    text += f": the longest step that {_limit(request, settings.ctx_size)}; "
    text += f"its KV cache takes {per_token} a token"
    longer = longer_with_q8_0(request, settings.ctx_size)
    if longer is not None:
        text += f"; {longer} would fit with q8_0 keys and values"
    return text


def _limit(request: Request, ctx_size: int) -> str:
    if request.n_gpus or not try_settings(request, settings_for(request, 2 * ctx_size, 0)).fits:
        return "fits"
    return (
        f"takes no more than 1/{CPU_CONTEXT_SHARE} of the memory that is free beside the weights, "
        "which the CPU shares with all programs"
    )


def _partly(request: Request, attempt: Attempt) -> str:
    ctx_size, count = attempt.settings.ctx_size, attempt.settings.n_gpu_layers
    everything = try_settings(request, settings_for(request, ctx_size, -1))
    lack = everything.lacks[0]
    return (
        f"{count} of {request.all_layers} layers on the GPU and the others on the CPU, which is "
        f"slower: all of them need {format_bytes(lack.needed)} of "
        f"{place_name(request.memory, lack.gpu)}, there is room for {format_bytes(lack.room)}"
    )
