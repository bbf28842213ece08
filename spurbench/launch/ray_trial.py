"""What happens in the worker processes of Ray: one run after the other, and word of it to whoever started the sweep.

A run's folder is its whole state, so nothing goes through Ray's checkpoints: a trial that Ray starts again finds its
run where the dead worker left it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from spurbench.engine import Interrupted, run_one
from spurbench.engine.stop import StopFlag
from spurbench.errors import SpurbenchError
from spurbench.resolve import make_method
from spurbench.sweep import Planned

__all__ = ["NAMESPACE", "TIME", "Desk", "Mailbox", "train_run"]

NAMESPACE = "spurbench"
TIME = "epochs_of_last_phase"
"""Early stopping compares runs that report equal values of this: epochs done in the last phase that has any."""
_SAVE_SECONDS = 30.0
"""What runs get to save themselves; then Ray ends them, and their last checkpoint counts."""


class Mailbox:
    """An actor beside the driver: hands out runs, collects what workers tell, and tells them to stop."""

    def __init__(self, runs: Iterable[Planned]) -> None:
        self._runs = {run.config.run_id(): run for run in runs}
        self._messages: list[tuple[str, str, Any]] = []
        self._active: set[str] = set()
        self._signal: int | None = None
        self._last_call = 0.0

    def begin(self, run_id: str) -> Planned | None:
        """The run of a trial that starts; None if everything is to stop."""
        if self._signal is not None:
            self._active.discard(run_id)
            return None
        self._active.add(run_id)
        return self._runs[run_id]

    def tell(self, run_id: str, kind: str, content: Any) -> int | None:
        """Leave a message; the signal that the run has to stop for, if there is one, is returned."""
        self._messages.append((run_id, kind, content))
        if kind not in ("note", "progress", "epoch", "again"):
            self._active.discard(run_id)
        return self._signal

    def hear(self) -> list[tuple[str, str, Any]]:
        """All messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def halt(self, number: int) -> None:
        """Let all runs save and end."""
        if self._signal is None:
            self._signal, self._last_call = number, time.monotonic() + _SAVE_SECONDS

    def has_halted(self) -> bool:
        """Whether all are to stop and have stopped, or took too long."""
        return self._signal is not None and (not self._active or time.monotonic() > self._last_call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What all trials of an experiment have in common."""

    mailbox: str
    """Name of the actor."""
    device: str
    plugins: tuple[Path, ...]
    patient: bool
    """Whether to wait for another process that holds the run."""
    stop_early: str | None
    """Metric by which a scheduler may end the run."""


def train_run(config: dict[str, Any], desk: Desk) -> None:
    """The function that Ray Tune calls with each point of the grid."""
    # A worker is used again once the last run has left it; giving a folder free can take its time on a shared disk.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    run_id = config["run"]["run_id"]
    mailbox = ray.get_actor(desk.mailbox, NAMESPACE)
    answer: Any = ray.get(mailbox.begin.remote(run_id))
    run: Planned | None = answer
    if run is None:
        return
    stop = StopFlag()
    message: tuple[str, Any]
    try:
        record = run_one(
            run.config,
            run.paths,
            device=desk.device,
            plugins=desk.plugins,
            wait=desk.patient,
            launcher="ray",
            early_stopping=desk.stop_early and f"asha {desk.stop_early}",
            observer=_Remote(run, desk, mailbox, stop),
            stop=stop,
        )
        message = ("held", None) if record is None else ("done", record)
    except Interrupted as error:
        message = ("interrupted", str(error))
    except SpurbenchError as error:  # the run's own record tells of it: another attempt would end the same way
        message = ("failed", str(error))
    ray.get(mailbox.tell.remote(run_id, *message))
    tune.report(_summary(*message, metric=desk.stop_early))


class _Remote:
    """An observer that tells the driver, and Ray Tune of every epoch. Without a driver the run is saved and ends."""

    def __init__(self, run: Planned, desk: Desk, mailbox: Any, stop: StopFlag) -> None:
        self._run_id = run.config.run_id()
        self._metric = desk.stop_early
        self._mailbox = mailbox
        self._stop = stop
        phases = make_method(run.config, desk.plugins).phases(run.config.train)
        # A method whose phases have no epochs reports its end alone.
        trained = [(n, phase.epochs) for n, phase in enumerate(phases) if phase.epochs] or [(0, 0)]
        self._position, self._epochs = trained[-1]

    def note(self, text: str) -> None:
        self._tell("note", text)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self._tell("progress", (task, done, total, dict(values)))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self._tell("epoch", dict(row))
        names = ("phase", "epoch", "val_accuracy", "val_wga", "val_worst_class")
        result = {name: row[name] for name in names if row[name] is not None}
        result |= {"status": "running", "loss": row["train_loss"]}
        done = row["epoch"] + 1
        # After its last epoch there is nothing to save by ending a run.
        if row["position"] == self._position and done < self._epochs and self._metric in result:
            result[TIME] = done
        tune.report(_with(self._metric, result))

    def _tell(self, kind: str, content: Any) -> None:
        try:
            number = ray.get(self._mailbox.tell.remote(self._run_id, kind, content))
        except ray.exceptions.RayError:
            number = signal.SIGTERM
        if number is not None:
            self._stop.signal_number = number


def _summary(kind: str, content: Any, metric: str | None) -> dict[str, Any]:
    """The last line of a trial in Ray's own tables."""
    if kind != "done":
        return _with(metric, {"status": kind, **({"error": content} if content else {})})
    row = content["rows"][0]
    names = ("val_accuracy", "val_wga", "val_worst_class", "accuracy", "worst_group_accuracy", "epg")
    result = {name: row[name] for name in names if row.get(name) is not None}
    with contextlib.suppress(KeyError):
        result["epoch"] = row["selected_epoch"]
    return _with(metric, {"status": "finished", **result})


def _with(metric: str | None, result: dict[str, Any]) -> dict[str, Any]:
    """Ray insists on the metric of a scheduler in every result."""
    return {metric: float("nan"), **result} if metric else result
