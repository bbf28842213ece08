"""``spurbench run``: one run, one table."""

import argparse
import contextlib
from typing import Any

from spurbench.cli.common import paths_of, plugins_of, print_json, request_of
from spurbench.cli.live import live_observer
from spurbench.cli.render import print_rows


def execute(options: argparse.Namespace) -> int:
    """Resolve, run or reuse, print; of processes that torchrun started together only the first one prints."""
    from spurbench.resolve import resolve_run

    config, paths = resolve_run(request_of(options), paths_of(options))
    from spurbench.engine import Silent, run_one
    from spurbench.engine.distributed import Elsewhere, is_first_process
    from spurbench.tracking import Tracked, require_trackers

    require_trackers(options.log)
    title = f"{config.method.name} on {config.dataset.name}, seed {config.seed}, run {config.run_id()}"
    shown: contextlib.AbstractContextManager[Any] = (
        live_observer(title) if is_first_process() else contextlib.nullcontext(Silent())
    )
    with shown as live, Tracked(live, options.log, config, paths) as tracked:
        try:
            record = run_one(
                config,
                paths,
                device=options.device,
                plugins=plugins_of(options),
                force=options.force,
                observer=tracked,
            )
        except Elsewhere as error:
            return error.exit_code
        if record is None:  # the first process has it
            return 0
        tracked.finish(record)
    if options.json:
        print_json({key: record[key] for key in ("run_id", "config", "rows", "machine")})
    else:
        print_rows(record["rows"])
        live.note(f"run {record['run_id']} is in {paths.run(record['run_id'])}")
    return 0
