"""Faults of single rows of a table: an error for who wants to use it, one of many for who wants to know them all.

Whoever reads a row raises ``BadRow``, whoever goes through the rows tells it (``tell_fault``) and goes on to the next.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from spurbench.errors import DataError

__all__ = ["BadRow", "RowFault", "keeping_faults", "kept_faults", "tell_fault"]


class BadRow(Exception):
    """What is wrong with a row; where it stands is told by ``tell_fault``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """What is wrong with one row of a table, or with a file that it names."""

    kind: Literal["row", "file", "mask", "box"]
    where: str
    """File and line."""
    problem: str


_KEPT: ContextVar[tuple[list[RowFault], set[RowFault]] | None] = ContextVar("kept row faults", default=None)
"""In order, and to look them up."""


@contextlib.contextmanager
def kept_faults() -> Iterator[list[RowFault]]:
    """Collect the faults of rows within the block instead of raising the first; readers leave such rows out.

    A file that is read twice has its faults once.
    """
    faults: list[RowFault] = []
    token = _KEPT.set((faults, set()))
    try:
        yield faults
    finally:
        _KEPT.reset(token)


def keeping_faults() -> bool:
    """Whether faults are collected and not raised."""
    return _KEPT.get() is not None


def tell_fault(kind: Literal["row", "file", "mask", "box"], where: str, problem: str) -> None:
    """Raise ``DataError`` about a row, or keep the fault within ``kept_faults``; the caller then goes on without it."""
    kept = _KEPT.get()
    if kept is None:
        raise DataError(f"{where}: {problem}")
    faults, known = kept
    fault = RowFault(kind=kind, where=where, problem=problem)
    if fault not in known:
        known.add(fault)
        faults.append(fault)
