"""Tables of images in the CSV dialects of the field, read strictly: every problem is named by file and line.

Two dialects are known. The official one of WaterBirds has ``img_filename,y,split,place`` (and ``img_id``,
``place_filename``, which are not needed); SubpopBench's has ``filename,split,y,a`` (and ``id``).
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from spurbench.errors import DataError

__all__ = ["BOX_COLUMNS", "MASK_COLUMN", "SPLITS", "Box", "Row", "Table", "read_table", "read_text"]

Box = tuple[float, float, float, float]
"""xyxy in pixels, half open."""

SPLITS = ("train", "val", "test")
"""Names of the splits that tables number 0, 1, 2."""
FILENAME_COLUMNS = ("img_filename", "filename")
ATTRIBUTE_COLUMNS = ("place", "a")
MASK_COLUMN = "mask_filename"
BOX_COLUMNS = ("x0", "y0", "x1", "y1")
MAX_LABEL = 99_999
"""A larger class or attribute index is taken for a mistake: it would allocate one group per skipped index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table, with its values checked."""

    line: int
    """Line in the CSV file, counted from 1; the header is line 1."""
    filename: str
    split: str
    y: int
    attribute: int | None
    mask: str | None
    box: Box | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A whole table, in file order."""

    path: Path
    columns: frozenset[str]
    rows: tuple[Row, ...]
    sha256: str
    """Hex digest of the file's bytes."""

    @property
    def num_classes(self) -> int:
        """One more than the highest class index in use."""
        return 1 + max(row.y for row in self.rows)

    @property
    def num_attributes(self) -> int | None:
        """One more than the highest attribute index in use; None without an attribute column."""
        values = [row.attribute for row in self.rows if row.attribute is not None]
        return 1 + max(values) if values else None

    def where(self, row: Row) -> str:
        """``"data/metadata.csv, line 7"``."""
        return f"{self.path}, line {row.line}"


def read_table(
    path: Path,
    *,
    num_classes: int | None = None,
    num_attributes: int | None = None,
    named_splits: bool = False,
) -> Table:
    """Read and check a table of images; no image is looked at.

    ``num_classes`` and ``num_attributes`` bound the labels where a dataset fixes them; the attribute column is then
    required, otherwise optional. ``named_splits`` allows ``train``, ``val`` and ``test`` beside 0, 1 and 2.

    Raises:
        DataError: not readable as CSV in UTF-8, columns missing, a bad value, a split without rows.
        OSError: the system cannot read the file.
    """
    data = path.read_bytes()
    records = _records(path, _decode(path, data))
    header = next(records, None)
    if header is None:
        raise DataError(f"{path} is empty; expected a header with {_wanted(num_attributes is not None)}")
    reader = _RowReader(path, header[1], num_classes, num_attributes, named_splits)
    rows = tuple(reader.read(line, cells) for line, cells in records)
    _check_splits(path, rows)
    return Table(path=path, columns=frozenset(reader.columns), rows=rows, sha256=hashlib.sha256(data).hexdigest())


def read_text(path: Path) -> str:
    """The content of a UTF-8 text file; raises ``DataError`` naming the line of the first bad byte."""
    return _decode(path, path.read_bytes())


def _decode(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8 text ({error.reason}); is the file damaged?") from error
    if "\0" in text:
        line = 1 + text.count("\n", 0, text.index("\0"))
        raise DataError(f"{path}, line {line}: holds a zero byte; is the file damaged?")
    return text


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every record, the header included; empty lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV ({error}); is the file cut off?") from error


class _RowReader:
    """Turns the cells of one line into a ``Row``, by the columns that the header names."""

    def __init__(
        self,
        path: Path,
        header: Sequence[str],
        num_classes: int | None,
        num_attributes: int | None,
        named_splits: bool,
    ) -> None:
        names = [name.strip() for name in header]
        self._path = path
        self._num_cells = len(names)
        self._num_classes = num_classes
        self._num_attributes = num_attributes
        self._splits: dict[str, str] = {str(number): name for number, name in enumerate(SPLITS)}
        if named_splits:
            self._splits |= {name: name for name in SPLITS}
        self.columns = {name: position for position, name in enumerate(names)}
        self._filename = _first(self.columns, FILENAME_COLUMNS)
        self._attribute = _first(self.columns, ATTRIBUTE_COLUMNS)
        self._boxes = _has_boxes(path, self.columns)
        self._check_header(names)

    def read(self, line: int, cells: Sequence[str]) -> Row:
        if len(cells) != self._num_cells:
            self._fail(line, f"{len(cells)} values, expected {self._num_cells} as in the header; is the file cut off?")
        attribute = self._attribute
        return Row(
            line=line,
            filename=self._name(line, cells),
            split=self._split(line, cells),
            y=self._label(line, cells, "y", self._num_classes),
            attribute=None if attribute is None else self._label(line, cells, attribute, self._num_attributes),
            mask=cells[self.columns[MASK_COLUMN]].strip() or None if MASK_COLUMN in self.columns else None,
            box=self._box(line, cells) if self._boxes else None,
        )

    def _check_header(self, names: Sequence[str]) -> None:
        need_attribute = self._num_attributes is not None
        missing = [name for name in ("y", "split") if name not in self.columns]
        if self._filename is None:
            missing.insert(0, " or ".join(FILENAME_COLUMNS))
        if self._attribute is None and need_attribute:
            missing.append(" or ".join(ATTRIBUTE_COLUMNS))
        if missing:
            raise DataError(
                f"{self._path}: missing column {', '.join(missing)}; found: {', '.join(names)}; "
                f"expected {_wanted(need_attribute)}"
            )
        used = {self._filename, self._attribute, "y", "split", MASK_COLUMN, *BOX_COLUMNS}
        repeated = sorted(name for name in set(names) if name in used and names.count(name) > 1)
        if repeated:
            raise DataError(f"{self._path}: column {', '.join(repeated)} appears more than once in the header")

    def _name(self, line: int, cells: Sequence[str]) -> str:
        assert self._filename is not None
        name = cells[self.columns[self._filename]].strip()
        if not name:
            self._fail(line, f"{self._filename} is blank")
        return name

    def _split(self, line: int, cells: Sequence[str]) -> str:
        text = cells[self.columns["split"]].strip()
        if text not in self._splits:
            self._fail(
                line, f"split is '{text}', expected one of {', '.join(self._splits)} (0 is train, 1 val, 2 test)"
            )
        return self._splits[text]

    def _label(self, line: int, cells: Sequence[str], column: str, count: int | None) -> int:
        text = cells[self.columns[column]].strip()
        highest = MAX_LABEL if count is None else count - 1
        # isdigit alone would let other scripts' digits through, and int() alone '1_0' and '+1'.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LABEL)) and int(text) <= highest):
            self._fail(line, f"{column} is '{text}', expected a whole number from 0 to {highest}")
        return int(text)

    def _box(self, line: int, cells: Sequence[str]) -> Box | None:
        texts = [cells[self.columns[name]].strip() for name in BOX_COLUMNS]
        if not any(texts):
            return None
        try:
            x0, y0, x1, y1 = map(float, texts)
        except ValueError:
            self._fail(line, f"box {','.join(texts)} is not four numbers x0,y0,x1,y1 (leave all four blank for no box)")
        if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1):
            self._fail(line, f"box {','.join(texts)} is empty or not finite; expected pixels with x0 < x1 and y0 < y1")
        return x0, y0, x1, y1

    def _fail(self, line: int, problem: str) -> NoReturn:
        raise DataError(f"{self._path}, line {line}: {problem}")


def _first(columns: Mapping[str, int], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _has_boxes(path: Path, columns: Mapping[str, int]) -> bool:
    missing = [name for name in BOX_COLUMNS if name not in columns]
    if missing and len(missing) < len(BOX_COLUMNS):
        raise DataError(
            f"{path}: box column {', '.join(missing)} is missing; boxes need all of {', '.join(BOX_COLUMNS)}"
        )
    return not missing


def _wanted(attribute: bool) -> str:
    place, a = (",place", ",a") if attribute else ("[,place]", "[,a]")
    return f"the columns img_filename,y,split{place} or filename,split,y{a} in any order"


def _check_splits(path: Path, rows: Sequence[Row]) -> None:
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    present = {row.split for row in rows}
    for number, name in enumerate(SPLITS):
        if name not in present:
            raise DataError(f"{path}: no row has split {number}, so the {name} split is empty; each split needs rows")
