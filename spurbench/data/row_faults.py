"""Faults of single rows of a table: an error for who wants to use it, one of many for who wants to know them all."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from spurbench.errors import DataError

__all__ = ["RowFault", "keeping_faults", "kept_faults", "tell_fault"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFault:
    """What is wrong with one row of a table, or with a file that it names."""

    kind: Literal["row", "file", "mask", "box"]
    where: str
    """File and line."""
    problem: str


_KEPT: ContextVar[list[RowFault] | None] = ContextVar("kept row faults", default=None)


@contextlib.contextmanager
def kept_faults() -> Iterator[list[RowFault]]:
    """Collect the faults of rows within the block instead of raising the first; readers leave such rows out."""
    faults: list[RowFault] = []
    token = _KEPT.set(faults)
    try:
        yield faults
    finally:
        _KEPT.reset(token)


def keeping_faults() -> bool:
    """Whether faults are collected and not raised."""
    return _KEPT.get() is not None


def tell_fault(kind: Literal["row", "file", "mask", "box"], where: str, problem: str) -> None:
    """Raise ``DataError`` about a row, or keep the fault within ``kept_faults``; the caller then goes on without it."""
    faults = _KEPT.get()
    if faults is None:
        raise DataError(f"{where}: {problem}")
    faults.append(RowFault(kind=kind, where=where, problem=problem))
