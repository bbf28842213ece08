"""What ``spurbench sweep`` prints of its plan: where runs stand, and what the rest will take."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from spurbench.cli.common import print_json
from spurbench.cli.render import print_table, size

__all__ = ["ORDER", "print_plan", "tell_what_does_not_fit"]

ORDER = ("done", "stale", "running", "queued", "stopped", "failed", "waiting")
"""States, from finished to not begun."""
_SETTLED = ("done", "stale", "failed")
"""States that cost no more time."""
_MOST_LINES = 200
"""Runs that a person may want to see one by one."""


def print_plan(options: argparse.Namespace, runs: Sequence[Any], found: Any, plugins: tuple[Path, ...]) -> None:
    """Every run with its state, or every setting with its counts; then time, disk and shared trainings."""
    from spurbench.survey import told_apart

    settings = [
        [label, differ, run.config.dataset.name, run.config.backbone.name]
        for run, (label, differ) in zip(runs, told_apart(runs, plugins), strict=True)
    ]
    lines = [
        [run.run_id, *setting, str(run.config.seed), state]
        for (run, state), setting in zip(_pairs(runs, found), settings, strict=True)
    ]
    seconds = _estimated(options, runs, found, plugins) if options.estimate else {}
    if options.json:
        names = ["run", "label", *_HEADER[2:]]
        print_json(
            [
                {
                    "method": run.config.method.name,
                    **dict(zip(names, line, strict=True)),
                    **({"estimated_seconds": seconds.get(run.run_id)} if options.estimate else {}),
                }
                for run, line in zip(runs, lines, strict=True)
            ]
        )
    elif len(runs) <= _MOST_LINES:
        print_table(options.file, _HEADER, lines, drop=("backbone", "options", "run"))
    else:
        _print_settings(options.file, settings, found.states)
    if options.estimate:
        _tell_estimate(options, runs, found, settings, seconds)
    else:
        _tell_time(options, runs, found)
    _tell_disk(runs, found)
    _tell_shared(runs, found, plugins)
    _tell_waits(runs, found)


def tell_what_does_not_fit(found: Any) -> None:
    """Finished runs that are not what would be made now."""
    reasons = Counter(found.stale.values())
    for reason, count in reasons.items():
        print(f"stale: {count} finished {_runs(count)} {reason}; --redo-stale makes them again", file=sys.stderr)
    for code, count in found.code.items():
        print(f"note: {count} finished {_runs(count)} made by {code}; every row says which", file=sys.stderr)


_HEADER = ["run", "method", "options", "dataset", "backbone", "seed", "state"]


def _pairs(runs: Sequence[Any], found: Any) -> Any:
    return zip(runs, found.states, strict=True)


def _print_settings(title: str, settings: Sequence[Sequence[str]], all_states: Sequence[str]) -> None:
    """A line per setting, counting its runs by state."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for setting, state in zip(settings, all_states, strict=True):
        counts.setdefault(tuple(setting), Counter())[state] += 1
    states = [state for state in ORDER if any(count[state] for count in counts.values())]
    header = [*_HEADER[1:5], "runs", *states]
    lines = [[*setting, str(count.total()), *(str(count[state]) for state in states)]
             for setting, count in counts.items()]  # fmt: skip
    shown = lines[:_MOST_LINES]
    print_table(f"{title}: {len(settings)} runs (--json lists them one by one)", header, shown, drop=("backbone",))
    if len(lines) > len(shown):
        print(f"and {len(lines) - len(shown)} settings more", file=sys.stderr)


def _tell_time(options: argparse.Namespace, runs: Sequence[Any], found: Any) -> None:
    if not any(state not in _SETTLED for state in found.states):
        return
    judged = found.seconds_left(runs)
    if judged is None:
        print("time: no run of this sweep is done here, so there is nothing to judge by", file=sys.stderr)
        return
    seconds, known = judged
    at_once = max(1, options.jobs, found.states.count("running"))
    took = f"about {_minutes(seconds / at_once)} left with {at_once} at a time"
    print(f"time: {took} (judged by {known} runs that are done)", file=sys.stderr)


def _estimated(options: argparse.Namespace, runs: Sequence[Any], found: Any, plugins: tuple[Path, ...]) -> Any:
    """Seconds of the runs that are left, by run id; each setting of them is measured here."""
    from spurbench.estimate import estimate

    left = [run for run, state in _pairs(runs, found) if state not in _SETTLED]

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    seconds = estimate(left, device=options.device, plugins=plugins, tell=tell)
    return {run.run_id: taken for run, taken in zip(left, seconds, strict=True)}


def _tell_estimate(
    options: argparse.Namespace, runs: Sequence[Any], found: Any, settings: Sequence[Sequence[str]], seconds: Any
) -> None:
    """Time of every setting, and of all, by the measurement."""
    totals: dict[tuple[str, ...], list[float]] = {}
    for run, setting in zip(runs, settings, strict=True):
        if run.run_id in seconds:
            totals.setdefault(tuple(setting), []).append(seconds[run.run_id])
    if not options.json and totals:
        header = [*_HEADER[1:5], "runs", "each", "together"]
        lines = [
            [*setting, str(len(taken)), _minutes(sum(taken) / len(taken)), _minutes(sum(taken))]
            for setting, taken in totals.items()
        ]
        print_table("time, as measured here", header, lines, drop=("backbone",))
    at_once = max(1, options.jobs, found.states.count("running"))
    text = f"about {_minutes(sum(seconds.values()) / at_once)} left with {at_once} at a time"
    print(f"time: {text} (each setting was measured here, alone)", file=sys.stderr)


def _tell_disk(runs: Sequence[Any], found: Any) -> None:
    from spurbench.io import folder_bytes
    from spurbench.survey import disk_bytes, expected_bytes

    there = disk_bytes(runs)
    waiting = [run for run, state in _pairs(runs, found) if state in ("waiting", "queued")]
    done = disk_bytes([run for run, state in _pairs(runs, found) if state == "done"])
    text = f"disk: {size(sum(there))} in {len(there)} run folders"
    if shared := folder_bytes(runs[0].paths.results / "phases"):
        text += f", {size(shared)} in trainings that runs share (spurbench clean --phases)"
    if waiting:
        kept, most = expected_bytes(waiting[0])
        kept = int(median(done)) if done else kept
        text += f"; about {size(kept * len(waiting))} more for those that wait, {size(most)} for each while it trains"
    print(text, file=sys.stderr)


def _tell_shared(runs: Sequence[Any], found: Any, plugins: tuple[Path, ...]) -> None:
    from spurbench.survey import shared_trainings

    count, saved = shared_trainings([run for run, state in _pairs(runs, found) if state != "done"], plugins)
    if saved:
        what = f"{count} runs begin with plain training that others have as well"
        print(f"shared: {what}; it is done once, which saves up to {saved} trainings", file=sys.stderr)


def _tell_waits(runs: Sequence[Any], found: Any) -> None:
    from spurbench.survey import awaited

    for who, count in awaited(runs, found.states).items():
        print(f"waiting: {count} {'run' if count == 1 else 'runs'} for a training that {who} does", file=sys.stderr)


def _runs(count: int) -> str:
    return "run was" if count == 1 else "runs were"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.{int(seconds < 10)}f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
