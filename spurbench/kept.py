"""Folding a folder of very many runs again, at the cost of what is new.

``RESULTS/.leaderboard`` keeps the rows of all finished runs as Parquet files that are never changed, and an index of
the records that they come from: modification time, inode and size of every ``result.json``, all of which are looked
at each time (records are replaced by renaming, which changes the inode). The index is replaced last and names the
Parquet files that belong to it, so that a fold that is killed, or several at once, leave a whole one. What is missing
or damaged there is made again from the records; the folder can be deleted at any time.
"""

import contextlib
import errno
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from spurbench.io import atomic_write
from spurbench.records import Batch, Record, array_of, arrow_schema, read_batch
from spurbench.schema import COLUMNS, SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KEPT_FROM", "Fold", "KeptDamaged", "fold_folder", "forget", "row_groups"]

KEPT_FROM = 1000
"""Runs of a folder from which on its rows are kept; fewer are read faster than they are looked up."""

_HOME = ".leaderboard"
_FORMAT = f"1 {SCHEMA_VERSION} {' '.join(column.name for column in COLUMNS)}"
"""Another format or other columns make what was kept useless."""
_CHUNK = 250
"""Records in work at once, per process."""
_ALONE = 2000
"""So many records are read by one process sooner than others have started."""
_ROW_GROUP = 20_000
"""Rows in memory while Parquet files are written."""
_SMALL_PARTS = 8
"""So many small Parquet files are made one."""
_GRACE = 3600
"""Seconds for which Parquet files stay that no index names: another process may read them, or be about to name them."""


class KeptDamaged(Exception):
    """A kept Parquet file that cannot be read: forget it and fold again."""

    def __init__(self, results: Path) -> None:
        super().__init__(f"kept rows of {results} are damaged")
        self.results = results


Stamp = tuple[int, int, int]
"""Modification time in ns, inode, and size of a record."""


@dataclass(slots=True)
class Fold:
    """All records of a results folder."""

    parts: "list[Path | pa.Table]" = field(default_factory=list)
    """Rows of the finished runs: Parquet files, or tables in memory."""
    failed: list[str] = field(default_factory=list)
    """Run ids."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """Why records cannot be used."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Rows by a column that this version does not know. Kept rows no longer have those."""
    fresh: int = 0
    """Records that were read now."""


@dataclass(slots=True)
class _Index:
    """What is known of every record."""

    stamps: dict[str, Stamp] = field(default_factory=dict)
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    """State and reason by run, of those that are not finished."""
    parts: list[Path] = field(default_factory=list)


def fold_folder(results: Path, kept_from: int = KEPT_FROM, workers: int = 1) -> Fold:
    """Fold all of ``results/runs/*/result.json``; only records that are new or have changed are read.

    It may run while records are written, and beside other folds of the same folder.

    Args:
        kept_from: runs from which on rows are kept in ``results/.leaderboard``, if that can be written.
        workers: processes that read where very many records are new. More than one need a main module that can be
            imported.
    """
    stamps = dict(_stamps(results / "runs"))
    if len(stamps) < kept_from:
        return _in_memory(results, stamps, workers)
    try:
        return _kept(results, stamps, workers)
    except KeptDamaged:
        forget(results)
        return _kept(results, stamps, workers)


def forget(results: Path) -> None:
    """Make the next fold read everything again."""
    with contextlib.suppress(OSError):
        _index_path(results).unlink()


def row_groups(
    part: "Path | pa.Table", columns: Sequence[str] | None = None, encoded: bool = False
) -> "Iterator[pa.Table]":
    """Rows of a table in memory or a Parquet file, some ten thousand at a time, with the columns of this version.

    Args:
        encoded: the columns, texts of a kept file, as dictionaries: they are stored like that.

    Raises:
        KeptDamaged: a kept file is not what was written.
        pyarrow.ArrowException, OSError: another file is damaged, or a column of another kind than the schema says.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema()
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    if not isinstance(part, Path):
        yield part.select(schema.names)
        return
    try:
        dictionaries = columns if encoded else None
        with pq.ParquetFile(part, page_checksum_verification=True, read_dictionary=dictionaries) as file:
            there = set(file.schema_arrow.names)
            for number in range(file.num_row_groups):
                table = file.read_row_group(number, columns=[name for name in schema.names if name in there])
                yield (
                    table
                    if encoded or table.schema.equals(schema)
                    else _as_schema(table, schema, file.metadata.row_group(number).num_rows)
                )
    except (OSError, pa.ArrowException) as error:
        if part.parent.name == _HOME:
            raise KeptDamaged(part.parents[1]) from error
        raise


def _as_schema(table: "pa.Table", schema: "pa.Schema", rows: int) -> "pa.Table":
    """Columns that earlier versions did not have are null."""
    import pyarrow as pa

    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        try:
            arrays.append(table[name].cast(kind) if name in table.column_names else pa.nulls(rows, kind))
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"column {name} should be {kind}, it is {table[name].type}") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _kept(results: Path, stamps: dict[str, Stamp], workers: int) -> Fold:
    index = _load(results) or _Index()
    fresh = sorted(run for run, stamp in stamps.items() if index.stamps.get(run) != stamp)
    stale = index.stamps.keys() - (stamps.keys() - set(fresh))
    if not fresh and not stale:
        return _fold_of(results, index, 0, Counter())
    try:
        home = _home(results)
        home.mkdir(exist_ok=True)
        with_rows = stale - index.states.keys()
        parts = _without(home, index.parts, with_rows) if with_rows else list(index.parts)
        part, records, unknown = _new_part(home, results, fresh, workers)
        parts += [part] if part is not None else []
        index = _Index(
            stamps,
            {run: state for run, state in index.states.items() if run not in stale}
            | {record.run: (record.state, record.reason) for record in records if record.state != "finished"},
            _merged(home, parts),
        )
        _save(results, index)
        _sweep_up(home, index.parts)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        return _in_memory(results, stamps, workers)
    return _fold_of(results, index, len(fresh), unknown)


def _home(results: Path) -> Path:
    return results / _HOME


def _index_path(results: Path) -> Path:
    return _home(results) / "index.parquet"


def _stamps(runs: Path) -> Iterator[tuple[str, Stamp]]:
    """Every run that has a record. Looked at before it is read: what is replaced meanwhile is read again next time."""
    if not runs.is_dir():
        return
    folder = str(runs)
    for run in os.listdir(folder):  # noqa: PTH208  Paths of 100,000 runs take a third of a second
        try:
            stat = os.stat(f"{folder}/{run}/result.json")  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield run, (stat.st_mtime_ns, stat.st_ino, stat.st_size)


def _in_memory(results: Path, stamps: Iterable[str], workers: int) -> Fold:
    fold = Fold()
    for batch in _batches(results / "runs", sorted(stamps), workers):
        fold.parts.append(batch.table)
        fold.unknown += batch.unknown
        fold.fresh += len(batch.records)
        for record in batch.records:
            _note(fold, results, record.run, record.state, record.reason)
    return fold


def _fold_of(results: Path, index: _Index, fresh: int, unknown: Counter[str]) -> Fold:
    fold = Fold(parts=list(index.parts), unknown=unknown, fresh=fresh)
    for run in sorted(index.states):
        _note(fold, results, run, *index.states[run])
    return fold


def _note(fold: Fold, results: Path, run: str, state: str, reason: str) -> None:
    if state == "failed":
        fold.failed.append(run)
    elif state == "damaged":
        fold.damaged[results / "runs" / run / "result.json"] = reason


def _batches(folder: Path, runs: Sequence[str], workers: int) -> Iterator[Batch]:
    """Read records, with several processes where there are many."""
    chunks = [runs[start : start + _CHUNK] for start in range(0, len(runs), _CHUNK)]
    workers = min(workers, len(chunks))
    read = partial(read_batch, folder)
    if len(runs) < _ALONE or workers < 2:
        yield from map(read, chunks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(read, chunks)


def _new_part(
    home: Path, results: Path, runs: Sequence[str], workers: int
) -> tuple[Path | None, list[Record], Counter[str]]:
    """Rows of these runs as one more Parquet file."""
    records: list[Record] = []
    unknown: Counter[str] = Counter()

    def tables() -> "Iterator[pa.Table]":
        for batch in _batches(results / "runs", runs, workers):
            records.extend(batch.records)
            unknown.update(batch.unknown)
            yield batch.table

    return _write(home, tables()), records, unknown


def _without(home: Path, parts: Sequence[Path], runs: set[str]) -> list[Path]:
    """The same rows but those of some runs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    gone = array_of(sorted(runs), pa.string())
    tables = (
        table.filter(pc.invert(pc.is_in(table["run_id"], value_set=gone)))
        for part in parts
        for table in row_groups(part)
    )
    part = _write(home, tables)
    return [] if part is None else [part]


def _merged(home: Path, parts: Sequence[Path]) -> list[Path]:
    """Small files as one, once there are many: opening each costs as much as reading thousands of rows."""
    import pyarrow.parquet as pq

    rows = {part: pq.read_metadata(part).num_rows for part in parts}
    small = [part for part in parts if rows[part] < _ROW_GROUP]
    if len(small) < _SMALL_PARTS:
        return list(parts)
    merged = _write(home, (table for part in small for table in row_groups(part)))
    return [part for part in parts if part not in small] + ([] if merged is None else [merged])


def _write(home: Path, tables: "Iterable[pa.Table]") -> Path | None:
    """One Parquet file under a new name; None without rows."""
    import pyarrow.parquet as pq

    path = home / f"rows-{uuid.uuid4().hex}.parquet"
    written = 0
    with (
        atomic_write(path) as stream,
        pq.ParquetWriter(stream, arrow_schema(), compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in _in_groups(tables):
            writer.write_table(table)
            written += table.num_rows
    if not written:
        path.unlink()
    return path if written else None


def _in_groups(tables: "Iterable[pa.Table]") -> "Iterator[pa.Table]":
    """The same rows in tables that are as large as a row group should be, but for the last."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= _ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if any(part.num_rows for part in waiting):
        yield pa.concat_tables(waiting)


def _load(results: Path) -> _Index | None:
    """The index, if it is whole, of this format, and all its Parquet files are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(_index_path(results), page_checksum_verification=True) as file:
            table = file.read()
        facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if facts["format"] != _FORMAT:
            return None
        parts = [_home(results) / name for name in facts["parts"].split()]
        if sum(pq.read_metadata(part).num_rows for part in parts) != int(facts["rows"]):
            return None
        columns = [table[name].to_pylist() for name in ("run", "mtime_ns", "inode", "size")]
        states = zip(columns[0], table["state"].to_pylist(), table["reason"].to_pylist(), strict=True)
        return _Index(
            dict(zip(columns[0], zip(*columns[1:], strict=True), strict=True)),
            {run: (state, reason) for run, state, reason in states if state is not None},
            parts,
        )
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


def _save(results: Path, index: _Index) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    states = [index.states.get(run, (None, None)) for run in index.stamps]
    mtimes, inodes, sizes = zip(*index.stamps.values(), strict=True) if index.stamps else ((), (), ())
    columns = {
        "run": array_of(list(index.stamps), pa.string()),
        "mtime_ns": array_of(mtimes, pa.int64()),
        "inode": array_of(inodes, pa.uint64()),
        "size": array_of(sizes, pa.int64()),
        "state": array_of([state for state, _ in states], pa.string()),
        "reason": array_of([reason for _, reason in states], pa.string()),
    }
    facts = {
        "format": _FORMAT,
        "parts": " ".join(part.name for part in index.parts),
        "rows": str(sum(pq.read_metadata(part).num_rows for part in index.parts)),
    }
    with atomic_write(_index_path(results)) as stream:
        table = pa.table(columns).replace_schema_metadata(facts)
        pq.write_table(table, stream, use_dictionary=False, compression="none", write_page_checksum=True)


def _sweep_up(home: Path, parts: Sequence[Path]) -> None:
    """Remove Parquet files of earlier folds that nobody can still be reading."""
    named = {part.name for part in parts}
    for path in [*home.glob("rows-*.parquet"), *home.glob(".*.tmp")]:
        with contextlib.suppress(OSError):
            if path.name not in named and time.time() - path.stat().st_mtime > _GRACE:
                path.unlink()
