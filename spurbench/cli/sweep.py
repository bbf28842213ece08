"""``spurbench sweep``: bring a grid to completion."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import paths_of, plugins_of, print_json
from spurbench.cli.live import live_observer
from spurbench.cli.render import percent, print_table


def execute(options: argparse.Namespace) -> int:
    """Plan everything, then run what is missing."""
    from spurbench.launch.local import launch_local
    from spurbench.sweep import load_sweep, plan

    plugins = plugins_of(options)
    runs = plan(load_sweep(Path(options.file)), paths_of(options), plugins)
    missing = [run for run in runs if not run.finished]
    print(f"{len(runs)} runs: {len(runs) - len(missing)} done, {len(missing)} to do", file=sys.stderr)
    if options.dry_run:
        lines = [
            [
                run.config.run_id(),
                run.config.method.name,
                ", ".join(f"{key}={run.config.method.config[key]}" for key in _brackets(run.config.method.config)),
                run.config.dataset.name,
                run.config.backbone.name,
                str(run.config.seed),
                "done" if run.finished else "to do",
            ]
            for run in runs
        ]
        header = ["run", "method", "options", "dataset", "backbone", "seed", "state"]
        if options.json:
            print_json([dict(zip(header, line, strict=True)) for line in lines])
        else:
            print_table(options.file, header, lines, drop=("backbone", "options", "run"))
        return 0
    results, failures = [], 0
    with live_observer(f"sweep {options.file}") as live:
        for run, outcome in launch_local(missing, device=options.device, plugins=plugins, observer=live):
            if not isinstance(outcome, dict):
                failures += 1
                continue
            row = outcome["rows"][0]
            results.append({"run_id": run.config.run_id(), **{key: row[key] for key in ("label", "dataset", "seed")}})
            live.note(
                f"{row['label']} on {row['dataset']}, seed {row['seed']}: accuracy {percent(row['accuracy'])}, "
                f"WGA {percent(row['worst_group_accuracy'])} ({row['selection']})"
            )
    done = sum(run.finished for run in runs)
    print(f"{done} of {len(runs)} runs done, {failures} failed", file=sys.stderr)
    if options.json:
        print_json({"runs": len(runs), "done": done, "failed": failures, "finished_now": results})
    return 1 if failures else 0


def _brackets(config: dict[str, object]) -> list[str]:
    """Options worth a column: the paper's two, where a method has them."""
    return [key for key in ("num_stages", "tau") if key in config]
