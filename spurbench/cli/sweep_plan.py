"""What ``spurbench sweep`` prints of its plan: where runs stand, and what the rest will take."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from spurbench.cli.common import print_json
from spurbench.cli.render import print_table, size

__all__ = ["AGAIN", "ORDER", "print_plan", "tell_budgets", "tell_failures", "tell_what_does_not_fit"]

AGAIN = "to be made again"
"""State of a stale run once ``--redo-stale`` asks for it."""
ORDER = ("done", "stale", "running", "queued", "stopped", AGAIN, "failed", "waiting")
"""States, from finished to not begun."""
_SETTLED = ("done", "stale", "failed")
"""States that cost no more time."""
_MOST_REASONS = 10
"""Ways to fail that are told; runs fail alike, or each at a step of its own."""
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
    judged = (sum(seconds.values()), 0) if options.estimate else found.seconds_left(runs)
    disk = _disk(runs, found)
    if options.json:
        names = ["run", "label", *_HEADER[2:]]
        print_json(
            {
                "counts": dict(Counter(found.states)),
                "seconds_left": None if judged is None else judged[0] / _at_once(options, found),
                "at_once": _at_once(options, found),
                "disk": disk,
                "runs": [
                    {
                        "method": run.config.method.name,
                        **dict(zip(names, line, strict=True)),
                        **_whereabouts(run, found.errors.get(run.run_id) if line[-1] == "failed" else None),
                        **({"estimated_seconds": seconds.get(run.run_id)} if options.estimate else {}),
                    }
                    for run, line in zip(runs, lines, strict=True)
                ],
            }
        )
    elif len(runs) <= _MOST_LINES:
        print_table(options.file, _HEADER, lines, drop=("backbone", "options", "run"))
    else:
        _print_settings(options.file, settings, found.states)
    if options.estimate:
        _tell_estimate(options, runs, found, settings, seconds)
    else:
        _tell_time(options, found, judged)
    _tell_disk(disk)
    _tell_shared(runs, found, plugins)
    _tell_waits(runs, found)


def tell_what_does_not_fit(found: Any, again: Mapping[str, str]) -> None:
    """Finished runs that are not what would be made now.

    Args:
        again: those that are to be made again, with the reason.
    """
    left = {run_id: reason for run_id, reason in found.stale.items() if run_id not in again}
    for reasons, stale_is_done in ((left, False), (again, True)):
        for reason, number in Counter(reasons.values()).items():
            what = AGAIN if stale_is_done else f"--redo-stale makes {'it' if number == 1 else 'them'} again"
            print(f"stale: {number} finished {_runs(number)} {reason}; {what}", file=sys.stderr)
    for code, number in found.code.items():
        print(f"note: {number} finished {_runs(number)} made by {code}; every row says which", file=sys.stderr)


def tell_failures(runs: Sequence[Any], found: Any) -> None:
    """Why runs failed: a line per reason, with a run of it and the files that say more."""
    from spurbench.sweep import count, name_of

    reasons: dict[str, list[Any]] = {}
    for run, state in _pairs(runs, found):
        if state == "failed":
            reasons.setdefault(found.errors[run.run_id], []).append(run)
    for reason, (run, *others) in list(reasons.items())[:_MOST_REASONS]:
        more = f" and {count(len(others), 'run')} more" if others else ""
        files = _whereabouts(run, reason)
        log = f", log: {files['log']}" if "log" in files else ""
        print(f"failed: {name_of(run)}{more}: {reason} (record: {files['record']}{log})", file=sys.stderr)
    if (rest := len(reasons) - _MOST_REASONS) > 0:
        print(f"failed: {count(rest, 'reason')} more; --status --json has them by run", file=sys.stderr)


def tell_budgets(draws: Mapping[str, int]) -> None:
    """Methods that may try more settings than others win by that alone.

    Args:
        draws: random draws by method.
    """
    if len(set(draws.values())) > 1:
        told = ", ".join(f"{name} {number or 'none'}" for name, number in draws.items())
        print(
            f"note: random budgets differ ({told}); a table that takes the best setting of each method is fair only "
            "with equal draws",
            file=sys.stderr,
        )


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


def _whereabouts(run: Any, error: str | None) -> dict[str, Any]:
    """The folder of a run that has begun; of a failed one its error, its record, and its log if SLURM has written one.

    Args:
        error: the first line, None unless the run failed.
    """
    from spurbench.launch.slurm_queue import note_of

    files: dict[str, Any] = {"folder": str(run.folder) if run.folder.is_dir() else None}
    if error is not None:
        files |= {"error": error, "record": str(run.folder / "result.json")}
    note = note_of(run)
    return files if note is None else {**files, "log": note.log}


def _at_once(options: argparse.Namespace, found: Any) -> int:
    running: int = found.states.count("running")
    return max(1, int(options.jobs), running)


def _tell_time(options: argparse.Namespace, found: Any, judged: tuple[float, int] | None) -> None:
    from spurbench.sweep import count

    if not any(state not in _SETTLED for state in found.states):
        return
    if judged is None:
        print("time: no run of this sweep is done here, so there is nothing to judge by", file=sys.stderr)
        return
    seconds, known = judged
    at_once = _at_once(options, found)
    took = f"about {_minutes(seconds / at_once)} left with {at_once} at a time"
    is_done = f"{count(known, 'run')} that {'is' if known == 1 else 'are'} done"
    print(f"time: {took} (judged by {is_done})", file=sys.stderr)


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
    at_once = _at_once(options, found)
    text = f"about {_minutes(sum(seconds.values()) / at_once)} left with {at_once} at a time"
    print(f"time: {text} (each setting was measured here, alone)", file=sys.stderr)


def _disk(runs: Sequence[Any], found: Any) -> dict[str, int]:
    """Bytes that lie there, and that runs which have not begun will need."""
    from spurbench.io import folder_bytes
    from spurbench.survey import disk_bytes, expected_bytes

    there = disk_bytes(runs)
    waiting = [run for run, state in _pairs(runs, found) if state in ("waiting", "queued")]
    done = disk_bytes([run for run, state in _pairs(runs, found) if state == "done"])
    kept, most = expected_bytes(waiting[0]) if waiting else (0, 0)
    return {
        "bytes": sum(there),
        "folders": len(there),
        "shared_bytes": folder_bytes(runs[0].paths.results / "phases"),
        "more_bytes": (int(median(done)) if done else kept) * len(waiting),
        "bytes_while_training": most,
    }


def _tell_disk(disk: Mapping[str, int]) -> None:
    from spurbench.sweep import count

    text = f"disk: {size(disk['bytes'])} in {count(disk['folders'], 'run folder')}"
    if disk["shared_bytes"]:
        text += f", {size(disk['shared_bytes'])} in trainings that runs share (spurbench clean --phases)"
    if disk["more_bytes"]:
        text += f"; about {size(disk['more_bytes'])} more for those that wait, "
        text += f"{size(disk['bytes_while_training'])} for each while it trains"
    print(text, file=sys.stderr)


def _tell_shared(runs: Sequence[Any], found: Any, plugins: tuple[Path, ...]) -> None:
    from spurbench.survey import shared_trainings
    from spurbench.sweep import count

    number, saved = shared_trainings([run for run, state in _pairs(runs, found) if state != "done"], plugins)
    if saved:
        what = f"{number} runs begin with plain training that others have as well"
        print(f"shared: {what}; it is done once, which saves up to {count(saved, 'training')}", file=sys.stderr)


def _tell_waits(runs: Sequence[Any], found: Any) -> None:
    from spurbench.survey import awaited
    from spurbench.sweep import count

    for who, number in awaited(runs, found.states).items():
        print(f"waiting: {count(number, 'run')} for a training that {who} does", file=sys.stderr)


def _runs(number: int) -> str:
    return "run was" if number == 1 else "runs were"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.{int(seconds < 10)}f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
