"""Named columns of CSV files, read strictly: every problem is named by file and line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from spurbench.data.image_table import csv_records, read_text
from spurbench.errors import DataError

__all__ = ["choose", "read_columns"]

Value = TypeVar("Value")

MAX_LISTED = 12
"""Allowed values that an error lists; of more it shows the first and the last."""


def read_columns(path: Path, names: Sequence[str], *, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number (the header is line 1) and the cells under ``names`` of every row; other columns are not looked at.

    Cells come as text without spaces around them, so leading zeros stay.

    Raises:
        DataError: not CSV in UTF-8, a column that is missing or there twice, or a row of another length.
        OSError: the system cannot read the file.
    """
    records = csv_records(path, read_text(path), delimiter)
    _, header = next(records, (1, []))
    header = [name.strip() for name in header]
    wanted = delimiter.join(names)
    missing = [name for name in names if name not in header]
    if missing:
        found = delimiter.join(header) or "an empty file"
        raise DataError(f"{path}: missing column {', '.join(missing)}; found {found}; expected at least {wanted}")
    repeated = [name for name in names if header.count(name) > 1]
    if repeated:
        raise DataError(f"{path}: column {', '.join(repeated)} appears more than once in the header")
    positions = [header.index(name) for name in names]
    line = None
    for line, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(cells)} values, expected {len(header)} as in the header; "
                "is the file cut off?"
            )
        yield line, [cells[position].strip() for position in positions]
    if line is None:
        raise DataError(f"{path} has a header but no rows")


def choose(path: Path, line: int, column: str, text: str, allowed: Mapping[str, Value]) -> Value:
    """What a cell stands for.

    Raises:
        DataError: the cell is none of ``allowed``.
    """
    try:
        return allowed[text]
    except KeyError:
        known = list(allowed)
        listed = ", ".join(known) if len(known) <= MAX_LISTED else f"{known[0]} ... {known[-1]} ({len(known)} values)"
        raise DataError(f"{path}, line {line}: {column} is '{text}', expected one of {listed}") from None
