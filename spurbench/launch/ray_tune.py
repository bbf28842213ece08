"""Ray Tune over the runs of a sweep: a grid in Ray's own terms, workers that stay warm, failures resumed elsewhere.

Ray places runs and starts them again when a worker or node dies; what they have done lies in their folders, which all
nodes see on a shared disk. ``results/ray/<name>`` is an ordinary experiment of Ray Tune, for its own tools.
"""

import contextlib
import signal
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from spurbench.dataset import find_dataset
from spurbench.engine import Interrupted
from spurbench.engine.stop import StopFlag, stop_on_signals
from spurbench.errors import ConfigError, RunFailed
from spurbench.io import read_json, write_json
from spurbench.launch.options import Board, LaunchOptions, Outcomes, bury, from_anywhere
from spurbench.launch.ray_cluster import connected, require_ray, resources_for
from spurbench.sweep import Planned, name_of

__all__ = ["launch"]

_LOOK_SECONDS = 0.2
"""Time between two looks for messages and signals."""
_RETRIES = 3
"""Times that a run whose worker or node died is started again."""
_NOTICE = "early_stopped.json"


def launch(runs: Sequence[Planned], options: LaunchOptions, board: Board) -> Outcomes:
    """Yield each run with its record, or with the error that stopped it, as they end.

    Runs that another process holds are left to it and looked at again at the end. Runs that ASHA ended early are not
    yielded: the board is told, and any launcher without ``stop_early`` finishes them.

    Raises:
        ConfigError: Ray is not installed or not reachable, or a run asks for more than any node has.
        Interrupted: a signal; every run has been saved.
    """
    require_ray(options)
    waiting = [from_anywhere(run) for run in runs]
    if options.stop_early is not None:
        _require_metric(waiting, options)
        waiting = [run for run in waiting if not _ended_before(run, options.stop_early, board)]
    if not waiting:
        return
    cpus = max(run.config.train.num_threads or 1 for run in waiting)
    with connected(options, cpus), stop_on_signals() as stop:
        resources = resources_for(options, cpus)
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        for patient in (False, True):
            if waiting:
                experiment = _Experiment(
                    name=name + ("-held" if patient else ""),
                    runs={run.config.run_id(): run for run in waiting},
                    options=options,
                    patient=patient,
                    board=board,
                )
                yield from experiment.work_off(resources, stop)
                waiting = experiment.held


@dataclass(kw_only=True)
class _Experiment:
    """One call of Ray Tune, from the driver's side."""

    name: str
    runs: Mapping[str, Planned]
    options: LaunchOptions
    patient: bool
    """Whether trials wait for another process that holds their run."""
    board: Board
    held: list[Planned] = field(default_factory=list)
    """Runs that another process worked on."""
    ended: set[str] = field(default_factory=set)
    """Runs that were heard of for the last time."""
    slots: dict[str, int] = field(default_factory=dict)
    """Lines of the board by run."""
    error: BaseException | None = None
    """What ended Ray Tune itself."""

    def work_off(self, resources: Mapping[str, float], stop: StopFlag) -> Outcomes:
        """Yield runs while Ray Tune works in another thread: it takes no notice of signals there."""
        import ray

        mailbox = self._open_mailbox()
        thread = threading.Thread(target=self._fit, args=(dict(resources),), daemon=True, name="ray-tune")
        thread.start()
        try:
            working = True
            while working:
                working = thread.is_alive()
                for run_id, kind, content in ray.get(mailbox.hear.remote()):
                    yield from self._handle(run_id, kind, content)
                if stop.signal_number is not None:
                    ray.get(mailbox.halt.remote(stop.signal_number))
                thread.join(_LOOK_SECONDS)
        finally:
            if thread.is_alive():  # whoever asked for the runs does not want more of them
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(mailbox.halt.remote(signal.SIGTERM))
                    thread.join()
        if stop.signal_number is not None:
            raise Interrupted(stop.signal_number)
        if self.error is not None:
            raise RunFailed(
                f"Ray Tune ended with {type(self.error).__name__}: {self.error}; start the same command again, runs "
                "resume from their last checkpoints"
            ) from self.error
        for run_id in set(self.runs) - self.ended:
            yield from self._handle(run_id, "died", "Ray did not say why")

    def _open_mailbox(self) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from spurbench.launch.ray_trial import NAMESPACE, Mailbox

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0)(Mailbox).options(name=self.name, namespace=NAMESPACE, scheduling_strategy=here)
        return actor.remote(list(self.runs.values()))

    def _fit(self, resources: dict[str, float]) -> None:
        """Ray Tune's own loop."""
        from ray import tune

        from spurbench.launch.ray_hooks import HaltOnRequest, TellDriver, asha
        from spurbench.launch.ray_trial import Desk, train_run

        metric = self.options.stop_early
        desk = Desk(
            mailbox=self.name,
            device=_device_for(self.options, resources.get("gpu", 0)),
            plugins=tuple(plugin.absolute() for plugin in self.options.plugins),
            patient=self.patient,
            stop_early=metric,
        )
        results = next(iter(self.runs.values())).paths.results
        longest = max(run.config.train.epochs for run in self.runs.values())
        try:
            tune.Tuner(
                tune.with_resources(tune.with_parameters(train_run, desk=desk), resources),
                param_space={"run": tune.grid_search([_described(run) for run in self.runs.values()])},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=self.options.jobs,
                    scheduler=None if metric is None else asha(metric, longest),
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=tune.RunConfig(
                    name=self.name,
                    storage_path=str(results / "ray"),
                    failure_config=tune.FailureConfig(max_failures=_RETRIES),
                    stop=HaltOnRequest(self.name),
                    callbacks=[TellDriver(self.name, metric)],
                    verbose=0,
                ),
            ).fit()
        except BaseException as error:  # handed over to the thread that waits for this one
            self.error = error

    def _handle(self, run_id: str, kind: str, content: Any) -> Outcomes:
        """What a message means for the board, the run's folder and whoever waits for runs."""
        run = self.runs[run_id]
        if kind in ("note", "progress", "epoch"):
            self._show(run_id, kind, content)
            return
        name = name_of(run)
        if kind == "again":
            self.board.note(f"{name}: {content}; it is resumed from its last checkpoint")
            return
        self.slots.pop(run_id, None)
        if run_id in self.ended:
            return
        self.ended.add(run_id)
        folder = run.paths.run(run_id)
        if kind == "done":
            (folder / _NOTICE).unlink(missing_ok=True)
            yield run, content
        elif kind == "held":
            self.held.append(run)
        elif kind == "early":
            notice = {"by": f"asha {self.options.stop_early}", **content}
            write_json(folder / _NOTICE, notice)
            self.board.note(_early_text(run, notice))
        elif kind in ("failed", "died"):
            error = RunFailed(content) if kind == "failed" else self._bury(run, content)
            self.board.note(f"failed: {name}: {error}")
            yield run, error

    def _show(self, run_id: str, kind: str, content: Any) -> None:
        free = sorted(set(range(self.options.jobs)) - set(self.slots.values()))
        if run_id not in self.slots and not free:  # a run that is about to end still has the line
            return
        slot, name = self.slots.setdefault(run_id, free[0] if free else 0), name_of(self.runs[run_id])
        if kind == "note":
            self.board.note(f"{name}: {content}")
        elif kind == "progress":
            self.board.show(slot, name, *content)
        else:
            self.board.epoch_of(slot, name, content)

    def _bury(self, run: Planned, why: str) -> RunFailed:
        """A run whose workers died time and again gets the record that it could not write."""
        error = RunFailed(
            f"its worker died {_RETRIES + 1} times, in the end: {why}; --retry-failed resumes the run from its last "
            "checkpoint"
        )
        rule = self.options.stop_early and f"asha {self.options.stop_early}"
        bury(run, error, {"launcher": "ray", "early_stopping": rule})
        return error


def _device_for(options: LaunchOptions, gpus: float) -> str:
    """What runs are told: with a share of a GPU to use it, without one not to."""
    if options.device != "auto":
        return options.device
    if gpus:
        return "cuda"
    return "auto" if options.gpus_per_run is None else "cpu"


def _described(run: Planned) -> dict[str, Any]:
    """A point of the grid, for people who look at it with Ray's tools."""
    config = run.config
    brackets = {name: value for name in ("num_stages", "tau") if (value := config.method.config.get(name)) is not None}
    return {
        "run_id": config.run_id(),
        "method": config.method.name,
        **brackets,
        "dataset": config.dataset.name,
        "backbone": config.backbone.name,
        "seed": config.seed,
    }


def _trial_name(trial: Any) -> str:
    """Trials are called after their runs."""
    return str(trial.config["run"]["run_id"])


def _require_metric(runs: Sequence[Planned], options: LaunchOptions) -> None:
    """Refuse a metric that no epoch of some run would have."""
    if options.stop_early != "val_wga":
        return
    for run in runs:
        name = run.config.dataset.name
        if run.paths.dataset_path is None and find_dataset(name, options.plugins).info.attributes is None:
            raise ConfigError(
                f"{name} has no groups, so its runs have no val_wga; use --stop-early val_worst_class or val_accuracy"
            )


def _ended_before(run: Planned, metric: str, board: Board) -> bool:
    """Whether the same rule has ended the run in an earlier call: it would not want it now either."""
    try:
        notice = read_json(run.paths.run(run.config.run_id()) / _NOTICE)
        if run.finished or notice["by"] != f"asha {metric}":
            return False
        board.note(_early_text(run, notice))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _early_text(run: Planned, notice: Mapping[str, Any]) -> str:
    return (
        f"ended early: {name_of(run)}: ASHA by {notice['metric']} ({notice['value']:.3f}) after epoch "
        f"{notice['epoch'] + 1}; the same command without --stop-early finishes it"
    )
