"""``spurbench data generate``: datasets that are drawn, or made from others."""

import argparse
import sys
from pathlib import Path

from spurbench.cli import data_generate_waterbirds
from spurbench.cli.common import plugins_of


def execute(options: argparse.Namespace) -> int:
    """Write a procedural dataset in an official layout, or hand over to what makes a set from its sources."""
    if options.dataset in data_generate_waterbirds.MADE_FROM_SOURCES:
        return data_generate_waterbirds.execute(options)
    data_generate_waterbirds.refuse_arguments(options)
    from spurbench.datatools.drawn import write_drawn
    from spurbench.errors import ConfigError
    from spurbench.registry import load_registry

    registry = load_registry("datasets", plugins_of(options))
    spec = registry.get(options.dataset).value
    if spec.write is None:
        able = ", ".join(name for name, entry in sorted(registry.entries.items()) if entry.value.write is not None)
        made = ", ".join(data_generate_waterbirds.MADE_FROM_SOURCES)
        raise ConfigError(f"dataset '{options.dataset}' cannot be generated; these can: {able}, {made}")
    folder = Path(options.to).expanduser()
    print(f"writing {options.dataset} to {folder} ...", file=sys.stderr)
    for path in write_drawn(spec, folder):
        print(path)
    return 0
