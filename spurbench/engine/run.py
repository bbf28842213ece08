"""One run, from configuration to record. The run's directory is its whole state; there is nothing else to lose."""

import contextlib
import errno
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from spurbench.backbone import require_weights
from spurbench.config import RunConfig, RunPaths
from spurbench.data.cache import frame_bytes, readable_size
from spurbench.data.view import LoaderSettings, make_view
from spurbench.dataset import Dataset, find_dataset
from spurbench.engine.device import peak_memory_bytes, run_threads
from spurbench.engine.distributed import Team, find_team
from spurbench.engine.evaluation import SplitArrays, load_split
from spurbench.engine.observer import Observer, Silent
from spurbench.engine.phases import Trainer
from spurbench.engine.provenance import now_utc, this_machine
from spurbench.engine.record import failed_record
from spurbench.engine.results import evaluate_candidates
from spurbench.engine.sharing import PhaseHeld
from spurbench.engine.stop import Interrupted, StopFlag, stop_on_signals
from spurbench.errors import ConfigError, ResultConflict, RunFailed, SpurbenchError, cannot_write_results
from spurbench.io import read_json, remove_leftovers, write_json
from spurbench.lease import Lease, owner_of
from spurbench.method import Views
from spurbench.registry import load_registry
from spurbench.resolve import dataset_entry, make_method
from spurbench.schema import SCHEMA_VERSION, validate_record
from spurbench.types import Access

__all__ = ["finished_record", "has_failed", "open_dataset", "run_one"]

_POLL_SECONDS = 0.5
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What one call works with."""

    config: RunConfig
    paths: RunPaths
    plugins: tuple[Path, ...]
    device: torch.device
    observer: Observer
    stop: StopFlag
    launcher: str
    force: bool
    wait: bool
    early_stopping: str | None
    team: Team

    @property
    def folder(self) -> Path:
        return self.paths.run(self.config.run_id())


def run_one(
    config: RunConfig,
    paths: RunPaths,
    *,
    device: str = "auto",
    plugins: tuple[Path, ...] = (),
    force: bool = False,
    wait: bool = True,
    launcher: str = "local",
    early_stopping: str | None = None,
    observer: Observer | None = None,
    stop: StopFlag | None = None,
) -> dict[str, Any] | None:
    """Bring a run to its record: print-ready at once if finished, resumed if begun, started otherwise.

    Safe to call from several processes at once: one works, the others wait and return the same record. Processes that
    were started together by torchrun train the run together.

    Args:
        force: start over even if a finished record exists; it stays until the new one replaces it.
        wait: whether to wait for another process that holds the run, or trains a phase that this run can take over;
            if not, None is returned.
        early_stopping: the rule by which the observer may end the run early, for the record.
        stop: set by the caller where signals cannot be heard, outside the main thread.

    Returns:
        The record, as in ``result.json``; of processes that were started together, the first one returns it.

    Raises:
        SpurbenchError: with a message for the user; a failed run also leaves a record.
        Interrupted: stopped by a signal, state saved.
        Elsewhere: the first of the processes that were started together has failed, and tells why.
    """
    team = find_team()
    if team.size > 1 and not wait:  # the others could not tell a run that was left for later
        raise ConfigError(
            f"torchrun's {team.size} processes share one run: use `spurbench run`; for many runs at once use "
            "`spurbench sweep --jobs N` without torchrun"
        )
    observer = observer if observer is not None and team.leads else Silent()
    with stop_on_signals(stop) as stop, team.at_work():
        if not team.leads and not team.await_call(stop):
            return None
        job = _Job(
            config=config,
            paths=paths,
            plugins=plugins,
            device=team.device(device),
            observer=observer,
            stop=stop,
            launcher=launcher,
            force=force,
            wait=wait,
            early_stopping=early_stopping,
            team=team,
        )
        if not team.leads:
            _train_along(job)
            return None
        record = finished_record(job.folder)
        if record is not None and not force:
            return _reused(job, record)
        # What the user has to mend is found before anything is written.
        dataset = open_dataset(config, paths, plugins)
        _check_access(job, dataset)
        _check_team(job)
        require_weights(config.backbone)
        lease = _take_lease(job, wait)
        if lease is None:
            return None
        with lease:
            record = finished_record(job.folder)
            if record is not None and not force:
                return _reused(job, record)
            if force:
                _forget(job.folder)
            try:
                record = _work(job, dataset)
            except PhaseHeld:
                return None
            stop.check()  # a signal that came too late to stop this run still has to stop whatever would follow
            return record


def _train_along(job: _Job) -> None:
    """What all processes do but the first."""
    dataset = open_dataset(job.config, job.paths, job.plugins)
    require_weights(job.config.backbone)
    with run_threads(job.config, job.device):
        _train(job, dataset)


def finished_record(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run; None if it has none, failed, or cannot be read."""
    try:
        record = read_json(folder / "result.json")
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("status") != "finished":
        return None
    return record if record.get("rows") and record.get("machine") else None


def has_failed(folder: Path) -> bool:
    """Whether a run left the record of a failure."""
    try:
        return bool(read_json(folder / "result.json")["status"] == "failed")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_dataset(config: RunConfig, paths: RunPaths, plugins: tuple[Path, ...]) -> Dataset:
    """The dataset of a run, from the data root or from the folder it was named by."""
    if paths.dataset_path is None:
        return find_dataset(config.dataset.name, plugins).open(paths.data_root)
    _, *changes = config.dataset.name.split("+")
    spec, path = dataset_entry("+".join([str(paths.dataset_path), *changes]), plugins)
    opened = spec.open(path)
    if opened.info.name != config.dataset.name:
        raise ConfigError(
            f"{paths.dataset_path} has changed: it is {opened.info.name}, the run is about {config.dataset.name}"
        )
    return opened


def _work(job: _Job, dataset: Dataset) -> dict[str, Any]:
    started = _Started(attempts=1, started_at=now_utc())
    try:
        remove_leftovers(job.folder)
        started = _start(job)
        with run_threads(job.config, job.device):
            record = _train_and_evaluate(job, dataset, started)
    except (Interrupted, ResultConflict, KeyboardInterrupt):
        raise
    except PhaseHeld as held:
        before = {**read_json(job.folder / "config.json"), "attempts": started["attempts"] - 1}
        write_json(job.folder / "config.json", {**before, "waits_for": str(held)})
        raise
    except Exception as error:
        raise _failure(job, error, started) from error
    return record


class _Started(TypedDict):
    attempts: int
    started_at: str
    """Of the first attempt."""


def _start(job: _Job) -> _Started:
    """Write ``config.json``, which also counts the attempts and tells where data and plugins were found."""
    path = job.folder / "config.json"
    started = _Started(attempts=1, started_at=now_utc())
    if not job.force:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = read_json(path)
            started = _Started(attempts=before["attempts"] + 1, started_at=before["started_at"])
    where = job.paths.model_dump(mode="json", include={"data_root", "dataset_path", "weights_path"})
    where = {name: value and str(Path(value).resolve()) for name, value in where.items()}
    plugins = [str(plugin.resolve()) for plugin in job.plugins]
    document = {"run_id": job.config.run_id(), "config": job.config.model_dump(mode="json")}
    write_json(path, {**document, "paths": where, "plugins": plugins, **started})
    return started


def _train_and_evaluate(job: _Job, dataset: Dataset, started: _Started) -> dict[str, Any]:
    job.team.call()
    trainer = _train(job, dataset)
    rows, machine = evaluate_candidates(trainer)
    record = {
        "schema_version": SCHEMA_VERSION,
        "run_id": job.config.run_id(),
        "status": "finished",
        "error": None,
        "config": job.config.model_dump(mode="json"),
        "rows": rows,
        "machine": {**machine, **_machine(job), **started},
    }
    validate_record(record)
    write_json(job.folder / "result.json", record)
    trainer.tidy()
    return record


def _train(job: _Job, dataset: Dataset) -> Trainer:
    """All phases; each of the processes that share the run does this."""
    config, device = job.config, job.device
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # the statistics of a device that was named by its number do not wake it up
        torch.cuda.set_device(device)  # else pinned memory would open a context on the first GPU as well
        torch.cuda.reset_peak_memory_stats(device)
    method = make_method(config, job.plugins)
    splits = {name: _load_split(job, dataset, name) for name in ("train", "val", "test")}
    job.team.join(device, job.stop)
    trainer = Trainer(
        config=config,
        weights_path=job.paths.weights_path,
        folder=job.folder,
        shared=job.paths.results / "phases",
        reuse=not job.force,
        patient=job.wait,
        method=method,
        info=dataset.info,
        fingerprint=dataset.fingerprint(),
        splits=splits,
        device=device,
        observer=job.observer,
        stop=job.stop,
        team=job.team,
    )
    settings = LoaderSettings(
        batch_size=config.train.batch_size,
        input=config.input,
        mean=trainer.scorer.mean,
        std=trainer.scorer.std,
        channels_last=config.train.channels_last,
        device=device,
        seed=config.seed,
    )
    views = Views(
        *(
            make_view(name, splits[name].frames, splits[name].y, splits[name].group, method.access, settings)
            for name in ("train", "val")
        )
    )
    trainer.run(views)
    job.team.leave()
    return trainer


def _load_split(job: _Job, dataset: Dataset, name: str) -> SplitArrays:
    shown = 0.0
    resize = job.config.input.resize
    size = frame_bytes(len(dataset.split(name)), resize, masks=dataset.info.has_masks)
    label = f"decoding {name}, {readable_size(size)}"

    def progress(done: int, total: int) -> None:
        nonlocal shown
        job.stop.check()
        if time.monotonic() - shown > 0.2 or done == total:
            shown = time.monotonic()
            job.observer.progress(label, done, total, {})

    return load_split(dataset, name, resize=resize, cache=job.paths.cache, progress=progress)


def _check_access(job: _Job, dataset: Dataset) -> None:
    """Refuse what the dataset cannot give, and name methods that do without."""
    info, name = dataset.info, job.config.method.name
    registry = load_registry("methods", job.plugins)
    lacking = Access.NONE
    if info.attributes is None:
        lacking |= Access.TRAIN_GROUPS | Access.VAL_GROUPS
    wanted = registry.get(name).value.access
    if not info.has_masks or (Access.REGIONS in wanted and dataset.split("train")[0].mask is None):
        lacking |= Access.REGIONS  # some sets have masks of their test images only
    missing = wanted & lacking
    if missing:
        what = "object masks" if missing == Access.REGIONS else "group labels"
        none = "none for training" if missing == Access.REGIONS and info.has_masks else "none"
        others = sorted(other for other, entry in registry.entries.items() if not entry.value.access & lacking)
        raise ConfigError(
            f"method {name} needs {what} ({missing.names()}), and {info.name} has {none}; "
            f"methods that do without: {', '.join(others)}"
            + ("; a metadata.csv has groups if it has a column place or a" if info.attributes is None else "")
        )


def _check_team(job: _Job) -> None:
    """Refuse what several processes could not train as one does."""
    if job.team.size == 1:
        return
    registry, name = load_registry("methods", job.plugins), job.config.method.name
    if not registry.get(name).value.data_parallel:
        others = sorted(other for other, entry in registry.entries.items() if entry.value.data_parallel)
        raise ConfigError(
            f"method {name} cannot share its batches between {job.team.size} processes; start it with one, without "
            f"torchrun; methods that can: {', '.join(others)}"
        )
    if job.config.train.compile:
        raise ConfigError(
            f"train.compile does not work with {job.team.size} processes: norms are computed across them; "
            "use --set train.compile=false, or one process"
        )


def _take_lease(job: _Job, wait: bool) -> Lease | None:
    told = False
    while True:
        try:
            lease = Lease.try_take(job.folder)
        except OSError as error:
            if error.errno in _FULL:
                raise _cannot_write(job, error) from error
            raise cannot_write_results(job.paths.results, error) from error
        if lease is not None or not wait:
            return lease
        owner = owner_of(job.folder)
        if not told and owner is not None:
            job.observer.note(
                f"run {job.config.run_id()} is being computed by process {owner['pid']} on {owner['host'].split()[0]}; "
                "waiting for its record"
            )
            told = True
        job.stop.check()
        time.sleep(_POLL_SECONDS)


def _reused(job: _Job, record: dict[str, Any]) -> dict[str, Any]:
    """A finished record, if it belongs to this data and this class of device."""
    made_on = record["machine"].get("device")
    if made_on != job.device.type:
        raise ResultConflict(
            f"run {job.config.run_id()} was finished on {made_on}, this call is on {job.device.type}; "
            f"use --device {made_on}, or --force to replace it"
        )
    there = record["rows"][0]["dataset_fingerprint"]
    try:
        here = open_dataset(job.config, job.paths, job.plugins).fingerprint()
    except (SpurbenchError, OSError) as error:  # without the data here there is nothing to compare
        problem = str(error).partition("\n")[0]
        job.observer.note(f"run {job.config.run_id()} is finished; its data were not looked at again: {problem}")
        return record
    if here != there:
        raise ResultConflict(
            f"run {job.config.run_id()} was made with other data of {job.config.dataset.name} "
            f"(fingerprint {there[:12]}, here {here[:12]}); use --force to replace it, or another --results folder"
        )
    return record


def _forget(folder: Path) -> None:
    """Remove the resumable state; a finished record stays until the new one replaces it."""
    for name in ("checkpoint", "weights", "artifacts"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _failure(job: _Job, error: Exception, started: _Started) -> SpurbenchError:
    """Leave a failed record (never over a finished one) and return what to tell the user."""
    if isinstance(error, SpurbenchError):
        shown: SpurbenchError = error
    elif isinstance(error, OSError) and error.errno in (*_FULL, errno.EACCES, errno.EROFS):
        shown = _cannot_write(job, error)
    elif isinstance(error, torch.OutOfMemoryError):
        shown = RunFailed(f"out of device memory; try a smaller train.batch_size: {error}")
    else:
        shown = RunFailed(f"{type(error).__name__}: {error} (run again with --debug to see where)")
    if finished_record(job.folder) is None:
        machine = {**_machine(job), **started}
        with contextlib.suppress(OSError):
            write_json(job.folder / "result.json", failed_record(job.config, str(shown), machine))
    return shown


def _cannot_write(job: _Job, error: OSError) -> RunFailed:
    return RunFailed(
        f"cannot write below {job.folder}: {error.strerror or error}; mend that and start the same command again"
    )


def _machine(job: _Job) -> Mapping[str, Any]:
    return {
        "launcher": job.launcher,
        "early_stopping": job.early_stopping,
        "num_devices": job.team.size,
        "peak_memory_bytes": peak_memory_bytes(job.device),
        **this_machine(job.device),
    }
