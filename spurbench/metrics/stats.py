"""Intervals and spreads for tables."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Interval", "MeanSD", "mean_sd", "wilson"]


class Interval(NamedTuple):
    """Both ends of a confidence interval of a proportion, 0..1."""

    low: float
    high: float


class MeanSD(NamedTuple):
    """Mean and sample standard deviation (n - 1 in the denominator)."""

    mean: float | None
    """None without values."""
    sd: float | None
    """None for fewer than two values."""


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of correct / n (J. Amer. Statist. Assoc. 22, 1927), without continuity correction.

    It says how far a test set of n samples pins an accuracy down, not how much runs differ.

    Raises:
        ValueError: n below 1, or correct outside 0..n, or level outside 0..1.
    """
    from scipy.stats import binomtest  # Imported here: it takes most of a second.

    if n < 1:
        raise ValueError(f"an interval needs at least one sample, got n = {n}")
    interval = binomtest(correct, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(float(interval.low), float(interval.high))


def mean_sd(values: Sequence[float]) -> MeanSD:
    """Mean and spread of a metric over seeds."""
    mean = statistics.fmean(values) if values else None
    return MeanSD(mean, statistics.stdev(values) if len(values) > 1 else None)
