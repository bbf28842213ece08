"""Run records as columns: what ``result.json`` files say, checked, as Arrow tables with the columns of the schema."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from spurbench.schema import COLUMNS, SCHEMA_VERSION, validate_record

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LISTS", "Batch", "Record", "arrow_schema", "read_batch", "rows_to_table", "table_to_rows", "well_formed"]

LISTS = tuple(column.name for column in COLUMNS if column.kind == "list")
"""Nested columns; in tables they are JSON text."""
_ENTRIES = {
    "groups": {"group", "name", "n", "correct"},
    "stage_masks": {"stage", "density"},
    "erasure": {"erased", "fill", "n", "agree"},
}
"""What tables and pages read of the entries of a list."""

_NAMES = frozenset(column.name for column in COLUMNS)
_REQUIRED = tuple(column.name for column in COLUMNS if column.required)


@dataclass(slots=True)
class Record:
    """One run's record, read and checked."""

    run: str
    """Name of its folder, which is its run id."""
    state: str
    """``finished``, ``failed`` or ``damaged``."""
    reason: str = ""
    """Why it is damaged."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of a finished run, the machine's columns included."""


@dataclass(slots=True)
class Batch:
    """Several records, as columns."""

    table: "pa.Table"
    """Rows of the finished ones."""
    records: list[Record]
    """In the order of the files, without their rows."""
    unknown: Counter[str]
    """Rows by a column that this version does not know; such columns are left out."""


def arrow_schema() -> "pa.Schema":
    """Columns of a leaderboard's Parquet file."""
    import pyarrow as pa

    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "list": pa.string()}
    return pa.schema([(column.name, types[column.kind]) for column in COLUMNS])


def read_batch(paths: Sequence[Path]) -> Batch:
    """Read ``runs/<run id>/result.json`` files. What cannot be used is said in its record; the others are served."""
    records = [_read(path) for path in paths]
    rows = [row for record in records for row in record.rows]
    unknown = Counter(name for row in rows for name in row.keys() - _NAMES)
    table = _table_or_none(rows)
    if table is None:  # which of them is it?
        for record in records:
            _examine(record)
        table = rows_to_table([row for record in records for row in record.rows])
    for record in records:
        record.rows = []
    return Batch(table, records, unknown)


def rows_to_table(rows: Iterable[dict[str, Any]]) -> "pa.Table":
    """Rows as columns of the schema; other columns are left out, absent ones are null.

    Raises:
        pyarrow.ArrowException, TypeError: a value of another kind than the schema says.
    """
    import pyarrow as pa

    schema = arrow_schema()
    rows = list(rows)
    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        values = [row.get(name) for row in rows]
        if pa.types.is_integer(kind) and any(isinstance(value, float) for value in values):
            raise TypeError(f"{name} should be int")  # Arrow would cut off what is behind the point
        arrays.append(pa.array([_text(name, value) for value in values] if name in LISTS else values, kind))
    return pa.Table.from_arrays(arrays, schema=schema)


def table_to_rows(table: "pa.Table") -> list[dict[str, Any]]:
    """The other way round. Texts that are alike are one object, so that many rows take little memory."""
    import pyarrow as pa

    columns = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type):
            encoded = column.dictionary_encode()
            words: list[Any] = encoded.dictionary.to_pylist()
            indices = encoded.indices.to_pylist()
            if name in LISTS:  # not shared: who changes one row's list must not change another's
                columns.append([None if index is None else json.loads(words[index]) for index in indices])
            else:
                columns.append([None if index is None else words[index] for index in indices])
        else:
            columns.append(column.to_pylist())
    return [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _text(name: str, value: Any) -> str | None:
    if value is not None and not _is_list(name, value):
        raise TypeError(f"{name} must be a list of objects with their parts, not {value!r}")
    return None if value is None else json.dumps(value)


def _is_list(name: str, value: Any) -> bool:
    needed = _ENTRIES.get(name, set())
    return isinstance(value, list) and all(isinstance(entry, dict) and needed <= entry.keys() for entry in value)


def _is_config(value: Any) -> bool:
    method = value.get("method") if isinstance(value, dict) else None
    return isinstance(method, dict) and isinstance(method.get("config"), dict) and "seed" in value


def well_formed(name: str, text: str) -> bool:
    """Whether the text of a nested column, or of ``config_json``, is what a leaderboard needs."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return _is_list(name, value) if name in LISTS else _is_config(value)


def _table_or_none(rows: list[dict[str, Any]]) -> "pa.Table | None":
    import pyarrow as pa

    try:
        table = rows_to_table(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return None if any(table[name].null_count for name in _REQUIRED) else table


def _read(path: Path) -> Record:
    run = path.parent.name
    try:
        text = path.read_bytes()
    except OSError as error:
        return Record(run, "damaged", f"it cannot be read: {error.strerror or error}")
    if not text.strip():
        return Record(run, "damaged", "it is empty")
    try:
        return _checked(run, json.loads(text, parse_constant=_no_number))
    except _NoNumber as error:
        return Record(run, "damaged", _which_numbers(json.loads(text)) or f"it holds {error}")
    except (ValueError, RecursionError) as error:
        return Record(run, "damaged", f"it is no JSON, or only a part of it: {error}")


def _checked(run: str, record: Any) -> Record:
    """A record whose rows are dictionaries, of this run, and of a schema that this version knows."""
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        return Record(run, "damaged", "it is no run's record")
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return Record(run, "damaged", _newer(version))
    if record.get("run_id") != run:
        return Record(run, "damaged", f"it is the record of run {record.get('run_id')}, in another folder")
    if record["status"] != "finished":
        return Record(run, "failed")
    rows, machine = record.get("rows"), record.get("machine")
    if not isinstance(rows, list) or not isinstance(machine, dict) or not all(isinstance(row, dict) for row in rows):
        return Record(run, "damaged", "it has no rows")
    versions = [row.get("schema_version") for row in rows]
    newest = max((version for version in versions if isinstance(version, int)), default=0)
    if newest > SCHEMA_VERSION:
        return Record(run, "damaged", _newer(newest))
    if any(row.get("run_id") != run for row in rows):
        return Record(run, "damaged", "it has rows of another run")
    configs = {row.get("config_json") for row in rows}
    if not all(isinstance(text, str) and well_formed("config_json", text) for text in configs):
        return Record(run, "damaged", "config_json is no run's configuration")
    return Record(run, "finished", rows=[row | machine for row in rows])


def _newer(version: int) -> str:
    return f"schema {version} is newer than this spurbench's, {SCHEMA_VERSION}; update spurbench to read it"


class _NoNumber(Exception):
    """NaN or infinity, which JSON does not have but Python reads."""


def _no_number(text: str) -> NoReturn:
    raise _NoNumber(text)


def _which_numbers(record: Any) -> str:
    """The columns that hold no numbers."""
    rows = record.get("rows") if isinstance(record, dict) else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return ", ".join(
        sorted(
            {
                f"{name} is {value}"
                for row in rows
                for name, value in row.items()
                if isinstance(value, float) and not math.isfinite(value)
            }
        )
    )


def _examine(record: Record) -> None:
    """Mark a record that does not fit the schema as damaged, with the column that does not fit."""
    known = [{name: value for name, value in row.items() if name in _NAMES} for row in record.rows]
    try:
        validate_record({"rows": known, "machine": {}})
    except ValueError as error:
        record.state, record.reason, record.rows = "damaged", str(error), []
        return
    if _table_or_none(known) is None:  # a number too large for a column, half a character
        record.state, record.reason, record.rows = "damaged", "a value does not fit its column", []
