"""Tables for people. Percentages exist only here; files hold fractions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

__all__ = ["percent", "print_rows", "print_table"]


def percent(value: float | None, digits: int = 1) -> str:
    """``0.123`` to ``12.3``; a dash for null."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one run: a line per selection rule."""
    first = rows[0]
    print_table(
        f"{first['label']} on {first['dataset']}, {first['backbone']}, seed {first['seed']}, {first['split']} split",
        ["selection", "epoch", "accuracy", "group mean", "WGA", "worst group", "EPG", "GMACs", "params M"],
        [
            [
                row["selection"],
                "-" if row["selected_epoch"] is None else str(row["selected_epoch"] + 1),
                percent(row["accuracy"]),
                percent(row["group_mean_accuracy"]),
                _with_interval(row),
                row["worst_group"] or "-",
                f"{percent(row.get('epg'))} {row.get('epg_source') or ''}".strip(),
                f"{row['gmacs']:.3f} (+{row['gmacs'] - row['gmacs_backbone']:.3f})",
                f"{row['params'] / 1e6:.2f} (+{(row['params'] - row['params_backbone']) / 1e6:.2f})",
            ]
            for row in rows
        ],
    )


def _with_interval(row: Mapping[str, Any]) -> str:
    low, high = percent(row["worst_group_low"]), percent(row["worst_group_high"])
    return f"{percent(row['worst_group_accuracy'])} [{low}, {high}]"


def print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table on stdout; full width, so that a pipe loses nothing."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=240)
    console.print(table)
