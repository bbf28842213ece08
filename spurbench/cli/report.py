"""``spurbench report``: one self-contained page about finished runs."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spurbench.cli.common import paths_of, plugins_of
from spurbench.cli.render import size

_IMAGES = 8
"""Failures in one gallery."""


def execute(options: argparse.Namespace) -> int:
    """Collect, fold, write."""
    from spurbench.errors import DataMissing
    from spurbench.io import atomic_write
    from spurbench.leaderboard import collect
    from spurbench.report.curves import curves_of
    from spurbench.report.page import page, plotting_library
    from spurbench.report.page_data import page_data, settings_of

    plotting_library()  # before any work
    progress = _Progress()
    sources = [Path(name).expanduser() for name in options.results or [options.results_root]]
    if absent := [str(source) for source in sources if not source.exists()]:
        raise DataMissing(f"nothing at {', '.join(absent)}; name result folders or Parquet tables")
    found = collect(sources)
    for path in found.damaged:
        _note(f"skipped a damaged record: {path}")
    if found.failed:
        _note(f"{len(found.failed)} failed runs are not in the report: {', '.join(found.failed)}")
    folders = _folders(sources, sorted({row["run_id"] for row in found.rows}))
    curves = {}
    for done, (run, folder) in enumerate(folders.items()):
        progress("reading curves", done, len(folders))
        if (read := curves_of(folder)) is not None:
            curves[run] = read
    progress("folding", 0, 1)
    settings = settings_of(found.rows)
    document = page_data(settings, curves)
    for run in document["unusable"]:
        _note(f"left out run {run}: its rows lack what the table needs")
    if not document["settings"]:
        raise DataMissing(
            f"there are no finished runs below {', '.join(map(str, sources))}; make one with spurbench run, "
            "or name folders of results: spurbench report DIR ..."
        )
    document["failed"], document["damaged"] = len(found.failed), len(found.damaged)
    document["galleries"] = _galleries(options, settings.groups, folders, progress)
    text = page(document).encode()
    with atomic_write(Path(options.output).expanduser()) as stream:
        stream.write(text)
    print(
        f"{options.output} ({size(len(text))}, {document['runs']} runs of {len(document['settings'])} settings, "
        f"{len(document['galleries'])} galleries)"
    )
    return 0


class _Progress:
    """Lines on stderr once it takes longer than people wait without asking."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 2

    def __call__(self, task: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 2
            print(f"{task}: {done}/{total}", file=sys.stderr, flush=True)


def _folders(sources: Sequence[Path], runs: Sequence[str]) -> dict[str, Path]:
    """Of the runs that have one; the later source wins, as it does for records."""
    found = {}
    for run in runs:
        for source in reversed(sources):
            if (source / "runs" / run / "result.json").is_file():
                found[run] = source / "runs" / run
                break
    return found


def _galleries(
    options: argparse.Namespace, groups: list[list[dict[str, Any]]], folders: dict[str, Path], progress: _Progress
) -> list[dict[str, str]]:
    """Of the first seed with weights of each setting, methods with a mask first, until there are enough."""
    candidates = []
    for group in groups:
        runs = sorted({(row["seed"], row["run_id"]) for row in group if row["run_id"] in folders})
        kept = [folders[run] for _, run in runs if any((folders[run] / "weights").glob("*.pt"))]
        if kept:
            candidates.append((group[0].get("mask_density") is None, kept[0]))
    if not candidates or not options.gallery:
        return []
    from spurbench.engine.device import choose_device
    from spurbench.errors import SpurbenchError
    from spurbench.report.failures import failure_sheet

    paths, plugins, device = paths_of(options), plugins_of(options), choose_device(options.device)
    sheets: list[dict[str, str]] = []
    for _, folder in sorted(candidates, key=lambda candidate: candidate[0]):
        if len(sheets) == options.gallery:
            break
        progress("drawing galleries", len(sheets), options.gallery)
        try:
            sheet = failure_sheet(folder, paths, count=_IMAGES, device=device, plugins=plugins)
        except SpurbenchError as error:
            _note(f"no gallery of run {folder.name}: {error}")
            continue
        if sheet is not None:
            sheets.append(sheet)
    return sheets


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
