"""``spurbench report``: one self-contained page about finished runs."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spurbench.cli.common import paths_of, plugins_of
from spurbench.cli.folding import folded_of, folders_of, note, with_fold
from spurbench.cli.render import size

_IMAGES = 8
"""Failures in one gallery."""


def execute(options: argparse.Namespace) -> int:
    """Fold, describe, write."""
    return with_fold(_execute, options)


def _execute(options: argparse.Namespace) -> int:
    from spurbench.errors import ConfigError, DataMissing
    from spurbench.io import atomic_write
    from spurbench.report.curves import curves_of
    from spurbench.report.page import page, plotting_library
    from spurbench.report.page_data import page_data
    from spurbench.report.problems import problems
    from spurbench.report.tables import tables_of
    from spurbench.reported import load_reported, shipped

    plotting_library()  # before any work
    if Path(options.output).expanduser().is_dir():
        raise ConfigError(f"-o {options.output} is a folder; name a file, such as {options.output}/report.html")
    progress = _Progress()
    sources = folders_of(options)
    folded = folded_of(sources, "the report")
    progress("folding", 0, 1)
    tables = tables_of(folded, options.intervals, [source for source in sources if source.is_dir()])
    if not tables:
        raise DataMissing(
            f"there are no finished runs below {', '.join(map(str, sources))}; make one with spurbench run, "
            "or name folders of results: spurbench report DIR ..."
        )
    settings = {line["setting"]: line for table in reversed(tables.values()) for line in table}
    folders = _folders(sources, sorted({run for table in tables.values() for line in table for run in line["run_ids"]}))
    curves = {}
    for done, (run, folder) in enumerate(folders.items()):
        progress("reading curves", done, len(folders))
        if (read := curves_of(folder)) is not None:
            curves[run] = read
    document = page_data(tables, curves, load_reported(shipped()))
    document["problems"] = problems(folded, list(tables))
    document["galleries"] = _galleries(options, list(settings.values()), folders, progress)
    text = page(document).encode()
    with atomic_write(Path(options.output).expanduser()) as stream:
        stream.write(text)
    _tell_left_out(list(settings.values()))
    print(
        f"{options.output} ({size(len(text))}, {document['runs']} runs of {len(settings)} settings, "
        f"{len(document['galleries'])} galleries)"
    )
    return 0


def _tell_left_out(lines: Sequence[Mapping[str, Any]]) -> None:
    """How many are on the page, but not ranked."""
    if apart := [line for line in lines if line["apart"]]:
        runs = sum(line["n_seeds"] for line in apart)
        note(f"{len(apart)} settings ({runs} runs) would not compare with the others; the page lists them and says why")


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
    options: argparse.Namespace, lines: Sequence[Mapping[str, Any]], folders: dict[str, Path], progress: _Progress
) -> list[dict[str, str]]:
    """Of the first seed with weights of each setting, methods with a mask first, until there are enough."""
    candidates = []
    for line in lines:
        runs = [folders[run] for run in line["run_ids"] if run in folders]
        if kept := [folder for folder in runs if any((folder / "weights").glob("*.pt"))]:
            candidates.append((line["apart"] is not None, line["mask_density_mean"] is None, kept[0]))
    if not candidates or not options.gallery:
        return []
    from spurbench.engine.device import choose_device
    from spurbench.errors import SpurbenchError
    from spurbench.report.failures import failure_sheet

    paths, plugins, device = paths_of(options), plugins_of(options), choose_device(options.device)
    sheets: list[dict[str, str]] = []
    for *_, folder in sorted(candidates, key=lambda candidate: candidate[:2]):
        if len(sheets) == options.gallery:
            break
        progress("drawing galleries", len(sheets), options.gallery)
        try:
            sheet = failure_sheet(folder, paths, count=_IMAGES, device=device, plugins=plugins)
        except SpurbenchError as error:
            note(f"no gallery of run {folder.name}: {error}")
            continue
        if sheet is not None:
            sheets.append(sheet)
    return sheets
