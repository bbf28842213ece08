"""``spurbench explain``: a picture of what a run looks at."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import paths_of, plugins_of


def execute(options: argparse.Namespace) -> int:
    """Restore, explain, draw: one row of the sheet per run and map."""
    from spurbench.engine.device import choose_device
    from spurbench.errors import ConfigError, DataMissing, SpurbenchError
    from spurbench.report.gallery import draw, explain, find_runs

    if Path(options.output).suffix != ".png":
        raise ConfigError(f"-o {options.output}: the picture is a PNG; name a file that ends in .png")
    paths = paths_of(options)
    device, plugins = choose_device(options.device), plugins_of(options)
    sheet = []
    for folder in find_runs(paths.results, options.run, options.dataset):
        try:
            sheet.append(
                explain(
                    folder,
                    paths,
                    count=options.count,
                    rule=options.select,
                    attribution=options.attribution,
                    device=device,
                    plugins=plugins,
                )
            )
        except SpurbenchError as error:
            if options.run:  # asked for by name
                raise
            print(f"note: left out run {folder.name}: {error}", file=sys.stderr)
    if not sheet:
        raise DataMissing(f"none of the runs below {paths.results} can be drawn")
    draw(sheet, Path(options.output))
    print(options.output)
    return 0
