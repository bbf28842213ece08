"""Tables of images in the CSV dialects of the field, read strictly: every problem is named by file and line.

Two dialects are known. The official one of WaterBirds has ``img_filename,y,split,place`` (and ``img_id``,
``place_filename``, which are not needed); SubpopBench's has ``filename,split,y,a`` (and ``id``). Tables of people's own
may have more: masks, boxes, and names of classes, attributes and splits beside their numbers.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from spurbench.data.row_faults import BadRow, keeping_faults, tell_fault
from spurbench.errors import DataError

__all__ = [
    "ATTRIBUTE_NAME",
    "BOX_COLUMNS",
    "CLASS_NAME",
    "MASK_COLUMN",
    "SPLITS",
    "SPLIT_NAME",
    "Box",
    "Row",
    "Table",
    "csv_records",
    "read_table",
    "read_text",
    "split_called",
]

Box = tuple[float, float, float, float]
"""xyxy in pixels, half open."""

SPLITS = ("train", "val", "test")
"""Names of the splits that tables number 0, 1, 2."""
FILENAME_COLUMNS = ("img_filename", "filename")
ATTRIBUTE_COLUMNS = ("place", "a")
MASK_COLUMN = "mask_filename"
BOX_COLUMNS = ("x0", "y0", "x1", "y1")
"""Several boxes of an image are parted by semicolons, in the same order in all four columns."""
CLASS_NAME, ATTRIBUTE_NAME, SPLIT_NAME = "class_name", "attribute_name", "split_name"
"""Columns that name what the others number."""
OTHER_SPLIT_NAMES = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}
MAX_LABEL = 99_999
"""A larger class or attribute index is taken for a mistake: it would allocate one group per skipped index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table, with its values checked."""

    line: int
    """Line in the CSV file, counted from 1; the header is line 1. 0 for a row that was read from folders."""
    filename: str
    split: str
    y: int
    attribute: int | None
    mask: str | None = None
    boxes: tuple[Box, ...] = ()
    class_name: str | None = None
    attribute_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A whole table, in file order."""

    path: Path
    columns: frozenset[str]
    rows: tuple[Row, ...]
    splits: tuple[str, ...] = SPLITS
    """Names of all splits, in the order of their numbers."""

    @property
    def num_classes(self) -> int:
        """One more than the highest class index in use."""
        return 1 + max(row.y for row in self.rows)

    @property
    def num_attributes(self) -> int | None:
        """One more than the highest attribute index in use; None without an attribute column."""
        values = [row.attribute for row in self.rows if row.attribute is not None]
        return 1 + max(values) if values else None

    def class_names(self) -> tuple[str | None, ...]:
        """A name per class, None where no row tells one.

        Raises:
            DataError: two names of one class, or one name of two.
        """
        return self._names(CLASS_NAME, self.num_classes, [(row, row.y, row.class_name) for row in self.rows])

    def attribute_names(self) -> tuple[str | None, ...]:
        """The same for attributes; empty when there are none."""
        named = [(row, row.attribute, row.attribute_name) for row in self.rows if row.attribute is not None]
        return self._names(ATTRIBUTE_NAME, self.num_attributes or 0, named)

    def _names(
        self, column: str, count: int, rows: Sequence[tuple[Row, int | None, str | None]]
    ) -> tuple[str | None, ...]:
        names: dict[int | None, tuple[str, Row]] = {}
        numbers: dict[str, tuple[int | None, Row]] = {}
        for row, number, name in rows:
            if name is None:
                continue
            other, there = names.setdefault(number, (name, row))
            if other != name:
                tell_fault(
                    "row", self.where(row), f"{column} of {number} is '{name}', but '{other}' in line {there.line}"
                )
                continue
            before, there = numbers.setdefault(name, (number, row))
            if before != number:
                problem = f"{column} '{name}' stands for {number}, but in line {there.line} for {before}"
                tell_fault("row", self.where(row), problem)
        return tuple(names[number][0] if number in names else None for number in range(count))

    def where(self, row: Row) -> str:
        """``"data/metadata.csv, line 7"``; the folder of a row that was read from folders."""
        return f"{self.path}, line {row.line}" if row.line else str(self.path)


def read_table(
    path: Path,
    *,
    num_classes: int | None = None,
    num_attributes: int | None = None,
    own: bool = False,
    further_splits: bool = False,
) -> Table:
    """Read and check a table of images; no image is looked at.

    Args:
        path: the CSV file.
        num_classes: bounds the labels where a dataset fixes them.
        num_attributes: likewise; the attribute column is then required, otherwise optional.
        own: a table of people's own, which may name splits instead of numbering them, and classes and attributes too;
            further splits than three have their names in a column ``split_name``.
        further_splits: also take any other number or name of a split for a further one.

    Raises:
        DataError: not readable as CSV in UTF-8, columns missing, a bad value, a split without rows.
        OSError: the system cannot read the file.
    """
    data = path.read_bytes()
    records = csv_records(path, _decode(path, data))
    header = next(records, None)
    if header is None:
        raise DataError(f"{path} is empty; expected a header with {_wanted(num_attributes is not None)}")
    reader = _RowReader(path, header[1], num_classes, num_attributes, own, further_splits)
    rows = tuple(_good_rows(path, reader, records))
    _check_splits(path, rows)
    return Table(
        path=path,
        columns=frozenset(reader.columns),
        rows=rows,
        splits=reader.splits.names(),
    )


def split_called(text: str) -> str | None:
    """The split that people call ``text``, such as ``val`` for ``"valid"``; None if no split can be called so."""
    name = OTHER_SPLIT_NAMES.get(text.lower(), text.lower() if text.lower() in SPLITS else text)
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,49}", name) else None


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


def csv_records(path: Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every record of a CSV file's text, the header included; empty lines are skipped.

    Raises:
        DataError: not valid CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV ({error}); is the file cut off?") from error


def _good_rows(path: Path, reader: "_RowReader", records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    for line, cells in records:
        try:
            row = reader.read(line, cells)
        except BadRow as error:
            tell_fault("row", f"{path}, line {line}", str(error))
        else:
            yield row


class _RowReader:
    """Turns the cells of one line into a ``Row``, by the columns that the header names."""

    def __init__(
        self,
        path: Path,
        header: Sequence[str],
        num_classes: int | None,
        num_attributes: int | None,
        own: bool,
        further_splits: bool,
    ) -> None:
        names = [name.strip() for name in header]
        self._path = path
        self._num_cells = len(names)
        self._num_classes = num_classes
        self._num_attributes = num_attributes
        self._own = own
        self.splits = _Splits(own, further_splits)
        self.columns = {name: position for position, name in enumerate(names)}
        self._filename = _first(self.columns, FILENAME_COLUMNS)
        self._attribute = _first(self.columns, ATTRIBUTE_COLUMNS)
        self._boxes = _has_boxes(path, self.columns)
        self._check_header(names)

    def read(self, line: int, cells: Sequence[str]) -> Row:
        if len(cells) != self._num_cells:
            _fail(f"{len(cells)} values, expected {self._num_cells} as in the header; is the file cut off?")
        attribute = self._attribute
        return Row(
            line=line,
            filename=self._name(cells),
            split=self._split(cells),
            y=self._label(cells, "y", self._num_classes),
            attribute=None if attribute is None else self._label(cells, attribute, self._num_attributes),
            mask=self._text(cells, MASK_COLUMN),
            boxes=self._read_boxes(cells) if self._boxes else (),
            class_name=self._text(cells, CLASS_NAME) if self._own else None,
            attribute_name=self._text(cells, ATTRIBUTE_NAME) if self._own else None,
        )

    def _text(self, cells: Sequence[str], column: str) -> str | None:
        """What stands in an optional column; None where it is blank or there is no such column."""
        return cells[self.columns[column]].strip() or None if column in self.columns else None

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
        used |= {CLASS_NAME, ATTRIBUTE_NAME, SPLIT_NAME} if self._own else set()
        repeated = sorted(name for name in set(names) if name in used and names.count(name) > 1)
        if repeated:
            raise DataError(f"{self._path}: column {', '.join(repeated)} appears more than once in the header")

    def _name(self, cells: Sequence[str]) -> str:
        assert self._filename is not None
        name = cells[self.columns[self._filename]].strip()
        if not name:
            _fail(f"{self._filename} is blank")
        return name

    def _split(self, cells: Sequence[str]) -> str:
        try:
            return self.splits.read(
                cells[self.columns["split"]].strip(), self._text(cells, SPLIT_NAME) if self._own else None
            )
        except ValueError as error:
            _fail(str(error))

    def _label(self, cells: Sequence[str], column: str, count: int | None) -> int:
        text = cells[self.columns[column]].strip()
        highest = MAX_LABEL if count is None else count - 1
        # isdigit alone would let other scripts' digits through, and int() alone '1_0' and '+1'.
        if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_LABEL)) and int(text) <= highest):
            _fail(f"{column} is '{text}', expected a whole number from 0 to {highest}")
        return int(text)

    def _read_boxes(self, cells: Sequence[str]) -> tuple[Box, ...]:
        texts = [cells[self.columns[name]].strip() for name in BOX_COLUMNS]
        if not any(texts):
            return ()
        columns = [text.split(";") for text in texts]
        if len({len(column) for column in columns}) > 1:
            _fail(f"box columns hold {'/'.join(str(len(column)) for column in columns)} numbers, not equally many")
        return tuple(self._box(corners) for corners in zip(*columns, strict=True))

    def _box(self, texts: Sequence[str]) -> Box:
        try:
            x0, y0, x1, y1 = map(float, texts)
        except ValueError:
            _fail(f"box {','.join(texts)} is not four numbers x0,y0,x1,y1 (leave all four blank for no box)")
        if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1):
            _fail(f"box {','.join(texts)} is empty or not finite; expected pixels with x0 < x1 and y0 < y1")
        return x0, y0, x1, y1


def _fail(problem: str) -> NoReturn:
    raise BadRow(problem)


class _Splits:
    """Which split a row belongs to, and all that were seen."""

    def __init__(self, own: bool, further: bool) -> None:
        self._further = further
        self._known: dict[str, str] = {str(number): name for number, name in enumerate(SPLITS)}
        if own:
            self._known |= {name: name for name in SPLITS}
        self._expected = ", ".join(self._known)
        self._seen: dict[str, int | None] = {}
        """Further splits with their numbers, as they came."""

    def read(self, text: str, name: str | None) -> str:
        """The split of a row with these values of ``split`` and ``split_name``; a bad one raises ``ValueError``."""
        if name is None and text in self._known:
            return self._known[text]
        if name is not None:
            return self._named(text, name)
        called = f"split{text}" if text.isascii() and text.isdigit() and len(text) <= 3 else split_called(text)
        if not self._further or called is None:
            raise ValueError(f"split is '{text}', expected one of {self._expected} (0 is train, 1 val, 2 test)")
        return self._add(text, called)

    def names(self) -> tuple[str, ...]:
        """All splits, further ones by number and then as they came."""
        further = sorted(self._seen, key=lambda name: (self._seen[name] is None, self._seen[name] or 0))
        return (*SPLITS, *further)

    def _named(self, text: str, name: str) -> str:
        if split_called(name) != name:
            raise ValueError(
                f"split_name is '{name}', expected train, val, test or another word of letters, digits and _.-"
            )
        if text not in self._known and not (text.isascii() and text.isdigit() and len(text) <= 3):
            raise ValueError(f"split is '{text}', expected a whole number beside split_name '{name}'")
        if text not in self._known and name not in self._known.values():
            return self._add(text, name)
        if self._known.get(text) != name:
            others = [number for number, other in self._known.items() if other == name]
            known = f"split {text} is '{self._known[text]}'" if text in self._known else f"that is split {others[0]}"
            raise ValueError(f"split_name of split {text} is '{name}', but {known}")
        return name

    def _add(self, text: str, name: str) -> str:
        self._known[text] = name
        if name not in SPLITS:
            self._seen.setdefault(name, int(text) if text.isdigit() else None)
        return name


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
        raise DataError(f"{path} has a header but no {'good ' if keeping_faults() else ''}rows")
    present = {row.split for row in rows}
    for number, name in enumerate(SPLITS):
        if name not in present:
            tell_fault(
                "row", str(path), f"no row has split {number}, so the {name} split is empty; each split needs rows"
            )
