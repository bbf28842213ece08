"""``spurbench data check``: whether what lies on disk is the published set, and all of it opens."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spurbench.cli.common import data_root_of, geometry_of, plugins_of, print_json
from spurbench.cli.live import live_observer
from spurbench.cli.render import print_table, size

if TYPE_CHECKING:
    from spurbench.datatools.check import CheckReport

_MAX_COLUMNS = 16
"""Up to so many groups have a column each."""
_FILES = ("archive", "open", "file", "mask", "box")
"""Kinds of findings that files from the publisher may cure."""
_MAX_LINES = 20
"""Findings of a kind that a terminal shows."""


def execute(options: argparse.Namespace) -> int:
    """Check, print everything that was found; 1 if anything is wrong."""
    from spurbench.data.row_faults import kept_faults
    from spurbench.datatools.check import row_finding, unreadable
    from spurbench.errors import DataError

    advice = ""
    with kept_faults() as faults:  # a folder of one's own is read before it has a name to check it under
        try:
            report, advice = _check(options)
        except DataError as error:
            report = unreadable(options.dataset, error, options.fast)
    report.findings[:0] = map(row_finding, faults)
    if options.json:
        print_json(report.document())
    else:
        _print(report)
        if report.errors:
            print(f"not as it should be{advice}", file=sys.stderr)
    return 1 if report.errors else 0


def _check(options: argparse.Namespace) -> tuple["CheckReport", str]:
    """The report, and what helps against its errors as far as that does not depend on them singly."""
    from spurbench.datatools.check import check_data
    from spurbench.datatools.prepare import archive_places
    from spurbench.resolve import dataset_entry

    spec, path = dataset_entry(options.dataset, plugins_of(options))
    root = data_root_of(options)
    with live_observer(f"checking {spec.info.name} in {path or root or 'memory'}") as observer:
        report = check_data(
            spec,
            path or root,
            geometry_of(spec.info.preset, None),
            places=archive_places(root, None),
            fast=options.fast,
            progress=lambda task, done, total: observer.progress(task, done, total, {}),
        )
    of_files = any(finding.kind in _FILES for finding in report.errors)
    fetchable = path is None and spec.info.archives and of_files
    return report, f"; what is damaged or missing is in {spec.info.source}" if fetchable else ""


def _print(report: "CheckReport") -> None:
    if report.counts:
        _print_counts(report)
    if report.objects:
        _print_objects(report)
    for path, known in report.archives.items():
        print(f"{path}: {known}")
    for line in (*_listed(report), *(f"note: {note}" for note in report.notes)):
        print(line)
    rate = f" ({report.files / report.seconds:,.0f} a second)" if report.files and report.seconds else ""
    pixels = " (headers only; without --fast every image is decoded)" if report.fast else ""
    print(
        f"{report.dataset} version {report.version}: {_number(report.errors, 'error')}, "
        f"{_number(report.warnings, 'warning')}; {_amount(report)}, "
        f"in {report.seconds:.1f} s{rate}{pixels}"
    )


def _amount(report: "CheckReport") -> str:
    if report.files:
        return f"{report.files:,} image files, {size(report.num_bytes)}"
    return f"{'drawn, ' if report.drawn else ''}{report.images:,} images"


def _listed(report: "CheckReport") -> Iterator[str]:
    """A line per finding; on a terminal not more of a kind than one wants to see pass."""
    most = _MAX_LINES if sys.stdout.isatty() else len(report.findings)
    shown: Counter[tuple[str, str]] = Counter()
    for finding in (*report.errors, *report.warnings):
        kind = (finding.severity, finding.kind)
        shown[kind] += 1
        if shown[kind] <= most:
            yield f"{finding.severity}: {finding.where}: {finding.problem}"
    for (severity, kind_name), number in shown.items():
        if number > most:
            yield f"... and {number - most:,} more {severity}s of the kind {kind_name} (all of them: --json, or a pipe)"


def _number(items: Sequence[object], word: str) -> str:
    return f"{len(items):,} {word}{'' if len(items) == 1 else 's'}"


def _print_counts(report: "CheckReport") -> None:
    if len(report.groups) <= _MAX_COLUMNS:
        header = ["split", *report.groups, "all"]
        lines = [[split, *(f"{n:,}" for n in counts), f"{sum(counts):,}"] for split, counts in report.counts.items()]
        print_table("images per group", header, lines)
        return
    lines = []
    for split, counts in report.counts.items():
        used = [(n, name) for n, name in zip(counts, report.groups, strict=True) if n]
        low, high = min(used), max(used)
        lines.append(
            [
                split,
                f"{sum(counts):,}",
                f"{len(used):,} of {len(counts):,}",
                f"{low[0]:,} ({low[1]})",
                f"{high[0]:,} ({high[1]})",
            ]
        )
    print_table("images per group (all: --json)", ["split", "images", "groups", "smallest", "largest"], lines)


def _print_objects(report: "CheckReport") -> None:
    lines = [
        [split, source, f"{c.annotated:,}", f"{c.empty:,}", f"{c.gone:,}", f"{c.cut:,}"]
        for split, sources in report.objects.items()
        for source, c in sources.items()
    ]
    header = ["split", "annotation", "images", "empty mask", "cropped away", "cropped in part"]
    print_table("objects in evaluation geometry", header, lines)
