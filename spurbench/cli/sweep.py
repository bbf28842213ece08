"""``spurbench sweep``: bring a grid to completion."""

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from spurbench.cli.common import paths_of, plugins_of, print_json
from spurbench.cli.live import live_board, live_observer
from spurbench.cli.render import percent
from spurbench.cli.sweep_plan import AGAIN, ORDER, print_plan, tell_budgets, tell_failures, tell_what_does_not_fit
from spurbench.errors import ConfigError, cannot_write_results

_FLAGS_OF = {
    "address": ("ray",),
    "stop_early": ("ray",),
    "gpus_per_run": ("ray", "slurm"),
    "profile": ("slurm",),
    "runs_per_job": ("slurm",),
    "wait": ("slurm",),
}
"""Launchers that heed an option; the others would ignore it."""


def execute(options: argparse.Namespace) -> int:
    """Plan everything, then run what is missing."""
    from spurbench.engine.distributed import find_team
    from spurbench.survey import set_aside, survey
    from spurbench.sweep import count, draws_of, load_sweep, plan
    from spurbench.tracking import require_trackers, tell_finished

    _require_own_flags(options)
    require_trackers(options.log)
    if find_team().size > 1:
        raise ConfigError("start sweeps without torchrun; --jobs N has several runs at once")
    if options.estimate and not options.dry_run:
        raise ConfigError("--estimate goes with --dry-run: it measures and reckons, and starts nothing of the sweep")
    plugins = plugins_of(options)
    sweep = load_sweep(Path(options.file))
    runs = plan(sweep, paths_of(options), plugins)
    found = survey(runs, plugins)
    again = dict(found.stale) if options.redo_stale and not options.status else {}
    if again and not options.dry_run:
        for run in runs:
            if run.run_id in again:
                set_aside(run)
        found = survey(runs, plugins)
    in_queue: list[str] = []
    if options.dry_run or options.status or options.launcher == "slurm":
        from spurbench.launch.slurm_queue import with_queue

        found.states, in_queue = with_queue(runs, found.states)
    states: list[Any] = [
        AGAIN if run.run_id in again and state in ("stale", "stopped") else state
        for run, state in zip(runs, found.states, strict=True)
    ]
    found.states = states
    counts: Counter[str] = Counter(states)
    told = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    print(f"{count(len(runs), 'run')}: {told}", file=sys.stderr)
    results_root = runs[0].paths.results
    if options.status and not results_root.is_dir():
        print(f"no results folder at {results_root}: nothing has run there; --results DIR names another",
              file=sys.stderr)  # fmt: skip
    for line in in_queue:
        print(line, file=sys.stderr)
    tell_what_does_not_fit(found, again)
    tell_budgets(draws_of(sweep))
    if not options.retry_failed:
        tell_failures(runs, found)
    if options.dry_run or options.status:
        print_plan(options, runs, found, plugins)
        return 0
    skipped = ("done", "stale") if options.retry_failed else ("done", "stale", "failed")
    missing = [run for run, state in zip(runs, states, strict=True) if state not in skipped]
    left_alone = 0 if options.retry_failed else counts["failed"]
    if left_alone:
        print(f"left alone: {left_alone} that failed before; --retry-failed tries again", file=sys.stderr)
    if missing:
        _require_writable(results_root)
    trackers = _tell_done(options.log, [run for run, state in zip(runs, states, strict=True) if state == "done"])
    results, failures = [], 0
    title = f"sweep {options.file}"
    with contextlib.ExitStack() as stack:
        note, outcomes = _begin(stack, options, missing, title, found.peak_bytes)
        for run, outcome in outcomes:
            if not isinstance(outcome, dict):
                failures += 1
                continue
            trackers = tell_finished(trackers, run.config, run.paths, outcome, note)
            row = outcome["rows"][0]
            results.append({"run_id": run.config.run_id(), **{key: row[key] for key in ("label", "dataset", "seed")}})
            note(
                f"{row['label']} on {row['dataset']}, seed {row['seed']}: accuracy {percent(row['accuracy'])}, "
                f"WGA {percent(row['worst_group_accuracy'])} ({row['selection']})"
            )
    stale = [run_id for run_id in found.stale if run_id not in again]
    done = sum(run.finished and run.run_id not in stale for run in runs)
    left_stale = f"{len(stale)} stale (--redo-stale makes {'it' if len(stale) == 1 else 'them'} again), "
    print(
        f"{done} of {len(runs)} runs done, {left_stale if stale else ''}{failures + left_alone} failed",
        file=sys.stderr,
    )
    if options.launcher == "slurm" and done + len(stale) < len(runs):
        print(f"to see where they stand: {_status_command(options)}", file=sys.stderr)
    if options.json:
        print_json({"runs": len(runs), "done": done, "stale": len(stale), "failed": failures + left_alone,
                    "finished_now": results})  # fmt: skip
    return 1 if failures or left_alone else 0


def _require_own_flags(options: argparse.Namespace) -> None:
    """Refuse what the chosen launcher would not heed."""
    if options.jobs == 0 and options.launcher != "local":
        raise ConfigError(f"--jobs auto is for --launcher local; give a number to --launcher {options.launcher}")
    for name, launchers in _FLAGS_OF.items():
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None or value is False or options.launcher in launchers:
            continue
        raise ConfigError(
            f"{flag} is for --launcher {' or '.join(launchers)}, and this is --launcher {options.launcher}; "
            f"add --launcher {launchers[0]}, or leave out {flag}"
        )


def _tell_done(trackers: list[str], done: list[Any]) -> list[str]:
    """Tell trackers of runs that were done before; returns those that work."""
    from spurbench.engine.run import finished_record
    from spurbench.tracking import tell_finished

    for run in done if trackers else ():
        record = finished_record(run.folder)
        if record is not None:
            trackers = tell_finished(
                trackers, run.config, run.paths, record, lambda text: print(text, file=sys.stderr)
            )  # fmt: skip
    return trackers


def _require_writable(results: Path) -> None:
    """Say once, before anything starts, what every run would say."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise cannot_write_results(results, error) from error


def _begin(
    stack: contextlib.ExitStack, options: argparse.Namespace, runs: list[Any], title: str, peak_bytes: int
) -> tuple[Any, Any]:
    """Start what is missing: a function that tells people something, and the runs as they end."""
    from spurbench.data.decoding import available_cores
    from spurbench.launch import launch
    from spurbench.launch.local import launch_local
    from spurbench.launch.options import LaunchOptions

    pack = options.jobs == 0
    plugins = plugins_of(options)
    if options.launcher == "local" and options.jobs == 1:  # in this process, without the import costs of another
        live = stack.enter_context(live_observer(title))
        return live.note, launch_local(runs, device=options.device, plugins=plugins, observer=live)
    jobs = available_cores() if pack else options.jobs
    board = stack.enter_context(live_board(title, jobs))
    how = LaunchOptions(
        jobs=jobs,
        pack=pack,
        peak_bytes=peak_bytes,
        device=options.device,
        plugins=plugins,
        address=options.address,
        gpus_per_run=options.gpus_per_run,
        profile=None if options.profile is None else Path(options.profile),
        runs_per_job=options.runs_per_job,
        wait=options.wait,
        stop_early=options.stop_early,
    )
    return board.note, launch(options.launcher, runs, how, board)


def _status_command(options: argparse.Namespace) -> str:
    """What to type to see where the runs of this sweep stand."""
    plugins = [part for name in options.plugin for part in ("--plugin", name)]
    return shlex.join(["spurbench", "sweep", options.file, *plugins, "--results", options.results_root, "--status"])
