"""Intervals and spreads against published values, the formula, and NumPy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spurbench.metrics.group import accuracy, group_counts, group_mean_accuracy, worst_group
from spurbench.metrics.stats import (
    STATISTICS,
    Estimate,
    crossed_bootstrap,
    hierarchical_bootstrap,
    holm,
    image_weights,
    mean_sd,
    sign_flip,
    t_interval,
    wilson,
)


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


# --- Student's t, sign flips and Holm against scipy and closed forms ---


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10).filter(lambda values: np.std(values) > 1e-6))
def test_t_interval_matches_scipy(values: list[float]) -> None:
    result = scipy.stats.ttest_1samp(values, 0.0)
    interval = result.confidence_interval(0.9)
    assert t_interval(values, level=0.9) == pytest.approx((np.mean(values), *interval, result.pvalue), abs=1e-9)


def test_t_interval_of_seeds_that_agree_and_of_one_seed() -> None:
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 0.25)  # not p = 0: it is the p of the sign test
    assert t_interval([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    assert t_interval([0.3]) == (0.3, -math.inf, math.inf, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_t_interval_refuses_impossible_levels(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_interval([0.1, 0.2], level=level)


@settings(max_examples=25)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_sign_flip_matches_scipy(values: list[float]) -> None:
    rounded = [round(value, 3) for value in values]
    result = scipy.stats.permutation_test((rounded,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(rounded) == pytest.approx(result.pvalue)


def test_sign_flip_of_six_equal_signs_is_its_smallest_p() -> None:
    assert sign_flip([0.1, 0.2, 0.3, 0.1, 0.4, 0.2]) == 2 / 2**6
    with pytest.raises(ValueError, match="1 to 20"):
        sign_flip([0.1] * 21)


def test_holm_of_a_worked_example() -> None:
    # Holm 1979 steps down: 4 * 0.005, 3 * 0.01, 2 * 0.03, then the maximum so far; 0.04 * 1 is below it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float], level: float) -> None:
    rejected = [False] * len(values)
    for rank, index in enumerate(np.argsort(values, kind="stable")):
        if (len(values) - rank) * values[index] > level:
            break
        rejected[index] = True
    assert [value <= level for value in holm(values)] == rejected


# --- bootstraps ---


def two_sides(seeds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correctness of two methods that share hard images, and the groups of 400 images."""
    rng = np.random.default_rng(seed)
    group = np.repeat([0, 1, 4], (100, 200, 100))
    hard = rng.normal(size=len(group)) - np.repeat([1.5, 1.0, 0.5], (100, 200, 100))
    noise = rng.normal(size=(2, seeds, len(group))) * 0.5 + rng.normal(size=(2, seeds, 1)) * 0.2
    a, b = (hard + noise < 0).astype(float)
    return a, b, group


def weights_of(group: np.ndarray, resamples: int = 400, seed: int = 0) -> Sequence[np.ndarray]:
    return image_weights(group, np.random.default_rng(seed), resamples)


@pytest.mark.parametrize("metric", STATISTICS)
def test_statistics_match_the_definitions_of_result_rows(metric: str) -> None:
    a, _, group = two_sides()
    expected = []
    for right in a:
        counts = group_counts(torch.from_numpy(right > 0), torch.from_numpy(group), 5)
        worst = worst_group(counts)
        assert worst is not None
        mean = {"accuracy": accuracy(counts), "group_mean_accuracy": group_mean_accuracy(counts)}
        expected.append(mean.get(metric, worst.accuracy))
    estimate = crossed_bootstrap(a, group, STATISTICS[metric], weights_of(group))
    assert estimate.value == pytest.approx(np.mean(expected))
    assert estimate.low < estimate.value < estimate.high


def test_image_weights_keep_group_sizes_and_vary_as_a_bootstrap_does() -> None:
    group = np.array([3, 1, 3, 3, 1, 7])
    (weights,) = image_weights(group, np.random.default_rng(0), 20000)
    for number in (1, 3, 7):
        assert set(weights[:, group == number].sum(axis=1)) == {(group == number).sum()}
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.02)
    assert weights[:, 0].var() == pytest.approx(1 - 1 / 3, abs=0.03)  # binomial(3, 1/3)


def test_weights_come_in_blocks_that_fit_in_memory() -> None:
    blocks = image_weights(np.zeros(1_500_000, dtype=int), np.random.default_rng(0), 5)
    assert [len(block) for block in blocks] == [2, 2, 1]


def test_crossed_bootstrap_matches_the_closed_form_for_accuracy() -> None:
    """For a mean, covariances over bootstrapped images are those of the images' values, divided by their number."""
    a, b, _ = two_sides()
    group = np.zeros(a.shape[1], dtype=int)
    difference = a - b
    seeds, images = difference.shape
    between = difference.mean(axis=1).var(ddof=1) / seeds
    covariance = np.cov(difference, ddof=0) / images
    shared = (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1))
    variance = between + max(0.0, shared)
    freedom = (seeds - 1) * (variance / between) ** 2
    expected = scipy.stats.t(freedom, loc=difference.mean(), scale=math.sqrt(variance))
    found = crossed_bootstrap(a, group, STATISTICS["accuracy"], weights_of(group, 20000), minus_SN=b)
    assert found[:3] == pytest.approx((difference.mean(), *expected.interval(0.95)), abs=3e-4)
    reference = 2 * scipy.stats.t(freedom).sf(abs(difference.mean()) / math.sqrt(variance))
    assert found.p == pytest.approx(reference, abs=0.02)


def test_images_that_all_seeds_share_widen_the_interval_and_pairing_narrows_it() -> None:
    rng = np.random.default_rng(3)
    group = np.repeat([0, 1], 100)
    easy = (rng.random(200) < 0.7).astype(float)  # every seed gets the same images right
    flips = rng.random((2, 6, 200)) < 0.02
    a, b = np.abs(easy - flips)
    wga, weights = STATISTICS["worst_group_accuracy"], weights_of(group)
    alone = crossed_bootstrap(a, group, wga, weights)
    over_seeds = t_interval([float(min(x[:100].mean(), x[100:].mean())) for x in a])
    paired = crossed_bootstrap(a, group, wga, weights, minus_SN=b)
    assert alone.high - alone.low > 3 * (over_seeds.high - over_seeds.low)
    assert paired.high - paired.low < (alone.high - alone.low) / 2


@pytest.mark.parametrize("bootstrap", ["crossed", "hierarchical"])
def test_swapping_sides_mirrors_the_estimate_and_equal_sides_give_zero(bootstrap: str) -> None:
    a, b, group = two_sides()
    wga, weights = STATISTICS["worst_group_accuracy"], weights_of(group)

    def run(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
        if bootstrap == "crossed":
            return crossed_bootstrap(ours, group, wga, weights, minus_SN=theirs)
        return hierarchical_bootstrap(ours, group, wga, weights, np.random.default_rng(1), minus_SN=theirs)

    one, other = run(a, b), run(b, a)
    assert one.value != 0
    assert other == pytest.approx((-one.value, -one.high, -one.low, one.p))
    assert run(a, a) == (0.0, 0.0, 0.0, 1.0)


def test_hierarchical_bootstrap_matches_scipy_where_only_seeds_vary() -> None:
    seeds = np.array([0.5, 0.6, 0.8, 0.9, 0.55, 0.7])
    values = np.repeat(seeds[:, None], 50, axis=1)
    group = np.zeros(50, dtype=int)
    found = hierarchical_bootstrap(
        values, group, STATISTICS["accuracy"], weights_of(group, 20000), np.random.default_rng(0)
    )
    expected = scipy.stats.bootstrap((seeds,), np.mean, method="percentile", n_resamples=20000, rng=1)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.006)


def test_hierarchical_bootstrap_tells_a_large_difference_from_none() -> None:
    a, b, group = two_sides()
    wga, weights, rng = STATISTICS["worst_group_accuracy"], weights_of(group), np.random.default_rng(0)
    assert hierarchical_bootstrap(a, group, wga, weights, rng, minus_SN=0.5 * b).p == pytest.approx(2 / 401)
    assert hierarchical_bootstrap(a, group, wga, weights, rng, minus_SN=b).p > 0.05


def test_one_seed_has_no_interval() -> None:
    a, b, group = two_sides(seeds=1)
    found = crossed_bootstrap(a, group, STATISTICS["accuracy"], weights_of(group), minus_SN=b)
    assert found[1:] == (-math.inf, math.inf, 1.0)


def test_bootstrap_refuses_sides_that_do_not_fit() -> None:
    a, b, group = two_sides()
    for values, minus in ((a, b[:3]), (a[:, :5], None), (a[:0], None)):
        with pytest.raises(ValueError, match="expected"):
            crossed_bootstrap(values, group, STATISTICS["accuracy"], weights_of(group), minus_SN=minus)
