"""Tables for people. Percentages exist only here; files hold fractions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from spurbench.text import printable

__all__ = ["erasure_text", "percent", "print_markdown", "print_rows", "print_table", "size", "spread"]

_MANY = 500
"""Lines from which on columns are only aligned: rich takes milliseconds for each line."""


def percent(value: float | None, digits: int = 1) -> str:
    """``0.123`` to ``12.3``; a dash for null."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def spread(mean: float | None, deviation: float | None) -> str:
    """``12.3 ± 0.4``; without a deviation the mean alone."""
    return percent(mean) + (f" ± {percent(deviation)}" if deviation is not None else "")


def size(num_bytes: float) -> str:
    """``12300000`` to ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one run: a line per selection rule."""
    first = rows[0]
    official = [{entry["name"]: entry["value"] for entry in row.get("official") or ()} for row in rows]
    print_table(
        f"{first['label']} on {first['dataset']}, {first['backbone']}, seed {first['seed']}, {first['split']} split",
        [
            *("selection", "epoch", "accuracy", "group mean", "WGA", *official[0]),
            *("worst group", "EPG", "GMACs", "params M"),
        ],
        [
            [
                row["selection"],
                str(row["selected_epoch"] + 1) if (row["selected_epoch"] or 0) >= 0 else "-",
                percent(row["accuracy"]),
                percent(row["group_mean_accuracy"]),
                _with_interval(row),
                *(percent(values.get(name)) for name in official[0]),
                row["worst_group"] or "-",
                f"{percent(row.get('epg'))} {row.get('epg_source') or ''}".strip(),
                f"{row['gmacs']:.3f} ({row['gmacs'] - row['gmacs_backbone']:+.3f})",
                f"{row['params'] / 1e6:.2f} ({(row['params'] - row['params_backbone']) / 1e6:+.2f})",
            ]
            for row, values in zip(rows, official, strict=True)
        ],
        drop=("params M", "group mean", "GMACs", "worst group", "epoch", "EPG"),
    )
    if first.get("erasure"):
        stays = {entry["erased"]: entry["agree"] / entry["n"] for entry in first["erasure"] if entry["fill"] == "mean"}
        print(
            f"predictions that stay ({first['selection']}), erased to the mean colour: "
            f"outside the mask {percent(stays['outside'])}, inside {percent(stays['inside'])}, "
            f"outside another image's mask {percent(stays['outside_control'])}"
        )


def erasure_text(entry: Mapping[str, Any]) -> str:
    """Of a leaderboard's line: predictions that stay when the outside, the inside, or the control is erased."""
    shares = [entry[f"erasure_{erased}_mean"] for erased in ("outside", "inside", "outside_control")]
    return "-" if shares[0] is None else " / ".join(percent(share, 0) for share in shares)


def _with_interval(row: Mapping[str, Any]) -> str:
    low, high = percent(row["worst_group_low"]), percent(row["worst_group_high"])
    return f"{percent(row['worst_group_accuracy'])} [{low}, {high}]"


def print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], drop: Sequence[str] = ()) -> None:
    """A table on stdout. On a narrow terminal whole columns are left out and named; a pipe loses nothing.

    Args:
        drop: columns that may be left out, the least important first. What is still too wide is broken into lines, the
            first column last.
    """
    lines = [list(map(printable, line)) for line in lines]
    if len(lines) > _MANY:
        _print_many(title, header, lines)
        return
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        hidden = _too_wide(header, lines, drop, console.width)
    else:
        console, hidden = Console(highlight=False, markup=False, width=400), set()
    shown = [number for number, name in enumerate(header) if name not in hidden]
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    fits = _needed(header, lines, hidden) <= console.width
    for number in shown:
        justify: Literal["left", "right"] = "left" if number == 0 else "right"
        table.add_column(header[number], justify=justify, no_wrap=fits or number == 0, overflow="fold")
    for line in lines:
        table.add_row(*(line[number] for number in shown))
    console.print(table)
    if hidden:
        names = ", ".join(name for name in header if name in hidden)
        console.print(f"not shown for want of width: {names}")


def _print_many(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """The same without regard to the terminal's width."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ["─" * width for width in widths]
    print(title)
    for cells in [header, rule, *lines]:
        aligned = (f"{cell:>{width}}" if place else f"{cell:<{width}}" for place, (cell, width) in enumerate(
            zip(cells, widths, strict=True)))  # fmt: skip
        print("  " + "   ".join(aligned))


def print_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table in Markdown on stdout; what data says is text, never a cell or a tag."""
    for cells in [header, ["---"] * len(header), *lines]:
        texts = (re.sub(r"<(?=[A-Za-z/!?])", "&lt;", printable(cell)).replace("|", "\\|") for cell in cells)
        print("| " + " | ".join(texts) + " |")


def _too_wide(header: Sequence[str], lines: Sequence[Sequence[str]], drop: Sequence[str], width: int) -> set[str]:
    """Columns to leave out until the rest fits; two spaces and a rule's end surround each."""
    hidden: set[str] = set()
    for name in drop:
        if _needed(header, lines, hidden) <= width:
            break
        hidden.add(name)
    return hidden


def _needed(header: Sequence[str], lines: Sequence[Sequence[str]], hidden: set[str]) -> int:
    """Characters that a line takes."""
    widths = [
        max([len(name), *(len(line[i]) for line in lines)]) for i, name in enumerate(header) if name not in hidden
    ]
    return sum(3 + width for width in widths) + 2
