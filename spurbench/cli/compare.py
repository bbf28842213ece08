"""``spurbench compare``: which of two sides is better, and whether that is more than chance."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurbench.cli.common import print_json
from spurbench.cli.folding import folded_of, note, with_fold
from spurbench.cli.render import percent, print_markdown, print_table

if TYPE_CHECKING:
    from spurbench.compare import Comparison
    from spurbench.pairing import Pair, Side, Unpaired

_SHOWN = 20
"""Lines of a difference in configuration; JSON has all."""


def execute(options: argparse.Namespace) -> int:
    """Pair, compare, print, judge."""
    return with_fold(_execute, options)


def _execute(options: argparse.Namespace) -> int:
    from spurbench.compare import compare, undecided, worse
    from spurbench.errors import DataMissing

    title, notes, pairs, alone, are_sets = _sides(options)
    comparisons, unpaired = compare(pairs, options.metric)
    unpaired = [*alone, *unpaired]
    for text in notes:
        note(text)
    if not comparisons:
        lines = "".join(f"\n  {line}" for line in _unpaired_lines(unpaired))
        raise DataMissing(f"{title}: nothing can be paired{lines}")
    if options.format == "json":
        _json(title, options, comparisons, unpaired)
    else:
        _print(title, options, comparisons, unpaired)
    if options.fail_if_worse is None:
        return 0
    points = options.fail_if_worse
    lost = [entry for entry in unpaired if are_sets and entry.side == "B"]
    return _gate(worse(comparisons, points), undecided(comparisons, points), lost, points)


def _sides(options: argparse.Namespace) -> "tuple[str, list[str], list[Pair], list[Unpaired], bool]":
    """Two paths that exist are result sets; two names that are no paths, or follow ``--methods``, are methods.

    Returns:
        title, notes, pairs, runs without a partner, and whether the sides are result sets.
    """
    from spurbench.errors import ConfigError, DataMissing
    from spurbench.pairing import pair_methods, pair_sets

    given = [Path(name).expanduser() for name in options.sides]
    results = [Path(options.results_root).expanduser()]
    there = [path.exists() for path in given]
    names = options.methods
    if names is None:
        if len(given) != 2:
            raise ConfigError(
                f"compare takes two sides, got {len(given)}: two result folders or Parquet tables, or two methods of "
                "the folder --results; for example: spurbench compare 'aim[1,25%]' erm"
            )
        if all(there):
            try:
                sides = [_side(name, [path], options.select) for name, path in zip("AB", given, strict=True)]
            except DataMissing as error:
                raise DataMissing(
                    f"{error}; to compare two methods of one folder, type --methods {' '.join(options.sides)}"
                ) from None
            title = f"A = {options.sides[0]}, B = {options.sides[1]}"
            return title, [note for side in sides for note in side.notes], *pair_sets(*sides), True
        if any(there):
            missing = options.sides[there.index(False)]
            raise DataMissing(
                f"no result folder or Parquet table {missing}; to compare two methods of one folder, type "
                f"--methods {' '.join(options.sides)}"
            )
        names = options.sides
    elif given:
        results = given
    side = _side(", ".join(map(str, results)), results, options.select)
    try:
        return f"A = {names[0]}, B = {names[1]}, in {side.title}", side.notes, *pair_methods(side, *names), False
    except ConfigError as error:
        if options.methods is not None:
            raise
        raise ConfigError(f"{error}; neither is there a folder or table of that name") from None


def _side(title: str, sources: Sequence[Path], select: str) -> "Side":
    from spurbench.errors import DataMissing
    from spurbench.pairing import read_side

    if absent := [str(source) for source in sources if not source.exists()]:
        raise DataMissing(f"no result folder or Parquet table {', '.join(absent)}")
    return read_side(title, folded_of(sources, "the comparison"), sources, select)


def _print(
    title: str, options: argparse.Namespace, comparisons: "Sequence[Comparison]", unpaired: "Sequence[Unpaired]"
) -> None:
    from spurbench.compare import ENOUGH_SEEDS

    header = [
        "A",
        "B",
        "dataset",
        "backbone",
        "mean A",
        "mean B",
        "A - B",
        "95 % interval",
        "p (Holm)",
        "seeds",
        "images",
    ]
    lines = [
        [
            found.a,
            found.b,
            found.place["dataset"] or "",
            found.place["backbone"] or "",
            percent(sum(found.values_a) / len(found.seeds)),
            percent(sum(found.values_b) / len(found.seeds)),
            f"{100 * found.difference:+.1f}",
            "-" if found.low is None or found.high is None else f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
            "not enough seeds" if found.p_holm is None else _p(found.p_holm),
            str(len(found.seeds)),
            "-" if found.num_images is None else str(found.num_images),
        ]
        for found in comparisons
    ]
    what = f"{options.metric}, test split, selection {options.select}, in percent and percent points"
    if options.format == "markdown":
        print(f"{title}: {what}\n")
        print_markdown(header, lines)
        print()
    else:
        print_table(f"{title}\n{what}", header, lines, drop=("backbone", "images", "mean B", "mean A", "dataset"))
    few = sum(not found.enough_seeds for found in comparisons)
    if few:
        print(
            f"{few} of {len(comparisons)} comparisons have fewer than {ENOUGH_SEEDS} paired seeds: "
            "their intervals are too narrow, and chance cannot be ruled out"
        )
    if len(comparisons) - few > 1:
        print(f"p is adjusted for {len(comparisons) - few} comparisons (Holm); intervals are not adjusted")
    if left_out := sum(found.images_left_out for found in comparisons):
        print(f"{left_out} test images are not on both sides or have no value, over all comparisons")
    for source, count in Counter(found.epg_source for found in comparisons if found.epg_source).items():
        print(f"EPG of {source} in {count} of {len(comparisons)} comparisons")
    for text, count in Counter(text for found in comparisons for text in found.notes).items():
        print(f"{count} of {len(comparisons)} comparisons: {text}")
    for text in _unpaired_lines(unpaired):
        print(f"not paired: {text}")
    _print_diff("configuration", [_shown_diff(found) for found in comparisons])
    _print_diff("code and machine", [found.code_diff for found in comparisons])


def _shown_diff(found: "Comparison") -> dict[str, tuple[Any, Any]]:
    """Options of two methods are not each other's; their names say enough."""
    diff = found.config_diff
    if "method.name" in diff:
        diff = {key: value for key, value in diff.items() if not key.startswith("method.")}
    return diff


def _print_diff(what: str, diffs: Sequence[dict[str, tuple[Any, Any]]]) -> None:
    counted = Counter(f"{key}: {a} in A, {b} in B" for diff in diffs for key, (a, b) in diff.items())
    if not counted:
        return
    print(f"\nwhat differs in {what}:")
    for text, count in list(counted.items())[:_SHOWN]:
        print(f"  {text}" + ("" if count == len(diffs) else f" ({count} of {len(diffs)} comparisons)"))
    if len(counted) > _SHOWN:
        print(f"  and {len(counted) - _SHOWN} more (--format json has all)")


def _unpaired_lines(unpaired: "Sequence[Unpaired]") -> list[str]:
    lines = []
    for entry in unpaired:
        runs = list(dict.fromkeys(entry.runs))  # a run may have lacked a partner in several comparisons
        some = ", ".join(runs[:3]) + (", ..." if len(runs) > 3 else "")
        lines.append(f"{len(runs)} run{'s' if len(runs) > 1 else ''} of {entry.side} ({some}): {entry.reason}")
    return lines


def _json(
    title: str, options: argparse.Namespace, comparisons: "Sequence[Comparison]", unpaired: "Sequence[Unpaired]"
) -> None:
    print_json(
        {
            "title": title,
            "metric": options.metric,
            "select": options.select,
            "level": 0.95,
            "comparisons": [asdict(found) for found in comparisons],
            "unpaired": [asdict(entry) for entry in unpaired],
        }
    )


def _gate(bad: "Sequence[Comparison]", open_: "Sequence[Comparison]", lost: "Sequence[Unpaired]", limit: float) -> int:
    """Exit code of ``--fail-if-worse``: what a new result set lacks of the old one cannot be judged."""
    points = f"{limit:g} points"
    for found in bad:
        print(f"worse by more than {points}: {_one_line(found)}", file=sys.stderr)
    for found in open_:
        print(f"worse by more than {points}, not enough seeds to judge: {_one_line(found)}", file=sys.stderr)
    for text in _unpaired_lines(lost):
        print(f"cannot be judged: {text}", file=sys.stderr)
    return 1 if bad else 2 if open_ or lost else 0


def _one_line(found: "Comparison") -> str:
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    sides = found.a if found.a == found.b else f"{found.a} against {found.b}"
    return f"{sides} on {found.place['dataset']}: {100 * found.difference:+.1f}{interval}, {len(found.seeds)} seeds"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
