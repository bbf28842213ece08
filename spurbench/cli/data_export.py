"""``spurbench data export``: a dataset of image files as a table for other code."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import data_root_of, plugins_of
from spurbench.cli.live import live_observer


def execute(options: argparse.Namespace) -> int:
    """Open, write."""
    from spurbench.datatools.exchange import export_table
    from spurbench.resolve import dataset_entry

    spec, path = dataset_entry(options.dataset, plugins_of(options))
    to = Path(options.to).expanduser()
    with live_observer(f"exporting {spec.info.name}") as observer:
        done = export_table(
            spec.open(path or data_root_of(options)),
            to,
            lambda task, done, total: observer.progress(task, done, total, {}),
        )
    print(f"{to}: {done.rows:,} images" + (f"; {done.masks:,} masks written beside it" if done.masks else ""))
    if done.cut_square:
        print(
            f"note: {spec.info.name} cuts every image to the square in its middle; whoever reads the table must do the "
            "same, for the files are whole",
            file=sys.stderr,
        )
    return 0
