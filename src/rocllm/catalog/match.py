"""Which models a name means. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rocllm.catalog.names import SUFFIX, is_quantization, parse_name


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as far as its names go. problem: why it cannot be used."""

    path: Path
    names: tuple[str, ...]
    quantization: str | None
    problem: str | None = None


def match_name(wanted: str, entries: Iterable[Entry]) -> list[Entry]:
    """The models that could be meant, by the first of these rules that finds any.

    The exact name; the same in other letters; a name and a quantisation, `NAME:Q4_K_M`; the
    beginning of a name. A file's name with its suffix is a name as well.
    """
    entries = list(entries)
    wanted = wanted[: -len(SUFFIX)] if wanted.lower().endswith(SUFFIX) else wanted
    for entry in entries:
        if wanted in (*entry.names, entry.path.stem):
            return [entry]
    low = wanted.lower()
    same = [entry for entry in entries if low in map(str.lower, entry.names)]
    base, _, quantization = low.rpartition(":")
    if not same and base:
        same = _of_quantization(base, quantization, entries)
    return same or [e for e in entries if any(n.lower().startswith(low) for n in e.names)]


def _of_quantization(base: str, quantization: str, entries: list[Entry]) -> list[Entry]:
    right = [entry for entry in entries if is_quantization(quantization, entry.quantization)]
    exact = [entry for entry in right if base in _bases(entry)]
    return exact or [e for e in right if any(name.startswith(base) for name in _bases(e))]


def _bases(entry: Entry) -> list[str]:
    """Its names without quantisation or tag."""
    names = [name.lower() for name in entry.names]
    return [*names, *(parse_name(name).base for name in names), *(n.split(":")[0] for n in names)]
