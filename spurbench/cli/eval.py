"""``spurbench eval``: a finished run on other data."""

import argparse
from typing import Any

from spurbench.cli.common import paths_of, plugins_of, print_json
from spurbench.cli.live import live_observer
from spurbench.cli.render import print_rows
from spurbench.errors import ConfigError


def execute(options: argparse.Namespace) -> int:
    """Find the run, measure or read, print as ``run`` does."""
    from spurbench.engine.device import choose_device
    from spurbench.evaluate import evaluate_run
    from spurbench.saved import find_run

    paths = paths_of(options)
    folder = find_run(paths.results, options.run)
    with live_observer(f"run {folder.name} on {options.dataset or 'its own data'}, {options.split} split") as live:
        document, target = evaluate_run(
            folder,
            options.dataset,
            paths,
            split=options.split,
            device=choose_device(options.device),
            plugins=plugins_of(options),
            force=options.force,
            observer=live,
        )
        about = document["run"]
        live.note(f"trained on {about['dataset']}, measured on {document['dataset']['name']}: {target}")
    rows = _chosen(document["rows"], options.select)
    if options.json:
        print_json({**document, "rows": rows})
    else:
        print_rows(rows)
    return 0


def _chosen(rows: list[dict[str, Any]], rule: str | None) -> list[dict[str, Any]]:
    chosen = [row for row in rows if rule in (None, row["selection"])]
    if not chosen:
        raise ConfigError(
            f"no weights of the rule {rule} are kept; there are: {', '.join(r['selection'] for r in rows)}"
        )
    return chosen
