"""Where every byte of a loaded model goes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from rocllm.memory.companions import NO_COMPANIONS, Companions, Projector, draft_settings
from rocllm.memory.compute import gpu_compute_size, host_compute_size, output_size
from rocllm.memory.kv import kv_sizes, state_sizes
from rocllm.memory.layers import Shape
from rocllm.memory.settings import Settings
from rocllm.memory.weights import placement

Kind: TypeAlias = Literal["weights", "KV cache", "state", "compute", "staging", "output", "runtime"]
Source: TypeAlias = Literal["predicted", "measured", "assumed"]
Owner: TypeAlias = Literal["model", "draft", "projector"]

# What the ROCm runtime takes on a GPU beside the buffers of llama.cpp: context, code objects,
# workspaces of rocBLAS, pools for temporary results. Reports say 300 to 1000 MiB; it has not been
# verified. Together with the headroom it makes the 1 GiB that llama.cpp's own `--fit-target` keeps.
GPU_RUNTIME = 768 * 2**20
# The same for the process in host memory: code, vocabulary, threads, HTTP buffers (measured:
# 115 MB with SmolLM2-135M, its cache and compute buffer included).
HOST_RUNTIME = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """Memory of one kind in one place.

    gpu: index of the GPU; `None`: host memory. size: in bytes. source: `predicted` by formula,
    `measured` at an earlier load, `assumed` where nothing tells. of: whose it is.
    """

    gpu: int | None
    kind: Kind
    size: int
    source: Source = "predicted"
    of: Owner = "model"


def estimate_parts(
    shape: Shape, settings: Settings, n_gpus: int, companions: Companions = NO_COMPANIONS
) -> tuple[Part, ...]:
    """What the model takes on each of `n_gpus` GPUs and in host memory; no part is empty.

    companions: what is loaded beside it.

    Raises `OptionsError` for a cache type that does not suit the model.

    >>> estimate_parts(shape, Settings(ctx_size=4096), 0)[0]  # doctest: +SKIP
    Part(gpu=None, kind='weights', size=95420416, source='predicted')
    """
    parts = [*_parts_of(shape, settings, n_gpus)]
    if companions.draft is not None:
        of_draft = draft_settings(settings, companions.draft)
        parts += [
            replace(part, of="draft") for part in _parts_of(companions.draft, of_draft, n_gpus)
        ]
    if companions.projector is not None:
        parts += _projector_parts(companions.projector, settings, 0 if n_gpus else None)
    used = {part.gpu for part in parts if part.size and part.gpu is not None}
    parts += [Part(gpu, "runtime", GPU_RUNTIME, "assumed") for gpu in sorted(used)]
    parts.append(Part(None, "runtime", HOST_RUNTIME, "assumed"))
    return tuple(part for part in parts if part.size)


def needed_in(parts: Iterable[Part], gpu: int | None) -> int:
    """Bytes in one place."""
    return sum(part.size for part in parts if part.gpu == gpu)


def _parts_of(shape: Shape, settings: Settings, n_gpus: int) -> Iterator[Part]:
    where = placement(shape.info, settings, n_gpus)
    for gpu in range(n_gpus):
        yield from _on_gpu(shape, settings, where, gpu)
    yield from _on_host(shape, settings, where)


def _projector_parts(projector: Projector, settings: Settings, gpu: int | None) -> Iterator[Part]:
    source: Source = "predicted" if projector.checked else "assumed"
    size = projector.compute_size(flash_attn=settings.flash_attn)
    yield Part(gpu, "weights", projector.weights, of="projector")
    yield Part(gpu, "compute", size, source, of="projector")
    if gpu is not None:
        yield Part(None, "compute", projector.input_size, source, of="projector")


def _on_gpu(
    shape: Shape, settings: Settings, where: tuple[int | None, ...], gpu: int
) -> Iterator[Part]:
    *of_layers, of_output = where
    layers = [index for index, place in enumerate(of_layers) if place == gpu]
    has_output = of_output == gpu
    if not layers and not has_output:
        return
    weights = sum(shape.weights.layers[index] for index in layers)
    if has_output:
        weights += shape.weights.output + shape.weights.tied
    yield Part(gpu, "weights", weights)
    yield from _kept(shape, settings, layers, gpu)
    yield Part(gpu, "compute", gpu_compute_size(shape, settings, where, gpu))
    if None in of_layers:
        # Large batches are computed here even with weights from host memory, which are copied over
        # one at a time (`offload_op` in ggml/src/ggml-backend.cpp; read there, not measured).
        yield Part(gpu, "staging", 2 * shape.weights.largest, "assumed")


def _on_host(shape: Shape, settings: Settings, where: tuple[int | None, ...]) -> Iterator[Part]:
    *of_layers, of_output = where
    layers = [index for index, place in enumerate(of_layers) if place is None]
    weights = shape.weights.looked_up + sum(shape.weights.layers[index] for index in layers)
    if of_output is None:
        weights += shape.weights.output
    yield Part(None, "weights", weights)
    yield from _kept(shape, settings, layers, None)
    yield Part(None, "compute", host_compute_size(shape, settings, where))
    yield Part(None, "output", output_size(shape, settings))


def _kept(shape: Shape, settings: Settings, layers: list[int], gpu: int | None) -> Iterator[Part]:
    """A layer's cache and state are where its weights are."""
    caches, states = kv_sizes(shape, settings), state_sizes(shape, settings)
    yield Part(gpu, "KV cache", sum(caches[index] for index in layers))
    yield Part(gpu, "state", sum(states[index] for index in layers))
