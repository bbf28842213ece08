"""What commands about many runs share: their sources, folded, and what of them could not be used."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from spurbench.fold import Folded

__all__ = ["folded_of", "folders_of", "note", "some", "with_fold"]

_T = TypeVar("_T")

_NAMED = 5
"""Of many things of one kind so many are named, the others counted."""


def with_fold(execute: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command; where rows kept from an earlier fold are damaged, forget them and run it again."""
    from spurbench.kept import KeptDamaged, forget

    try:
        return execute(options)
    except KeptDamaged as error:
        note(f"{error}; reading all records again")
        forget(error.results)
        return execute(options)


def folders_of(options: argparse.Namespace) -> list[Path]:
    """Result folders and tables that were named, or the usual one.

    Raises:
        DataMissing: one of them is not there.
    """
    from spurbench.errors import DataMissing

    folders = [Path(name).expanduser() for name in options.results or [options.results_root]]
    if absent := [str(folder) for folder in folders if not folder.exists()]:
        raise DataMissing(f"nothing at {', '.join(absent)}; name result folders or Parquet tables")
    return folders


def folded_of(folders: Sequence[Path], what: str) -> "Folded":
    """All rows below them; people are told what is not in ``what``, and why."""
    from spurbench.fold import fold

    folded = fold(folders, workers=_cores())
    _tell(folded, what)
    return folded


def some(items: Iterable[_T], what: str) -> list[_T]:
    """The first few; how many others there are is told."""
    items = list(items)
    if len(items) > _NAMED:
        note(f"{len(items)} {what}, of which these are the first {_NAMED}:")
    return items[:_NAMED]


def note(text: str) -> None:
    """For people, beside what a command prints."""
    print(f"note: {text}", file=sys.stderr)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(folded: "Folded", what: str) -> None:
    for place, reason in some(folded.damaged.items(), "damaged records"):
        note(f"skipped a damaged record: {place}: {reason}")
    if folded.failed:
        named = ", ".join(folded.failed[:_NAMED])
        more = f" and {len(folded.failed) - _NAMED} more" if len(folded.failed) > _NAMED else ""
        note(f"{len(folded.failed)} failed runs are not in {what}: {named}{more}")
    for text in folded.notes:
        note(text)
    for conflict in some(folded.conflicts, "conflicts"):
        values = ", ".join(f"{value} in {source}" for source, value in conflict.values)
        note(
            f"conflict: run {conflict.run} ({conflict.selection}) is there {len(conflict.values)} times with different "
            f"numbers: {conflict.column} {values}; the last one counts"
        )
