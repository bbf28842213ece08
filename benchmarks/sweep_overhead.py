"""What a run costs beside its training: many runs that do next to nothing, through every way to start them.

    local      `spurbench sweep`'s launcher in this process, one run after the other
    pool       the same with two warm worker processes
    ray        --launcher ray with two actors (if Ray is installed)
    ray-plain  Ray Tune function trainables that do nothing, reuse_actors=True: Ray's own cost
    python -c  a new Python process per run that imports torch and timm and does nothing

A no-op run has a model of 0.2 million weights, no epoch and eight images: it goes through planning, lease, checkpoint,
measuring and record like any other. All runs are seeds of one setting; the first of a setting in a process takes 0.2
seconds more, in which its speed is measured.

    python benchmarks/sweep_overhead.py              100 runs each, once
    python benchmarks/sweep_overhead.py --json

Every way is warmed up by one run first; what is printed is wall time per run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import machine

from spurbench.config import RunPaths
from spurbench.launch import LAUNCHERS, launch
from spurbench.launch.local import launch_local
from spurbench.launch.options import LaunchOptions
from spurbench.sweep import MethodGrid, Planned, SweepFile, plan

PLUGIN = Path(__file__).with_name("no_op.py")


class Quiet:
    """Shows nothing, as a board and as an observer."""

    def note(self, text: str) -> None:
        """Only what went wrong."""
        if text.startswith("failed"):
            print(text, file=sys.stderr)

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Nothing."""


def main() -> None:
    """Measure and print."""
    options = parse()
    ways: dict[str, Callable[[Path, int], float]] = {
        "local": lambda folder, number: local(runs_in(folder, number)),
        "pool": lambda folder, number: through("local", runs_in(folder, number)),
        "python -c": lambda folder, number: processes(min(number, options.processes)),
    }
    if "ray" in LAUNCHERS:
        ways["ray-plain"] = lambda folder, number: ray_plain(number)
        ways["ray"] = lambda folder, number: through("ray", runs_in(folder, number))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(way(Path(folder), options.runs))
            print(f"repeat {repeat + 1}/{options.repeats} {name}: {1000 * seconds[name][-1]:.0f} ms per run",
                  file=sys.stderr, flush=True)  # fmt: skip
    document = {
        "milliseconds_per_run": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "seconds": seconds,
        "settings": vars(options),
        **machine(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for name, values in seconds.items():
        print(f"{name:10} {1000 * statistics.median(values):7.0f} ms per run")


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument(
        "--processes", type=int, default=10, help="runs of the way `python -c`, which takes seconds each"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def runs_in(folder: Path, number: int) -> list[Planned]:
    """No-op runs, planned, and the frames of their images decoded."""
    sweep = SweepFile(
        datasets=["no_op"],
        methods=[MethodGrid(name="no_op")],
        seeds=list(range(number + 2)),
        set={"backbone.name": "test_convnext", "backbone.weights": "none", "evaluation.attributions": []},
    )
    paths = RunPaths(results=folder / "results", cache=folder / "cache")
    return plan(sweep, paths, (PLUGIN,))


def local(runs: list[Planned]) -> float:
    """Seconds per run in this process."""
    outcomes = launch_local(runs, device="cpu", plugins=(PLUGIN,), observer=Quiet())
    return timed(outcomes, warm=1)


def through(name: str, runs: list[Planned]) -> float:
    """Seconds per run with two workers, the time in which they start left out."""
    options = LaunchOptions(jobs=2, device="cpu", plugins=(PLUGIN,))
    return timed(launch(name, runs, options, Quiet()), warm=2)


def timed(outcomes: Any, warm: int) -> float:
    """Seconds per outcome after the first ones."""
    for _ in range(warm):
        check(next(outcomes))
    started, count = time.perf_counter(), 0
    for outcome in outcomes:
        check(outcome)
        count += 1
    return (time.perf_counter() - started) / count


def check(outcome: tuple[Planned, Any]) -> None:
    """A run that failed costs nothing."""
    assert isinstance(outcome[1], dict), outcome[1]


def ray_plain(number: int) -> float:
    """Seconds per trial of Ray Tune itself, two at a time, from the first result to the last."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    import ray
    from ray import tune

    ends: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            ends.append(time.perf_counter())

    def nothing(config: dict[str, Any]) -> None:
        tune.report({"value": config["number"]})

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            tuner = tune.Tuner(
                nothing,
                param_space={"number": tune.grid_search(list(range(number + 2)))},
                tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
                run_config=tune.RunConfig(storage_path=folder, callbacks=[Clock()], verbose=0),
            )
            tuner.fit()
        return (ends[-1] - ends[1]) / (len(ends) - 2)
    finally:
        ray.shutdown()


def processes(number: int) -> float:
    """Seconds per process that imports what a run needs."""
    started = time.perf_counter()
    for _ in range(number):
        subprocess.run([sys.executable, "-c", "import torch, timm"], check=True)
    return (time.perf_counter() - started) / number


if __name__ == "__main__":
    main()
