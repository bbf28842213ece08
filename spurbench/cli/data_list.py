"""``spurbench data list``: which datasets are here."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spurbench.cli.common import data_root_of, plugins_of, print_json
from spurbench.cli.render import print_table, size

_LICENSE_WIDTH = 40


def execute(options: argparse.Namespace) -> int:
    """Look, print."""
    from spurbench.datatools.inventory import take_stock
    from spurbench.errors import ConfigError
    from spurbench.registry import load_registry

    root = data_root_of(options)
    registry = load_registry("datasets", plugins_of(options))
    items = list(take_stock(registry, root, options.filter))
    if not items:
        raise ConfigError(_no_match(options.filter, sorted(registry.entries)))
    if options.json:
        print_json([item.document() for item in items])
        return 0
    print_table(
        f"datasets below {root}/" if root else "datasets (no --data-root: only those built in are here)",
        ["name", "state", "version", "images", "EPG by", "archives", "license"],
        [
            [
                item.name,
                item.state,
                item.version,
                "-" if item.images is None else f"{item.images:,}",
                item.annotation,
                "-" if item.archive_bytes is None else size(item.archive_bytes),
                item.license if len(item.license) <= _LICENSE_WIDTH else f"{item.license[: _LICENSE_WIDTH - 3]}...",
            ]
            for item in items
        ],
        drop=("version", "license", "archives", "images"),
    )
    for item in items:
        if item.advice and (options.filter or item.state != "missing"):
            print(f"{item.name}: {item.advice}")
    states = Counter(item.state for item in items)
    print(
        ", ".join(f"{number} {state}" for state, number in states.items())
        + "; where to get one: spurbench data list NAME",
        file=sys.stderr,
    )
    return 0


def _no_match(part: str, known: Sequence[str]) -> str:
    from spurbench.errors import did_you_mean

    if Path(part).expanduser().is_dir():
        return (
            f"no dataset matches '{part}', which is a folder; what lies below it: "
            f"spurbench data list --data-root {part}; whether it is a dataset of your own: spurbench data check {part}"
        )
    return f"no dataset matches '{part}'{did_you_mean(part, known)} all of them: spurbench data list"
