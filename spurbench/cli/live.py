"""Progress on stderr: a live line on a terminal, plain lines elsewhere. stdout carries only results."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["live_board", "live_observer"]

_PLAIN_SECONDS = 10.0
"""Time between two plain progress lines within one task."""
_SHOWN = ("loss", "tau", "density_0")
_NAMES = {"density_0": "density"}


class _Plain:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._last = 0.0

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._last >= _PLAIN_SECONDS:
            self._last = now
            self.note(f"{task}: {done}/{total} {_values(values)}".rstrip())

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._last = time.monotonic()
        self.note(_epoch_line(row))


class _Live:
    """One moving line per task, epochs above it."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console = console
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}
        self._validation = ""

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        key = task.partition(" epoch ")[0]
        if key not in self._tasks:
            for other in self._tasks.values():
                self._bar.update(other, visible=False)
            self._tasks[key] = self._bar.add_task(task, total=total, values="")
        text = f"{_values(values)} {self._validation}".strip() if values else ""
        self._bar.update(self._tasks[key], completed=done, total=total, description=task, values=text)

    def epoch(self, row: Mapping[str, Any]) -> None:
        if row["val_wga"] is not None:
            self._validation = f"val WGA {row['val_wga']:.3f}"
        self.note(_epoch_line(row))


@contextmanager
def live_observer(title: str) -> Iterator[_Plain | _Live]:
    """An observer for the engine that shows on stderr what happens."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = _Plain()
        plain.note(title)
        yield plain
        return
    with Progress(*_columns(), console=console, transient=True) as bar:
        live = _Live(console, bar)
        live.note(title)
        yield live


class _PlainBoard(_Plain):
    """Plain lines that begin with the run."""

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.progress(f"{run}: {task}", done, total, values)

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None:
        self.note(f"{run}: {_epoch_line(row)}")


class _LiveBoard:
    """One moving line per worker, what has ended above them."""

    def __init__(self, console: Console, bar: Progress, jobs: int) -> None:
        self._console = console
        self._bar = bar
        self._tasks = [bar.add_task("idle", total=1, values="", visible=False) for _ in range(jobs)]
        self._validation = [""] * jobs
        self._runs = [""] * jobs

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        if self._runs[worker] != run:
            self._runs[worker], self._validation[worker] = run, ""
            self._bar.reset(self._tasks[worker], visible=True)
        text = f"{_values(values)} {self._validation[worker]}".strip() if values else ""
        self._bar.update(self._tasks[worker], completed=done, total=total, description=f"{run}: {task}", values=text)

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None:
        if row["val_wga"] is not None:
            self._validation[worker] = f"val WGA {row['val_wga']:.3f}"


@contextmanager
def live_board(title: str, jobs: int) -> Iterator[_PlainBoard | _LiveBoard]:
    """What ``jobs`` workers do, on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        plain = _PlainBoard()
        plain.note(title)
        yield plain
        return
    with Progress(*_columns(), console=console, transient=True) as bar:
        live = _LiveBoard(console, bar, jobs)
        live.note(title)
        yield live


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[values]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )


def _values(values: Mapping[str, float]) -> str:
    return " ".join(f"{_NAMES.get(name, name)} {values[name]:.3f}" for name in _SHOWN if name in values)


def _epoch_line(row: Mapping[str, Any]) -> str:
    parts = [f"{row['phase']} epoch {row['epoch'] + 1}", f"loss {row['train_loss']:.4f}"]
    if "train_tau" in row:
        parts.append(f"tau {row['train_tau']:.2f}")
    if row["val_density"]:
        parts.append("mask density " + "/".join(f"{density:.2f}" for density in row["val_density"]))
    parts.append(f"val accuracy {row['val_accuracy']:.3f}")
    if row["val_wga"] is not None:
        parts.append(f"val WGA {row['val_wga']:.3f}")
    elif row["val_worst_class"] is not None:
        parts.append(f"val worst class {row['val_worst_class']:.3f}")
    return "  ".join(parts)
