"""A finished run measured on other data: the same numbers as in its own rows, kept beside the run.

They lie in ``<run>/evaluations/<dataset>-<fingerprint>/<split>.json``, which no leaderboard reads: a run stands there
with the data that it was trained on, once.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spurbench.config import DatasetRef, RunConfig, RunPaths
from spurbench.dataset import Dataset
from spurbench.engine.device import run_threads
from spurbench.engine.evaluation import Measurement, Scorer, SplitArrays, load_split
from spurbench.engine.observer import Observer, Silent
from spurbench.engine.provenance import this_machine
from spurbench.engine.record import measured_row
from spurbench.engine.run import open_dataset
from spurbench.engine.stop import StopFlag
from spurbench.errors import ConfigError, SpurbenchError
from spurbench.io import read_json, write_json
from spurbench.metrics.cost import Cost
from spurbench.resolve import dataset_entry
from spurbench.saved import SavedRun, load_run
from spurbench.schema import SCHEMA_VERSION, validate_record

__all__ = ["evaluate_run", "open_by_name", "split_of"]

_FINGERPRINT_DIGITS = 12
_VALIDATION = ("val_accuracy", "val_wga", "val_worst_class")


def evaluate_run(
    folder: Path,
    dataset: str | None,
    paths: RunPaths,
    *,
    split: str = "test",
    device: torch.device,
    plugins: tuple[Path, ...] = (),
    force: bool = False,
    observer: Observer | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure the kept weights of a finished run; what was measured before is read.

    Args:
        dataset: a name or path, with transforms if any; the run's own if not given.
        force: measure again.

    Returns:
        The document, and its file: ``{schema_version, kind: "evaluation", run, dataset, rows, machine}``. ``run`` says
        what was measured (trained on which data, by which code, where), ``dataset`` on what; ``rows`` has one entry
        per rule whose weights are there, with the columns of a run's record; ``machine`` is where it was measured.

    Raises:
        DataMissing: no such data, or a run that is not finished or without weights.
        ConfigError: another split than the dataset has, or other classes than the run's.
    """
    observer = observer or Silent()
    run = load_run(folder, device=device, plugins=plugins)
    opened = _open(run, dataset, paths)
    _require_equal_classes(run, opened)
    info, fingerprint = opened.info, opened.fingerprint()
    about_data = {"name": info.name, "version": info.version, "fingerprint": fingerprint, "split": split}
    target = _target(folder, info.name, fingerprint, split)
    before = None if force else _kept(target, _about(run), about_data)
    if before is not None:
        return before, target
    with run_threads(run.config, device):
        arrays = split_of(opened, split, run.config.input.resize, paths.cache, observer)
        rows = _rows(run, opened, arrays, _train_counts(run, opened, paths), observer)
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "run": _about(run),
        "dataset": about_data,
        "rows": rows,
        "machine": this_machine(device),
    }
    validate_record(document)
    write_json(target, document)
    return document, target


def open_by_name(name: str, config: RunConfig, paths: RunPaths, plugins: tuple[Path, ...]) -> Dataset:
    """The dataset that a user names, opened as a run on it would open it.

    Args:
        config: of a run on whatever data.
    """
    spec, path = dataset_entry(name, plugins)
    about = config.model_copy(update={"dataset": DatasetRef(name=spec.info.name, version=spec.info.version)})
    return open_dataset(about, paths.model_copy(update={"dataset_path": path}), plugins)


def split_of(dataset: Dataset, name: str, resize: int, cache: Path | None, observer: Observer) -> SplitArrays:
    """A split's images and labels.

    Raises:
        ConfigError: a split that the dataset does not have.
    """
    if name not in dataset.info.splits:
        raise ConfigError(f"{dataset.info.name} has no split '{name}'; available: {', '.join(dataset.info.splits)}")
    return load_split(
        dataset, name, resize=resize, cache=cache,
        progress=lambda done, total: observer.progress(f"decoding {name}", done, total, {}),
    )  # fmt: skip


def _open(run: SavedRun, name: str | None, paths: RunPaths) -> Dataset:
    found = run.with_data(paths)
    if name is None or name == run.config.dataset.name:
        return open_dataset(run.config, found, run.plugins)
    return open_by_name(name, run.config, found, run.plugins)


def _require_equal_classes(run: SavedRun, opened: Dataset) -> None:
    theirs, ours = opened.info.classes, run.classes
    if theirs == ours:
        return
    counts = f"{len(theirs)} classes, not {len(ours)}" if len(theirs) != len(ours) else "other classes"
    raise ConfigError(
        f"{opened.info.name} has {counts}: {_listed(theirs)}; run {run.folder.name} was trained on "
        f"{run.config.dataset.name} with {_listed(ours)}, and can only be measured on the same classes in this order"
    )


def _listed(names: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _target(folder: Path, dataset: str, fingerprint: str, split: str) -> Path:
    safe = re.sub(r"[^A-Za-z0-9.+_-]+", "-", dataset).strip("-.")
    return folder / "evaluations" / f"{safe}-{fingerprint[:_FINGERPRINT_DIGITS]}" / f"{split}.json"


def _kept(target: Path, about_run: Mapping[str, Any], about_data: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was measured before, if it is about the same weights and data; a run that was started over has others."""
    try:
        document = read_json(target)
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        return None
    return document if (document.get("run"), document.get("dataset")) == (about_run, about_data) else None


def _about(run: SavedRun) -> dict[str, Any]:
    """Which weights these are, and where they come from."""
    row = run.record["rows"][0]
    names = ("run_id", "label", "method_version", "backbone", "weights", "seed", "access")
    trained_on = ("dataset", "dataset_version", "dataset_fingerprint")
    return {**{name: row.get(name) for name in (*names, *trained_on)}, "machine": run.record["machine"]}


def _train_counts(run: SavedRun, opened: Dataset, paths: RunPaths) -> tuple[int, ...] | None:
    """Training samples per group of what the run was trained on; None where groups differ or the data is not here."""
    try:
        own = _open(run, None, paths)
        if own.info.group_names != opened.info.group_names:
            return None
        if own.fingerprint() != run.row["dataset_fingerprint"]:
            return None
        split = own.split("train")
    except (SpurbenchError, OSError):
        return None
    groups = split.y if split.group is None else split.group
    return tuple(torch.bincount(groups, minlength=own.info.num_groups).tolist())


def _rows(
    run: SavedRun,
    opened: Dataset,
    arrays: SplitArrays,
    train_counts: tuple[int, ...] | None,
    observer: Observer,
) -> list[dict[str, Any]]:
    """One row per rule whose weights are there; rules often agree, and each epoch is measured once."""
    kept = run.kept_rules()
    left_out = [row["selection"] for row in run.record["rows"] if row["selection"] not in kept]
    if left_out:
        observer.note(f"note: left out {', '.join(left_out)}: their weights are not kept")
    measured: dict[int, tuple[Measurement, Mapping[str, float]]] = {}
    rows = []
    for recorded in run.record["rows"]:
        if recorded["selection"] not in kept:
            continue
        epoch = recorded["selected_epoch"]
        if epoch not in measured:
            rule = recorded["selection"]
            chosen = (
                run if rule == run.rule else load_run(run.folder, rule=rule, device=run.device, plugins=run.plugins)
            )
            scorer = Scorer(
                config=run.config,
                method=chosen.method,
                info=opened.info,
                mean=chosen.mean,
                std=chosen.std,
                device=run.device,
            )
            result = scorer.measure(chosen.model, arrays, observer, StopFlag())
            measured[epoch] = (result, chosen.method.found_options(chosen.model))
        result, found = measured[epoch]
        row = measured_row(
            run.config,
            run.method,
            opened.info,
            fingerprint=opened.fingerprint(),
            rule=recorded["selection"],
            epoch=epoch,
            score=recorded["selection_score"],
            split=arrays.name,
            result=result,
            train_counts=train_counts,
            cost=Cost(gmacs=recorded["gmacs"], params=recorded["params"]),
            plain_cost=Cost(gmacs=recorded["gmacs_backbone"], params=recorded["params_backbone"]),
        )
        row |= {"dataset": opened.info.name, "dataset_version": opened.info.version}
        rows.append({**row, **{name: recorded.get(name) for name in _VALIDATION}, **found})
    return rows
