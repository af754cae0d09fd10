"""Median and spread."""

from __future__ import annotations

import pytest

from rocllm.bench.stats import Summary, pooled, summarize


def test_one_outlier_moves_nothing() -> None:
    """Median and deviation of five samples stay where they are, however far one is off."""
    assert summarize([10.0, 11.0, 12.0, 13.0, 14.0]) == Summary(5, 12.0, 1.0)
    assert summarize([10.0, 11.0, 12.0, 13.0, 1e9]) == Summary(5, 12.0, 1.0)


def test_few_samples() -> None:
    """Without samples there is nothing; one has no spread."""
    assert summarize([]) is None
    assert summarize([3.0]) == Summary(1, 3.0, 0.0)


def test_pooled_is_the_quadratic_mean() -> None:
    """Equal spreads stay as they are, and one alone counts for less."""
    one, none = Summary(5, 1.0, 2.0), Summary(5, 1.0, 0.0)
    assert pooled(one, one) == pytest.approx(2.0)
    assert pooled(one, none) == pytest.approx(2.0**0.5)
