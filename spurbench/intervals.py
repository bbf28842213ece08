"""How far the means of a leaderboard's lines are pinned down."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spurbench.compare import ENOUGH_SEEDS
from spurbench.metrics.stats import STATISTICS, Estimate, crossed_bootstrap, image_weights, t_interval
from spurbench.predictions import Unusable, align, read_values

__all__ = ["Over", "with_intervals"]

Over = Literal["seeds", "images"]
_METRICS = ("worst_group_accuracy", "accuracy")


def with_intervals(
    table: Iterable[dict[str, Any]], over: Over = "seeds", folders: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """The lines with 95 % intervals of mean WGA and accuracy: ``*_low`` and ``*_high``, 0..1, null where there is none.

    Over ``seeds``: Student's t, which speaks of other seeds on the same test images. Over ``images``: seeds and test
    images are both samples (``crossed_bootstrap``); it needs the predictions of all runs, below ``folders``, and
    from ``ENOUGH_SEEDS`` seeds on it holds the truth as often as it should (``benchmarks/coverage.py``).
    ``interval_over`` says which it is, ``interval_note`` what is wrong with it, if anything.
    """
    weights: dict[bytes, Any] = {}
    return [{**line, **_intervals(line, over, folders, weights)} for line in table]


def _intervals(
    line: Mapping[str, Any], over: Over, folders: Sequence[Path], weights: dict[bytes, Any]
) -> dict[str, Any]:
    note = None
    if over == "images":
        try:
            return _crossed(line, folders, weights)
        except Unusable as error:
            note = f"{error}: over seeds alone"
    found: dict[str, Any] = {"interval_over": "seeds", "interval_note": note}
    for metric in _METRICS:
        values = line[f"{metric}_values"]
        found |= _ends(metric, t_interval(values) if len(values) > 1 else None)
    return found


def _crossed(line: Mapping[str, Any], folders: Sequence[Path], weights: dict[bytes, Any]) -> dict[str, Any]:
    if len(line["run_ids"]) < 2:
        return {"interval_over": "images", "interval_note": "one seed"} | {
            name: value for metric in _METRICS for name, value in _ends(metric, None).items()
        }
    runs = []
    for run, epoch, accuracy in zip(line["run_ids"], line["selected_epochs"], line["accuracy_values"], strict=True):
        homes = [folder / "runs" / run for folder in reversed(folders)]
        home = next((home for home in homes if (home / "predictions.parquet").is_file()), None)
        if home is None or epoch is None:
            raise Unusable("not all runs have predictions here")
        values = read_values(home, epoch)
        if abs(float(values.value.mean()) - accuracy) > 1e-6:
            raise Unusable(f"predictions of run {run} that are not those of its record")
        runs.append(values)
    group_N, values_SN, _ = align(runs)
    key = group_N.tobytes()
    if key not in weights:
        from spurbench.rng import seed_for

        rng = np.random.default_rng(seed_for(0, "leaderboard", line["dataset"], str(line["dataset_version"])))
        weights.clear()  # lines come by dataset, and the draws of one take 50 MB
        weights[key] = image_weights(group_N, rng)
    found: dict[str, Any] = {
        "interval_over": "images",
        "interval_note": None if len(runs) >= ENOUGH_SEEDS else f"too narrow below {ENOUGH_SEEDS} seeds",
    }
    for metric in _METRICS:
        found |= _ends(metric, crossed_bootstrap(values_SN, group_N, STATISTICS[metric], weights[key]))
    return found


def _ends(metric: str, estimate: Estimate | None) -> dict[str, float | None]:
    """Within what an accuracy can be; equal values over seeds pin nothing down."""
    if estimate is None or not math.isfinite(estimate.low) or estimate.low == estimate.high:
        return {f"{metric}_low": None, f"{metric}_high": None}
    return {f"{metric}_low": max(0.0, estimate.low), f"{metric}_high": min(1.0, estimate.high)}
