"""Intervals, spreads and tests for tables.

How well the intervals keep their promise is measured by ``benchmarks/coverage.py``.

Shape letters: S seeds, N test images, G groups, B resamples.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "RESAMPLES",
    "STATISTICS",
    "Estimate",
    "Interval",
    "MeanSD",
    "Statistic",
    "crossed_bootstrap",
    "hierarchical_bootstrap",
    "holm",
    "image_weights",
    "mean_sd",
    "sign_flip",
    "t_interval",
    "wilson",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer[Any]]
Statistic = Callable[[Floats, Integers], Floats]
"""Means per group [..., G] and images per group [G] to one number each [...]."""

RESAMPLES = 4000
"""Draws of a bootstrap; an interval's ends then move by about 2 % of its width from stream to stream."""

STATISTICS: Mapping[str, Statistic] = {
    "worst_group_accuracy": lambda means, n: means.min(axis=-1),
    "accuracy": lambda means, n: means @ (n / n.sum()),
    "group_mean_accuracy": lambda means, n: means.mean(axis=-1),
}
"""What result rows hold, from means per group, by column."""

_BLOCK = 4_000_000
"""Weights in use at once; as floats 32 MB."""


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the unit of the value: 0..1 for proportions."""

    low: float
    high: float


class MeanSD(NamedTuple):
    """Mean and sample standard deviation (n - 1 in the denominator)."""

    mean: float | None
    """None without values."""
    sd: float | None
    """None for fewer than two values."""


class Estimate(NamedTuple):
    """A mean over seeds, how far it is pinned down, and whether it is 0."""

    value: float
    low: float
    """Of the confidence interval; minus infinity for one seed."""
    high: float
    p: float
    """Two-sided, of "it is 0": below 1 - level where the interval leaves 0 out."""


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
    return MeanSD(mean, math.sqrt(_variance(values)) if len(values) > 1 else None)


def _variance(values: Sequence[float]) -> float:
    """Of a sample, in two passes: within a few roundings of ``statistics.variance``, at a tenth of its time."""
    if min(values) == max(values):  # their mean may be rounded
        return 0.0
    mean = statistics.fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def t_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Student's interval and test of a mean over seeds, or of a mean of paired differences (Biometrika 6, 1908).

    mean ± t_{n-1} s / sqrt(n). It speaks of new seeds on the same test images, not of other images.

    Raises:
        ValueError: no value.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    if len(values) == 1:
        return Estimate(float(values[0]), -math.inf, math.inf, 1.0)
    variance = _variance(values) / len(values)
    return _student(statistics.fmean(values), variance, len(values) - 1, level, len(values))


def crossed_bootstrap(
    values_SN: Floats,
    group_N: Integers,
    statistic: Statistic,
    weights: Sequence[Integers],
    *,
    minus_SN: Floats | None = None,
    level: float = 0.95,
) -> Estimate:
    """Interval of a statistic's mean over seeds, where seeds and test images are both samples of more.

    All seeds are measured on the same images, so what the images add to the variance does not shrink with more
    seeds. This is the two-factor design of Obuchowski and Rockette (Commun. Stat. Simul. Comput. 24, 1995), seeds in
    the part of readers and images in that of cases: with d_s the statistic (or paired difference) of seed s,

        variance = var_s(d_s) / S + max(0, c),   c = mean over s != s' of cov(d_s, d_s') over bootstrapped images,

    and Student's t with the degrees of freedom of Hillis (Stat. Med. 26, 2007),
    (S - 1) variance^2 / (var_s(d_s) / S)^2. Images are drawn with replacement within their groups, the same ones for
    every seed and for both sides; the statistic is computed per seed and then averaged.

    Args:
        values_SN: per seed and image, 1 where the prediction is right; or any other number per image.
        group_N: group of each image; numbers need not be consecutive.
        statistic: one of ``STATISTICS``, or another function of means per group.
        weights: of the resamples, from ``image_weights``.
        minus_SN: the other side of a paired difference, in the same order of seeds and images.

    Raises:
        ValueError: arguments whose shapes do not fit, or without images or seeds.
    """
    observed_S, resampled_BS = _resample(values_SN, group_N, statistic, weights, minus_SN)
    seeds = len(observed_S)
    if seeds == 1:
        return Estimate(float(observed_S[0]), -math.inf, math.inf, 1.0)
    between = float(observed_S.var(ddof=1)) / seeds
    # The sum of all covariances is the variance of the sum.
    total = float(resampled_BS.sum(axis=1).var(ddof=1)) - float(resampled_BS.var(axis=0, ddof=1).sum())
    variance = between + max(0.0, total / (seeds * (seeds - 1)))
    freedom = (seeds - 1) * (variance / between) ** 2 if between > 0 else math.inf
    return _student(float(observed_S.mean()), variance, freedom, level, seeds)


def hierarchical_bootstrap(
    values_SN: Floats,
    group_N: Integers,
    statistic: Statistic,
    weights: Sequence[Integers],
    rng: np.random.Generator,
    *,
    minus_SN: Floats | None = None,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap that draws seeds and test images with replacement (Owen, Ann. Appl. Stat. 1, 2007).

    The textbook's interval, without assumptions on shapes. It is too narrow for few seeds, where drawn seeds vary by
    (S - 1) / S of what new ones would, and too wide where images are what varies; ``benchmarks/README.md`` says by
    how much. Arguments and errors are those of ``crossed_bootstrap``, and ``rng`` draws the seeds. p is twice the
    smaller share of draws beyond 0, counting the observed value as one more draw.
    """
    observed_S, resampled_BS = _resample(values_SN, group_N, statistic, weights, minus_SN)
    chosen = rng.integers(0, len(observed_S), resampled_BS.shape)
    means_B = np.take_along_axis(resampled_BS, chosen, axis=1).mean(axis=1)
    low, high = np.quantile(means_B, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(int((means_B <= 0).sum()), int((means_B >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(means_B) + 1))
    return Estimate(float(observed_S.mean()), float(low), float(high), p)


def image_weights(group_N: Integers, rng: np.random.Generator, resamples: int = RESAMPLES) -> Sequence[Integers]:
    """How often each image is in each resample, as blocks [b, N]; each group keeps its number of images."""
    members = [np.flatnonzero(group_N == group) for group in np.unique(group_N)]
    blocks = []
    for start in range(0, resamples, size := max(1, _BLOCK // max(1, len(group_N)))):
        rows = min(size, resamples - start)
        weights = np.zeros((rows, len(group_N)), dtype=np.uint8)  # one image is hardly ever drawn ten times
        for images in members:
            n = len(images)
            drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
            weights[:, images] = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        blocks.append(weights)
    return blocks


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of Fisher's randomization test for a mean of paired differences (The Design of Experiments, 1935).

    The share of all 2^n patterns of signs whose mean is as far from 0 as the observed one. It assumes symmetry only,
    and cannot go below 2 / 2^n: 0.031 for six seeds.

    Raises:
        ValueError: no value, or more than 20, for which there are too many patterns.
    """
    n = len(differences)
    if not 1 <= n <= 20:
        raise ValueError(f"the exact test takes 1 to 20 differences, got {n}")
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    sums = np.abs(signs @ np.asarray(differences, dtype=np.float64))
    observed = abs(math.fsum(differences))
    return float((sums >= observed - 1e-12 * max(1.0, observed)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that all can be read against one level (Holm, Scand. J. Stat. 6, 1979).

    The k-th smallest of m becomes max over j <= k of min(1, (m - j + 1) p_(j)); order is kept.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _student(mean: float, variance: float, freedom: float, level: float, n: int) -> Estimate:
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level lies between 0 and 1, got {level}")
    if variance <= 0:  # without any spread t says p = 0, after two values too
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 2.0 ** (1 - n))
    error, upper = math.sqrt(variance), (1 + level) / 2
    normal = math.isinf(freedom)
    half = float(ndtri(upper) if normal else stdtrit(freedom, upper)) * error
    p = 2 * float(ndtr(-abs(mean) / error) if normal else stdtr(freedom, -abs(mean) / error))
    return Estimate(mean, mean - half, mean + half, p)


def _resample(
    values_SN: Floats,
    group_N: Integers,
    statistic: Statistic,
    weights: Sequence[Integers],
    minus_SN: Floats | None,
) -> tuple[Floats, Floats]:
    """The statistic (or difference) per seed, [S], and per resample of images and seed, [B, S]."""
    values_SN = np.asarray(values_SN, dtype=np.float64)
    sides = [values_SN] if minus_SN is None else [values_SN, np.asarray(minus_SN, dtype=np.float64)]
    if values_SN.ndim != 2 or not values_SN.size or any(side.shape != (len(values_SN), len(group_N)) for side in sides):
        shapes = " and ".join(str(side.shape) for side in sides)
        raise ValueError(f"expected [seeds, {len(group_N)} images] with at least one of each, got {shapes}")
    numbers, group_N = np.unique(group_N, return_inverse=True)
    n_G = np.bincount(group_N)
    stacked_RN = np.concatenate(sides)

    def per_seed(weights_BN: Integers) -> Floats:
        means_BRG = np.empty((len(weights_BN), len(stacked_RN), len(numbers)))
        for group in range(len(numbers)):
            images = group_N == group
            means_BRG[:, :, group] = weights_BN[:, images].astype(np.float64) @ stacked_RN[:, images].T / n_G[group]
        found_BR = statistic(means_BRG, n_G)
        seeds = len(values_SN)
        return found_BR if minus_SN is None else found_BR[:, :seeds] - found_BR[:, seeds:]

    observed_S = per_seed(np.ones((1, len(group_N)), dtype=np.uint8))[0]
    return observed_S, np.concatenate([per_seed(block) for block in weights])
