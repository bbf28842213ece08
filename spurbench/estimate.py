"""How long runs take on this machine, from a short measurement of each setting.

A setting is trained on two parts of its data by the engine itself, two epochs per phase. An epoch, and what happens
around the epochs, is taken as linear in the amount of data, and so carried on to all of it.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spurbench.backbone import require_weights
from spurbench.data.view import LoaderSettings, make_view
from spurbench.dataset import Dataset, DatasetInfo, SplitData
from spurbench.engine import Silent
from spurbench.engine.device import run_threads
from spurbench.engine.distributed import find_team
from spurbench.engine.evaluation import load_split
from spurbench.engine.phases import Trainer
from spurbench.engine.results import evaluate_candidates
from spurbench.engine.run import open_dataset
from spurbench.engine.stop import StopFlag
from spurbench.method import Views
from spurbench.resolve import make_method
from spurbench.survey import first_training, kind_of
from spurbench.sweep import Planned, count, name_of
from spurbench.types import Sample

__all__ = ["RunTime", "estimate", "measure"]

_BATCHES = 6
"""Training batches of the larger part; the smaller one has a third."""
_EPOCHS = 2
"""Of each phase; the last one counts, for the first may pay for a start."""
_FURTHER = 0.45
"""Epochs to measure on test for every selection rule but the first: rules often agree (216 runs on minibirds with four
rules had 2.1 to 2.5 epochs to measure)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTime:
    """Seconds that a run is expected to take."""

    phases: tuple[float, ...]
    """All epochs of each phase, with validation and checkpoints."""
    rest: float
    """Building, what phases do before their first epoch, measuring on test, writing."""

    @property
    def total(self) -> float:
        """Of a run that shares nothing with others."""
        return sum(self.phases) + self.rest


def estimate(
    runs: Sequence[Planned], *, device: str, plugins: tuple[Path, ...] = (), tell: Callable[[str], None]
) -> list[float]:
    """Seconds that each run adds, one after the other; of trainings that runs share the first run pays.

    Methods whose epochs depend on what a network has got wrong, as ``jtt``'s copies do, are judged by a network that
    has learned less than it will.

    Args:
        tell: hears what is being measured.

    Raises:
        DataMissing: no data or weights here.
    """
    one_of: dict[Any, Planned] = {}
    for run in runs:
        one_of.setdefault(kind_of(run), run)
    tell(
        f"{count(len(one_of), 'setting')} to train briefly here, for {count(len(runs), 'run')} to come; "
        "each takes from seconds to a minute"
    )
    times: dict[Any, RunTime] = {}
    for kind, run in one_of.items():
        tell(f"measuring setting {len(times) + 1} of {len(one_of)}: {name_of(run)}")
        times[kind] = measure(run, device=device, plugins=plugins)
    first = {kind: first_training(run, plugins) for kind, run in one_of.items()}
    begun: set[tuple[str | None, int]] = set()
    seconds = []
    for run in runs:
        kind = kind_of(run)
        training = (first[kind], run.config.seed)
        seconds.append(times[kind].total - (times[kind].phases[0] if training in begun else 0.0))
        if first[kind] is not None:
            begun.add(training)
    return seconds


def measure(run: Planned, *, device: str, plugins: tuple[Path, ...] = ()) -> RunTime:
    """Train and measure parts of a run's data, in a folder that is thrown away.

    Raises:
        DataMissing: no data or weights here.
    """
    require_weights(run.config.backbone)
    dataset = open_dataset(run.config, run.paths, plugins)
    where = find_team().device(device)
    share = min(1.0, _BATCHES * run.config.train.batch_size / len(dataset.split("train")))
    with run_threads(run.config, where), tempfile.TemporaryDirectory() as folder:
        # The first of them pays for what a process does once.
        _, small, large = (
            _train_part(run, _Part(dataset, part), where, plugins, Path(folder) / str(number))
            for number, part in enumerate((share / 3, share / 3, share))
        )

    def whole(at_small: float, at_large: float) -> float:
        if large.share == small.share:
            return at_large
        return at_large + max(0.0, at_large - at_small) / (large.share - small.share) * (1 - large.share)

    phases = make_method(run.config, plugins).phases(run.config.train)
    eligible = max(1, phases[-1].epochs - phases[-1].select_from)
    tested = min(eligible, 1 + _FURTHER * (large.rules - 1))
    return RunTime(
        phases=tuple(
            phase.epochs * whole(small.seconds_of_epoch(position), large.seconds_of_epoch(position))
            for position, phase in enumerate(phases)
        ),
        rest=whole(small.around(), large.around()) + tested * whole(small.testing(), large.testing()),
    )


@dataclass(slots=True)
class _Clock(Silent):
    """An observer that writes down when something ended."""

    share: float
    """Of the training data, as it came out."""
    started: float
    trained: float = 0.0
    warm: float = 0.0
    """When everything had been measured on test once: the libraries prepare themselves for every new shape."""
    tested: float = 0.0
    """When it had been measured again."""
    epochs: dict[int, list[float]] = field(default_factory=dict)
    """Ends of epochs by the position of their phase."""
    rules: int = 1
    candidates: int = 1
    """Epochs that were measured on test."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs.setdefault(row["position"], []).append(time.perf_counter())

    def seconds_of_epoch(self, position: int) -> float:
        """0 for a phase without epochs."""
        ends = self.epochs.get(position, [])
        return ends[-1] - ends[-2] if len(ends) > 1 else 0.0

    def around(self) -> float:
        """Seconds of training outside of epochs."""
        inside = sum(len(ends) * self.seconds_of_epoch(position) for position, ends in self.epochs.items())
        return max(0.0, self.trained - self.started - inside)

    def testing(self) -> float:
        """Seconds to measure the weights of one epoch on test, and to write that down."""
        return (self.tested - self.warm) / self.candidates


def _train_part(run: Planned, part: "_Part", device: torch.device, plugins: tuple[Path, ...], folder: Path) -> _Clock:
    """One run on a part of the data, with few epochs; nothing is shared with other runs."""
    config = run.config
    folder.mkdir()
    splits = {
        name: load_split(part, name, resize=config.input.resize, cache=folder / "cache")
        for name in ("train", "val", "test")
    }
    clock = _Clock(share=len(splits["train"].y) / len(part.whole.split("train")), started=time.perf_counter())
    trainer = Trainer(
        config=config,
        weights_path=run.paths.weights_path,
        folder=folder,
        shared=folder / "phases",
        reuse=False,
        patient=True,
        method=make_method(config, plugins),
        info=part.info,
        fingerprint=part.fingerprint(),
        splits=splits,
        device=device,
        observer=clock,
        stop=StopFlag(),
    )
    trainer.phases = tuple(
        dataclasses.replace(phase, epochs=_EPOCHS, select_from=0) if phase.epochs else phase for phase in trainer.phases
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
    views = (
        make_view(name, splits[name].frames, splits[name].y, splits[name].group, trainer.method.access, settings)
        for name in ("train", "val")
    )
    trainer.run(Views(*views))
    clock.trained = time.perf_counter()
    evaluate_candidates(trainer)
    clock.warm = time.perf_counter()
    evaluate_candidates(trainer)
    clock.tested = time.perf_counter()
    clock.rules = len(trainer.rules)
    clock.candidates = len({candidate.epoch for candidate in trainer.candidates().values()})
    return clock


@dataclass(frozen=True, slots=True)
class _Part:
    """A dataset with a share of every group of every split; a group that has samples keeps one."""

    whole: Dataset
    share: float

    @property
    def info(self) -> DatasetInfo:
        return self.whole.info

    def split(self, name: str) -> SplitData:
        return _PartOfSplit(self.whole.split(name), self.share)

    def fingerprint(self) -> str:
        return f"{self.share:.6f} of {self.whole.fingerprint()}"


class _PartOfSplit:
    """Samples spread evenly over each group."""

    def __init__(self, whole: SplitData, share: float) -> None:
        self._whole = whole
        kinds = whole.y if whole.group is None else whole.group
        chosen = []
        for kind in torch.unique(kinds).tolist():
            places = torch.nonzero(kinds == kind)[:, 0]
            number = max(1, round(share * len(places)))
            chosen.append(places[torch.linspace(0, len(places) - 1, number).long()])
        self._chosen = torch.cat(chosen).sort().values
        self.y: Tensor = whole.y[self._chosen]
        self.group: Tensor | None = None if whole.group is None else whole.group[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        return dataclasses.replace(self._whole[int(self._chosen[index])], index=index)
