"""Rows of many result folders and Parquet tables as one: columns when they are asked for, no run twice."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spurbench.io import atomic_write
from spurbench.kept import KEPT_FROM, fold_folder, row_groups
from spurbench.leaderboard import rule_for
from spurbench.records import LISTS, MEASURED, SHARES, array_of, arrow_schema, mask_of, table_to_rows, well_formed
from spurbench.schema import COLUMNS, SCHEMA_VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Conflict", "Folded", "fold"]

Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]

_KEY = ("run_id", "selection", "split")
_MEASURED = tuple(column.name for column in COLUMNS if column.where == "row" and column.name != "schema_version")
"""What two records of one run have to agree in."""
_REQUIRED = tuple(column.name for column in COLUMNS if column.required)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One run that is there more than once, with different numbers."""

    run: str
    selection: str
    column: str
    """The first that differs, WGA before others."""
    values: tuple[tuple[str, Any], ...]
    """(source, value), in the order of the sources. The last one counts."""


@dataclass(slots=True)
class Folded:
    """All rows below some sources. Only their keys are in memory."""

    failed: list[str] = field(default_factory=list)
    """Ids of failed runs."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Why files or rows cannot be used, by place."""
    notes: list[str] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    fresh: int = 0
    """Records that were read now, not kept from an earlier fold."""
    _parts: "list[tuple[str, Path | pa.Table, Mask | None]]" = field(default_factory=list)
    """Source, rows, and which of them can be used (None: all)."""
    _words: list[list[str]] = field(default_factory=lambda: [[], [], []])
    """Run ids, rules and splits."""
    _codes_N: list[Codes] = field(default_factory=lambda: [np.empty(0, np.int64)] * 3)
    """The place of each row's run id, rule and split among the words."""
    _counts_N: Mask = field(default_factory=lambda: np.empty(0, bool))
    """Whether a row counts: it can be used, and is the last one with its key."""
    _offered: list[frozenset[str]] = field(default_factory=list)
    """Rules by run."""

    def __len__(self) -> int:
        return int(self._counts_N.sum())

    @property
    def num_runs(self) -> int:
        """Runs of which at least one row counts."""
        return len(np.unique(self._codes_N[0][self._counts_N]))

    @property
    def rules(self) -> list[str]:
        """All that any run offers."""
        return sorted(frozenset().union(*set(self._offered)))

    def rows(self, select: str, split: str = "test", columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of the runs under a rule; a method that offers no rule but ``last`` stands in under that."""
        last, named = self._is("selection", "last"), self._is("selection", select)
        under = np.where(self._by_run(lambda rules: rule_for(set(rules), select) != select), last, named)
        return self._read(under & self._is("split", split), columns)

    def all_rows(self, select: str) -> list[dict[str, Any]]:
        """Rows that the rule chose, with every column, on every split, in an order that does not depend on files."""
        return sorted(self._read(self._is("selection", select), None), key=lambda row: (row["run_id"], row["split"]))

    def lacking(self, select: str) -> Counter[tuple[str, str, str]]:
        """Runs that a table lacks for want of the rule, by (label, dataset, the rules that they have)."""
        chosen = self._by_run(lambda rules: rule_for(set(rules), select) not in rules)
        if not chosen.any():
            return Counter()
        runs = {row["run_id"]: row for row in self._read(chosen, ("label", "dataset", "method"))}
        offered = dict(zip(self._words[0], self._offered, strict=True))
        return Counter(
            (row["label"] or row["method"], row["dataset"], ", ".join(sorted(offered[run])))
            for run, row in runs.items()
        )

    def write(self, path: Path) -> None:
        """All rows as one Parquet file."""
        import pyarrow.parquet as pq

        with atomic_write(path) as stream, pq.ParquetWriter(stream, arrow_schema(), compression="zstd") as writer:
            for _, table in self._tables(self._counts_N, None):
                if table.num_rows:
                    writer.write_table(table)

    def _is(self, name: str, word: str) -> Mask:
        number = _KEY.index(name)
        code = self._words[number].index(word) if word in self._words[number] else -1
        found: Mask = self._codes_N[number] == code
        return found

    def _by_run(self, holds: Callable[[frozenset[str]], bool]) -> Mask:
        """Of each row: whether it holds for what its run offers."""
        answers = {rules: holds(rules) for rules in set(self._offered)}
        return np.array([answers[rules] for rules in self._offered], bool)[self._codes_N[0]]

    def _read(self, chosen_N: Mask, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        names = None if columns is None else list(dict.fromkeys((*_KEY, *columns)))
        for _, table in self._tables(chosen_N & self._counts_N, names):
            yield from table_to_rows(table)

    def _tables(self, chosen_N: Mask, columns: Sequence[str] | None) -> "Iterator[tuple[str, pa.Table]]":
        """Rows by source, some ten thousand at a time."""
        place = 0
        for source, part, _ in self._parts:
            for table in row_groups(part, columns):
                chosen = chosen_N[place : place + table.num_rows]
                place += table.num_rows
                yield source, table if chosen.all() else table.filter(mask_of(chosen))


def fold(sources: Iterable[Path], kept_from: int = KEPT_FROM, workers: int = 1) -> Folded:
    """Read every ``runs/*/result.json`` of result folders, and leaderboard tables.

    Damaged files and rows are named with the reason, and the others served. A run that is there twice counts once: the
    later source wins, and if the numbers differ the conflict is listed.

    Args:
        kept_from: see ``fold_folder``, and for ``workers``.
    """
    folded = Folded()
    for source in sources:
        if not source.is_dir():
            _add_table(folded, source)
            continue
        found = fold_folder(source, kept_from, workers)
        folded._parts += [(str(source), part, None) for part in found.parts]
        folded.failed += found.failed
        folded.damaged |= {str(path): reason for path, reason in found.damaged.items()}
        folded.fresh += found.fresh
        _tell_unknown(folded, source, found.unknown)
    _index(folded)
    return folded


def _tell_unknown(folded: Folded, source: Path, unknown: Iterable[str]) -> None:
    if names := sorted(unknown):
        folded.notes.append(f"{source}: columns that this version does not know are left out: {', '.join(names)}")


def _add_table(folded: Folded, path: Path) -> None:
    """A Parquet table, if it is a leaderboard's, and which of its rows can be used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if absent := [name for name in _REQUIRED if name not in names]:
            folded.damaged[str(path)] = f"it is no leaderboard's table: column {absent[0]} is missing"
            return
        reasons: dict[str, set[str]] = {}
        usable = [_usable(table, reasons) for table in row_groups(path)]
    except (OSError, pa.ArrowException, ValueError) as error:
        folded.damaged[str(path)] = f"it is no leaderboard's table, or damaged: {str(error).partition(chr(10))[0]}"
        return
    for reason, runs in reasons.items():
        some = ", ".join(sorted(runs)[:3]) + (f" and {len(runs) - 3} others" if len(runs) > 3 else "")
        folded.damaged[f"{path}, run{'s' if len(runs) > 1 else ''} {some}"] = reason
    folded._parts.append((str(path), path, np.concatenate([np.empty(0, bool), *usable])))
    _tell_unknown(folded, path, set(names) - set(arrow_schema().names))


def _usable(table: "pa.Table", reasons: dict[str, set[str]]) -> Mask:
    """Which rows are whole and of a schema that this version knows; ``reasons`` gets the runs of the others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    usable = np.ones(table.num_rows, bool)

    def refuse(wrong: "pa.ChunkedArray", reason: str) -> None:
        wrong_N = np.zeros_like(usable)
        wrong_N[np.from_dlpack(pc.indices_nonzero(wrong))] = True
        wrong_N &= usable
        if wrong_N.any():
            reasons.setdefault(reason, set()).update(map(str, table.filter(mask_of(wrong_N))["run_id"].to_pylist()))
            usable[wrong_N] = False

    for version in pc.unique(table["schema_version"]).to_pylist():
        if version is not None and version > SCHEMA_VERSION:
            refuse(
                pc.equal(table["schema_version"], version),
                f"schema {version} is newer than this spurbench's, {SCHEMA_VERSION}; update spurbench to read it",
            )
    finished = pc.is_in(table["status"], value_set=array_of(["finished", None], pa.string()))
    refuse(pc.invert(finished), "its status is not 'finished'")
    for name in (*_REQUIRED, *MEASURED):
        refuse(pc.is_null(table[name]), f"{name} is missing")
    for name in table.column_names:
        if pa.types.is_floating(table[name].type):
            refuse(pc.invert(pc.is_finite(table[name])), f"{name} is no finite number")
        elif name in (*LISTS, "config_json"):
            texts = table[name].unique()
            if broken := [text for text in texts.to_pylist() if text is not None and not well_formed(name, text)]:
                refuse(pc.is_in(table[name], value_set=array_of(broken, pa.string())), f"{name} cannot be read")
    for name in SHARES:
        if pa.types.is_floating(table[name].type):
            refuse(pc.or_(pc.less(table[name], 0), pc.greater(table[name], 1)), f"{name} is not a share from 0 to 1")
    return usable


def _index(folded: Folded) -> None:
    """Keys of all rows, which of them count, and where rows of one key differ."""
    tables, masks = [], []
    for _, part, usable in folded._parts:
        keys = list(row_groups(part, _KEY, encoded=usable is None))
        tables += keys
        masks.append(np.ones(sum(table.num_rows for table in keys), bool) if usable is None else usable)
    if not tables:
        return
    for which, name in enumerate(_KEY):
        places: dict[str, int] = {}
        codes = [_codes(chunk, places) for table in tables for chunk in table[name].chunks]
        folded._words[which], folded._codes_N[which] = list(places), np.concatenate([np.empty(0, np.int64), *codes])
    counts_N = np.concatenate(masks)

    key_N = np.ravel_multi_index(folded._codes_N, [max(1, len(words)) for words in folded._words])
    usable_n = np.flatnonzero(counts_N)
    _, last, number = np.unique(key_N[usable_n][::-1], return_index=True, return_counts=True)
    folded._counts_N = np.zeros_like(counts_N)
    folded._counts_N[usable_n[len(usable_n) - 1 - last]] = True

    rules = np.zeros(len(folded._words[0]), np.int64)
    np.bitwise_or.at(rules, folded._codes_N[0][folded._counts_N], 1 << folded._codes_N[1][folded._counts_N])
    sets = {
        bits: frozenset(word for place, word in enumerate(folded._words[1]) if bits >> place & 1)
        for bits in set(rules.tolist())
    }
    folded._offered = [sets[bits] for bits in rules.tolist()]
    if (number > 1).any():
        twice = np.isin(key_N, key_N[usable_n][::-1][last[number > 1]]) & counts_N
        folded.conflicts = list(_conflicts(folded, twice))


def _codes(texts: "pa.Array", places: dict[str, int]) -> Codes:
    """The place of each text among all, to which new ones are added; where a row cannot be used, None may be one."""
    if texts.null_count or not hasattr(texts, "dictionary"):
        return np.array([places.setdefault(text, len(places)) for text in texts.to_pylist()], np.int64)
    words = np.array([places.setdefault(word, len(places)) for word in texts.dictionary.to_pylist()], np.int64)
    codes: Codes = words[np.from_dlpack(texts.indices)]
    return codes


def _conflicts(folded: Folded, twice_N: Mask) -> Iterator[Conflict]:
    found: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = {}
    for source, table in folded._tables(twice_N, None):
        for row in table_to_rows(table):
            found.setdefault(tuple(row[name] for name in _KEY), []).append((source, row))
    for key in sorted(found):
        differing = [name for name in _MEASURED if _differs(name, [row for _, row in found[key]])]
        if differing:
            column = next((name for name in ("worst_group_accuracy", "accuracy") if name in differing), differing[0])
            values = tuple((source, row[column]) for source, row in found[key])
            yield Conflict(run=key[0], selection=key[1], column=column, values=values)


def _differs(name: str, rows: Iterable[dict[str, Any]]) -> bool:
    """Whether rows say different things in a column; an older schema may not have had it."""
    known = (row for row in rows if row[name] is not None or row["schema_version"] == SCHEMA_VERSION)
    return len({repr(row[name]) for row in known}) > 1
