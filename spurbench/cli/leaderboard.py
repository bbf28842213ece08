"""``spurbench leaderboard``: a table of finished runs."""

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from spurbench.cli.against import print_against
from spurbench.cli.common import print_json
from spurbench.cli.render import erasure_text, percent, print_markdown, print_table, spread


def execute(options: argparse.Namespace) -> int:
    """Collect, select, print."""
    from spurbench.errors import DataMissing
    from spurbench.leaderboard import aggregate, best_draws, collect, write_parquet

    folders = [Path(name).expanduser() for name in options.results or [options.results_root]]
    if absent := [str(folder) for folder in folders if not folder.exists()]:
        raise DataMissing(f"nothing at {', '.join(absent)}; name result folders or Parquet tables")
    found = collect(folders)
    for path in found.damaged:
        print(f"note: skipped a damaged record: {path}", file=sys.stderr)
    if found.failed:
        print(f"note: {len(found.failed)} failed runs are not in the table: {', '.join(found.failed)}", file=sys.stderr)
    table = aggregate(found.rows, options.select)
    _tell_without_rule(found.rows, options.select)
    if not table:
        offered = sorted({row["selection"] for row in found.rows})
        have = (
            f"the {len(found.rows)} rows there offer {', '.join(offered)}" if offered else "there are no finished runs"
        )
        raise DataMissing(f"no run below {', '.join(map(str, folders))} has rule '{options.select}': {have}")
    if options.draws == "best":
        table = best_draws(table, options.select)
    if options.against is not None:
        print_against(table, options)
        return 0
    if options.output:
        write_parquet(found.rows, Path(options.output))
    if options.format == "json":
        print_json({"runs": [row for row in found.rows if row["selection"] == options.select], "table": table})
    elif options.format == "csv":
        _csv(table)
    else:
        _print(table, options.select, markdown=options.format == "markdown")
    return 0


def _tell_without_rule(rows: list[dict[str, Any]], select: str) -> None:
    """Finished runs that the table lacks because they do not offer the rule."""
    from spurbench.leaderboard import rule_for

    offered: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        offered.setdefault((row["label"], row["dataset"], row["run_id"]), set()).add(row["selection"])
    lacking = Counter(
        (label, dataset, ", ".join(sorted(rules)))
        for (label, dataset, _), rules in offered.items()
        if rule_for(rules, select) not in rules
    )
    for (label, dataset, rules), count in lacking.items():
        what = f"{count} run{'s' if count > 1 else ''} of {label} on {dataset}"
        print(f"note: {what} without rule {select} (they have {rules})", file=sys.stderr)


_HEADER = [
    *("method", "WGA", "accuracy", "EPG", "seeds", "draws", "rule", "dataset", "backbone"),
    *("base rate", "density", "erased", "group mean", "GMACs", "params M", "access"),
]
_DROP = (
    *("draws", "rule", "erased", "group mean", "base rate", "access", "params M", "backbone"),
    *("GMACs", "density", "dataset", "seeds", "EPG"),
)
_TELLS_APART = ("dataset", "backbone", "rule")
"""Columns without which lines of one method could not be told apart, where they differ."""


def _print(table: list[dict[str, Any]], rule: str, *, markdown: bool) -> None:
    labels = _labels(table)
    lines = [
        [
            label,
            _spread(entry, "worst_group_accuracy"),
            _spread(entry, "accuracy"),
            f"{_spread(entry, 'epg')} {entry['epg_source'] or ''}".strip(),
            str(entry["n_seeds"]),
            str(entry.get("n_draws", 1)),
            entry["selection"],
            entry["dataset"],
            entry["backbone"],
            percent(entry["epg_base_rate_mean"]),
            percent(entry["mask_density_mean"]),
            erasure_text(entry),
            _spread(entry, "group_mean_accuracy"),
            f"{entry['gmacs']:.3f} ({entry['gmacs'] - entry['gmacs_backbone']:+.3f})",
            f"{entry['params'] / 1e6:.2f} ({(entry['params'] - entry['params_backbone']) / 1e6:+.2f})",
            entry["access"],
        ]
        for entry, label in zip(table, labels, strict=True)
    ]
    title = f"test split, selection {rule}, mean ± s.d. over seeds, percent"
    if markdown:
        print(f"{title}\n")
        print_markdown(_HEADER, lines)
    else:
        differ = {name for name in _TELLS_APART if len({line[_HEADER.index(name)] for line in lines}) > 1}
        print_table(title, _HEADER, lines, drop=[name for name in _DROP if name not in differ])
    if any(entry["erasure_outside_mean"] is not None for entry in table):
        print(
            "\nerased: percent of predictions that stay when all outside the mask / all inside / all outside another "
            "image's mask becomes the mean colour"
        )


def _labels(table: list[dict[str, Any]]) -> list[str]:
    """Labels; where two lines share one, the options in which they differ are added."""
    labels = []
    for entry in table:
        twins = [
            other["options"]
            for other in table
            if (other["label"], other["dataset"]) == (entry["label"], entry["dataset"]) and other is not entry
        ]
        differing = sorted({key for twin in twins for key in twin if twin[key] != entry["options"].get(key)})
        extra = ", ".join(f"{key}={entry['options'][key]}" for key in differing)
        labels.append(f"{entry['label']} {extra}".strip())
    return labels


def _spread(entry: dict[str, Any], name: str) -> str:
    return spread(entry[f"{name}_mean"], entry[f"{name}_sd"])


def _csv(table: list[dict[str, Any]]) -> None:
    columns = [key for key in table[0] if key != "options" and not key.endswith("_values")]
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({**entry, "seeds": " ".join(map(str, entry["seeds"]))} for entry in table)
