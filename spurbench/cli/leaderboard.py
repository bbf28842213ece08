"""``spurbench leaderboard``: a table of finished runs."""

import argparse
import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurbench.cli.against import print_against
from spurbench.cli.board import Board, print_csv, print_latex, print_markdown_board, print_text
from spurbench.cli.common import print_json
from spurbench.cli.folding import folded_of, folders_of, note, some, with_fold

if TYPE_CHECKING:
    from spurbench.fold import Folded
    from spurbench.ranking import LeftOut


def execute(options: argparse.Namespace) -> int:
    """Fold, select, print."""
    with _no_collector():
        return with_fold(_execute, options)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """No search for circles, of which tables have none: with 100,000 runs it takes a fifth of the time."""
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()


def _execute(options: argparse.Namespace) -> int:
    from spurbench.errors import ConfigError, DataMissing

    folders = folders_of(options)
    rules = list(dict.fromkeys(rule for group in options.select or [["val_wga"]] for rule in group))
    if options.against is not None and len(rules) > 1:
        raise ConfigError(f"--against compares under one rule; give one to --select, not {', '.join(rules)}")
    if options.output and not options.output.endswith(".parquet"):
        raise ConfigError(f"--output writes Parquet; name a file that ends in .parquet, not {options.output}")
    folded = folded_of(folders, "the table")
    tables = {rule: _lines(folded, rule) for rule in rules}
    for rule in rules:
        _tell_without_rule(folded, rule)
    if not any(tables.values()):
        have = (
            f"the {len(folded)} rows there offer {', '.join(folded.rules)}"
            if len(folded)
            else "there are no finished runs; the folder above 'runs' is wanted"
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


def _tell_without_rule(folded: "Folded", select: str) -> None:
    """Finished runs that the table lacks because they do not offer the rule."""
    for (label, dataset, rules), count in some(folded.lacking(select).items(), f"settings without rule {select}"):
        what = f"{count} run{'s' if count > 1 else ''} of {label} on {dataset}"
        note(f"{what} without rule {select} (they have {rules})")


def _tell_left_out(left: "Sequence[LeftOut]") -> None:
    """Lines that are not ranked with the others."""
    lines = list(dict.fromkeys(left))
    for line in some(lines, "lines"):
        note(f"not ranked: {line.label} on {line.dataset}, {line.runs} runs: {line.reason}")
    if lines:
        runs = sum(line.runs for line in lines)
        note(f"{len(lines)} lines ({runs} runs) would not compare with the others; --mixed shows them")
