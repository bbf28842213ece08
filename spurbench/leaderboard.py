"""Run records to tables. The selection rule is chosen here, when a table is made."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spurbench.dotted import dotted
from spurbench.metrics.stats import mean_sd
from spurbench.records import decoded
from spurbench.schema import COLUMNS

__all__ = ["NEEDED", "best_draws", "lines_of", "rule_for", "without_seed"]

_AVERAGED = (
    "accuracy",
    "group_mean_accuracy",
    "adjusted_accuracy",
    "worst_group_accuracy",
    "epg",
    "epg_base_rate",
    "mask_density",
    "val_accuracy",
    "val_wga",
    "val_worst_class",
    "erasure_outside",
    "erasure_inside",
    "erasure_outside_control",
    "images_per_second",
    "images_per_second_ratio",
)
_SHARED = (
    "dataset",
    "dataset_version",
    "dataset_fingerprint",
    "backbone",
    "weights",
    "method",
    "label",
    "access",
    "selection",
    "split",
    "epg_source",
    "epg_region",
    "gmacs",
    "gmacs_backbone",
    "params",
    "params_backbone",
    "method_version",
)
NEEDED = (
    *(name for name in (*_SHARED, *_AVERAGED) if name in {column.name for column in COLUMNS}),
    *(
        "run_id",
        "seed",
        "selected_epoch",
        "config_json",
        "groups",
        "erasure",
        "images_per_second_backbone",
        "finished_at",
    ),
)
"""Columns of rows that a table is made from."""

_FAMILY = ("dataset", "dataset_version", "dataset_fingerprint", "backbone", "weights", "method", "label")
"""What settings that compete as draws of one method have in common."""


def lines_of(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds of runs that differ in nothing else.

    WGA is computed per seed and then averaged: the mean of minima is not the minimum of means. Lines are sorted by
    dataset, backbone, weights and falling mean WGA; different data never share a line.

    Args:
        rows: of one selection rule, one per run, in any order. They are not held.
    """
    settings: dict[str, _Setting] = {}
    keys: dict[tuple[str, ...], str] = {}
    for row in rows:
        key = _without_seed(row, keys)
        setting = settings.get(key)
        if setting is None:
            setting = settings[key] = _Setting(key[:16], row["config_json"])
        values = {**row, **_erasure(row), **_speed(row)}
        place = row["seed"], row["run_id"]
        if setting.first is None or place < setting.first[0]:
            smallest = min((group["n"] for group in row.get("groups") or () if group.get("n")), default=None)
            setting.first = place, {**{key: row.get(key) for key in _SHARED}, "worst_group_n": smallest}
        setting.runs.append(
            (*place, row.get("selected_epoch"), row.get("finished_at"), tuple(map(values.get, _AVERAGED)))
        )
    table = [_summary(setting) for setting in settings.values()]
    return sorted(
        table,
        key=lambda entry: (
            *(str(entry[name]) for name in ("dataset", "dataset_version", "backbone", "weights")),
            -(entry["worst_group_accuracy_mean"] or 0),
            str(entry["label"]),
            entry["setting"],
        ),
    )


def best_draws(table: Sequence[dict[str, Any]], select: str) -> list[dict[str, Any]]:
    """Of the settings that share a label, the one with the best mean validation score over seeds.

    The score is the one that ``select`` goes by, and plain accuracy for ``last``; settings with fewer seeds than
    others of their label are not finished and do not compete. Ties go to the first in the table's order of options.
    Each line gets ``n_draws``, the number of settings it was chosen from. No test number is looked at.
    """
    score = select if select in ("val_wga", "val_worst_class", "val_accuracy") else "val_accuracy"
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in table:
        families.setdefault(tuple(entry[key] for key in _FAMILY), []).append(entry)
    chosen: dict[int, int] = {}
    for family in families.values():
        seeds = max(entry["n_seeds"] for entry in family)
        complete = [entry for entry in family if entry["n_seeds"] == seeds]
        complete.sort(key=lambda entry: json.dumps(entry["options"], sort_keys=True))
        best = max(complete, key=lambda entry: -1.0 if entry[f"{score}_mean"] is None else entry[f"{score}_mean"])
        chosen[id(best)] = len(complete)
    return [{**entry, "n_draws": chosen[id(entry)]} for entry in table if id(entry) in chosen]


def _erasure(row: dict[str, Any]) -> dict[str, float]:
    """Shares of predictions that stay, by what was erased to the mean colour."""
    return {
        f"erasure_{entry['erased']}": entry["agree"] / entry["n"]
        for entry in row.get("erasure") or ()
        if entry["fill"] == "mean" and entry["n"]
    }


def _speed(row: dict[str, Any]) -> dict[str, float]:
    """Evaluation throughput over that of the plain backbone on the same machine."""
    ours, plain = row.get("images_per_second"), row.get("images_per_second_backbone")
    return {"images_per_second_ratio": ours / plain} if ours and plain else {}


def rule_for(offered: set[str], select: str) -> str:
    """The rule under which a run stands in a table: its own where it offers none but ``last``."""
    return "last" if offered == {"last"} and not select.startswith("oracle") else select


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one setting share: neither the seed, nor ``--oracle``, which adds a rule and changes no number."""
    shared = {key: value for key, value in config.items() if key != "seed"}
    if "evaluation" in shared:
        shared["evaluation"] = {key: value for key, value in shared["evaluation"].items() if key != "oracle"}
    return shared


def _without_seed(row: dict[str, Any], known: dict[tuple[str, ...], str]) -> str:
    """A hash of all that runs of one setting share. Texts that differ in the seed alone are hashed once."""
    text, data = row["config_json"], row["dataset_fingerprint"]
    if text.count('"seed"') > 1 or "\\" in text:  # another seed than the run's, or a key in disguise
        return _hash(text, data)
    before, _, after = text.partition('"seed":')
    alike = before, after.lstrip("0123456789"), data
    if alike not in known:
        known[alike] = _hash(text, data)
    return known[alike]


def _hash(config_json: str, data: str | None) -> str:
    config = without_seed(decoded(config_json))
    return hashlib.sha256(json.dumps([config, data], sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class _Setting:
    """What is kept of the rows of one setting."""

    name: str
    config_json: str
    first: tuple[tuple[int, str], dict[str, Any]] | None = None
    """Of the lowest seed: seed and run id, and the columns that all share."""
    runs: list[tuple[int, str, int | None, str | None, tuple[float | None, ...]]] = field(default_factory=list)
    """Seed, run id, selected epoch, when it was finished, and values in the order of ``_AVERAGED``."""


def _summary(setting: _Setting) -> dict[str, Any]:
    """One table line; options that are not part of the label are named, so equal labels can be told apart."""
    assert setting.first is not None
    config = decoded(setting.config_json)
    newest = {run[0]: run for run in sorted(setting.runs, key=lambda run: (run[3] or "", run[1]))}
    runs = [newest[seed] for seed in sorted(newest)]  # a seed is there twice if it was trained again with --oracle
    summary: dict[str, Any] = dict(setting.first[1])
    summary["options"] = {**config["method"]["config"], **dotted("train", config.get("train", {}))}
    summary["recipe"] = {
        "train.epochs": config.get("train", {}).get("epochs"),
        **dotted("input", config.get("input") or {}),
    }
    summary["identity_version"] = config.get("identity_version")
    summary["setting"] = setting.name
    summary["run_ids"] = [run for _, run, *_ in runs]
    summary["selected_epochs"] = [epoch for _, _, epoch, *_ in runs]
    summary["finished_at"] = max(finished or "" for *_, finished, _ in runs)
    summary["seeds"] = [seed for seed, *_ in runs]
    summary["n_seeds"] = len(runs)
    for name, column in zip(_AVERAGED, zip(*(values for *_, values in runs), strict=True), strict=True):
        values = [value for value in column if value is not None]
        mean, deviation = mean_sd(values) if values else (None, None)
        summary |= {f"{name}_mean": mean, f"{name}_sd": deviation, f"{name}_values": values}
    return summary
