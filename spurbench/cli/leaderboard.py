"""``spurbench leaderboard``: a table of finished runs."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spurbench.cli.against import print_against
from spurbench.cli.board import Board, print_csv, print_latex, print_markdown_board, print_text
from spurbench.cli.common import print_json

if TYPE_CHECKING:
    from spurbench.fold import Folded
    from spurbench.ranking import LeftOut

_T = TypeVar("_T")

_NAMED = 5
"""Of many things of one kind so many are named, the others counted."""


def execute(options: argparse.Namespace) -> int:
    """Fold, select, print."""
    from spurbench.kept import KeptDamaged, forget

    try:
        return _execute(options)
    except KeptDamaged as error:
        _note(f"{error}; reading all records again")
        forget(error.results)
        return _execute(options)


def _execute(options: argparse.Namespace) -> int:
    from spurbench.errors import ConfigError, DataMissing
    from spurbench.fold import fold

    folders = [Path(name).expanduser() for name in options.results or [options.results_root]]
    if absent := [str(folder) for folder in folders if not folder.exists()]:
        raise DataMissing(f"nothing at {', '.join(absent)}; name result folders or Parquet tables")
    rules = list(dict.fromkeys(rule for group in options.select or [["val_wga"]] for rule in group))
    if options.against is not None and len(rules) > 1:
        raise ConfigError(f"--against compares under one rule; give one to --select, not {', '.join(rules)}")
    folded = fold(folders, workers=_cores())
    _tell(folded)
    tables = {rule: _lines(folded, rule) for rule in rules}
    for rule in rules:
        _tell_without_rule(folded, rule)
    if not any(tables.values()):
        have = (
            f"the {len(folded)} rows there offer {', '.join(folded.rules)}"
            if len(folded)
            else "there are no finished runs"
        )
        named = " or ".join(f"'{rule}'" for rule in rules)
        raise DataMissing(f"no run below {', '.join(map(str, folders))} has rule {named}: {have}")
    if options.output:
        folded.write(Path(options.output).expanduser())
    if options.against is not None:
        (table,) = tables.values()
        print_against(_best(table, rules[0], options), options)
        return 0
    left: list[LeftOut] = []
    for rule, table in tables.items():
        tables[rule] = _ranking(table, rule, options, left, [folder for folder in folders if folder.is_dir()])
    _tell_left_out(left)
    board = Board(tables=tables, by_seed=options.seeds)
    if options.format == "json":
        print_json(
            {
                "runs": [row for rule in rules for row in folded.all_rows(rule)],
                "table": board.lines,
                "left_out": [asdict(one) for one in dict.fromkeys(left)],
                "conflicts": [asdict(conflict) for conflict in folded.conflicts],
            }
        )
    else:
        printers = {"csv": print_csv, "markdown": print_markdown_board, "latex": print_latex, "table": print_text}
        printers[options.format](board)
    return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(folded: "Folded", rule: str) -> list[dict[str, Any]]:
    from spurbench.leaderboard import NEEDED, lines_of

    return lines_of(folded.rows(rule, columns=NEEDED))


def _best(table: list[dict[str, Any]], rule: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    from spurbench.leaderboard import best_draws

    return best_draws(table, rule) if options.draws == "best" else table


def _ranking(
    table: list[dict[str, Any]],
    rule: str,
    options: argparse.Namespace,
    left: "list[LeftOut]",
    folders: Sequence[Path],
) -> list[dict[str, Any]]:
    """Lines that may be ranked together, with intervals; ``left`` gets the others."""
    from spurbench.intervals import with_intervals
    from spurbench.ranking import rankable

    if options.mixed:
        return with_intervals(_best(table, rule, options), options.intervals, folders)
    table, without = rankable(table)  # settings of another recipe are no draws of this one
    left += without
    table, without = rankable(_best(table, rule, options))
    left += without
    return with_intervals(table, options.intervals, folders)


def _tell(folded: "Folded") -> None:
    """What is not in the table, and why."""
    for place, reason in _some(folded.damaged.items(), "damaged records"):
        _note(f"skipped a damaged record: {place}: {reason}")
    if folded.failed:
        named = ", ".join(folded.failed[:_NAMED])
        more = f" and {len(folded.failed) - _NAMED} more" if len(folded.failed) > _NAMED else ""
        _note(f"{len(folded.failed)} failed runs are not in the table: {named}{more}")
    for note in folded.notes:
        _note(note)
    for conflict in _some(folded.conflicts, "conflicts"):
        values = ", ".join(f"{value} in {source}" for source, value in conflict.values)
        _note(
            f"conflict: run {conflict.run} ({conflict.selection}) is there {len(conflict.values)} times with different "
            f"numbers: {conflict.column} {values}; the last one counts"
        )


def _tell_without_rule(folded: "Folded", select: str) -> None:
    """Finished runs that the table lacks because they do not offer the rule."""
    for (label, dataset, rules), count in folded.lacking(select).items():
        what = f"{count} run{'s' if count > 1 else ''} of {label} on {dataset}"
        _note(f"{what} without rule {select} (they have {rules})")


def _tell_left_out(left: "Sequence[LeftOut]") -> None:
    """Lines that are not ranked with the others."""
    lines = list(dict.fromkeys(left))
    for line in _some(lines, "lines"):
        _note(f"not ranked: {line.label} on {line.dataset}, {line.runs} runs: {line.reason}")
    if lines:
        runs = sum(line.runs for line in lines)
        _note(f"{len(lines)} lines ({runs} runs) would not compare with the others; --mixed shows them")


def _some(items: Iterable[_T], what: str) -> list[_T]:
    """The first few; how many others there are is told."""
    items = list(items)
    if len(items) > _NAMED:
        _note(f"{len(items)} {what}, of which these are the first {_NAMED}:")
    return items[:_NAMED]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
