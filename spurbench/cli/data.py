"""``spurbench data``: datasets on disk."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import plugins_of


def execute(options: argparse.Namespace) -> int:
    """``data generate``: write a procedural dataset in an official layout."""
    from spurbench.errors import ConfigError
    from spurbench.registry import load_registry

    registry = load_registry("datasets", plugins_of(options))
    spec = registry.get(options.dataset).value
    if spec.write is None:
        able = ", ".join(name for name, entry in sorted(registry.entries.items()) if entry.value.write is not None)
        raise ConfigError(f"dataset '{options.dataset}' cannot be generated; these can: {able}")
    folder = Path(options.to).expanduser()
    print(f"writing {options.dataset} to {folder} ...", file=sys.stderr)
    spec.write(folder)
    for path in sorted(folder.iterdir()):
        print(path)
    return 0
