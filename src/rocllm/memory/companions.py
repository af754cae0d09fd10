"""What is loaded beside a model: a draft model that guesses ahead, a projector for images or sound.

A draft model is planned like any other, with the target's context and slots
(`common_base_params_to_speculative` in common/speculative.cpp of llama.cpp b11434). A projector is
on the first GPU, or in host memory (tools/mtmd/clip.cpp).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from rocllm.errors import OptionsError
from rocllm.gguf import GGUFFile, model_info, read_gguf, read_splits
from rocllm.memory.layers import Shape, shape_of
from rocllm.memory.settings import Settings
from rocllm.options import LoadOptions

# Tokens that a draft model guesses for each slot before the target checks them: llama.cpp's own
# default (`--spec-draft-n-max`).
DRAFT_N_MAX = 3
# Heads that guess from the target's own state. They are no models, and are planned differently.
_HEADS = frozenset({"dflash", "eagle3"})
_TOKENS = "tokenizer.ggml.tokens"
# What llama.cpp lets differ (common/speculative.cpp): tokens at the end, and the first few, which
# are control tokens.
_MOST_TOKENS_MORE, _FIRST_COMPARED = 128, 5

# Projectors for images of one size, whose compute buffers were compared with llama.cpp's. The
# others are warmed up with up to 46 × 46 tokens of 2 × 2 patches, whatever the image.
_FIXED_SIZE = frozenset({"gemma3", "idefics3", "mlp"})
_MOST_PATCHES = (2 * 46) ** 2
# Positions of 30 s of sound, two frames of 10 ms each.
_SOUND_POSITIONS = 1500


@dataclass(frozen=True, slots=True)
class Encoder:
    """A part of a projector as its compute buffer depends on it.

    positions: patches of an image, or frames of sound, all computed at once. summary: there is one
    more position, for the whole image. input_size: bytes of the pixels of an image.
    """

    input_size: int
    positions: int
    summary: bool
    embedding_length: int
    feed_forward_length: int
    head_count: int


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector (mmproj). weights: in bytes. checked: llama.cpp lays it out as it is computed."""

    weights: int
    encoders: tuple[Encoder, ...]
    checked: bool

    @property
    def input_size(self) -> int:
        """Bytes of what it is given, which is prepared in host memory."""
        return max((one.input_size for one in self.encoders), default=0)

    def compute_size(self, *, flash_attn: bool) -> int:
        """Bytes of its compute buffer: as much as the largest step of an encoder needs."""
        return max((_encoder_size(one, flash_attn) for one in self.encoders), default=0)


@dataclass(frozen=True, slots=True)
class Companions:
    """What is loaded beside a model. files: path, size and time of change of each, in one text."""

    draft: Shape | None = None
    projector: Projector | None = None
    files: tuple[str, ...] = ()


NO_COMPANIONS = Companions()


def read_companions(options: LoadOptions, model: Path) -> Companions:
    """What `options` want beside the model of which `model` is the file.

    Raises what `rocllm.gguf` raises for the files, and `OptionsError` for a file of another kind
    and for a draft model with another vocabulary, which llama.cpp would load and then not use.
    """
    draft = projector = None
    if options.model_draft is not None:
        draft = _read_draft(Path(options.model_draft), model)
    if options.mmproj is not None:
        projector = projector_of(read_gguf(options.mmproj))
    files = [path for path in (options.model_draft, options.mmproj) if path is not None]
    return Companions(draft, projector, tuple(map(_identity, files)))


def draft_settings(settings: Settings, draft: Shape) -> Settings:
    """How the draft model of a model is loaded that is loaded with `settings`."""
    layers = settings.n_gpu_layers_draft
    every = draft.info.block_count + 1
    on_gpu = every if layers < 0 else min(layers, every)
    return replace(
        settings,
        n_gpu_layers=layers,
        split=_same_shares(settings.split, on_gpu),
        cache_type_k="f16",
        cache_type_v="f16",
        draft_n_max=0,
    )


def projector_of(gguf: GGUFFile) -> Projector:
    """What planning needs to know of a projector. Raises `OptionsError` for another kind of file.

    >>> projector_of(read_gguf("mmproj-gemma-3-4b-it-f16.gguf")).checked  # doctest: +SKIP
    True
    """
    if gguf.metadata.get("general.architecture") != "clip":
        raise OptionsError(
            f"{str(gguf.path)!r} is no projector",
            why=f"its architecture is {gguf.metadata.get('general.architecture')!r}, not 'clip'",
            remedy="give the file whose name has mmproj in it, of the same model",
        )
    kinds = [gguf.metadata.get(f"clip.{part}projector_type") for part in ("", "vision.")]
    fixed = not _FIXED_SIZE.isdisjoint(kind for kind in kinds if isinstance(kind, str))
    encoders = []
    if gguf.metadata.get("clip.has_vision_encoder"):
        side = _number(gguf, "vision.image_size") // max(1, _number(gguf, "vision.patch_size"))
        patches = side * side if fixed else max(side * side, _MOST_PATCHES)
        encoders.append(_encoder(gguf, "vision", patches))
    if gguf.metadata.get("clip.has_audio_encoder"):
        encoders.append(_encoder(gguf, "audio", _SOUND_POSITIONS))
    weights = sum(
        tensor.n_elements if tensor.n_bytes is None else tensor.n_bytes for tensor in gguf.tensors
    )
    return Projector(weights, tuple(encoders), fixed and len(encoders) == 1)


def _encoder(gguf: GGUFFile, part: str, positions: int) -> Encoder:
    names = ("embedding_length", "feed_forward_length", "attention.head_count")
    summary = part == "vision" and any(one.name == "v.class_embd" for one in gguf.tensors)
    pixels = _number(gguf, "vision.image_size") ** 2 if part == "vision" else 0
    return Encoder(
        12 * pixels, positions, summary, *(_number(gguf, f"{part}.{name}") for name in names)
    )


def _encoder_size(one: Encoder, flash_attn: bool) -> int:
    """In a feed-forward step, or while every head's score of every position is kept.

    Found by loading projectors of real widths with b11434 and b11549; docs/memory.md.
    """
    positions = one.positions + one.summary
    widths = [(3 + one.summary) * one.embedding_length + one.feed_forward_length]
    if not flash_attn:
        widths.append(6 * one.embedding_length + one.head_count * positions)
    return 4 * positions * max(widths)


def _number(gguf: GGUFFile, key: str) -> int:
    value = gguf.metadata.get(f"clip.{key}")
    return value if isinstance(value, int) else 0


def _read_draft(path: Path, model: Path) -> Shape:
    parts, target = read_splits(path, arrays=[_TOKENS]), read_gguf(model, arrays=[_TOKENS])
    info = model_info(*parts)
    if info.architecture in _HEADS or info.nextn_predict_layers >= info.block_count:
        raise OptionsError(
            f"model_draft={str(path)!r} is no model by itself",
            why=f"it is a head ({info.architecture}) that guesses from the model's own state",
            remedy="give a small model of the same family",
        )
    tokens, others = (gguf.metadata.get(_TOKENS) for gguf in (parts[0], target))
    if isinstance(tokens, tuple) and isinstance(others, tuple) and not _alike(tokens, others):
        raise OptionsError(
            f"model_draft={str(path)!r} has another vocabulary than {str(model)!r}",
            why="llama.cpp would load it and then not use it",
            remedy="give a small model of the same family",
        )
    return shape_of(info)


def _alike(tokens: tuple[object, ...], others: tuple[object, ...]) -> bool:
    shorter = min(len(tokens), len(others))
    return (
        abs(len(tokens) - len(others)) <= _MOST_TOKENS_MORE
        and tokens[_FIRST_COMPARED:shorter] == others[_FIRST_COMPARED:shorter]
    )


def _same_shares(split: tuple[int, ...], count: int) -> tuple[int, ...]:
    """`count` layers dealt out as `split` says, as llama.cpp does with `--tensor-split`.

    >>> _same_shares((20, 10), 9)
    (6, 3)
    """
    if not any(split):  # the model itself is on no GPU
        split = (1,) * len(split)
    shares = [part / sum(split) for part in accumulate(split)]
    counts = [0] * len(split)
    for index in range(count if split else 0):
        counts[min(bisect_right(shares, index / count), len(split) - 1)] += 1
    return tuple(counts)


def _identity(path: str | os.PathLike[str]) -> str:
    status = os.stat(path)
    return f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}"
