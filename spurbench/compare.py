"""Is one better than the other? Differences of paired runs, how sure they are, and what is worse."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from spurbench.metrics.stats import STATISTICS, Estimate, crossed_bootstrap, holm, image_weights, sign_flip, t_interval
from spurbench.pairing import ABSENT, PLACE, Pair, Setting, SideName, Unpaired, labels_of
from spurbench.predictions import ImageValues, Unusable, align, read_values

__all__ = ["ENOUGH_SEEDS", "METRICS", "Comparison", "Metric", "compare", "undecided", "worse"]

Metric = Literal["worst_group_accuracy", "accuracy", "group_mean_accuracy", "epg"]
METRICS: tuple[Metric, ...] = get_args(Metric)

ENOUGH_SEEDS = 4
"""From so many paired seeds on, the 95 % interval was measured to hold the truth 93 % of the time or more, whatever
differs: ``least_seeds`` of ``benchmarks/results/coverage.json``. Below it is too narrow, and no p is given."""


@dataclass(slots=True)
class Comparison:
    """A - B of one metric. Fractions, 0..1; above 0 A is better."""

    a: str
    b: str
    """Labels, with the options in which settings of one label differ."""
    place: dict[str, str | None]
    """Dataset, version, fingerprint, backbone, weights."""
    seeds: list[int]
    values_a: list[float]
    """Per seed."""
    values_b: list[float]
    difference: float
    low: float | None
    """95 % interval; None for a single seed."""
    high: float | None
    p: float | None
    """Two-sided, of "there is no difference"; None with too few seeds."""
    enough_seeds: bool
    num_images: int | None
    """Paired test images; None where there are no predictions: the interval then speaks of these images only."""
    images_left_out: int = 0
    epg_source: str | None = None
    """Map and region, such as ``gradcam/mask``, which both sides have."""
    p_sign_flip: float | None = None
    """Of the seeds' signs alone: assumes no shape, but six seeds cannot bring it below 0.031."""
    p_holm: float | None = None
    """Adjusted for all comparisons of the call."""
    config_diff: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    code_diff: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(pairs: Sequence[Pair], metric: Metric) -> tuple[list[Comparison], list[Unpaired]]:
    """The difference of every pair, over the seeds that both sides have, and the runs that had no partner.

    With predictions of all runs, seeds and test images are both paired and both count as samples
    (``crossed_bootstrap``); without, Student's t over seeds says nothing about other test images. Holm's adjustment is
    over all pairs that have enough seeds.
    """
    labels = labels_of([pair.a for pair in pairs]) | labels_of([pair.b for pair in pairs])
    reader = _Reader()
    comparisons: list[Comparison] = []
    unpaired: dict[tuple[SideName, str], list[str]] = {}
    for pair in pairs:
        seeds, source = _common_seeds(pair, metric, unpaired)
        if seeds:
            found = _compare(pair, metric, seeds, source, reader)
            found.a, found.b = labels[id(pair.a)], labels[id(pair.b)]
            comparisons.append(found)
    judged = [found for found in comparisons if found.p is not None]
    for found, adjusted in zip(judged, holm([found.p for found in judged if found.p is not None]), strict=True):
        found.p_holm = adjusted
    return comparisons, [Unpaired(side, reason, tuple(runs)) for (side, reason), runs in unpaired.items()]


def worse(comparisons: Iterable[Comparison], points: float) -> list[Comparison]:
    """Where A is worse than B by more than ``points`` percent points, with enough seeds and an interval below 0."""
    return [
        found
        for found in comparisons
        if _lower(found, points) and found.enough_seeds and found.high is not None and found.high < 0
    ]


def undecided(comparisons: Iterable[Comparison], points: float) -> list[Comparison]:
    """Where A is worse by more than ``points``, and too few seeds cannot say whether that is chance."""
    return [found for found in comparisons if _lower(found, points) and not found.enough_seeds]


def _lower(found: Comparison, points: float) -> bool:
    return 100 * found.difference < -points - 1e-9  # 2.0 points in floats are not more than 2.0


def _compare(
    pair: Pair, metric: Metric, seeds: list[int], source: tuple[str, str] | None, reader: "_Reader"
) -> Comparison:
    values = [[_value(side.runs[seed], metric, source) for seed in seeds] for side in (pair.a, pair.b)]
    values_a, values_b = ([value for value in side if value is not None] for side in values)
    differences = [ours - theirs for ours, theirs in zip(values_a, values_b, strict=True)]
    notes: list[str] = []
    num_images, left_out = None, 0
    try:
        group_N, values_RN, left_out = align(
            [reader.values(side, seed, metric, source) for side in (pair.a, pair.b) for seed in seeds]
        )
        statistic = STATISTICS["accuracy" if metric == "epg" else metric]
        weights = reader.weights(group_N, pair.a.place)
        ours, theirs = values_RN[: len(seeds)], values_RN[len(seeds) :]
        estimate = crossed_bootstrap(ours, group_N, statistic, weights, minus_SN=theirs)
        if not left_out and abs(estimate.value - float(np.mean(differences))) > 1e-6:
            raise Unusable("predictions that are not those of the records")
        num_images = len(group_N)
    except Unusable as error:
        estimate = t_interval(differences)
        notes.append(f"{error}: the interval is over seeds alone and says nothing about other test images")
    return Comparison(
        a=pair.a.label,
        b=pair.b.label,
        place=dict(zip(PLACE, pair.a.place, strict=True)),
        seeds=seeds,
        values_a=values_a,
        values_b=values_b,
        difference=estimate.value,
        **_judgement(estimate, len(seeds)),
        p_sign_flip=sign_flip(differences) if len(seeds) <= 20 else None,
        num_images=num_images,
        images_left_out=left_out,
        epg_source=None if source is None else "/".join(source),
        config_diff=_config_diff(pair),
        code_diff=_code_diff(pair, seeds),
        notes=notes,
    )


def _judgement(estimate: Estimate, seeds: int) -> dict[str, Any]:
    enough = seeds >= ENOUGH_SEEDS
    interval = (estimate.low, estimate.high) if seeds > 1 else (None, None)
    return {"low": interval[0], "high": interval[1], "p": estimate.p if enough else None, "enough_seeds": enough}


class _Reader:
    """Predictions and weights that several comparisons share."""

    def __init__(self) -> None:
        self._values: dict[tuple[Path, int, str | None], ImageValues] = {}
        self._weights: tuple[bytes, Any] | None = None

    def values(self, setting: Setting, seed: int, metric: Metric, source: tuple[str, str] | None) -> ImageValues:
        """Per test image of one run; checked against the run's record."""
        row = setting.runs[seed]
        folders = [folder / "runs" / row["run_id"] for folder in reversed(setting.folders)]
        folder = next((folder for folder in folders if (folder / "predictions.parquet").is_file()), None)
        if folder is None or row.get("selected_epoch") is None:
            raise Unusable("not all runs have predictions here")
        column = None if source is None else f"epg_{'_'.join(source)}"
        key = (folder, row["selected_epoch"], column)
        if key not in self._values:
            values = read_values(*key)
            if np.isnan(values.value).all():
                raise Unusable("no test image has a value")
            # Tables that were left behind by another record would be paired as if they were this one's.
            mean = float(np.nanmean(values.value))
            recorded = _value(row, "accuracy" if source is None else metric, source)
            if recorded is None or abs(mean - recorded) > 1e-6:
                raise Unusable(f"predictions of run {row['run_id']} that are not those of its record")
            self._values[key] = values
        return self._values[key]

    def weights(self, group_N: Any, place: tuple[str | None, ...]) -> Any:
        """The same draws for every comparison on the same images, whichever side is which."""
        from spurbench.rng import seed_for

        key = group_N.tobytes()
        if self._weights is None or self._weights[0] != key:
            rng = np.random.default_rng(seed_for(0, "compare", *(str(part) for part in place[:3])))
            self._weights = (key, image_weights(group_N, rng))
        return self._weights[1]


def _common_seeds(
    pair: Pair, metric: Metric, unpaired: dict[tuple[SideName, str], list[str]]
) -> tuple[list[int], tuple[str, str] | None]:
    """Seeds with a value on both sides, and for EPG the map and region that all of them have."""
    seeds = sorted(set(pair.a.runs) & set(pair.b.runs))
    source = (
        _common_source([side.runs[seed] for side in (pair.a, pair.b) for seed in seeds]) if metric == "epg" else None
    )
    sides: tuple[tuple[SideName, Setting, Setting], ...] = (("A", pair.a, pair.b), ("B", pair.b, pair.a))
    usable = []
    for seed in seeds:
        known = [_value(side.runs[seed], metric, source) is not None for side in (pair.a, pair.b)]
        if all(known):
            usable.append(seed)
            continue
        for (name, side, _), here in zip(sides, known, strict=True):
            reason = f"its partner has no {metric}" if here else f"it has no {metric}"
            if metric == "epg" and source is None:
                reason = "no map's EPG is there on both sides"
            unpaired.setdefault((name, reason), []).append(side.runs[seed]["run_id"])
    for name, side, other in sides:
        for seed in sorted(set(side.runs) - set(other.runs)):
            unpaired.setdefault((name, "the other side lacks this seed"), []).append(side.runs[seed]["run_id"])
    return usable, source


def _common_source(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Map and region of the EPG that is compared: the headline's if all rows share it, else the first that all have."""
    every = [[(entry["source"], entry["region"]) for entry in row.get("epg_all") or ()] for row in rows]
    shared = [source for source in (every[0] if every else []) if all(source in offered for offered in every)]
    heads = {(row.get("epg_source"), row.get("epg_region")) for row in rows}
    return next((source for source in shared if heads == {source}), shared[0] if shared else None)


def _value(row: Mapping[str, Any], metric: str, source: tuple[str, str] | None) -> float | None:
    if metric != "epg":
        value = row.get(metric)
    else:
        entries = row.get("epg_all") or ()
        value = next((entry["epg"] for entry in entries if (entry["source"], entry["region"]) == source), None)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _config_diff(pair: Pair) -> dict[str, tuple[Any, Any]]:
    """Options by dotted key that differ, as (A's, B's)."""
    a, b = pair.a.options, pair.b.options
    return {
        key: (a.get(key, ABSENT), b.get(key, ABSENT))
        for key in sorted(a.keys() | b.keys())
        if a.get(key, ABSENT) != b.get(key, ABSENT)
    }


def _code_diff(pair: Pair, seeds: Sequence[int]) -> dict[str, tuple[str, str]]:
    """Commit, libraries and devices that differ between the sides."""
    ours, theirs = ([_machine(side.runs[seed]) for seed in seeds] for side in (pair.a, pair.b))
    keys = sorted({key for machine in (*ours, *theirs) for key in machine})
    values = {
        key: tuple(", ".join(sorted({m.get(key, ABSENT) for m in machines})) for machines in (ours, theirs))
        for key in keys
    }
    return {key: (a, b) for key, (a, b) in values.items() if a != b}


def _machine(row: Mapping[str, Any]) -> dict[str, str]:
    commit = row.get("git_commit")
    facts = {
        "git_commit": None if commit is None else commit[:12] + (" with local changes" if row.get("git_dirty") else ""),
        "device_name": row.get("device_name"),
        **{f"versions.{name}": text for name, text in _versions(row.get("versions_json")).items()},
    }
    return {key: str(value) for key, value in facts.items() if value is not None}


def _versions(text: str | None) -> dict[str, Any]:
    try:
        versions = json.loads(text or "{}")
    except ValueError:
        return {}
    return versions if isinstance(versions, dict) else {}
