"""Sizes, durations and counts as text."""

from __future__ import annotations

import pytest

from rocllm.units import format_bytes, format_count, format_seconds


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
