"""Columns of a result row, in one place: names, types, and which must be there.

A run's record is ``{schema_version, run_id, status, error, config, rows, machine}``. A row is flat, one per
selection rule; what may differ between machines or attempts lives under ``machine`` alone. The leaderboard's
Parquet table holds rows with the machine's columns beside them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["COLUMNS", "SCHEMA_VERSION", "Column", "validate_record"]

SCHEMA_VERSION = 3
"""Raised with every change of columns; readers keep reading older versions."""

Kind = Literal["string", "int", "float", "bool", "list"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    kind: Kind
    required: bool
    """Never null, also for failed runs."""
    where: Literal["row", "machine"]
    meaning: str


def _row(name: str, kind: Kind, meaning: str, *, required: bool = False) -> Column:
    return Column(name, kind, required, "row", meaning)


def _machine(name: str, kind: Kind, meaning: str) -> Column:
    return Column(name, kind, False, "machine", meaning)


COLUMNS: tuple[Column, ...] = (
    _row("run_id", "string", "hash of the configuration", required=True),
    _row("schema_version", "int", "of this record", required=True),
    _row("status", "string", "finished or failed", required=True),
    _row("error", "string", "why a run failed"),
    _row("provenance", "string", "measured or reported", required=True),
    _row("source", "string", "of a reported number"),
    _row("method", "string", "registry name", required=True),
    _row("label", "string", "short name in tables, AIM[2,35%]"),
    _row("method_version", "int", "of the implementation"),
    _row("num_stages", "int", "stages of a masking method"),
    _row("tau", "float", "target active fraction, 0..1"),
    _row("config_json", "string", "canonical configuration", required=True),
    _row("dataset", "string", "name with variant", required=True),
    _row("dataset_version", "string", "of the dataset", required=True),
    _row("dataset_fingerprint", "string", "hash of the data that was used"),
    _row("backbone", "string", "timm name", required=True),
    _row("weights", "string", "none, tag:... or sha256:...", required=True),
    _row("seed", "int", "of all random streams", required=True),
    _row("access", "string", "supervision the method declared", required=True),
    _row("selection", "string", "rule that chose the epoch", required=True),
    _row("selected_epoch", "int", "from 0, of the last phase with epochs"),
    _row("selection_score", "float", "the rule's value at that epoch, 0..1"),
    _row("val_accuracy", "float", "validation accuracy at that epoch, whichever rule chose it"),
    _row("val_wga", "float", "worst-group accuracy likewise"),
    _row("val_worst_class", "float", "worst-class accuracy likewise"),
    _row("oracle", "bool", "whether test counts were kept per epoch"),
    _row("split", "string", "evaluated split", required=True),
    _row("n", "int", "evaluated samples", required=True),
    _row("n_correct", "int", "of them right", required=True),
    _row("accuracy", "float", "n_correct / n"),
    _row("group_mean_accuracy", "float", "mean over non-empty groups"),
    _row("adjusted_accuracy", "float", "groups weighted by training frequency"),
    _row("worst_group_accuracy", "float", "minimum over non-empty groups"),
    _row("worst_group", "string", "name of that group"),
    _row("worst_group_low", "float", "95 % Wilson interval of that group, lower end"),
    _row("worst_group_high", "float", "upper end"),
    _row("groups", "list", "{group, name, n, correct}"),
    _row("official", "list", "{name, value}, 0..1: what the dataset's publishers report and no other column holds"),
    _row("epg", "float", "headline Energy Pointing Game, 0..1"),
    _row("epg_source", "string", "mask, or the attribution: gradcam and so on"),
    _row("epg_region", "string", "mask or box"),
    _row("epg_n", "int", "images in the mean"),
    _row("epg_empty", "int", "of them without energy, counted as 0"),
    _row("epg_no_region", "int", "images left out: object cropped away"),
    _row("epg_base_rate", "float", "EPG of a uniform map"),
    _row("epg_all", "list", "the same for every source and region"),
    _row("mask_density", "float", "mean active fraction of the merged mask"),
    _row("stage_masks", "list", "{stage, density, epg_mask, epg_box}; stage 0 is the deepest"),
    _row("erasure", "list", "{erased, fill, n, agree, correct, worst_group_accuracy}; methods with a mask"),
    _row("gmacs", "float", "1e9 multiply-adds, forward, batch 1"),
    _row("gmacs_backbone", "float", "of the plain backbone and head"),
    _row("params", "int", "parameters"),
    _row("params_backbone", "int", "of the plain backbone and head"),
    _machine("images_per_second", "float", "evaluation throughput; runs that differ in their seed share a measurement"),
    _machine("images_per_second_backbone", "float", "of the plain backbone and head, same batch"),
    _machine("train_images_per_second", "float", "training throughput"),
    _machine("train_seconds", "float", "all phases, all attempts"),
    _machine("peak_memory_bytes", "int", "resident set, or device memory on CUDA"),
    _machine("launcher", "string", "local, ray or slurm"),
    _machine("early_stopping", "string", "rule that could have ended the run early, such as asha val_wga; null: none"),
    _machine("host", "string", "where the last attempt ran"),
    _machine("device", "string", "cpu, cuda or mps"),
    _machine("device_name", "string", "model of the device"),
    _machine("num_devices", "int", "processes that shared the training, each with a device"),
    _machine("versions_json", "string", "libraries"),
    _machine("git_commit", "string", "of the code, if it is a checkout"),
    _machine("git_dirty", "bool", "whether it had local changes"),
    _machine("attempts", "int", "starts until it was finished"),
    _machine("started_at", "string", "UTC, ISO 8601, of the first attempt"),
    _machine("finished_at", "string", "UTC, ISO 8601"),
)

_TYPES: dict[Kind, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "list": (list,),
}


def validate_record(record: Mapping[str, Any]) -> None:
    """Refuse a record with missing or unknown columns, wrong types, or numbers that are not numbers.

    Raises:
        ValueError: naming row and column.
    """
    columns = {column.name: column for column in COLUMNS}
    for number, row in enumerate(record["rows"]):
        for column in COLUMNS:
            if column.where == "row":
                _check(column, row.get(column.name), f"row {number}")
        if unknown := sorted(set(row) - set(columns)):
            raise ValueError(f"row {number}: unknown columns {', '.join(unknown)}")
    for name, value in record["machine"].items():
        if name not in columns:
            raise ValueError(f"machine: unknown column {name}")
        _check(columns[name], value, "machine")


def _check(column: Column, value: Any, where: str) -> None:
    if value is None:
        if column.required:
            raise ValueError(f"{where}: {column.name} is missing")
        return
    if not isinstance(value, _TYPES[column.kind]) or (isinstance(value, bool) and column.kind != "bool"):
        raise ValueError(f"{where}: {column.name} should be {column.kind}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {column.name} is {value}")
