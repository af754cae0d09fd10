"""Sizes and durations to text, for the edges of the program; inside it is bytes and seconds."""

from __future__ import annotations

import re

from rocllm.errors import OptionsError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from a size as people write it: `16GiB`, `16 G`, `512M`, `16GB`, `1024`.

    Memory is counted in powers of 1024: only a unit that is written `GB` means a power of 1000.

    Raises `OptionsError` for anything else.

    >>> parse_size("16GiB"), parse_size("1.5G"), parse_size("16GB")
    (17179869184, 1610612736, 16000000000)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise OptionsError(f"{text!r} is no size", remedy="write it as 16GiB or 512MiB")
    number, prefix, binary = match.groups()
    decimal = text.strip().lower().endswith("b") and not binary
    base = 1000 if decimal and prefix else 1024
    factor: int = base ** " kmgt".index(prefix.lower() or " ")
    return round(float(number) * factor)


def format_bytes(size: int) -> str:
    """A size in bytes as people write it: `12.0 GiB`, `512 MiB`, `17 B`.

    >>> format_bytes(12868124672)
    '12.0 GiB'
    """
    value = float(size)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration in seconds as people write it: `14 ms`, `2.35 s`, `3 min 20 s`.

    >>> format_seconds(0.0142)
    '14 ms'
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def format_count(count: int) -> str:
    """A large count in short form, as model cards write it: `134.5M`, `7.2B`, `960`.

    >>> format_count(134515008)
    '134.5M'
    """
    for limit, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{suffix}"
    return str(count)
