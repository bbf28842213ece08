"""``spurbench run``: one run, one table."""

import argparse

from spurbench.cli.common import paths_of, plugins_of, print_json, request_of
from spurbench.cli.live import live_observer
from spurbench.cli.render import print_rows


def execute(options: argparse.Namespace) -> int:
    """Resolve, run or reuse, print."""
    from spurbench.resolve import resolve_run

    config, paths = resolve_run(request_of(options), paths_of(options))
    from spurbench.engine import run_one

    with live_observer(
        f"{config.method.name} on {config.dataset.name}, seed {config.seed}, run {config.run_id()}"
    ) as live:
        record = run_one(
            config,
            paths,
            device=options.device,
            plugins=plugins_of(options),
            force=options.force,
            observer=live,
        )
    assert record is not None
    if options.json:
        print_json({key: record[key] for key in ("run_id", "config", "rows", "machine")})
    else:
        print_rows(record["rows"])
        live.note(f"run {record['run_id']} is in {paths.run(record['run_id'])}")
    return 0
