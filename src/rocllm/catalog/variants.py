"""Which files of a repository make up a model, and which quantisation to take. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rocllm.catalog.names import (
    SUFFIX,
    is_companion,
    is_quantization,
    label,
    last_quantization,
    parse_name,
    rank,
)
from rocllm.errors import DoesNotFit, ModelNotFound
from rocllm.units import format_bytes

_MMPROJ_PREFERENCE = ("F16", "BF16", "Q8_0", "F32")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository. path: in it, with `/`. size: in bytes. sha256: `None`: not known."""

    path: str
    size: int
    sha256: str | None = None

    @property
    def is_safe(self) -> bool:
        """The path stays below the folder that it is put into, and the hash is one."""
        return (
            not {"..", ".", ""} & set(self.path.split("/"))
            and self.path.isprintable()
            and (self.sha256 is None or _SHA256.fullmatch(self.sha256) is not None)
        )


@dataclass(frozen=True, slots=True)
class Variant:
    """A model in one quantisation: all its files, in order. quantization: `None`: not known."""

    quantization: str | None
    files: tuple[RepoFile, ...]

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def label(self) -> str:
        """How a person tells it from the others."""
        return self.quantization or self.files[0].path

    def __str__(self) -> str:
        return f"{self.label} ({format_bytes(self.size)})"


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits. words: how it would run, or what it lacks."""

    fits: bool
    words: str


def list_variants(files: Iterable[RepoFile]) -> tuple[Variant, ...]:
    """The models among the files of a repository, the best quantisation first.

    A model of which parts are missing is none. Where the file's name has no quantisation, that of
    its folder counts.
    """
    models: dict[tuple[PurePosixPath, str, int], dict[int, RepoFile]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.name.lower().endswith(SUFFIX) and not is_companion(path.name):
            name = parse_name(path.name)
            models.setdefault((path.parent, name.stem, name.parts), {})[name.part] = file
    variants = [
        Variant(_quantization(parts[1].path), tuple(parts[number] for number in sorted(parts)))
        for (_, _, count), parts in models.items()
        if len(parts) == count
    ]
    return tuple(sorted(variants, key=lambda v: (rank(v.quantization), -v.size, v.files[0].path)))


def _quantization(path: str) -> str | None:
    found = parse_name(path.rpartition("/")[2]).quantization
    if found is None and (of_folder := last_quantization(path)):
        found = label(of_folder[0])
    return found


def choose_variant(
    repo: str,
    variants: Sequence[Variant],
    wanted: str | None,
    judge: Callable[[Variant], Fit],
    device: str,
) -> tuple[Variant, str | None]:
    """The variant to fetch, and the reason in one line, if it was not the user who chose.

    repo: its name, for messages. variants: the best first.
    wanted: a quantisation, or the path of a file in the repository.
    judge: whether one fits into the device. device: what to call it.

    With none wanted, it is the first that fits.

    Raises `ModelNotFound` (no such variant) and `DoesNotFit` (not even the smallest fits).
    """
    if wanted is not None:
        return _wanted(repo, variants, wanted), None
    if not variants:
        raise ModelNotFound(
            f"there is no GGUF model in {repo}",
            remedy="look for a repository …-GGUF of that model; safetensors run with "
            f"backend='vllm', after `hf download {repo}`",
        )
    which = "the only one, which" if len(variants) == 1 else f"the best of {len(variants)} that"
    for variant in variants:
        found = judge(variant)
        if found.fits:
            return variant, f"taking {variant}, {which} fits into {device} {found.words}"
    smallest = min(variants, key=lambda variant: variant.size)
    raise DoesNotFit(
        f"no quantisation of {repo} fits into {device}",
        why=f"the smallest, {smallest}, does not: {judge(smallest).words}",
        remedy="take a smaller model, or fetch it all the same: "
        f"rocllm pull hf:{repo}:{smallest.label}",
    )


def _wanted(repo: str, variants: Sequence[Variant], wanted: str) -> Variant:
    for variant in variants:
        if wanted in (file.path for file in variant.files):
            return variant
    exact = [v for v in variants if v.quantization and label(wanted) == v.quantization]
    found = exact or [v for v in variants if is_quantization(wanted, v.quantization)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelNotFound(
            f"several files of {repo} are quantised as {wanted}",
            why=", ".join(variant.files[0].path for variant in found),
            remedy=f"name the file: rocllm pull hf:{repo}/{found[0].files[0].path}",
        )
    labels = [variant.label for variant in variants]
    lower = {known.lower(): known for known in labels}
    near = difflib.get_close_matches(wanted.lower(), lower, n=1)
    raise ModelNotFound(
        f"there is no {wanted!r} in {repo}",
        why=f"there are: {', '.join(map(str, variants)) or 'no GGUF models'}",
        remedy=f"did you mean {lower[near[0]]!r}?" if near else "take one of these",
    )


def choose_mmproj(files: Iterable[RepoFile], variant: Variant) -> RepoFile | None:
    """The projector to fetch with a model: in the nearest folder, at 16 bits where there is one."""
    projectors = [
        file
        for file in files
        if file.path.lower().endswith(SUFFIX) and "mmproj" in file.path.rpartition("/")[2].lower()
    ]
    folder = PurePosixPath(variant.files[0].path).parent
    above = [p for p in projectors if folder.is_relative_to(PurePosixPath(p.path).parent)]
    return min(above, key=lambda p: (-p.path.count("/"), mmproj_rank(p.path), p.path), default=None)


def mmproj_rank(path: str) -> int:
    """The place of a projector among others of the same model, the best first.

    llama.cpp computes with them at 16 bits: more is of no use.
    """
    quantization = parse_name(path.rpartition("/")[2]).quantization
    if quantization in _MMPROJ_PREFERENCE:
        return _MMPROJ_PREFERENCE.index(quantization)
    return len(_MMPROJ_PREFERENCE)
