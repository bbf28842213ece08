"""Optional: a run's numbers in TensorBoard, Weights & Biases or MLflow, through their own libraries.

A tracker sees what ``epochs.parquet`` and ``result.json`` hold, epoch by epoch and at the end. Nothing is told twice:
``tracked.json`` in the run's folder says what each tracker knows, so a resumed run goes on in it, and a finished run
can be told later. Whatever goes wrong in a tracker is said once, and costs its run nothing.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from spurbench.config import RunConfig, RunPaths
from spurbench.dotted import dotted
from spurbench.engine.observer import Observer, Silent
from spurbench.errors import ConfigError, install_line
from spurbench.io import read_json, write_json

__all__ = ["TRACKERS", "Tracked", "require_trackers", "tell_finished"]

_TESTED = (
    *("accuracy", "group_mean_accuracy", "adjusted_accuracy", "worst_group_accuracy", "worst_group_low"),
    *("worst_group_high", "epg", "epg_base_rate", "mask_density"),
)
"""Columns of a result row that are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What a tracker calls a run."""

    key: str
    """The run's id and when it was begun: one that was started over is another."""
    title: str
    config: Mapping[str, Any]
    """Dotted keys, plain values."""
    results: Path


class _Tracker(Protocol):
    """One run in one tracking library."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one phase by name, ``<phase>/<number>`` or ``test/<rule>/<number>``; steps are epochs, from 1."""

    def close(self, *, finished: bool) -> None:
        """Write out what is still in memory."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose library is not installed, before anything is trained.

    Raises:
        ConfigError: with the line that installs it.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:  # a mere folder: these libraries leave some of their own names
            raise ConfigError(f"--log {name} needs its library; install it with: {install_line(name)}")


class Tracked:
    """An observer that passes everything on, and tells epochs to trackers too; use it as a context.

    Args:
        inner: who is told all else, and what goes wrong.
        names: of ``TRACKERS``.
    """

    def __init__(self, inner: Observer, names: Sequence[str], config: RunConfig, paths: RunPaths) -> None:
        self._inner = inner
        self.working = list(dict.fromkeys(names))
        """Trackers that have not failed."""
        self._config = config
        self._results = paths.results
        self._folder = paths.run(config.run_id())
        self._open: dict[str, _Tracker] = {}
        self._told: dict[str, list[str]] | None = None
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._each(lambda name: self._open.pop(name).close(finished=self._finished) if name in self._open else None)

    def note(self, text: str) -> None:
        """Pass on."""
        self._inner.note(text)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Pass on."""
        self._inner.progress(task, done, total, values)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Pass on and tell."""
        self._inner.epoch(row)
        self._each(lambda name: self._tell(name, _name_of(row), _numbers_of(row), row["epoch"] + 1))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Tell the test rows of a finished run, and epochs that it took over from another or had before."""
        self._finished = True
        self._each(lambda name: self._tell_all(name, record))

    def _tell_all(self, name: str, record: Mapping[str, Any]) -> None:
        if "test" in self._known().get(name, ()):
            return
        for row in _epochs(self._folder):
            self._tell(name, _name_of(row), _numbers_of(row), row["epoch"] + 1)
        last = max((row["selected_epoch"] or 0 for row in record["rows"]), default=0) + 1
        self._tell(name, "test", {k: v for row in record["rows"] for k, v in _tested(row).items()}, last)

    def _tell(self, name: str, what: str, values: Mapping[str, float], step: int) -> None:
        told = self._known().setdefault(name, [])
        if what in told:
            return
        if name not in self._open:
            self._open[name] = TRACKERS[name](self._subject())
        self._open[name].log(values, step)
        told.append(what)
        write_json(self._folder / "tracked.json", {"begun": self._begun(), "told": self._known()})

    def _each(self, act: Callable[[str], None]) -> None:
        """Whatever happens in a tracker stays there: it is left out from then on."""
        for name in list(self.working):
            try:
                act(name)
            except Exception as error:
                self.working.remove(name)
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self._inner.note(f"note: {name} gets no more numbers, the run goes on: {reason}")

    def _known(self) -> dict[str, list[str]]:
        """What each tracker was told, by this process or one before it that worked on the same attempt."""
        if self._told is None:
            self._told = {}
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                before = read_json(self._folder / "tracked.json")
                if before["begun"] == self._begun():
                    self._told = {str(name): list(told) for name, told in before["told"].items()}
        return self._told

    def _begun(self) -> str:
        return str(read_json(self._folder / "config.json")["started_at"])

    def _subject(self) -> _Subject:
        config = self._config
        began = "".join(filter(str.isdigit, self._begun()))[:14]
        document = dotted("run", config.model_dump(mode="json"))
        return _Subject(
            key=f"{config.run_id()}-{began}",
            title=f"{config.method.name} {config.dataset.name} seed {config.seed}",
            config={"run_id": config.run_id()} | {key.removeprefix("run."): value for key, value in document.items()},
            results=self._results,
        )


def tell_finished(
    names: Sequence[str], config: RunConfig, paths: RunPaths, record: Mapping[str, Any], note: Callable[[str], None]
) -> list[str]:
    """Tell trackers of a finished run, wherever it was made; what they know already is not repeated.

    Args:
        note: called with what a person should read: that a tracker failed.

    Returns:
        The trackers that did not fail, to be told of the next run.
    """
    with Tracked(_Notes(note), names, config, paths) as tracked:
        tracked.finish(record)
    return tracked.working


class _Notes(Silent):
    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def note(self, text: str) -> None:
        self._note(text)


# ------------------------------------------------------------------------------------------------------------- numbers


def _epochs(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / "epochs.parquet").to_pylist()
    return rows


def _name_of(row: Mapping[str, Any]) -> str:
    return f"{row['position']} {row['epoch']}"


def _numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Training scalars, validation scores, and what rows hold per group and per stage."""
    numbers = {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("epoch", "position")
    }
    counts = zip(row.get("val_n") or (), row.get("val_correct") or (), strict=True)
    numbers |= {f"val_accuracy_group{group}": correct / n for group, (n, correct) in enumerate(counts) if n}
    numbers |= {f"val_density_stage{stage}": value for stage, value in enumerate(row.get("val_density") or ())}
    return {f"{row['phase']}/{name}": value for name, value in numbers.items()}


def _tested(row: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(row[name]) for name in _TESTED if row.get(name) is not None}
    numbers |= {f"accuracy_group{g['group']}": g["correct"] / g["n"] for g in row["groups"] if g["n"]}
    numbers["selected_epoch"] = row["selected_epoch"] + 1
    return {f"test/{row['selection']}/{name}": value for name, value in numbers.items()}


# ------------------------------------------------------------------------------------------------------------ libraries


class _TensorBoard:
    """Event files in ``<results>/tensorboard/<run>``: ``tensorboard --logdir results/tensorboard`` shows them."""

    def __init__(self, subject: _Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        name = "".join(c if c.isalnum() or c in "-._+" else "-" for c in f"{subject.title}-{subject.key}")
        self._writer = SummaryWriter(str(subject.results / "tensorboard" / name))
        lines = [f"    {name}: {json.dumps(value)}" for name, value in subject.config.items()]
        self._writer.add_text("config", "\n".join(lines), 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of the project ``$WANDB_PROJECT``, or ``spurbench``; ``WANDB_MODE=offline`` keeps it on this disk."""

    def __init__(self, subject: _Subject) -> None:
        import wandb

        subject.results.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "spurbench"),
            id=subject.key,
            name=subject.title,
            config=dict(subject.config),
            dir=str(subject.results),
            resume="allow",
            settings=wandb.Settings(console="off", login_timeout=30),
        )
        self._phases: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        # Phases count their epochs anew, and the library's own step only ever grows.
        phase = next(iter(values)).partition("/")[0]
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/epoch")
        self._run.log({f"{phase}/epoch": step, **values})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """A run of the experiment ``$MLFLOW_EXPERIMENT_NAME``, or ``spurbench``, at ``$MLFLOW_TRACKING_URI``."""

    def __init__(self, subject: _Subject) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "spurbench")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        before = self._client.search_runs([experiment], f"tags.spurbench_run = '{subject.key}'")
        if before:
            self._run = before[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        run = self._client.create_run(experiment, run_name=subject.title, tags={"spurbench_run": subject.key})
        self._run = run.info.run_id
        for key, value in subject.config.items():
            self._client.log_param(self._run, key, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


TRACKERS: Mapping[str, Callable[[_Subject], _Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}
"""By the names of their libraries."""
