"""How often 95 % intervals hold the truth: simulated test sets and seeds whose true accuracies are known.

    python benchmarks/coverage.py --json benchmarks/results/coverage.json

A prediction is right where z(group) + seed + image + noise > 0, all normal: a seed moves all images of a group alike
(s.d. ``seed_sd``), an image is as hard for every seed (s.d. ``image_sd``, and 0.8 correlated between two methods), and
image and noise have variance 1 together, so that the accuracy of a seed on all images there are is
Phi(z(group) + seed). Four groups of 250 test images, as in minibirds.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
from scipy.stats import norm

from spurbench.io import write_json
from spurbench.metrics.stats import (
    STATISTICS,
    Estimate,
    crossed_bootstrap,
    hierarchical_bootstrap,
    image_weights,
    t_interval,
    wilson,
)
from spurbench.rng import seed_for

Floats = npt.NDArray[np.float64]
PER_GROUP = 250
SEEDS = (2, 3, 4, 5, 6, 8, 10)
WGA = STATISTICS["worst_group_accuracy"]


@dataclass(frozen=True)
class Side:
    """A method: accuracy per group of its median seed, and how much seeds and images differ (see above)."""

    accuracies: tuple[float, ...]
    seed_sd: float
    image_sd: float


BASELINE = Side((0.93, 0.80, 0.78, 0.95), seed_sd=0.2, image_sd=0.8)
STABLE = Side((0.995, 0.973, 0.980, 0.999), seed_sd=0.05, image_sd=0.95)
PAIRS = {
    "two baselines that are equal": (BASELINE, BASELINE),
    "a stable method and a baseline": (STABLE, BASELINE),
    "two stable methods": (STABLE, Side((0.99, 0.965, 0.975, 0.998), seed_sd=0.05, image_sd=0.95)),
    "seeds differ widely": (
        Side((0.95, 0.80, 0.88, 0.97), seed_sd=0.35, image_sd=0.5),
        Side((0.97, 0.60, 0.75, 0.98), seed_sd=0.35, image_sd=0.5),
    ),
}
"""Spreads of the first three are those of ERM and AIM on minibirds: s.d. over seeds 5 and 0.4 points of a group's
accuracy, correlation of an image's predictions between seeds 0.5 and 0.8."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="simulated experiments (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=1000, help="of each bootstrap (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    options = parser.parse_args()
    started = time.monotonic()
    document: dict[str, Any] = {
        "nominal": 0.95,
        "wilson": wilson_coverage(),
        "t_over_seeds": [t_coverage(name, side) for name, side in (("baseline", BASELINE), ("stable", STABLE))],
        "bootstrap": [
            bootstrap_coverage(name, *sides, options.repeats, options.resamples) for name, sides in PAIRS.items()
        ],
    }
    document["alone"] = [
        alone_coverage(name, side, options.repeats, options.resamples)
        for name, side in (
            ("baseline", BASELINE),
            ("stable", STABLE),
            ("seeds differ widely", PAIRS["seeds differ widely"][0]),
        )
    ]
    document["least_seeds"] = {name: least_seeds(document["bootstrap"], name) for name in METHODS}
    document["settings"] = {"repeats": options.repeats, "resamples": options.resamples, "per_group": PER_GROUP}
    document["seconds"] = round(time.monotonic() - started)
    document["versions"] = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    if options.json:
        write_json(options.json, document)
    print(markdown(document))


def wilson_coverage(draws: int = 100_000) -> list[dict[str, Any]]:
    """Of a fixed group: counts drawn at a known accuracy. One line per size: all accuracies, and their range."""
    lines = []
    for n in (PER_GROUP, 642, 2255):  # minibirds; WaterBirds' smaller and larger groups of the test split
        ends = np.array([wilson(correct, n) for correct in range(n + 1)])
        covered = {}
        for accuracy in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
            counts = stream("wilson", n, accuracy).binomial(n, accuracy, draws)
            covered[str(accuracy)] = float(((ends[counts, 0] <= accuracy) & (accuracy <= ends[counts, 1])).mean())
        lines.append({"n": n, "coverage": covered, "lowest": min(covered.values()), "highest": max(covered.values())})
    return lines


def t_coverage(name: str, side: Side, test_sets: int = 8, draws: int = 1000, pool: int = 8000) -> dict[str, Any]:
    """Of WGA over seeds on a fixed test set, where the truth is the mean over very many seeds."""
    hits = dict.fromkeys(SEEDS, 0)
    for test_set in range(test_sets):
        rng = stream("t", name, test_set)
        images = rng.normal(size=(1, images_of(side))) * side.image_sd
        values = np.concatenate([worst(predictions(side, images, 1000, rng), side) for _ in range(pool // 1000)])
        truth = values.mean()
        for n in SEEDS:
            chosen = values[rng.integers(0, pool, (draws, n))]
            hits[n] += sum(holds(t_interval(row), truth) for row in chosen.tolist())
    coverage = {str(n): count / (test_sets * draws) for n, count in hits.items()}
    return {"name": name, "coverage": coverage, "lowest": min(coverage.values()), "highest": max(coverage.values())}


METHODS = ("crossed", "hierarchical")


def bootstrap_coverage(name: str, a: Side, b: Side, repeats: int, resamples: int) -> dict[str, Any]:
    """Of the difference in WGA, averaged over seeds, for other seeds and other images; Student's t for contrast."""
    hits = {method: dict.fromkeys(SEEDS, 0.0) for method in (*METHODS, "t_over_seeds")}
    width = {method: dict.fromkeys(SEEDS, 0.0) for method in hits}
    truth = true_wga(a) - true_wga(b)
    group = np.repeat(np.arange(len(a.accuracies)), PER_GROUP)
    rng = stream("bootstrap", name)
    weights = image_weights(group, rng, resamples)
    for _ in range(repeats):
        shared = rng.normal(size=(1, images_of(a)))
        own = [0.8 * shared + 0.6 * rng.normal(size=shared.shape) for _ in range(2)]
        right = [
            predictions(side, side.image_sd * images, max(SEEDS), rng) for side, images in zip((a, b), own, strict=True)
        ]
        differences = worst(right[0], a) - worst(right[1], b)
        for n in SEEDS:
            ours, theirs = right[0][:n], right[1][:n]
            found = {
                "crossed": crossed_bootstrap(ours, group, WGA, weights, minus_SN=theirs),
                "hierarchical": hierarchical_bootstrap(ours, group, WGA, weights, rng, minus_SN=theirs),
                "t_over_seeds": t_interval(differences[:n].tolist()),
            }
            for method, estimate in found.items():
                hits[method][n] += holds(estimate, truth)
                width[method][n] += estimate.high - estimate.low

    def shares(lines: dict[str, dict[int, float]]) -> dict[str, dict[str, float]]:
        return {method: {str(n): round(x / repeats, 5) for n, x in line.items()} for method, line in lines.items()}

    return {
        "name": name,
        "sides": [asdict(a), asdict(b)],
        "true_difference": truth,
        "coverage": shares(hits),
        "mean_width": shares(width),
    }


def alone_coverage(name: str, side: Side, repeats: int, resamples: int) -> dict[str, Any]:
    """Of one method's mean WGA for other seeds and other images, as ``leaderboard --intervals images`` prints it."""
    hits = {method: dict.fromkeys(SEEDS, 0) for method in ("crossed", "t_over_seeds")}
    truth = true_wga(side)
    group = np.repeat(np.arange(len(side.accuracies)), PER_GROUP)
    rng = stream("alone", name)
    weights = image_weights(group, rng, resamples)
    for _ in range(repeats):
        images = rng.normal(size=(1, images_of(side))) * side.image_sd
        right = predictions(side, images, max(SEEDS), rng)
        values = worst(right, side)
        for n in SEEDS:
            hits["crossed"][n] += holds(crossed_bootstrap(right[:n], group, WGA, weights), truth)
            hits["t_over_seeds"][n] += holds(t_interval(values[:n].tolist()), truth)
    coverage = {method: {str(n): round(x / repeats, 5) for n, x in line.items()} for method, line in hits.items()}
    return {"name": name, "side": asdict(side), "true_wga": truth, "coverage": coverage}


def least_seeds(lines: Sequence[dict[str, Any]], method: str) -> int | None:
    """The smallest number of seeds from which on the coverage is 93 % or more in all settings that were tried."""
    enough = None
    for n in reversed(SEEDS):
        if any(line["coverage"][method][str(n)] < 0.93 for line in lines):
            break
        enough = n
    return enough


def predictions(side: Side, images: Floats, seeds: int, rng: np.random.Generator) -> Floats:
    """1 where a prediction is right, [seeds, N]."""
    z = norm.ppf(side.accuracies)
    level = np.repeat(z + side.seed_sd * rng.normal(size=(seeds, len(z))), PER_GROUP, axis=1)
    noise = math.sqrt(1 - side.image_sd**2) * rng.normal(size=level.shape)
    return (level + images + noise > 0).astype(np.float64)


def worst(right: Floats, side: Side) -> Floats:
    """WGA per seed."""
    return right.reshape(len(right), len(side.accuracies), PER_GROUP).mean(axis=2).min(axis=1)


def true_wga(side: Side, draws: int = 400_000) -> float:
    """Mean over seeds of the worst group's accuracy on all images there are."""
    z = norm.ppf(side.accuracies)
    rng = stream("truth")  # common draws: equal sides differ by exactly 0
    return float(norm.cdf(z + side.seed_sd * rng.normal(size=(draws, len(z)))).min(axis=1).mean())


def images_of(side: Side) -> int:
    return PER_GROUP * len(side.accuracies)


def holds(estimate: Estimate, truth: float) -> bool:
    return bool(estimate.low <= truth <= estimate.high)


def stream(*name: str | float) -> np.random.Generator:
    return np.random.default_rng(seed_for(0, "coverage", *map(str, name)))


def markdown(document: dict[str, Any]) -> str:
    """Tables for the README, in percent."""
    lines = ["| interval | setting | " + " | ".join(f"n = {n}" for n in SEEDS) + " |", "|---" * (2 + len(SEEDS)) + "|"]
    titles = {
        "crossed": "`crossed_bootstrap`, printed by `compare`",
        "hierarchical": "`hierarchical_bootstrap`, percentiles",
        "t_over_seeds": "`t_interval`, though other test images are asked about too",
    }
    for line in document["t_over_seeds"]:
        lines.append(f"| `t_interval`, of a fixed test set | {line['name']} | {row(line['coverage'])} |")
    for method, title in titles.items():
        lines += [f"| {title} | {line['name']} | {row(line['coverage'][method])} |" for line in document["bootstrap"]]
    for method, title in (
        ("crossed", "`crossed_bootstrap` of one method"),
        ("t_over_seeds", "`t_interval` of one method"),
    ):
        lines += [f"| {title} | {line['name']} | {row(line['coverage'][method])} |" for line in document["alone"]]
    lines.append("")
    for line in document["wilson"]:
        lines.append(f"Wilson, n = {line['n']}: {100 * line['lowest']:.1f} to {100 * line['highest']:.1f} %")
    lines.append(f"enough seeds: {json.dumps(document['least_seeds'])}")
    return "\n".join(lines)


def row(coverage: dict[str, float]) -> str:
    return " | ".join(f"{100 * coverage[str(n)]:.1f}" for n in SEEDS)


if __name__ == "__main__":
    main()
