"""``spurbench sweep``: bring a grid to completion."""

import argparse
import contextlib
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from spurbench.cli.common import paths_of, plugins_of, print_json
from spurbench.cli.live import live_board, live_observer
from spurbench.cli.render import percent, print_table

_ORDER = ("done", "stale", "running", "stopped", "failed", "waiting")


def execute(options: argparse.Namespace) -> int:
    """Plan everything, then run what is missing."""
    from spurbench.sweep import load_sweep, plan

    plugins = plugins_of(options)
    runs = plan(load_sweep(Path(options.file)), paths_of(options), plugins)
    states = [run.state for run in runs]
    counts: Counter[str] = Counter(states)
    print(f"{len(runs)} runs: {', '.join(f'{counts[state]} {state}' for state in _ORDER if counts[state])}",
          file=sys.stderr)  # fmt: skip
    if options.dry_run or options.status:
        _print_plan(options, runs, states)
        return 0
    skipped = ("done", "stale") if options.retry_failed else ("done", "stale", "failed")
    missing = [run for run, state in zip(runs, states, strict=True) if state not in skipped]
    if counts["failed"] and not options.retry_failed:
        print(f"{counts['failed']} failed before and are left alone; --retry-failed tries them again", file=sys.stderr)
    results, failures = [], 0
    title = f"sweep {options.file}"
    with contextlib.ExitStack() as stack:
        note, outcomes = _begin(stack, options, missing, title)
        for run, outcome in outcomes:
            if not isinstance(outcome, dict):
                failures += 1
                continue
            row = outcome["rows"][0]
            results.append({"run_id": run.config.run_id(), **{key: row[key] for key in ("label", "dataset", "seed")}})
            note(
                f"{row['label']} on {row['dataset']}, seed {row['seed']}: accuracy {percent(row['accuracy'])}, "
                f"WGA {percent(row['worst_group_accuracy'])} ({row['selection']})"
            )
    done = sum(run.finished for run in runs)
    print(f"{done} of {len(runs)} runs done, {failures} failed", file=sys.stderr)
    if options.json:
        print_json({"runs": len(runs), "done": done, "failed": failures, "finished_now": results})
    return 1 if failures or (counts["failed"] and not options.retry_failed) else 0


def _begin(stack: contextlib.ExitStack, options: argparse.Namespace, runs: list[Any], title: str) -> tuple[Any, Any]:
    """Start what is missing: a function that tells people something, and the runs as they end."""
    from spurbench.launch import launch
    from spurbench.launch.local import launch_local
    from spurbench.launch.options import LaunchOptions

    plugins = plugins_of(options)
    if options.launcher == "local" and options.jobs == 1:  # in this process, without the import costs of another
        live = stack.enter_context(live_observer(title))
        return live.note, launch_local(runs, device=options.device, plugins=plugins, observer=live)
    board = stack.enter_context(live_board(title, options.jobs))
    how = LaunchOptions(
        jobs=options.jobs,
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


def _print_plan(options: argparse.Namespace, runs: list[Any], states: list[Any]) -> None:
    """Every run with its state, and how long the rest may take."""
    header = ["run", "method", "options", "dataset", "backbone", "seed", "state"]
    lines = [
        [
            run.config.run_id(),
            run.config.method.name,
            ", ".join(f"{key}={run.config.method.config[key]}" for key in _brackets(run.config.method.config)),
            run.config.dataset.name,
            run.config.backbone.name,
            str(run.config.seed),
            state,
        ]
        for run, state in zip(runs, states, strict=True)
    ]
    if options.json:
        print_json([dict(zip(header, line, strict=True)) for line in lines])
    else:
        print_table(options.file, header, lines, drop=("backbone", "options", "run"))
    seconds = [taken for run, state in zip(runs, states, strict=True) if state == "done" and (taken := run.seconds())]
    left = sum(state not in ("done", "stale", "failed") for state in states)
    if left and seconds:
        at_once = max(1, states.count("running"))
        print(
            f"about {left * median(seconds) / at_once / 60:.0f} minutes left with {at_once} at a time "
            f"(median of {len(seconds)} runs that are done: {median(seconds):.0f} s)",
            file=sys.stderr,
        )


def _brackets(config: dict[str, object]) -> list[str]:
    """Options worth a column: the paper's two, where a method has them."""
    return [key for key in ("num_stages", "tau") if key in config]
