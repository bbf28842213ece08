"""``spurbench data list``: which datasets are here."""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING

from spurbench.cli.common import data_root_of, plugins_of, print_json
from spurbench.cli.render import print_table, size

if TYPE_CHECKING:
    from spurbench.datatools.inventory import Stock

_LICENSE_WIDTH = 40
_MANY = 5
"""So many variants of a set, of which the same is to be said, share a line."""


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
    families = [[item] for item in items] if options.filter else _families(items)
    print_table(
        f"datasets below {root}/" if root else "datasets (no --data-root: only those built in are here)",
        ["name", "state", "version", "images", "EPG by", "archives", "license"],
        [[_name(family), *_cells(family[0])] for family in families],
        drop=("version", "license", "archives", "images"),
    )
    for family in families:
        if len(family) > 1:
            part = _name(family).removesuffix("*")
            print(f"{part}*: {len(family)} variants; spurbench data list {part} lists them")
    for item in items:
        if item.advice:
            print(f"{item.name}: {item.advice}")
    for part, names in _facts(items).items() if options.filter else ():
        print(f"{', '.join(names)}: {part}")
    states = Counter(item.state for item in items)
    print(
        ", ".join(f"{number} {state}" for state, number in states.items())
        + "; where to get one: spurbench data list NAME",
        file=sys.stderr,
    )
    return 0


def _facts(items: Sequence["Stock"]) -> dict[str, list[str]]:
    """Source, licence and citation in full, each with the datasets that share it."""
    found: dict[str, list[str]] = {}
    for item in items:
        for what, text in (("from", item.source), ("licence", item.license), ("cite", item.citation)):
            if text:
                found.setdefault(f"{what} {text}", []).append(item.name)
    return found


def _cells(item: "Stock") -> list[str]:
    """What a line says of a dataset beside its name."""
    return [
        item.state,
        item.version,
        "-" if item.images is None else f"{item.images:,}",
        item.annotation,
        "-" if item.archive_bytes is None else size(item.archive_bytes),
        item.license if len(item.license) <= _LICENSE_WIDTH else f"{item.license[: _LICENSE_WIDTH - 3]}...",
    ]


def _families(items: Sequence["Stock"]) -> list[list["Stock"]]:
    """Datasets that share a line: many variants of one file of which the same is to be said."""
    alike: dict[tuple[str, ...], list[Stock]] = defaultdict(list)
    for item in items:
        alike[item.origin, *_cells(item)].append(item)
    families = []
    for family in alike.values():
        share = len(family) >= _MANY and _name(family) != "*"
        families += [family] if share else [[item] for item in family]
    return sorted(families, key=lambda family: family[0].name)


def _name(family: Sequence["Stock"]) -> str:
    names = [item.name for item in family]
    return names[0] if len(names) == 1 else f"{commonprefix(names)}*"  # noqa: RUF071 (no paths)


def _no_match(part: str, known: Sequence[str]) -> str:
    from spurbench.errors import did_you_mean

    if Path(part).expanduser().is_dir():
        return (
            f"no dataset matches '{part}', which is a folder; what lies below it: "
            f"spurbench data list --data-root {part}; whether it is a dataset of your own: spurbench data check {part}"
        )
    return f"no dataset matches '{part}'{did_you_mean(part, known)} all of them: spurbench data list"
