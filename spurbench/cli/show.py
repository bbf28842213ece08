"""``spurbench show``: what would be run, and under which id."""

import argparse

import yaml

from spurbench.cli.common import paths_of, print_json, request_of


def execute(options: argparse.Namespace) -> int:
    """Resolve and print."""
    from spurbench.resolve import resolve_run

    config, paths = resolve_run(request_of(options), paths_of(options))
    folder = paths.run(config.run_id())
    if options.json:
        print_json({"run_id": config.run_id(), "folder": str(folder), "config": config.model_dump(mode="json")})
    else:
        print(f"# run {config.run_id()} in {folder}")
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
    return 0
