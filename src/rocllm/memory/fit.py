"""Try one way of loading after another, until one fits. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from rocllm.memory.available import Memory
from rocllm.memory.companions import DRAFT_N_MAX, NO_COMPANIONS, Companions
from rocllm.memory.estimate import GPU_RUNTIME, Part, estimate_parts, needed_in
from rocllm.memory.kv import checkpoint_size, kv_sizes, state_sizes
from rocllm.memory.layers import Shape
from rocllm.memory.measured import Measurement, apply_measurements
from rocllm.memory.settings import (
    BATCH_SIZE_CPU,
    BATCH_SIZE_GPU,
    MOST_CHECKPOINTS,
    UBATCH_SIZE,
    Settings,
)
from rocllm.options import LoadOptions

# What is enough for a conversation. No less is chosen unasked.
DEFAULT_CTX_SIZE = 4096
# What stays free on a GPU: the desktop moves a window, a pool grows.
GPU_HEADROOM = 256 * 2**20
# What stays free of the host's memory, for all other programs: an eighth, at most this.
MOST_HOST_HEADROOM = 4 * 2**30
# On the CPU a context that nobody asked for takes at most this part of the memory that is free
# beside the weights. It is filled at load, other programs share this memory, and a processor reads
# some hundred tokens in a second: few wait for it to read 100,000.
CPU_CONTEXT_SHARE = 8
# Slots that nobody asked for, where all layers are on a GPU: there several callers share each pass
# through the weights (the program that rocllm continues, on an RX 7800 XT: 239 tok/s over four
# slots, 103 over one). On the CPU a 4-bit file gains little from them: docs/batch.md.
SLOTS = (4, 2)
# They take no context away, and what all of them hold is at most this part of what is free.
SLOTS_SHARE = 8
# Saved states take at most this part of the host's memory that the plan leaves over: they only
# spare time, and with llama.cpp's default those of a Gemma 3 12B would come to 15 GiB.
CHECKPOINT_SHARE = 4


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be loaded, into what, and as the user wants it."""

    shape: Shape
    memory: Memory
    options: LoadOptions
    measurements: tuple[Measurement, ...] = ()
    companions: Companions = NO_COMPANIONS

    @property
    def n_gpus(self) -> int:
        """GPUs to use; 0: the CPU."""
        return len(self.memory.gpus)

    @property
    def longest(self) -> int:
        """Tokens that the model was trained for."""
        return self.shape.info.context_length or DEFAULT_CTX_SIZE

    @property
    def all_layers(self) -> int:
        """Every layer and the output, as llama.cpp counts them."""
        return self.shape.info.block_count + 1


@dataclass(frozen=True, slots=True)
class Lack:
    """A place where something does not fit: bytes that it needs, and that there are for it."""

    gpu: int | None
    needed: int
    room: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way of loading. lacks: where it does not fit; none: it fits.

    modest: it takes no more of the host's memory than a context should that nobody asked for.
    """

    settings: Settings
    parts: tuple[Part, ...]
    lacks: tuple[Lack, ...]
    modest: bool = True

    @property
    def fits(self) -> bool:
        """It fits everywhere."""
        return not self.lacks


def search(request: Request) -> Attempt:
    """The first attempt that fits, or the last one, which is the smallest.

    First the context is reduced, from the longest to the default, with all layers on the GPU; then
    layers are left on the host. What the user fixed is not changed.
    """
    attempt = None
    for settings in _ways(request):
        attempt = try_settings(request, settings)
        if attempt.fits and attempt.modest:
            break
    assert attempt is not None
    return attempt


def context_ladder(longest: int) -> tuple[int, ...]:
    """Contexts to choose from, the longest first: 4096, 8192, 16384, … and the model's own.

    >>> context_ladder(40960)
    (40960, 32768, 16384, 8192, 4096)
    """
    steps = [longest]
    step = DEFAULT_CTX_SIZE
    while step < longest:
        steps.append(step)
        step *= 2
    return tuple(sorted(steps, reverse=True))


def room(memory: Memory, gpu: int | None) -> int | None:
    """Bytes that may be used in a place, the headroom taken off; `None`: not known."""
    if gpu is not None:
        free = memory.gpus[gpu].free
        return None if free is None else max(0, free - GPU_HEADROOM)
    if memory.host.free is None:
        return None
    return max(0, memory.host.free - host_headroom(memory))


def host_headroom(memory: Memory) -> int:
    """Bytes of host memory that stay free."""
    return min(MOST_HOST_HEADROOM, (memory.host.total or memory.host.free or 0) // 8)


def with_slots(request: Request, attempt: Attempt) -> Attempt:
    """The same with several slots, where nobody said how many and there is memory to spare."""
    settings = attempt.settings
    whole = request.n_gpus and not 0 <= settings.n_gpu_layers < request.all_layers
    if request.options.parallel is not None or not whole or attempt.lacks:
        return attempt
    for parallel in SLOTS:
        several = settings_for(request, settings.ctx_size, settings.n_gpu_layers, parallel)
        wider = try_settings(request, several)
        if wider.fits and all(_is_small(request, wider, gpu) for gpu in range(request.n_gpus)):
            return wider
    return attempt


def held(parts: tuple[Part, ...], gpu: int) -> int:
    """Bytes on a GPU that the slots hold."""
    return sum(
        part.size for part in parts if part.gpu == gpu and part.kind in ("KV cache", "state")
    )


def _is_small(request: Request, attempt: Attempt, gpu: int) -> bool:
    return held(attempt.parts, gpu) * SLOTS_SHARE <= (room(request.memory, gpu) or 0)


def settings_for(
    request: Request, ctx_size: int, n_gpu_layers: int, parallel: int | None = None
) -> Settings:
    """The settings that the user's options and these decisions come to."""
    options = request.options
    settings = Settings(
        ctx_size=ctx_size,
        parallel=parallel or options.parallel or 1,
        n_gpu_layers=n_gpu_layers,
        batch_size=options.batch_size or (BATCH_SIZE_GPU if request.n_gpus else BATCH_SIZE_CPU),
        ubatch_size=options.ubatch_size or UBATCH_SIZE,
        cache_type_k=options.cache_type_k or "f16",
        cache_type_v=options.cache_type_v or "f16",
        flash_attn=options.flash_attn != "off",
        companions=request.companions.files,
    )
    settings = replace(settings, swa_full=_swa_full(request, settings))
    if request.companions.draft is not None:
        layers = options.n_gpu_layers_draft
        settings = replace(
            settings,
            draft_n_max=DRAFT_N_MAX,
            n_gpu_layers_draft=(-1 if request.n_gpus else 0) if layers is None else layers,
        )
    if request.n_gpus < 2:
        return settings
    return replace(settings, split=_split(request, settings))


def _swa_full(request: Request, settings: Settings) -> bool:
    """Windowed layers keep all tokens: as the user wants it, or where they would do so anyway.

    Without it a server cannot go back in its cache and computes a short prompt that begins like
    the one before anew (`n_swa` in tools/server/server-context.cpp, b11434).
    """
    if not any(layer.windowed for layer in request.shape.layers):
        return False
    if request.options.swa_full is not None:
        return request.options.swa_full
    return settings.window_cells(request.shape.window) == settings.cells


def try_settings(request: Request, settings: Settings) -> Attempt:
    """What loading like this takes, and whether there is room for it."""
    parts = estimate_parts(request.shape, settings, request.n_gpus, request.companions)
    parts = apply_measurements(parts, settings, request.measurements)
    lacks = []
    for gpu in (*range(request.n_gpus), None):
        needed = needed_in(parts, gpu) + (_shared(request.memory, parts) if gpu is None else 0)
        available = room(request.memory, gpu)
        if available is not None and needed > available:
            lacks.append(Lack(gpu, needed, available))
    return Attempt(settings, parts, tuple(lacks), _modest(request, settings, parts))


def checkpoints_for(request: Request, attempt: Attempt) -> int:
    """How many states of a slot may be saved; one, where only that has room."""
    one = checkpoint_size(request.shape, attempt.settings)
    available = room(request.memory, None)
    if not one or available is None:
        return MOST_CHECKPOINTS
    taken = needed_in(attempt.parts, None) + _shared(request.memory, attempt.parts)
    left = max(0, available - taken)
    return min(MOST_CHECKPOINTS, max(left // CHECKPOINT_SHARE // one, int(one <= left)))


def _ways(request: Request) -> Iterator[Settings]:
    options = request.options
    contexts = (options.ctx_size,) if options.ctx_size else context_ladder(request.longest)
    layers = options.n_gpu_layers
    if layers is None:
        layers = -1 if request.n_gpus else 0
    for ctx_size in contexts:
        yield settings_for(request, ctx_size, layers)
    if request.n_gpus and options.n_gpu_layers is None:
        for count in range(request.all_layers - 1, 0, -1):
            yield settings_for(request, contexts[-1], count)


def _shared(memory: Memory, parts: tuple[Part, ...]) -> int:
    """Bytes on GPUs whose memory is the host's."""
    return sum(needed_in(parts, index) for index, gpu in enumerate(memory.gpus) if gpu.shared)


def _modest(request: Request, settings: Settings, parts: tuple[Part, ...]) -> bool:
    available = room(request.memory, None)
    unasked = request.options.ctx_size is None and settings.ctx_size > DEFAULT_CTX_SIZE
    if request.n_gpus or not unasked or available is None:
        return True
    context = sum(part.size for part in parts if part.kind == "KV cache")
    weights = sum(part.size for part in parts if part.kind == "weights")
    return context * CPU_CONTEXT_SHARE <= available - weights


def _split(request: Request, settings: Settings) -> tuple[int, ...]:
    """How many layers each GPU gets, so that all are filled alike."""
    shape, memory = request.shape, request.memory
    sizes = [
        sum(layer)
        for layer in zip(
            shape.weights.layers,
            kv_sizes(shape, settings),
            state_sizes(shape, settings),
            strict=True,
        )
    ]
    sizes += [0] * shape.info.nextn_predict_layers
    sizes.append(shape.weights.output + shape.weights.tied)
    count = settings.n_gpu_layers
    sizes = sizes if count < 0 else sizes[len(sizes) - min(count, len(sizes)) :]
    rooms = [room(memory, gpu) for gpu in range(request.n_gpus)]
    taken = [GPU_RUNTIME] * len(rooms)
    if request.companions.projector is not None:
        projector = request.companions.projector
        taken[0] += projector.weights + projector.compute_size(flash_attn=settings.flash_attn)
    shares = [
        1 if known is None else max(1, known - used)
        for known, used in zip(rooms, taken, strict=True)
    ]
    if None in rooms:
        shares = [1] * len(rooms)
    return _divide(sizes, shares)


def _divide(sizes: Sequence[int], shares: Sequence[int]) -> tuple[int, ...]:
    """Cut `sizes` into consecutive runs whose sums are as `shares`: how many are in each.

    >>> _divide([4, 4, 4, 4], [3, 1])
    (3, 1)
    """
    whole = sum(sizes)
    limits = [whole * part / sum(shares) for part in accumulate(shares)]
    counts = [0] * len(shares)
    done = 0
    for size in sizes:
        place = bisect_right(limits, done + size / 2)
        counts[min(place, len(shares) - 1)] += 1
        done += size
    return tuple(counts)
