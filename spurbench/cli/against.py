"""``spurbench leaderboard --against paper``: measured minus published."""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spurbench.cli.common import print_json
from spurbench.cli.render import print_markdown, print_table, spread

_HEADER = [
    *("method", "dataset", "backbone", "column", "measured", "seeds", "rule", "reported", "measured - reported"),
    *("their seeds", "their selection", "their average", "their pretraining", "evidence", "source"),
]
_DROP = (
    "their pretraining",
    "their seeds",
    "their average",
    "their selection",
    "evidence",
    "rule",
    "seeds",
    "source",
    "backbone",
)


def print_against(table: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """A line per number that exists on both sides, and why the others have no counterpart."""
    from spurbench.errors import ConfigError
    from spurbench.reported import compare_with_reported, load_reported, shipped

    reported = load_reported(shipped() if options.against == "paper" else Path(options.against).expanduser())
    if options.format == "latex":
        raise ConfigError("--against has no LaTeX form; choose --format csv, markdown or json")
    found = compare_with_reported(table, reported)
    lines = []
    for line, row in found.pairs:
        column = row.counterpart[3] if row.counterpart else ""
        mean = line[f"{column}_mean"]
        lines.append(
            [
                line["label"],
                line["dataset"],
                line["backbone"],
                column,
                spread(mean, line[f"{column}_sd"]),
                str(line["n_seeds"]),
                line["selection"],
                f"{row.value:.1f}" + (f" ± {row.std:.1f}" if row.std is not None else ""),
                f"{100 * mean - row.value:+.1f}",
                str(row.seeds or "not stated"),
                row.selection or "not stated",
                row.average or "not stated",
                row.pretraining or "not stated",
                row.evidence,
                row.source,
            ]
        )
    if options.format == "json":
        print_json(
            {
                "pairs": [dict(zip(_HEADER, line, strict=True)) for line in lines],
                "unmatched": dict(found.unmatched),
            }
        )
        return
    if options.format == "csv":
        csv.writer(sys.stdout).writerows([_HEADER, *lines])
    elif lines and options.format == "markdown":
        print_markdown(_HEADER, lines)
    elif lines:
        print_table("measured beside published, percent; recipes differ (see results/reference/README.md)", _HEADER,
                    lines, drop=_DROP)  # fmt: skip
    for reason, count in found.unmatched.most_common():
        print(f"{count} published numbers are not compared: {reason}", file=sys.stderr)
