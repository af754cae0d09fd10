"""Sizes, durations and counts as text."""

from __future__ import annotations

import pytest

from rocllm.errors import OptionsError
from rocllm.units import format_bytes, format_count, format_seconds, parse_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (17, "17 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (512 * 1024**2, "512 MiB"),
        (12868124672, "12.0 GiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**4, "5000 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    """A size is written in the largest unit of which there is at least one."""
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0142, "14 ms"),
        (1, "1.00 s"),
        (2.345, "2.35 s"),
        (99.994, "99.99 s"),
        (200, "3 min 20 s"),
        (119.6, "2 min 0 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    """A duration is written in milliseconds, seconds or minutes."""
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (960, "960"),
        (1000, "1.0K"),
        (134515008, "134.5M"),
        (7.2e9, "7.2B"),
        (10**12, "1.0T"),
    ],
)
def test_format_count(count: int, text: str) -> None:
    """A count is written as model cards write it."""
    assert format_count(int(count)) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("17 B", 17),
        ("16GiB", 16 * 1024**3),
        (" 16 G ", 16 * 1024**3),
        ("1.5g", 3 * 1024**3 // 2),
        ("512MiB", 512 * 1024**2),
        ("16GB", 16 * 1000**3),
        ("2TiB", 2 * 1024**4),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    """Powers of 1024, unless the unit says otherwise."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "16XB", "16 GiB free", "٣GiB"])
def test_what_is_no_size(text: str) -> None:
    """It is refused with an example."""
    with pytest.raises(OptionsError, match="is no size"):
        parse_size(text)
