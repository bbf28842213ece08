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
_MOST_LINES = 200
"""Runs that a person may want to see one by one."""


def print_plan(options: argparse.Namespace, runs: Sequence[Any], found: Any, plugins: tuple[Path, ...]) -> None:
    """Every run with its state, or every setting with its counts; then time, disk and shared trainings."""
    if options.json:
        print_json([dict(zip(_HEADER, _line(run, state), strict=True)) for run, state in _pairs(runs, found)])
    elif len(runs) <= _MOST_LINES:
        lines = [_line(run, state) for run, state in _pairs(runs, found)]
        print_table(options.file, _HEADER, lines, drop=("backbone", "options", "run"))
    else:
        _print_settings(options.file, runs, found)
    _tell_time(options, runs, found)
    _tell_disk(runs, found)
    _tell_shared(runs, found, plugins)


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


def _line(run: Any, state: str) -> list[str]:
    return [run.run_id, *_setting(run), str(run.config.seed), state]


def _setting(run: Any) -> list[str]:
    """Method, the paper's two options where it has them, dataset, backbone."""
    options = run.config.method.config
    shown = ", ".join(f"{key}={options[key]}" for key in ("num_stages", "tau") if key in options)
    return [run.config.method.name, shown, run.config.dataset.name, run.config.backbone.name]


def _print_settings(title: str, runs: Sequence[Any], found: Any) -> None:
    """A line per setting, counting its runs by state."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for run, state in _pairs(runs, found):
        counts.setdefault(tuple(_setting(run)), Counter())[state] += 1
    states = [state for state in ORDER if any(count[state] for count in counts.values())]
    header = [*_HEADER[1:5], "runs", *states]
    lines = [[*setting, str(count.total()), *(str(count[state]) for state in states)]
             for setting, count in counts.items()]  # fmt: skip
    shown = lines[:_MOST_LINES]
    print_table(f"{title}: {len(runs)} runs (--json lists them one by one)", header, shown, drop=("backbone",))
    if len(lines) > len(shown):
        print(f"and {len(lines) - len(shown)} settings more", file=sys.stderr)


def _tell_time(options: argparse.Namespace, runs: Sequence[Any], found: Any) -> None:
    left = sum(state not in ("done", "stale", "failed") for state in found.states)
    if not left:
        return
    judged = found.seconds_left(runs)
    if judged is None:
        print("time: no run of this sweep is done here, so there is nothing to judge by", file=sys.stderr)
        return
    seconds, known = judged
    at_once = max(1, options.jobs, found.states.count("running"))
    took = f"about {_minutes(seconds / at_once)} left with {at_once} at a time"
    print(f"time: {took} (judged by {known} runs that are done)", file=sys.stderr)


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


def _runs(count: int) -> str:
    return "run was" if count == 1 else "runs were"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
