"""What would fit when what was asked for does not. Pure.

Each thing that may be changed is a `_Dial` with levels, the nearest to what was asked for first.
One of them is changed, then two together, then more; each suggestion has been planned, and fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import Any

from rocllm.errors import OptionsError
from rocllm.memory.available import GpuMemory, HostMemory, Memory
from rocllm.memory.fit import (
    DEFAULT_CTX_SIZE,
    GPU_HEADROOM,
    MOST_HOST_HEADROOM,
    Attempt,
    Request,
    search,
)
from rocllm.memory.kv import check_cache_types
from rocllm.memory.settings import Settings
from rocllm.units import format_bytes

# Bits per weight of Llama 3.1 8B, the better first (tools/quantize/README.md of llama.cpp b11434).
BITS_PER_WEIGHT = {
    "Q8_0": 8.5008,
    "Q6_K": 6.5633,
    "Q5_K_M": 5.7036,
    "Q4_K_M": 4.8944,
    "Q3_K_M": 3.9960,
    "Q2_K": 3.1593,
    "IQ2_XXS": 2.3824,
}
# Contexts are suggested in steps, and below the shortest there is no conversation.
_CTX_STEP = 1024
_SHORTEST = 512
_MOST = 3
_MOST_TOGETHER = 4
_GIB = 1 << 30
# A GPU added to the ones that were chosen changes how layers are split, and so what each needs.
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class _Way:
    """A request that was changed. options: what was changed of its options, by name. also: what
    was changed beside them, in words. says: what a level means, in words."""

    request: Request
    options: Mapping[str, Any]
    also: tuple[str, ...] = ()
    says: tuple[str, ...] = ()

    def but(self, options: Mapping[str, Any], says: str | None = None) -> _Way:
        """With other options."""
        changed = replace(self.request, options=replace(self.request.options, **options))
        more = () if says is None else (says,)
        return _Way(changed, {**self.options, **options}, self.also, (*self.says, *more))


_Change = Callable[[_Way], _Way | None]


@dataclass(frozen=True, slots=True)
class _Dial:
    """Something to change. levels: how, the nearest first. coarse: the levels to try when something
    else is changed, too."""

    name: str
    levels: Sequence[_Change]
    coarse: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """What fits. level: of each dial that was changed, to compare."""

    text: str
    level: Mapping[str, int]


def would_fit(request: Request) -> tuple[str, ...]:
    """The three nearest things that would fit, the nearest first; fewer where there are no three.

    Nearest is what changes answers and speed least: no draft model, no projector, flash attention,
    another GPU of this machine, a smaller cache, fewer slots, a shorter context, layers left on the
    host, a smaller file; two of these; the CPU; more of these; a larger machine.

    Each is written as it is typed, on the command line and in Python:
    `--ctx-size 8192 (ctx_size=8192)`.
    """
    found: list[_Found] = []
    for one in _everything(request):
        if not any(_no_nearer(one, other) for other in found):
            found.append(one)
        if len(found) == _MOST:
            break
    return tuple(one.text for one in found)


def longer_with_q8_0(request: Request, ctx_size: int) -> int | None:
    """The context that would fit if keys and values were stored as q8_0, if it is longer."""
    if not _cache_can_shrink(request, "q8_0"):
        return None
    attempt = search(_with_cache(_Way(request, {}), "q8_0").request)
    longer = attempt.fits and attempt.settings.ctx_size > ctx_size
    return attempt.settings.ctx_size if longer and attempt.modest else None


def _everything(request: Request) -> Iterator[_Found]:
    start = _Way(request, {})
    yield from _changes(start, 1)
    yield from _changes(start, 2)
    cpu = _on_the_cpu(start)
    if cpu is not None:
        if _fits(cpu):
            yield _told(cpu, {"cpu": 0})
        for count in (1, 2):
            for one in _changes(cpu, count):
                yield replace(one, level={**one.level, "cpu": 0})
    for count in range(3, _MOST_TOGETHER + 1):
        yield from _changes(start, count)
    yield from _larger(request)


def _changes(start: _Way, count: int) -> Iterator[_Found]:
    """`count` things changed together."""
    for chosen in combinations(_dials(start.request), count):
        yield from _together(start, chosen)


def _no_nearer(one: _Found, other: _Found) -> bool:
    """`one` changes all that `other` does, and nothing of it less."""
    return all(
        name in one.level and one.level[name] >= level for name, level in other.level.items()
    )


def _together(start: _Way, dials: Sequence[_Dial]) -> Iterator[_Found]:
    *first, last = dials
    # What does not fit with all of them as small as can be does not fit with less.
    if first and not _fits(_smallest(start, dials)):
        return
    for levels in product(*(dial.coarse for dial in first)):
        way: _Way | None = start
        for dial, level in zip(first, levels, strict=True):
            way = None if way is None else dial.levels[level](way)
        if way is None:
            continue
        index = _nearest(last, way)
        changed = None if index is None else last.levels[index](way)
        if index is None or changed is None:
            continue
        turned = {dial.name: one for dial, one in zip(first, levels, strict=True)}
        yield _told(changed, {**turned, last.name: index})
        return


def _smallest(start: _Way, dials: Sequence[_Dial]) -> _Way | None:
    way: _Way | None = start
    for dial in dials:
        way = None if way is None else dial.levels[-1](way)
    return way


def _nearest(dial: _Dial, way: _Way) -> int | None:
    """The first level that fits: each further one takes less."""
    if not dial.levels or not _fits(dial.levels[-1](way)):
        return None
    low, high = 0, len(dial.levels) - 1
    while low < high:
        middle = (low + high) // 2
        if _fits(dial.levels[middle](way)):
            high = middle
        else:
            low = middle + 1
    return high


def _fits(way: _Way | None) -> bool:
    return way is not None and search(way.request).fits


def _told(way: _Way, level: Mapping[str, int]) -> _Found:
    attempt = search(way.request)
    if "layers" in level:  # the planner itself found how many
        level = {**level, "layers": -attempt.settings.n_gpu_layers}
    return _Found(_text(way, attempt), level)


def _text(way: _Way, attempt: Attempt) -> str:
    typed, python = [], []
    for name, value in way.options.items():
        flag = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, tuple) else (value,)
        if value is None:
            typed.append(f"without {flag}")
        else:
            typed += [f"{flag} {one}" for one in values]
        python.append(f"{name}={value!r}")
    typed.sort(key=lambda one: one.startswith("without"))
    parts = list(way.also)
    if typed:
        parts.append(f"{' '.join(typed)} ({', '.join(python)})")
    settings, says = attempt.settings, list(way.says)
    if way.request.options.ctx_size is None:
        says.append(f"context {settings.ctx_size}")
    if settings.n_gpu_layers > 0 and way.request.options.n_gpu_layers is None:
        says.append(f"{settings.n_gpu_layers} layers on the GPU")
    return " with ".join(parts) + (f": {', '.join(says)}" if says else "")


def _dials(request: Request) -> list[_Dial]:
    dials = [
        _Dial("draft", _without_draft(request), (0,)),
        _Dial("projector", _without_projector(request), (0,)),
        _Dial("flash", _with_flash_attention(request), (0,)),
        _other_devices(request),
        _cache(request),
        _slots(request),
        _context(request),
        _Dial("layers", _fewer_layers(request), (0,)),
        _Dial("file", _smaller_files(request)),
    ]
    return [dial for dial in dials if dial.levels]


def _without_draft(request: Request) -> Sequence[_Change]:
    def change(way: _Way) -> _Way:
        # Without a draft model the number of its layers would be refused.
        way = way.but(_gone(way.request, "n_gpu_layers_draft") | {"model_draft": None})
        companions = replace(way.request.companions, draft=None)
        return replace(way, request=replace(way.request, companions=companions))

    return [change] if request.companions.draft is not None else []


def _without_projector(request: Request) -> Sequence[_Change]:
    def change(way: _Way) -> _Way:
        way = way.but({"mmproj": None})
        companions = replace(way.request.companions, projector=None)
        return replace(way, request=replace(way.request, companions=companions))

    return [change] if request.companions.projector is not None else []


def _with_flash_attention(request: Request) -> Sequence[_Change]:
    asked_not_to = request.options.flash_attn == "off"
    return [lambda way: way.but({"flash_attn": "auto"})] if asked_not_to else []


def _other_devices(request: Request) -> _Dial:
    """Another GPU of this machine, the largest first, or all of one kind together."""
    others = [gpu for gpu in request.memory.others if gpu.device is not None]
    others.sort(key=lambda gpu: (gpu.shared, -(gpu.free or 0)))
    sets: list[tuple[GpuMemory, ...]] = [(gpu,) for gpu in others if gpu.free is not None]
    chosen = request.memory.gpus
    most = sets[:1]
    if len(chosen) <= 1:
        kind = chosen[0].gfx_target if chosen else None
        alike = tuple(one for one in others if one.gfx_target == kind and not one.shared)
        if chosen and kind is not None and alike and chosen[0].device is not None:
            most = [(*chosen, *alike)]
            sets += most
    levels = [_use(gpus) for gpus in sets]
    # Not each takes less than the one before, so each that fits is a way of its own.
    fitting = [change for change in levels if _fits(change(_Way(request, {})))]
    return _Dial("device", fitting[:1] or [_use(gpus) for gpus in most], (0,))


def _use(gpus: Sequence[GpuMemory]) -> _Change:
    names = tuple(str(gpu.device) for gpu in gpus)
    labels = " and ".join(gpu.label for gpu in gpus)

    def change(way: _Way) -> _Way:
        way = way.but({"device": names if len(names) > 1 else names[0]}, labels)
        memory = Memory(tuple(gpus), way.request.memory.host)
        return replace(way, request=replace(way.request, memory=memory, measurements=()))

    return change


def _cache(request: Request) -> _Dial:
    types = [one for one in ("q8_0", "q4_0") if _cache_can_shrink(request, one)]
    levels = [partial(_with_cache, cache_type=one) for one in types]
    return _Dial("cache", levels, range(len(levels)))


def _with_cache(way: _Way, cache_type: str) -> _Way:
    more = {"flash_attn": "auto"} if way.request.options.flash_attn == "off" else {}
    return way.but({"cache_type_k": cache_type, "cache_type_v": cache_type, **more})


def _with(way: _Way, name: str, value: int) -> _Way:
    return way.but({name: value})


def _cache_can_shrink(request: Request, cache_type: str) -> bool:
    options = request.options
    types = {options.cache_type_k, options.cache_type_v}
    larger = {"f16", "bf16", "f32", None} | ({"q8_0"} if cache_type == "q4_0" else set())
    if not types <= larger:
        return False
    try:
        check_cache_types(
            request.shape, Settings(ctx_size=1, cache_type_k=cache_type, cache_type_v=cache_type)
        )
    except OptionsError:
        return False
    return any(layer.key_width for layer in request.shape.layers)


def _slots(request: Request) -> _Dial:
    counts = range((request.options.parallel or 1) - 1, 0, -1)
    levels = [partial(_with, name="parallel", value=count) for count in counts]
    return _Dial("parallel", levels, (len(levels) - 1,))


def _context(request: Request) -> _Dial:
    asked = request.options.ctx_size or min(DEFAULT_CTX_SIZE, request.longest)
    sizes = [*range((asked - 1) // _CTX_STEP * _CTX_STEP, 0, -_CTX_STEP), _SHORTEST]
    sizes = [size for size in sizes if size < asked]
    levels = [partial(_with, name="ctx_size", value=size) for size in sizes]
    usual = (DEFAULT_CTX_SIZE, _CTX_STEP)
    return _Dial("context", levels, [sizes.index(size) for size in usual if size in sizes])


def _fewer_layers(request: Request) -> Sequence[_Change]:
    asked = request.options.n_gpu_layers
    if not request.n_gpus or asked is None:
        return []  # without a word the planner has tried that

    def change(way: _Way) -> _Way | None:
        attempt = search(way.but({"n_gpu_layers": None}).request)
        count = attempt.settings.n_gpu_layers
        everything = asked < 0 or asked >= request.all_layers
        fewer = count > 0 and (everything or count < asked)
        return way.but({"n_gpu_layers": count}) if attempt.fits and fewer else None

    return [change]


def _smaller_files(request: Request) -> Sequence[_Change]:
    info = request.shape.info
    present, size = info.bits_per_weight, info.tensor_bytes
    if present is None or size is None:
        return []
    return [
        _with_file(name, bits / present, size)
        for name, bits in BITS_PER_WEIGHT.items()
        if bits / present <= 0.95
    ]


def _with_file(name: str, ratio: float, size: int) -> _Change:
    about = f"a file of the quantisation {name} (about {format_bytes(round(size * ratio))})"

    def change(way: _Way) -> _Way | None:
        weights = way.request.shape.weights.scaled(ratio)
        shape = replace(way.request.shape, weights=weights)
        # What was measured is the size of the file that is there.
        smaller = replace(way.request, shape=shape, measurements=())
        if search(smaller).settings.n_gpu_layers != _wanted_layers(way.request):
            return None
        return replace(way, request=smaller, also=(*way.also, about))

    return change


def _wanted_layers(request: Request) -> int:
    if request.options.n_gpu_layers is not None:
        return request.options.n_gpu_layers
    return -1 if request.n_gpus else 0


def _gone(request: Request, *names: str) -> dict[str, Any]:
    """Options to leave away, of those that were given."""
    return {name: None for name in names if getattr(request.options, name) is not None}


def _on_the_cpu(start: _Way) -> _Way | None:
    request = start.request
    if not request.n_gpus or request.memory.host.free is None:
        return None
    way = start.but({"device": "cpu", **_gone(request, "n_gpu_layers", "n_gpu_layers_draft")})
    # Not the other GPUs: they have been looked at.
    on_cpu = replace(way.request, memory=Memory((), request.memory.host), measurements=())
    return replace(way, request=on_cpu)


def _larger(request: Request) -> Iterator[_Found]:
    """As much memory as what was asked for needs, with all layers where they were wanted."""
    wanted = replace(
        request, options=replace(request.options, n_gpu_layers=_wanted_layers(request))
    )
    if request.options.n_gpu_layers is None and not request.n_gpus:
        wanted = request
    memory = request.memory
    for _ in range(_ROUNDS):
        attempt = search(replace(wanted, memory=memory, measurements=()))
        if attempt.fits:
            yield _Found(_text_of_larger(request.memory, memory), {"machine": 0})
            return
        for lack in attempt.lacks:
            memory = _enlarged(memory, lack.gpu, lack.needed)


def _enlarged(memory: Memory, gpu: int | None, needed: int) -> Memory:
    """With room for `needed` bytes in a place, in whole GiB; all GPUs are alike."""
    shared = any(one.shared for one in memory.gpus)
    if gpu is None:
        # An eighth stays free: of what there is then.
        whole = min(-(-needed * 8 // 7), needed + MOST_HOST_HEADROOM)
        free = -(-whole // _GIB) * _GIB
        host = HostMemory(max(memory.host.total or 0, free), free)
        memory = replace(memory, host=host)
    if gpu is not None or shared:
        free = -(-(needed + GPU_HEADROOM) // _GIB) * _GIB
        gpus = tuple(
            replace(one, free=max(one.free or 0, free), total=max(one.total or 0, free))
            for one in memory.gpus
        )
        memory = replace(memory, gpus=gpus)
    return memory


def _text_of_larger(before: Memory, after: Memory) -> str:
    parts = []
    if after.gpus != before.gpus and not any(gpu.shared for gpu in after.gpus):
        free = format_bytes(max(gpu.free or 0 for gpu in after.gpus))
        count = len(after.gpus)
        parts.append(
            f"{count} GPUs with {free} free each" if count > 1 else f"a GPU with {free} free"
        )
    if after.host != before.host or not parts:
        free = format_bytes(max(after.host.free or 0, *(gpu.free or 0 for gpu in after.gpus), 0))
        parts.append(f"a machine with {free} of free memory")
    return " in ".join(parts)
