"""Columns of CSV files, against pandas, and every kind of damage by line."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spurbench.data.csv_columns import TextRow, choose, column_rows, good_rows, read_columns, require_new
from spurbench.data.row_faults import BadRow, kept_faults
from spurbench.errors import DataError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
TABLES = st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=TABLES, delimiter=st.sampled_from(",;\t"))
def test_any_text_survives(tmp_path: Path, rows: list[tuple[str, str, str]], delimiter: str) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *rows])
    path = tmp_path / "table.csv"
    path.write_bytes(stream.getvalue().encode())
    found = [cells for _, cells in read_columns(path, ("c", "a"), delimiter=delimiter)]
    assert found == [[c.strip(), a.strip()] for a, _, c in rows]


def test_agrees_with_pandas(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('\ufeff,image,label\n\n0,"a ""b"", c.png",007\n1, d.png ,1\n', encoding="utf-8")
    theirs = pd.read_csv(path, dtype=str)
    ours = list(read_columns(path, ("label", "image")))
    assert [line for line, _ in ours] == [3, 4]
    assert [cells for _, cells in ours] == [
        [label.strip(), image.strip()] for image, label in zip(theirs["image"], theirs["label"], strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "missing column a, b; found an empty file"),
        (b"a,c\n1,2\n", "missing column b; found a,c; expected at least a,b"),
        (b"a,b,a\n1,2,3\n", "column a appears more than once in the header"),
        (b"a,b\n", "has a header but no rows"),
        (b"a,b\n1,2\n1\n", "line 3: 1 values, expected 2 as in the header; is the file cut off"),
        (b'a,b\n1,2\n1,"2\n', "line 3: not valid CSV"),
        (b"a,b\n1,\xff\n", "line 2: not UTF-8 text"),
        (b"a,b\n1,\0\n", "line 2: holds a zero byte"),
    ],
)
def test_damage(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        list(read_columns(path, ("a", "b")))


def test_choose() -> None:
    assert choose("y", "1", {"0": False, "1": True}) is True
    with pytest.raises(BadRow, match=r"^y is '2', expected one of 0, 1$"):
        choose("y", "2", {"0": 0, "1": 1})
    with pytest.raises(BadRow, match=r"expected one of 0 ... 99 \(100 values\)$"):
        choose("y", "-1", {str(value): value for value in range(100)})


def test_bad_rows_are_told_or_kept_and_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("name,y\na,0\nb\n\nc,7\na,1\nd,1\n")
    lines: dict[str, int] = {}

    def read(row: TextRow) -> tuple[int, str, int]:
        name, y = row.cells
        require_new(lines, name, row.line)
        return row.number, name, choose("y", y, {"0": 0, "1": 1})

    with pytest.raises(DataError, match=rf"^{path}, line 3: 1 values, expected 2"):
        list(good_rows(column_rows(path, ("name", "y")), read))
    lines.clear()
    with kept_faults() as faults:
        for _ in range(2):  # some files are read twice
            lines.clear()
            assert list(good_rows(column_rows(path, ("name", "y")), read)) == [(0, "a", 0), (4, "d", 1)]
    assert [(fault.kind, fault.where, fault.problem.partition(",")[0]) for fault in faults] == [
        ("row", f"{path}, line 3", "1 values"),
        ("row", f"{path}, line 5", "y is '7'"),
        ("row", f"{path}, line 6", "a was already listed in line 2"),
    ]
