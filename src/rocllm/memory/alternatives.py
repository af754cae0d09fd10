"""What would fit when what was asked for does not. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rocllm.errors import OptionsError
from rocllm.memory.available import Memory
from rocllm.memory.fit import DEFAULT_CTX_SIZE, Request, search, settings_for, try_settings
from rocllm.memory.kv import check_cache_types
from rocllm.memory.settings import Settings
from rocllm.options import LoadOptions
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
# Below that there is no conversation.
_SHORTEST = 512
_MOST = 3


def would_fit(request: Request) -> tuple[str, ...]:
    """The three nearest things that would fit, the nearest first.

    Nearest is what changes the answers least: no draft model, no projector, a smaller cache, fewer
    slots, a shorter context, layers left on the host, a smaller file, two of these, the CPU.
    """
    found = []
    for text in _everything(request):
        found.append(text)
        if len(found) == _MOST:
            break
    return tuple(found)


def longer_with_q8_0(request: Request, ctx_size: int) -> int | None:
    """The context that would fit if keys and values were stored as q8_0, if it is longer."""
    if not _cache_can_shrink(request):
        return None
    attempt = search(_with_q8_0(request))
    longer = attempt.fits and attempt.settings.ctx_size > ctx_size
    return attempt.settings.ctx_size if longer and attempt.modest else None


def _everything(request: Request) -> Iterator[str]:
    options = request.options
    yield from _fewer_companions(request)
    if _cache_can_shrink(request):
        attempt = search(_with_q8_0(request))
        if attempt.fits:
            yield f"q8_0 keys and values (context {attempt.settings.ctx_size})"
    for parallel in range((options.parallel or 1) - 1, 0, -1):
        if _fits(request, replace(options, parallel=parallel)):
            yield f"parallel {parallel}"
            break
    yield from _shorter(request)
    if options.n_gpu_layers is not None and request.n_gpus:
        attempt = search(replace(request, options=replace(options, n_gpu_layers=None)))
        if attempt.fits:
            yield f"n_gpu_layers {attempt.settings.n_gpu_layers}"
    yield from _smaller_file(request)
    yield from _several_changes(request)
    if request.n_gpus:
        on_cpu = replace(options, n_gpu_layers=None)
        memory = Memory((), request.memory.host)
        if memory.host.free is not None and _fits(replace(request, memory=memory), on_cpu):
            yield "device cpu"


def _fewer_companions(request: Request) -> Iterator[str]:
    loaded = request.companions
    if loaded.draft is not None:
        options = replace(request.options, model_draft=None, n_gpu_layers_draft=None)
        without = replace(request, options=options, companions=replace(loaded, draft=None))
        if search(without).fits:
            yield "no model_draft"
    if loaded.projector is not None:
        options = replace(request.options, mmproj=None)
        without = replace(request, options=options, companions=replace(loaded, projector=None))
        if search(without).fits:
            yield "no mmproj"


def _fits(request: Request, options: LoadOptions) -> bool:
    return search(replace(request, options=options)).fits


def _cache_can_shrink(request: Request) -> bool:
    options = request.options
    types = {options.cache_type_k, options.cache_type_v}
    if not types <= {"f16", "bf16", "f32", None} or options.flash_attn == "off":
        return False
    try:
        check_cache_types(
            request.shape, Settings(ctx_size=1, cache_type_k="q8_0", cache_type_v="q8_0")
        )
    except OptionsError:
        return False
    return any(layer.key_width for layer in request.shape.layers)


def _with_q8_0(request: Request) -> Request:
    options = replace(request.options, cache_type_k="q8_0", cache_type_v="q8_0")
    return replace(request, options=options)


def _shorter(request: Request) -> Iterator[str]:
    tried = search(request).settings
    ctx_size = tried.ctx_size // 2
    while ctx_size >= _SHORTEST:
        whole = -(-ctx_size // 256) * 256
        for layers in dict.fromkeys((_wanted_layers(request), tried.n_gpu_layers)):
            if try_settings(request, settings_for(request, whole, layers)).fits:
                suffix = "" if layers < 0 or not request.n_gpus else f", n_gpu_layers {layers}"
                yield f"ctx_size {whole}{suffix}"
                return
        ctx_size //= 2


def _several_changes(request: Request) -> Iterator[str]:
    """One slot instead of many, and then a short context in a smaller file, if both were asked."""
    options = request.options
    one_slot = replace(request, options=replace(options, parallel=None))
    if (options.parallel or 1) > 1 and not _fits(request, one_slot.options):
        for shorter in _shorter(one_slot):
            yield f"parallel 1, {shorter}"
    if (options.parallel or 1) > 1 or (options.ctx_size or 0) > DEFAULT_CTX_SIZE:
        ctx_size = min(options.ctx_size or DEFAULT_CTX_SIZE, DEFAULT_CTX_SIZE, request.longest)
        small = replace(one_slot, options=replace(one_slot.options, ctx_size=ctx_size))
        if not search(small).fits and not any(_smaller_file(request)):
            for file in _smaller_file(small):
                yield f"{file}, with ctx_size {ctx_size} and parallel 1"


def _wanted_layers(request: Request) -> int:
    if request.options.n_gpu_layers is not None:
        return request.options.n_gpu_layers
    return -1 if request.n_gpus else 0


def _smaller_file(request: Request) -> Iterator[str]:
    info = request.shape.info
    present = info.bits_per_weight
    if present is None or info.tensor_bytes is None:
        return
    for name, bits in BITS_PER_WEIGHT.items():
        ratio = bits / present
        if ratio > 0.95:
            continue
        weights = request.shape.weights.scaled(ratio)
        smaller = replace(request, shape=replace(request.shape, weights=weights))
        attempt = search(smaller)
        if attempt.fits and attempt.settings.n_gpu_layers == _wanted_layers(request):
            size = format_bytes(round(info.tensor_bytes * ratio))
            yield f"a file of the quantisation {name} (about {size})"
            return
