"""``spurbench data list``: which datasets are here."""

import argparse
import sys
from collections import Counter

from spurbench.cli.common import data_root_of, plugins_of, print_json
from spurbench.cli.render import print_table, size

_LICENSE_WIDTH = 40


def execute(options: argparse.Namespace) -> int:
    """Look, print."""
    from spurbench.datatools.inventory import take_stock
    from spurbench.registry import load_registry

    root = data_root_of(options)
    items = list(take_stock(load_registry("datasets", plugins_of(options)), root, options.filter))
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
