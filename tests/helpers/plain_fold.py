"""Run records and tables read in the plainest way, all at once: what ``spurbench.fold`` has to agree with."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spurbench.leaderboard import lines_of, rule_for
from spurbench.schema import COLUMNS

__all__ = ["Collected", "aggregate", "collect", "write_parquet"]

_LISTS = tuple(column.name for column in COLUMNS if column.kind == "list")


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
                record = json.loads(path.read_text())
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
    Rows are sorted by dataset, backbone, weights and falling mean WGA; different data never share a row.
    """
    return lines_of(row for row in _selected(rows, select) if row["split"] == split)


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """All rows as one Parquet file with the columns of the schema; nested columns as JSON text."""
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
    pq.write_table(pa.Table.from_pylist(flat, schema=schema), path)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    absent = {column.name: None for column in COLUMNS}  # tables of earlier versions have fewer columns
    return [
        absent | row | {name: json.loads(row[name]) for name in _LISTS if row.get(name) is not None} for row in rows
    ]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["run_id"], row["selection"], row["split"]


def _selected(rows: Sequence[dict[str, Any]], select: str) -> Iterator[dict[str, Any]]:
    """The row of every run that the rule names."""
    offered: dict[str, set[str]] = {}
    for row in rows:
        offered.setdefault(row["run_id"], set()).add(row["selection"])
    for row in rows:
        if row["selection"] == rule_for(offered[row["run_id"]], select):
            yield row
