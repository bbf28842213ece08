"""Run records to tables. The selection rule is chosen here, when a table is made."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spurbench.dotted import dotted
from spurbench.io import read_json
from spurbench.metrics.stats import mean_sd
from spurbench.schema import COLUMNS

__all__ = ["Collected", "aggregate", "best_draws", "collect", "rule_for", "write_parquet"]

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
)
_LISTS = tuple(column.name for column in COLUMNS if column.kind == "list")
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
)


_FAMILY = ("dataset", "dataset_version", "dataset_fingerprint", "backbone", "weights", "method", "label")
"""What settings that compete as draws of one method have in common."""


@dataclass(frozen=True, slots=True)
class Collected:
    """All rows below some result folders."""

    rows: list[dict[str, Any]]
    """Flat rows with the machine's columns, one per run and selection rule."""
    failed: list[str]
    """Ids of failed runs."""
    damaged: list[str]
    """Files that could not be read."""


def collect(sources: Iterable[Path]) -> Collected:
    """Read every ``runs/*/result.json`` of result folders, and tables that ``write_parquet`` wrote.

    A damaged record is named and skipped; a run that is there twice counts once, the later source wins.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    failed: list[str] = []
    damaged: list[str] = []
    for source in sources:
        if source.suffix == ".parquet":
            try:
                rows |= {_key(row): row for row in _read_parquet(source)}
            except (OSError, ValueError, KeyError):
                damaged.append(str(source))
            continue
        for path in sorted(source.glob("runs/*/result.json")):
            try:
                record = read_json(path)
                if record["status"] != "finished":
                    failed.append(record["run_id"])
                    continue
                for row in record["rows"]:
                    rows[_key(row)] = {**row, **record["machine"]}
            except (OSError, ValueError, KeyError, TypeError):
                damaged.append(str(path))
    return Collected([rows[key] for key in sorted(rows)], failed, damaged)


def aggregate(rows: Sequence[dict[str, Any]], select: str, split: str = "test") -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds of runs that differ in nothing else.

    A method that defines its final model itself offers no rule but ``last``; it stands in every table under that.
    WGA is computed per seed and then averaged: the mean of minima is not the minimum of means.
    Rows are sorted by dataset, backbone and falling mean WGA; different data never share a row.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in _selected(rows, select):
        if row["split"] == split:
            groups.setdefault(_without_seed(row), []).append({**row, **_erasure(row)})
    table = [_summary(group) for group in groups.values()]
    return sorted(
        table,
        key=lambda entry: (
            entry["dataset"],
            entry["backbone"],
            -(entry["worst_group_accuracy_mean"] or 0),
            entry["label"],
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


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All rows as one Parquet file with the columns of the schema; nested columns as JSON text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from spurbench.io import atomic_write

    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "list": pa.string()}
    schema = pa.schema([(column.name, types[column.kind]) for column in COLUMNS])
    flat = [
        {
            column.name: json.dumps(row[column.name])
            if column.name in _LISTS and row.get(column.name) is not None
            else row.get(column.name)
            for column in COLUMNS
        }
        for row in rows
    ]
    with atomic_write(path) as stream:
        pq.write_table(pa.Table.from_pylist(flat, schema=schema), stream)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    absent = {column.name: None for column in COLUMNS}  # tables of earlier versions have fewer columns
    return [
        absent | row | {name: json.loads(row[name]) for name in _LISTS if row.get(name) is not None} for row in rows
    ]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["run_id"], row["selection"], row["split"]


def _erasure(row: dict[str, Any]) -> dict[str, float]:
    """Shares of predictions that stay, by what was erased to the mean colour."""
    return {
        f"erasure_{entry['erased']}": entry["agree"] / entry["n"]
        for entry in row.get("erasure") or ()
        if entry["fill"] == "mean" and entry["n"]
    }


def _selected(rows: Sequence[dict[str, Any]], select: str) -> Iterator[dict[str, Any]]:
    """The row of every run that the rule names."""
    offered: dict[str, set[str]] = {}
    for row in rows:
        offered.setdefault(row["run_id"], set()).add(row["selection"])
    for row in rows:
        if row["selection"] == rule_for(offered[row["run_id"]], select):
            yield row


def rule_for(offered: set[str], select: str) -> str:
    """The rule under which a run stands in a table: its own where it offers none but ``last``."""
    return "last" if offered == {"last"} and not select.startswith("oracle") else select


def _without_seed(row: dict[str, Any]) -> str:
    config = json.loads(row["config_json"])
    config.pop("seed")
    return json.dumps([config, row["dataset_fingerprint"]], sort_keys=True)


def _summary(group: list[dict[str, Any]]) -> dict[str, Any]:
    """One table line; options that are not part of the label are named, so equal labels can be told apart."""
    group = sorted(group, key=lambda row: row["seed"])
    summary: dict[str, Any] = {key: group[0].get(key) for key in _SHARED}
    config = json.loads(group[0]["config_json"])
    summary["options"] = {**config["method"]["config"], **dotted("train", config.get("train", {}))}
    summary["seeds"] = [row["seed"] for row in group]
    summary["n_seeds"] = len(group)
    for name in _AVERAGED:
        values = [row[name] for row in group if row.get(name) is not None]
        mean, deviation = mean_sd(values) if values else (None, None)
        summary |= {f"{name}_mean": mean, f"{name}_sd": deviation, f"{name}_values": values}
    return summary
