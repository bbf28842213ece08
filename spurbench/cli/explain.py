"""``spurbench explain``: a picture of what a run looks at."""

import argparse
from pathlib import Path

from spurbench.cli.common import paths_of, plugins_of


def execute(options: argparse.Namespace) -> int:
    """Restore, explain, draw: one row of the sheet per run."""
    from spurbench.engine.device import choose_device
    from spurbench.report.gallery import draw, explain, find_runs

    paths = paths_of(options)
    sheet = [
        explain(
            folder,
            paths,
            count=options.count,
            rule=options.select,
            device=choose_device(options.device),
            plugins=plugins_of(options),
        )
        for folder in find_runs(paths.results, options.run)
    ]
    draw(sheet, Path(options.output))
    print(options.output)
    return 0
