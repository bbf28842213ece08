"""What Ray Tune's loop calls: word to the driver of what befell a trial, the end on request, early stopping.

These are pickled into the experiment's folder and, with ``ray://``, sent to the cluster, so they hold only a name.
"""

import textwrap
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler

from spurbench.launch.ray_trial import NAMESPACE, TIME

__all__ = ["HaltOnRequest", "TellDriver", "asha"]

_LOOK_SECONDS = 0.5


def asha(metric: str, longest: int) -> Any:
    """At epochs 1, 2, 4, ... of its last phase a run ends that is below the median of those that came as far.

    Args:
        longest: epochs of the longest run; the last epoch of a run is never reported to the rule.
    """
    return ASHAScheduler(
        time_attr=TIME, metric=metric, mode="max", grace_period=1, reduction_factor=2, max_t=longest + 1
    )


class TellDriver(TrialProgressCallback):  # type: ignore[misc, unused-ignore]
    """Tells what a trial cannot tell itself. Being Ray's own table of progress, it replaces that."""

    def __init__(self, mailbox: str, metric: str | None) -> None:
        super().__init__()
        self._mailbox = mailbox
        self._metric = metric

    def log_result(self, trial: Any, result: dict[str, Any], error: bool = False) -> None:
        """Print nothing."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print nothing."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial that is running and marked as done was ended by the scheduler."""
        if self._metric is not None and result.get("done") and result.get("status") == "running":
            facts = {"metric": self._metric, "value": result[self._metric], "epoch": result["epoch"]}
            self._tell(trial, "early", facts)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died, and the trial is started again."""
        self._tell(trial, "again", f"its worker died ({_reason(trial)})")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died once too often."""
        self._tell(trial, "died", _reason(trial))

    def _tell(self, trial: Any, kind: str, content: Any) -> None:
        ray.get(ray.get_actor(self._mailbox, NAMESPACE).tell.remote(trial.config["run"]["run_id"], kind, content))


class HaltOnRequest(tune.Stopper):  # type: ignore[misc, unused-ignore]
    """Ends the experiment once all runs have saved themselves."""

    def __init__(self, mailbox: str) -> None:
        self._mailbox = mailbox
        self._next_look = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is ended for its results."""
        return False

    def stop_all(self) -> bool:
        """Whether the driver was told to stop, and everybody is ready."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _LOOK_SECONDS
        return bool(ray.get(ray.get_actor(self._mailbox, NAMESPACE).has_halted.remote()))


def _reason(trial: Any) -> str:
    """The last line of what Ray wrote down, where its loop runs, about the last failure of a trial."""
    try:
        lines = Path(trial.error_file).read_text(encoding="utf-8", errors="replace").split("\n")
    except (OSError, TypeError):
        lines = []
    told = [line.strip() for line in lines if line.strip()]
    return textwrap.shorten(told[-1], 250) if told else "no reason given"
