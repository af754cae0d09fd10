"""Median and spread. Pure.

The spread is the median absolute deviation: half of the samples are within it around the median. It
is given as it is, not scaled to a standard deviation. Measurements on a machine that does other
things have outliers on one side; one of five moves neither the median nor this spread, while
quartiles of five samples are the second and the fourth of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """What samples say together.

    n: how many. median, mad: in the samples' unit; mad: their median absolute deviation.
    """

    n: int
    median: float
    mad: float


def summarize(samples: Sequence[float]) -> Summary | None:
    """Median and spread of samples; `None` without any.

    >>> summarize([1.0, 2.0, 9.0])
    Summary(n=3, median=2.0, mad=1.0)
    """
    if not samples:
        return None
    median = statistics.median(samples)
    mad = statistics.median(abs(value - median) for value in samples)
    return Summary(len(samples), median, mad)


def pooled(first: Summary, second: Summary) -> float:
    """The spread of two sets of samples together: the quadratic mean of theirs."""
    return math.hypot(first.mad, second.mad) / math.sqrt(2)
