"""What a sweep has and what it still needs: states, time, disk, and what does not fit together."""

import contextlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from spurbench.backbone import describe_backbone
from spurbench.config import RunConfig
from spurbench.dotted import ABSENT, differing
from spurbench.engine.provenance import git_state, versions_json
from spurbench.engine.run import finished_record, open_dataset
from spurbench.engine.sharing import has_plain_steps
from spurbench.errors import SpurbenchError
from spurbench.io import folder_bytes
from spurbench.lease import owner_of
from spurbench.method import BaseMethod
from spurbench.resolve import make_method
from spurbench.schema import SCHEMA_VERSION
from spurbench.sweep import Planned, RunState, name_of, seconds_of, settings_of

__all__ = [
    "Survey",
    "awaited",
    "disk_bytes",
    "expected_bytes",
    "first_training",
    "kind_of",
    "set_aside",
    "shared_trainings",
    "survey",
    "told_apart",
]

_MOST_OTHERS = 500
"""Records of other sweeps that are read to judge the time; a tenth of a second."""
_SMALL = 200_000
"""Bytes of a run's tables and records."""


@dataclass(slots=True)
class Survey:
    """All runs of a sweep, looked at once."""

    states: list[RunState] = field(default_factory=list)
    """In the order of the runs."""
    stale: dict[str, str] = field(default_factory=dict)
    """Why a finished run does not count as done, by run id."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a run failed, in a line, by run id."""
    code: Counter[str] = field(default_factory=Counter)
    """Finished runs by the code and libraries that made them, where those differ from what would run now."""
    peak_bytes: int = 0
    """Largest device memory of a finished run on CUDA."""
    _seconds: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)
    _taken: list[tuple[Planned, float]] = field(default_factory=list)

    def seconds_left(self, runs: Sequence[Planned]) -> tuple[float, int] | None:
        """One after another, and by how many finished runs that is judged; None without any.

        A run is expected to take what runs that differ in nothing but their seed took, else those that share method,
        data, backbone and epochs, else the median of all. Where the sweep has none of the first, some runs of other
        sweeps in the same folder are asked as well.
        """
        left = [run for run, state in zip(runs, self.states, strict=True) if state not in ("done", "stale", "failed")]
        exact = {kind: median(taken) for kind, taken in self._seconds.items()}
        known: dict[tuple[Any, ...], list[float]] = {}
        for run, taken in self._taken:
            known.setdefault(_similar(run.config), []).append(taken)
        own = [taken for alike in known.values() for taken in alike]
        if any(kind_of(run) not in exact for run in left):
            wanted = {_similar(run.config) for run in left if kind_of(run) not in exact}
            for similar, taken in _of_other_sweeps(runs):
                if similar in wanted:
                    known.setdefault(similar, []).append(taken)
        everything = [taken for alike in known.values() for taken in alike]
        if not everything:
            return None
        usual, near = median(own or everything), {key: median(taken) for key, taken in known.items()}
        seconds = 0.0
        for run in left:
            kind = kind_of(run)
            if kind not in exact:
                exact[kind] = near.get(_similar(run.config), usual)
            seconds += exact[kind]
        return seconds, len(everything)


def survey(runs: Sequence[Planned], plugins: tuple[Path, ...] = ()) -> Survey:
    """Look at every run's folder, and at the data if they are here."""
    found = Survey()
    fingerprints: dict[tuple[str, Path | None, Path | None], str | None] = {}
    here = _code(versions_json(), *git_state())
    for run in runs:
        state, record = run.look()
        if record is not None:
            if reason := _stale(run, record, plugins, fingerprints):
                state = "stale"
                found.stale[run.run_id] = reason
            machine = record["machine"]
            there = _code(machine.get("versions_json"), machine.get("git_commit"), machine.get("git_dirty"))
            if there != here:
                found.code[there] += 1
            if machine.get("device") == "cuda":
                found.peak_bytes = max(found.peak_bytes, machine.get("peak_memory_bytes") or 0)
            if (taken := seconds_of(record)) is not None:
                found._seconds.setdefault(kind_of(run), []).append(taken)
                found._taken.append((run, taken))
        elif state == "failed":
            found.errors[run.run_id] = run.failure() or "its record does not say why"
        found.states.append(state)
    return found


def _stale(
    run: Planned,
    record: dict[str, Any],
    plugins: tuple[Path, ...],
    fingerprints: dict[tuple[str, Path | None, Path | None], str | None],
) -> str | None:
    """Why a finished run is not what would be made now. Another method version is another run."""
    if record.get("schema_version") != SCHEMA_VERSION:
        return f"made under schema {record.get('schema_version')}, now {SCHEMA_VERSION}"
    key = (run.config.dataset.name, run.paths.data_root, run.paths.dataset_path)
    if key not in fingerprints:
        try:
            fingerprints[key] = open_dataset(run.config, run.paths, plugins).fingerprint()
        except (SpurbenchError, OSError):  # without the data there is nothing to compare
            fingerprints[key] = None
    here, there = fingerprints[key], record["rows"][0].get("dataset_fingerprint")
    if None in (here, there) or here == there:
        return None
    return f"made with other data of {run.config.dataset.name} (fingerprint {str(there)[:12]}, here {str(here)[:12]})"


def _code(versions: str | None, commit: str | None, dirty: bool | None) -> str:
    """Code and libraries in a line of text."""
    changed = " with local changes" if dirty else ""
    libraries = ", ".join(f"{name} {number}" for name, number in json.loads(versions or "{}").items())
    return (
        f"{f'commit {commit[:7]}{changed}' if commit else 'an installed version'} ({libraries or 'unknown versions'})"
    )


def kind_of(run: Planned) -> tuple[Any, ...]:
    """All but the seed. Runs of one plan that differ in nothing else share these very objects."""
    return tuple(id(getattr(run.config, part)) for part in type(run.config).model_fields if part != "seed")


def awaited(runs: Sequence[Planned], states: Sequence[str]) -> Counter[str]:
    """Runs that were left for a training which another one does now, counted by who that is.

    A run of the sweep is named; of others, process and machine.
    """
    waiting = [
        folder for run, state in zip(runs, states, strict=True) if state == "waiting" if (folder := run.waits_for())
    ]
    if not waiting:
        return Counter()
    busy = {_process(run.folder): name_of(run) for run, state in zip(runs, states, strict=True) if state == "running"}
    doing = {folder: _process(folder) for folder in set(waiting)}
    return Counter(busy.get(process, process) for folder in waiting if (process := doing[folder]))


def _process(folder: Path) -> str:
    """Who works on a run or a shared training; empty if nobody does."""
    owner = owner_of(folder)
    return "" if owner is None else f"process {owner['pid']} on {owner['host'].split()[0]}"


def _similar(config: RunConfig) -> tuple[Any, ...]:
    """What decides before everything else how long a run takes."""
    return config.method.name, config.dataset.name, config.backbone.name, config.train.epochs


def _of_other_sweeps(runs: Sequence[Planned]) -> Iterator[tuple[tuple[Any, ...], float]]:
    """Times of finished runs in the same folder that are not in the sweep; of many not all are read."""
    own = {run.run_id for run in runs}
    folder = runs[0].paths.results / "runs"
    others = (path for path in folder.glob("*/result.json") if path.parent.name not in own)
    for path in itertools.islice(others, _MOST_OTHERS):
        record = finished_record(path.parent)
        with contextlib.suppress(KeyError, TypeError, ValueError):  # of another version
            if record is not None and (taken := seconds_of(record)) is not None:
                yield _similar(RunConfig.model_validate(record["config"])), taken


def told_apart(runs: Sequence[Planned], plugins: tuple[Path, ...] = ()) -> list[tuple[str, str]]:
    """Of every run the label of its method, and the options in which runs of this label on the same data differ."""
    label_of: dict[tuple[Any, ...], tuple[str, ...]] = {}
    options: dict[tuple[Any, ...], dict[str, Any]] = {}
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for run in runs:
        if (kind := kind_of(run)) not in label_of:
            place = (make_method(run.config, plugins).label, run.config.dataset.name, run.config.backbone.name)
            label_of[kind], options[kind] = place, settings_of(run.config)
            alike.setdefault(place, []).append(kind)
    told = {}
    for kinds in alike.values():
        keys = differing([options[kind] for kind in kinds])
        for kind in kinds:
            values = (f"{key.removeprefix('method.')}={options[kind].get(key, ABSENT)}" for key in keys)
            told[kind] = (label_of[kind][0], ", ".join(values))
    return [told[kind_of(run)] for run in runs]


def set_aside(run: Planned) -> None:
    """Let a finished run be made again; the old record keeps lying beside it as ``replaced-N.json``."""
    taken = len(list(run.folder.glob("replaced-*.json")))
    (run.folder / "result.json").replace(run.folder / f"replaced-{taken + 1}.json")
    for name in ("checkpoint", "weights", "artifacts"):
        shutil.rmtree(run.folder / name, ignore_errors=True)


def shared_trainings(runs: Sequence[Planned], plugins: tuple[Path, ...] = ()) -> tuple[int, int]:
    """How many runs begin with the same plain training as another one, and how many trainings that can save.

    An upper bound: whether two phases are equal to the bit is known only once they start.
    """
    first_of: dict[tuple[Any, ...], str | None] = {}
    begins: Counter[tuple[str, int]] = Counter()
    for run in runs:
        kind = kind_of(run)
        if kind not in first_of:
            first_of[kind] = first_training(run, plugins)
        if (first := first_of[kind]) is not None:
            begins[first, run.config.seed] += 1
    several = [count for count in begins.values() if count > 1]
    return sum(several), sum(several) - len(several)


def first_training(run: Planned, plugins: tuple[Path, ...]) -> str | None:
    """What a run's first phase trains, whatever the seed; None where no other method could have the same."""
    method = make_method(run.config, plugins)
    phases = method.phases(run.config.train)
    chooses_samples = len(phases) == 1 and type(method).start_phase is not BaseMethod.start_phase
    if not has_plain_steps(method) or chooses_samples or not phases[0].epochs:
        return None
    recipe = run.config.train.model_dump(mode="json", exclude={"epochs", "optimizer"})
    parts = run.config.model_dump(mode="json", include={"dataset", "backbone", "input"})
    return str((parts, recipe, phases[0].epochs, phases[0].batch_size, phases[0].optimizer.model_dump(mode="json")))


def disk_bytes(runs: Sequence[Planned]) -> list[int]:
    """Bytes below each run's folder that exists."""
    return [folder_bytes(run.folder) for run in runs if run.folder.is_dir()]


def expected_bytes(run: Planned) -> tuple[int, int]:
    """Of a run once it is done, and at most while it trains, from the backbone's size alone.

    Kept are the weights of the default rule's epoch and of the last; while it trains, one epoch's weights per rule, the
    last's, and a checkpoint with an optimizer state of two numbers per weight.
    """
    weights = 4 * sum(parameter.numel() for parameter in describe_backbone(run.config.backbone.name).parameters())
    return 2 * weights + _SMALL, 8 * weights + _SMALL
