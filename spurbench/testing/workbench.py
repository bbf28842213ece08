"""A method with a model and 16 images to try it on."""

import io
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.backbone import build_backbone
from spurbench.config import (
    BackboneConfig,
    DatasetRef,
    InputConfig,
    MethodRef,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from spurbench.data.cache import Frames
from spurbench.data.view import LoaderSettings, View, make_view
from spurbench.engine import Interrupted, Silent
from spurbench.engine.stop import StopFlag
from spurbench.engine.training import (
    Meter,
    PhaseState,
    make_optimizer,
    set_trainable,
    set_training_mode,
    train_phase,
)
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, Phase, Progress, TaskInfo, Views
from spurbench.rng import generator, seed_for
from spurbench.types import Access, Prediction

__all__ = ["CPU", "NUM_CLASSES", "SAMPLES", "SIZE", "Workbench", "copy_state"]

SIZE = 64
SAMPLES = 16
NUM_CLASSES = 2
CPU = torch.device("cpu")


@dataclass(slots=True)
class Workbench:
    """A method with a model and 16 images of two classes and two attributes."""

    method: BaseMethod[Any]
    model: nn.Module
    views: Views
    config: RunConfig
    images: Tensor
    """float [16, 3, 64, 64], the training images; y is 0, 1, 0, 1, ..."""
    initial: dict[str, Tensor]
    """The model's first weights."""
    store: "_MemoryStore"

    @classmethod
    def make(cls, method: BaseMethod[Any], backbone: str, *, correlated: bool = False) -> "Workbench":
        """Everything from fixed seeds.

        Args:
            correlated: whether class and attribute agree on every training image, so that two groups are empty.
        """
        config = _config(method, backbone)
        task = TaskInfo(
            num_classes=NUM_CLASSES,
            num_groups=2 * NUM_CLASSES,
            num_train=SAMPLES,
            class_counts=(SAMPLES // 2, SAMPLES // 2),
            image_size=SIZE,
            train=config.train,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(0, "init"))
            model = method.build(build_backbone(config.backbone, None), task)
        y = torch.arange(SAMPLES) % NUM_CLASSES
        group = 2 * y + (torch.arange(SAMPLES) // 2) % 2
        groups = {"train": 3 * y if correlated else group, "val": group}
        views = Views(*(_view(name, y, groups[name], method.access, config) for name in ("train", "val")))
        whole = views.train.at(position=0, epoch=0, batch_size=SAMPLES)
        images = next(whole.loader(shuffle=False, augment=False)).images
        return cls(method, model, views, config, images, copy_state(model.state_dict()), _MemoryStore({}))

    def twin(self, *, correlated: bool = False) -> "Workbench":
        """A new one of the same method."""
        fresh = type(self.method)(self.method.config)
        return Workbench.make(fresh, self.config.backbone.name, correlated=correlated)

    def train(self, epochs: int, *, interrupt: bool = False) -> None:
        """Every phase as the engine drives it, each with at most ``epochs`` epochs.

        Args:
            interrupt: whether each phase is stopped after its first epoch, and goes on in a new process's objects:
                afterwards ``method`` and ``model`` are others than before.
        """
        train = self.config.train.model_copy(update={"epochs": epochs})
        self.config = self.config.model_copy(update={"train": train})
        previous: dict[str, Any] | None = None
        for position, phase in enumerate(self._phases(epochs)):
            view = self._start(phase, position)
            if phase.epochs:
                optimizer = make_optimizer(phase.optimizer, self.model)
                if phase.init == "continue_with_optimizer" and previous is not None:
                    _load_optimizer(optimizer, previous)
                state = PhaseState(model=self.model, optimizer=optimizer, meter=Meter(CPU))
                try:
                    self._train(phase, position, view, state, stop_after=1 if interrupt else None)
                except Interrupted:
                    state, view = self._go_on_elsewhere(phase, position, state)
                    self._train(phase, position, view, state, stop_after=None)
                previous = state.optimizer.state_dict()
            self.store.weights = copy_state(self.model.state_dict())

    def first_steps(self) -> Iterator[tuple[Phase, Tensor, dict[str, Any]]]:
        """The first step of every phase with epochs: the phase, the loss, the scalars."""
        for position, phase in enumerate(self._phases(self.config.train.epochs)):
            view = self._start(phase, position).at(position=position, epoch=0, batch_size=phase.batch_size)
            if phase.epochs:
                set_training_mode(self.method, self.model, phase)
                progress = Progress(
                    phase=phase.name,
                    epoch=0,
                    num_epochs=phase.epochs,
                    step=0,
                    num_steps=view.num_batches(),
                    seed=0,
                    position=position,
                    device=CPU,
                )
                batch = next(view.loader(shuffle=True, augment=phase.augment))
                out = self.method.training_step(self.model, batch, progress)
                yield phase, out.loss, dict(out.scalars)
            self.store.weights = copy_state(self.model.state_dict())

    def predict(self, images: Tensor) -> Prediction:
        """The method's prediction as the engine asks for it."""
        self.model.eval()
        with torch.inference_mode():
            return self.method.evaluate(self.model, images)

    def _phases(self, epochs: int) -> list[Phase]:
        return [replace(phase, epochs=min(epochs, phase.epochs)) for phase in self.method.phases(self.config.train)]

    def _start(self, phase: Phase, position: int) -> View:
        torch.manual_seed(seed_for(0, "global", position))
        view = self.method.start_phase(phase, self.model, self.views, self.store)
        if phase.init == "scratch":
            self.model.load_state_dict(self.initial)
        set_trainable(self.method, self.model, phase)
        return view

    def _train(self, phase: Phase, position: int, view: View, state: PhaseState, *, stop_after: int | None) -> None:
        stop = StopFlag()

        def end_epoch(state: PhaseState, row: dict[str, Any]) -> None:
            if state.epoch == stop_after and state.epoch < phase.epochs:
                stop.signal_number = signal.SIGTERM

        train_phase(
            self.config, self.method, phase, position, view, state,
            save=lambda state: None, end_epoch=end_epoch, observer=Silent(), stop=stop,
        )  # fmt: skip

    def _go_on_elsewhere(self, phase: Phase, position: int, state: PhaseState) -> tuple[PhaseState, View]:
        """What a restarted process has: fresh objects, a checkpoint, and the phase's artifacts."""
        saved = _through_a_file(
            {
                "model": self.model.state_dict(),
                "method": self.method.state_dict(),
                "optimizer": state.optimizer.state_dict(),
            }
        )
        fresh = self.twin()
        self.method, self.model = fresh.method, fresh.model
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        torch.manual_seed(seed_for(0, "global", position))
        view = self.method.start_phase(phase, self.model, self.views, self.store)
        # Again, as the engine does: what the start has just changed belongs before the first epoch.
        self.model.load_state_dict(saved["model"])
        self.method.load_state_dict(saved["method"])
        set_trainable(self.method, self.model, phase)
        optimizer = make_optimizer(phase.optimizer, self.model)
        _load_optimizer(optimizer, saved["optimizer"])
        return PhaseState(model=self.model, optimizer=optimizer, meter=Meter(CPU), epoch=state.epoch), view


@dataclass(slots=True)
class _MemoryStore:
    """``ArtifactStore`` without files."""

    artifacts: dict[str, Tensor]
    weights: dict[str, Tensor] | None = None
    """The model's when the previous phase ended: whatever the rule, they are its candidate."""

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if name not in self.artifacts:
            self.artifacts[name] = make().clone()
        torch.manual_seed(seed_for(0, "global", name))
        return self.artifacts[name].clone()

    def candidate(self, rule: str) -> dict[str, Tensor]:
        if self.weights is None:
            raise ConfigError(f"no weights were kept for rule '{rule}': there is no previous phase")
        return copy_state(self.weights)


def copy_state(state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a state, which later training leaves alone."""
    return {name: value.clone() for name, value in state.items()}


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore moments, keeping the rates of the phase that ``optimizer`` was made for."""
    rates = [(group["lr"], group["base_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, (lr, base_lr, decay) in zip(optimizer.param_groups, rates, strict=True):
        group.update(lr=lr, base_lr=base_lr, weight_decay=decay)


def _config(method: BaseMethod[Any], backbone: str) -> RunConfig:
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.0, schedule="constant")
    return RunConfig(
        method=MethodRef(name="under-test", version=method.version, config=method.config.model_dump(mode="json")),
        dataset=DatasetRef(name="colours", version="1"),
        backbone=BackboneConfig(name=backbone, weights="none"),
        input=InputConfig(resize=SIZE, image_size=SIZE, crop_scale=None, flip=True),
        train=TrainConfig(epochs=2, batch_size=8, optimizer=optimizer),
    )


def _view(name: str, y: Tensor, group: Tensor, access: Access, config: RunConfig) -> View:
    """A square of the class's colour in the middle of grey, with noise: there is something to look at."""
    rng = generator(0, f"colours-{name}")
    colours = torch.tensor([[200, 60, 60], [60, 60, 200]])[y]
    noise = torch.randint(-40, 40, (SAMPLES, SIZE, SIZE, 3), generator=rng)
    masks = torch.zeros(SAMPLES, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 16:48, 16:48] = 1
    clean = torch.where(masks[..., None].bool(), colours[:, None, None], 128)
    frames = Frames(images=(clean + noise).clamp(0, 255).byte(), masks=masks, boxes=None)
    settings = LoaderSettings(
        batch_size=config.train.batch_size,
        input=config.input,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        channels_last=False,
        device=CPU,
        seed=0,
    )
    return make_view(name, frames, y, group, access, settings)
