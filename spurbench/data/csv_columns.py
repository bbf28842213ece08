"""Named columns of CSV files, read strictly: every problem is named by file and line."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spurbench.data.image_table import csv_records, read_text
from spurbench.data.row_faults import BadRow, tell_fault
from spurbench.errors import DataError

__all__ = ["TextRow", "choose", "column_rows", "good_rows", "read_columns", "require_new"]

Value = TypeVar("Value")

MAX_LISTED = 12
"""Allowed values that an error lists; of more it shows the first and the last."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row of a text file."""

    path: Path
    line: int
    """Counted from 1, the header included."""
    number: int
    """Counted from 0, rows only; those that are left out for a fault count too."""
    cells: list[str]

    @property
    def where(self) -> str:
        """``"data/metadata.csv, line 7"``."""
        return f"{self.path}, line {self.line}"


def column_rows(path: Path, names: Sequence[str], *, delimiter: str = ",") -> Iterator[TextRow]:
    """The rows of a CSV file with the cells under ``names``; other columns are not looked at.

    Cells come as text without spaces around them, so leading zeros stay. A row of another length than the header is a
    fault of that row (``tell_fault``).

    Raises:
        DataError: not CSV in UTF-8, a column that is missing or there twice, or no row at all.
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
    for number, (line, cells) in enumerate(records):
        if len(cells) != len(header):
            problem = f"{len(cells)} values, expected {len(header)} as in the header; is the file cut off?"
            tell_fault("row", f"{path}, line {line}", problem)
            continue
        yield TextRow(path, line, number, [cells[position].strip() for position in positions])
    if line is None:
        raise DataError(f"{path} has a header but no rows")


def read_columns(path: Path, names: Sequence[str], *, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row; see ``column_rows``."""
    return ((row.line, row.cells) for row in column_rows(path, names, delimiter=delimiter))


def good_rows(rows: Iterable[TextRow], read: Callable[[TextRow], Value]) -> Iterator[Value]:
    """What ``read`` makes of every row; one for which it raises ``BadRow`` is told (``tell_fault``) and left out."""
    for row in rows:
        try:
            value = read(row)
        except BadRow as error:
            tell_fault("row", row.where, str(error))
        else:
            yield value


def choose(column: str, text: str, allowed: Mapping[str, Value]) -> Value:
    """What a cell stands for; raises ``BadRow`` for none of ``allowed``."""
    try:
        return allowed[text]
    except KeyError:
        known = list(allowed)
        listed = ", ".join(known) if len(known) <= MAX_LISTED else f"{known[0]} ... {known[-1]} ({len(known)} values)"
        raise BadRow(f"{column} is '{text}', expected one of {listed}") from None


def require_new(lines: dict[str, int], name: str, line: int) -> None:
    """Note the line that lists ``name``; raises ``BadRow`` if an earlier one does."""
    first = lines.setdefault(name, line)
    if first != line:
        raise BadRow(f"{name} was already listed in line {first}")
