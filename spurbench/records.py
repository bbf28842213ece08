"""Run records as columns: what ``result.json`` files say, checked, as Arrow tables with the columns of the schema."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from spurbench.schema import COLUMNS, SCHEMA_VERSION, validate_record

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "LISTS",
    "MEASURED",
    "SHARES",
    "Batch",
    "Record",
    "array_of",
    "arrow_schema",
    "decoded",
    "mask_of",
    "read_batch",
    "table_to_rows",
    "well_formed",
]

LISTS = tuple(column.name for column in COLUMNS if column.kind == "list")
"""Nested columns; in tables they are JSON text."""
_ENTRIES = {
    "groups": {"group", "name", "n", "correct"},
    "stage_masks": {"stage", "density"},
    "erasure": {"erased", "fill", "n", "agree"},
}
"""What tables and pages read of the entries of a list."""

_PYTHON: dict[str, set[type]] = {
    "string": {str},
    "int64": {int},
    "uint64": {int},
    "double": {float, int},
    "bool": {bool},
}
"""What JSON may give as values of an Arrow column; nothing else is made to fit."""

SHARES = (
    *("accuracy", "group_mean_accuracy", "adjusted_accuracy", "worst_group_accuracy", "epg"),
    *("val_accuracy", "val_wga", "val_worst_class"),
)
"""Columns from 0 to 1."""
MEASURED = ("accuracy", "worst_group_accuracy")
"""What no finished run is without."""
_NAMES = frozenset(column.name for column in COLUMNS)
_EMPTY = {column.name: None for column in COLUMNS}
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
    """Of a finished run, with every column of the schema, and those that this version does not know."""


@dataclass(slots=True)
class Batch:
    """Several records, as columns."""

    table: "pa.Table"
    """Rows of the finished ones."""
    records: list[Record]
    """In the order of the runs, without their rows."""
    unknown: Counter[str]
    """Rows by a column that this version does not know; such columns are left out."""


def arrow_schema() -> "pa.Schema":
    """Columns of a leaderboard's Parquet file."""
    import pyarrow as pa

    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "list": pa.string()}
    return pa.schema([(column.name, types[column.kind]) for column in COLUMNS])


def read_batch(folder: Path, runs: Iterable[str]) -> Batch:
    """Read ``folder/<run id>/result.json`` files. What cannot be used is said in its record; the others are served."""
    records = [_read(str(folder), run) for run in runs]
    rows = [row for record in records for row in record.rows]
    unknown = Counter(name for row in rows if len(row) > len(_NAMES) for name in row.keys() - _NAMES)
    table = _table_or_none(rows)
    if table is None:  # which of them is it?
        for record in records:
            _examine(record)
        table = _rows_to_table([row for record in records for row in record.rows])
    for record in records:
        record.rows = []
    return Batch(table, records, unknown)


def _rows_to_table(rows: Sequence[dict[str, Any]]) -> "pa.Table":
    """Rows that have all columns of the schema, as columns; others are left out.

    Raises:
        TypeError, ValueError, OverflowError: a value of another kind than the schema says, or one that does not fit.
    """
    import pyarrow as pa

    schema = arrow_schema()
    columns = list(zip(*map(itemgetter(*schema.names), rows), strict=True)) or [()] * len(schema)
    arrays = [
        array_of([_text(name, value) for value in values] if name in LISTS else values, kind)
        for name, kind, values in zip(schema.names, schema.types, columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def array_of(values: Sequence[Any], kind: "pa.DataType") -> "pa.Array":
    """Texts, numbers or truth values as an Arrow array; None is null.

    ``pa.array`` imports pandas first, which would be a third of a fold after one new run.

    Raises:
        TypeError, ValueError, OverflowError: a value of another type, or one that does not fit.
    """
    import pyarrow as pa

    types = set(map(type, values))
    if not types <= {*_PYTHON[str(kind)], type(None)}:
        raise TypeError(f"not all values are of type {kind}")
    there = _bits([value is not None for value in values]) if type(None) in types else None
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)), there)
    whole = values if there is None else [0 if value is None else value for value in values]
    if pa.types.is_boolean(kind):
        return pa.Array.from_buffers(kind, len(values), [there, _bits(whole)])
    return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(np.array(whole, str(kind)))])


def mask_of(chosen_N: npt.NDArray[np.bool_]) -> "pa.Array":
    """Which rows to keep, for ``pyarrow.Table.filter``; without pandas, too."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.bool_(), len(chosen_N), [None, _bits(chosen_N)])


def _bits(flags: npt.ArrayLike) -> "pa.Buffer":
    import pyarrow as pa

    return pa.py_buffer(np.packbits(np.asarray(flags, bool), bitorder="little"))


def decoded(text: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """What JSON says, in half of ``json``'s time.

    Args:
        constant: called where NaN or infinity stands, as ``json.loads`` calls its ``parse_constant``.

    Raises:
        ValueError, RecursionError: those of ``json``.
    """
    try:
        return from_json(text, allow_inf_nan=constant is None)
    except ValueError:
        return json.loads(text, parse_constant=constant)  # it reads half characters and deeper lists, and says why not


def table_to_rows(table: "pa.Table") -> Iterator[dict[str, Any]]:
    """The other way round, row by row. Texts that are alike are one object, so that many rows take little memory."""
    import pyarrow as pa

    names = table.column_names  # not asked of the table for every row: that costs more than the rest
    columns: list[Iterable[Any]] = []
    for name in names:
        column = table[name].combine_chunks()
        if pa.types.is_string(column.type):
            encoded = column.dictionary_encode()
            words: list[Any] = encoded.dictionary.to_pylist()
            indices = encoded.indices.to_pylist()
            if name in LISTS:  # not shared: who changes one row's list must not change another's
                columns.append(_decoded_each(words, indices))
            else:
                columns.append([None if index is None else words[index] for index in indices])
        else:
            columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _decoded_each(words: Sequence[str], indices: Iterable[int | None]) -> Iterator[Any]:
    return (None if index is None else decoded(words[index]) for index in indices)


def _text(name: str, value: Any) -> str | None:
    if value is not None and not _is_list(name, value):
        raise TypeError(f"{name} must be a list of objects with their parts, not {value!r}")
    return None if value is None else to_json(value).decode()


def _is_list(name: str, value: Any) -> bool:
    needed = _ENTRIES.get(name, set())
    return isinstance(value, list) and all(isinstance(entry, dict) and needed <= entry.keys() for entry in value)


def _is_config(value: Any) -> bool:
    method = value.get("method") if isinstance(value, dict) else None
    return isinstance(method, dict) and isinstance(method.get("config"), dict) and "seed" in value


def well_formed(name: str, text: str) -> bool:
    """Whether the text of a nested column, or of ``config_json``, is what a leaderboard needs."""
    try:
        value = decoded(text)
    except (ValueError, RecursionError):
        return False
    return _is_list(name, value) if name in LISTS else _is_config(value)


def _table_or_none(rows: list[dict[str, Any]]) -> "pa.Table | None":
    try:
        table = _rows_to_table(rows)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if any(table[name].null_count for name in _REQUIRED) else table


def _read(folder: str, run: str) -> Record:
    try:
        with open(f"{folder}/{run}/result.json", "rb") as stream:  # noqa: PTH123  100,000 Paths take two seconds
            text = stream.read()
    except OSError as error:
        return Record(run, "damaged", f"it cannot be read: {error.strerror or error}")
    if not text.strip():
        return Record(run, "damaged", "it is empty")
    try:
        return _checked(run, decoded(text, _no_number))
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
    if problem := next(filter(None, map(_no_share, rows)), None):
        return Record(run, "damaged", problem)
    return Record(run, "finished", rows=[_EMPTY | row | machine for row in rows])


def _no_share(row: dict[str, Any]) -> str | None:
    """What is wrong with its headline numbers."""
    for name in SHARES:
        value = row.get(name)
        if value is None and name in MEASURED:
            return f"{name} is missing"
        if isinstance(value, int | float) and not 0 <= value <= 1:
            return f"{name} is {value}, not a share from 0 to 1"
    return None


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
