"""Intervals and spreads against published values, the formula, and NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spurbench.metrics.stats import mean_sd, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_intervals(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000), st.floats(0, 1))
def test_wilson_matches_the_formula(n: int, share: float) -> None:
    correct = round(share * n)
    p, z = correct / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    interval = wilson(correct, n)
    assert interval == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert 0 <= interval.low <= p <= interval.high <= 1


def test_wilson_level_widens_the_interval() -> None:
    narrow, wide = wilson(50, 60, level=0.8), wilson(50, 60, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        wilson(correct, n)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_mean_sd_matches_numpy(values: list[float]) -> None:
    assert mean_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-12)


def test_mean_sd_of_few_values() -> None:
    assert mean_sd([0.5]) == (0.5, None)
    assert mean_sd([]) == (None, None)
