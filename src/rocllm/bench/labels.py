"""What tells subjects of one report apart, and what they have in common. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rocllm.bench.report import Subject


@dataclass(frozen=True, slots=True)
class Labels:
    """each: what is special to every subject, in words. common: what they all share."""

    each: tuple[str, ...]
    common: tuple[str, ...]


def label_subjects(subjects: Sequence[Subject]) -> Labels:
    """Short names that differ where the subjects differ.

    >>> label_subjects([on, off]).each  # doctest: +SKIP
    ('flash attention on', 'flash attention off')
    """
    facets = [
        _models(subjects),
        _engines(subjects),
        # Of one that could not be loaded nobody knows the device.
        [", ".join(one.devices) or ("CPU" if one.engine_version else "") for one in subjects],
        [f"flash attention {one.flash_attn}" if one.flash_attn else "" for one in subjects],
        [f"cache {one.cache_type}" if one.cache_type else "" for one in subjects],
    ]
    known = [sorted(set(facet) - {""}) for facet in facets]
    differing = [facet for facet, values in zip(facets, known, strict=True) if len(values) > 1]
    common = [values[0] for values in known if len(values) == 1]
    if not differing and subjects:
        return Labels(tuple(facets[0]), tuple(common[1:]))
    each = tuple(", ".join(filter(None, parts)) for parts in zip(*differing, strict=True))
    return Labels(each, tuple(common))


def _models(subjects: Sequence[Subject]) -> list[str]:
    titles = [one.title for one in subjects]
    # Two files of one name and quantization: conversions by different people.
    same = len(set(titles)) < len({one.file for one in subjects})
    return [one.file.removesuffix(".gguf") for one in subjects] if same else titles


def _engines(subjects: Sequence[Subject]) -> list[str]:
    """What the engine says of itself; where there are several, the names with the builds."""
    if len({one.engine for one in subjects}) == 1:
        return [one.engine_version or "" for one in subjects]
    return [f"{one.engine} {one.build}".strip() for one in subjects]
