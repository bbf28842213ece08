"""Tiny data and methods for tests of the engine, loaded with ``--plugin``.

A test stops a run of another process at a chosen place: ``$TOYS_HALT`` names the place, and in ``$TOYS_DIR`` the file
``halted`` appears when it is reached, and ``halted.PID`` says by whom; the process then waits for a file ``go``, or for
whatever signal the test sends.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from spurbench.config import TrainConfig
from spurbench.data.view import View
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.errors import DataMissing
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Progress, Views
from spurbench.rng import generator
from spurbench.types import Batch, Prediction, Sample, StepOutput

SIZE = 32
NUM_SAMPLES = {"train": 64, "val": 32, "test": 40}
"""No two equal: a batch of 40 can only be the test split."""


def reach(place: str) -> None:
    """Wait here if the test asked for it."""
    if os.environ.get("TOYS_HALT") != place:
        return
    folder = Path(os.environ["TOYS_DIR"])
    while not (folder / "go").exists():
        (folder / f"halted.{os.getpid()}").touch()
        (folder / "halted").touch()
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------------------- data


class ToySplit:
    """Squares whose colour is the class, on a background whose colour is the attribute."""

    def __init__(self, name: str, *, shuffled: bool, grouped: bool) -> None:
        rng = generator(0, f"toys-{name}")
        number = NUM_SAMPLES[name]
        self.name = name
        self.drawn_y = torch.arange(number) % 2
        agrees = torch.rand(number, generator=rng) < (0.75 if name == "train" else 0.5)
        self.drawn_attribute = torch.where(agrees, self.drawn_y, 1 - self.drawn_y)
        y, attribute = self.drawn_y, self.drawn_attribute
        if shuffled and name == "train":
            attribute = attribute[torch.randperm(number, generator=rng)]
        if shuffled and name == "test":
            y = y[torch.randperm(number, generator=rng)]
        self.y = y
        self.group = 2 * y + attribute if grouped else None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Sample:
        reach(f"decode {self.name} {index}")
        y, attribute = int(self.drawn_y[index]), int(self.drawn_attribute[index])
        image = torch.full((3, SIZE, SIZE), 70)
        image[attribute] += 60
        image[2 - 2 * y, 8:24, 8:24] += 50
        noise = torch.randint(-70, 71, image.shape, generator=generator(0, f"noise-{self.name}", index))
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        mask[8:24, 8:24] = True
        return Sample(
            image=(image + noise).clamp(0, 255).byte(),
            y=int(self.y[index]),
            group=None if self.group is None else int(self.group[index]),
            index=index,
            mask=mask if self.group is not None else None,
        )


class Toys:
    """Needs the folder ``toys`` below the data root; the text in its file ``edition`` is the fingerprint."""

    def __init__(self, info: DatasetInfo, root: Path | None, shuffle: str) -> None:
        assert root is not None
        self.edition = root / "toys" / "edition"
        if not self.edition.is_file():
            raise DataMissing(f"no toys at {root}")
        self.info = info
        self.shuffle = shuffle

    def split(self, name: str) -> ToySplit:
        return ToySplit(name, shuffled=name == self.shuffle, grouped=self.info.attributes is not None)

    def fingerprint(self) -> str:
        return self.edition.read_text()


def spec(name: str, *, shuffle: str = "", attributes: tuple[str, ...] | None = ("left", "right")) -> DatasetSpec:
    info = DatasetInfo(
        name=name,
        version="1",
        classes=("red", "blue"),
        attributes=attributes,
        preset="minibirds",
        has_masks=attributes is not None,
    )
    return DatasetSpec(info=info, open=lambda root: Toys(info, root, shuffle))


DATASETS = {
    "toys": spec("toys"),
    "toys_shuffled_train_groups": spec("toys_shuffled_train_groups", shuffle="train"),
    "toys_shuffled_test_labels": spec("toys_shuffled_test_labels", shuffle="test"),
    "toys_plain": spec("toys_plain", attributes=None),
}


# ---------------------------------------------------------------------------------------------------------- methods


class Noisy(BaseMethod[MethodConfig]):
    """ERM that draws from torch's global stream and keeps a running mean: both must survive any restart."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.average = torch.zeros(())
        self.last = "no step yet"

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        self.last = f"{progress.phase} {progress.epoch}"
        reach(f"step {self.last} {progress.step}")
        logits = model(batch.images + 0.3 * torch.randn_like(batch.images))
        losses = nn.functional.cross_entropy(logits, batch.y, reduction="none")
        weight = batch.weight * (
            1 + getattr(batch, "group", 0)
        )  # it declares no groups, but would use any it was given
        loss = (weight * losses).mean() * (1 + self.average)
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        return StepOutput(loss=loss, scalars={"average": self.average})

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        if len(images) == NUM_SAMPLES["val"]:
            reach(f"val {self.last}")
        if len(images) == NUM_SAMPLES["test"]:
            reach("test")
        return super().evaluate(model, images)

    def state_dict(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # type: ignore[override]
        self.average = state["average"]


class Chain(Noisy):
    """Every way to begin a phase; what a phase begins with is random and changes model and method in place."""

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return (
            Phase(name="warm", epochs=2, optimizer=train.optimizer),
            Phase(name="again", epochs=2, optimizer=train.optimizer, init="scratch"),
            Phase(name="more", epochs=2, optimizer=train.optimizer, init="continue_with_optimizer"),
            Phase(name="refit", epochs=0, optimizer=train.optimizer),
        )

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        reach(f"start {phase.name}")
        head = self.head(model)
        if phase.name == "again":
            weights = store.once("hard", lambda: 1 + self._losses(model, views.train) + torch.rand(len(views.train)))
            return views.train.reweight(weights).subset(torch.randperm(len(views.train))[:48])
        if phase.name == "more":
            with torch.no_grad():
                head.weight += 0.1 * torch.randn_like(head.weight)
            self.average = torch.zeros(())
        if phase.name == "refit":
            best = store.candidate("val_accuracy")
            scale = store.once("scale", lambda: torch.rand(()))
            reach("refit")
            with torch.no_grad():
                head.weight += scale * best["head.weight"]
        return views.train

    def _losses(self, model: nn.Module, view: View) -> Tensor:
        model.eval()
        losses = torch.empty(len(view))
        with torch.no_grad():
            for batch in view.loader(shuffle=False, augment=False):
                losses[batch.index] = nn.functional.cross_entropy(model(batch.images), batch.y, reduction="none")
        return losses

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        out = super().training_step(model, batch, progress)
        return StepOutput(loss=out.loss, scalars={**out.scalars, progress.phase: out.loss.detach()})


def is_repaired() -> bool:
    return (Path(os.environ["TOYS_DIR"]) / "repaired").exists()


class BadLoss(Noisy):
    """The third loss of the second epoch is not a number, until the file ``repaired`` exists."""

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        out = super().training_step(model, batch, progress)
        bad = (progress.epoch, progress.step) == (1, 2) and not is_repaired()
        return StepOutput(loss=out.loss * float("nan"), scalars={}) if bad else out


class BadGradient(Noisy):
    """The last loss of the second epoch is finite, its gradient is not."""

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        out = super().training_step(model, batch, progress)
        bad = (progress.epoch, progress.step) == (1, progress.num_steps - 1) and not is_repaired()
        return StepOutput(loss=out.loss + (0 * out.loss).sqrt(), scalars={}) if bad else out


class LastOnly(Noisy):
    """Defines its final model itself."""

    only_last = True


class Refit(BaseMethod[MethodConfig]):
    """Plain ERM, then another head: the first phase is any ERM's."""

    only_last = True

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        return (*super().phases(train), Phase(name="refit", epochs=0, optimizer=train.optimizer))

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        if phase.name == "refit":
            best = store.candidate("val_accuracy")
            with torch.no_grad():
                self.head(model).weight += best["head.weight"]
        return views.train


class Continued(Refit):
    """Plain ERM, then an epoch more with the optimizer as it stands."""

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        (first, _) = super().phases(train)
        return (first, Phase(name="more", epochs=1, optimizer=train.optimizer, init="continue_with_optimizer"))


class Weighted(BaseMethod[MethodConfig]):
    """Plain steps on reweighted samples."""

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        return views.train.reweight(1 + torch.arange(len(views.train)) % 3)


class Blind(BaseMethod[MethodConfig]):
    """Claims to look at nothing."""

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        mask = torch.zeros(len(images), 4, 4)
        return Prediction(logits=model(images), mask=mask, stage_masks=(mask,))


METHODS = {
    "blind": Blind,
    "noisy": Noisy,
    "chain": Chain,
    "bad_loss": BadLoss,
    "bad_gradient": BadGradient,
    "last_only": LastOnly,
    "refit": Refit,
    "continued": Continued,
    "weighted": Weighted,
}


# -------------------------------------------------------------------------------------------- stopping inside a write

_fsync = os.fsync
_synced: Counter[str] = Counter()


def _halting_fsync(descriptor: int) -> None:
    """Two more places, ``sync N`` and ``sync FILE N``: a temporary file is written and not yet moved into place."""
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    name = re.sub(r"^\.(.*)\.\w+\.tmp$", r"\1", path.name)
    _synced.update({"": 1, name: 1})
    reach(f"sync {_synced['']}")
    reach(f"sync {name} {_synced[name]}")
    _fsync(descriptor)


if os.environ.get("TOYS_HALT", "").startswith("sync "):
    os.fsync = _halting_fsync
