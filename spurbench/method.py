"""What a method is: a model, phases, a loss, and the supervision it declares.

``BaseMethod`` is plain ERM in every member, so a method overrides only what it changes. The engine owns
optimizer steps, precision, clipping, checkpoints, devices and logging; a method returns a loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.config import Frozen, OptimizerConfig, TrainConfig
from spurbench.data.view import View
from spurbench.nn.classifier import Classifier
from spurbench.rng import generator
from spurbench.types import Access, Batch, Part, Prediction, StepOutput

__all__ = [
    "ArtifactStore",
    "BaseMethod",
    "Method",
    "MethodConfig",
    "Phase",
    "Progress",
    "TaskInfo",
    "Views",
    "weighted_cross_entropy",
]


class MethodConfig(Frozen):
    """Base of all method options; each field carries a docstring and is checked when built."""

    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that the bracket notation fills in order: ``aim[2,35%]`` is num_stages 2, tau 0.35."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of training with its own optimizer."""

    name: str
    epochs: int
    """0: only ``start_phase`` runs, as in a closed-form refit."""
    optimizer: OptimizerConfig
    init: Literal["continue", "continue_with_optimizer", "scratch"] = "continue"
    """Weights at the start: as they are, with the optimizer's state too, or the run's initial ones again."""
    trainable: Literal["all", "head", "none"] = "all"
    batch_size: int | None = None
    """The recipe's if not set."""
    select_from: int = 0
    """First epoch that a selection rule may choose: before it the model is not yet what the method's name says."""
    augment: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands, and the random streams of this step."""

    phase: str
    epoch: int
    """From 0."""
    num_epochs: int
    step: int
    """Within the epoch, from 0."""
    num_steps: int
    """Steps of one epoch."""
    seed: int
    position: int
    """The phase's position in the run."""
    device: torch.device
    part: Part | None = None
    """What of the step's batch this process has, where several share it; None: all. Random draws are made for the whole
    batch, and its rows taken."""
    add_up: Callable[[Tensor], Tensor] | None = None
    """Sum over the processes, with gradient; set with ``part``."""

    def batch_mean(self, values: Tensor) -> Tensor:
        """Mean over the step's whole batch, float32, 0-d, for a loss that is not itself a mean over samples.

        Args:
            values: [B, ...], of the samples that this process has.
        """
        mean = values.mean(dtype=torch.float32)
        if self.part is None or self.add_up is None:
            return mean
        return self.add_up(mean * self.part.share)

    def generator(self, stream: str) -> torch.Generator:
        """A generator on the device for this step; equal after any restart, so there is nothing to save."""
        return generator(self.seed, stream, self.position, self.epoch, self.step, device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """What a method may know about its task before training."""

    num_classes: int
    num_groups: int
    num_train: int
    class_counts: Sequence[int]
    image_size: int
    train: TrainConfig


@dataclass(frozen=True, slots=True)
class Views:
    """The data a method may read: training, and validation as far as it declared."""

    train: View
    val: View
    """Labels need ``VAL_LABELS``, groups ``VAL_GROUPS``. There is no view of the test split."""


class ArtifactStore(Protocol):
    """Results of a phase that survive a crash."""

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor called ``name``: computed now, or reloaded if it was computed before."""

    def candidate(self, rule: str) -> dict[str, Tensor]:
        """Model weights that a selection rule kept in the previous phase."""


class Method(Protocol):
    """The full contract; ``BaseMethod`` implements it with ERM."""

    version: ClassVar[int]
    Config: ClassVar[type[MethodConfig]]
    access: ClassVar[Access]
    paper: ClassVar[str]
    only_last: ClassVar[bool]
    data_parallel: ClassVar[bool]

    @property
    def label(self) -> str:
        """The short name in tables, AIM[2,35%]."""

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that does not fit, when the run is resolved."""

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Backbone plus what the method adds; called under the init seed stream."""

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """What is trained, in order."""

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """Prepare a phase and name its training data; called again after a restart."""

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of one batch; reads nothing back from the device."""

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        """Deterministic prediction in evaluation mode."""

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """[B, D], what the head reads."""

    def head(self, model: nn.Module) -> nn.Linear:
        """The final classifier."""

    def cam_layer(self, model: nn.Module) -> nn.Module:
        """The module with NCHW output that GradCAM explains."""

    def found_options(self, model: nn.Module) -> Mapping[str, float]:
        """What training found in place of an option, by the result row's column, such as ``tau``."""

    def state_dict(self) -> dict[str, Any]:
        """State of the method itself, beside the model."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class BaseMethod(Generic[ConfigT]):
    """Empirical risk minimization in every member."""

    version: ClassVar[int] = 1
    """Raised when the same options give other numbers; part of the run id."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    access: ClassVar[Access] = Access.NONE
    paper: ClassVar[str] = ""
    """Authors, year and identifier, shown by ``spurbench list methods``."""
    only_last: ClassVar[bool] = False
    """Whether the method defines its final model itself, so that no selection rule applies."""
    data_parallel: ClassVar[bool] = False
    """Whether several processes may share its batches: the loss is a mean over samples, or takes what is not one from
    ``Progress.batch_mean``; draws follow ``Progress.part``; the method keeps no state of its own."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    def label(self) -> str:
        """The short name in tables."""
        return type(self).__name__

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that does not fit, when the run is resolved; ``backbone`` has no values.

        Raises:
            ConfigError: with what is possible.
        """

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Backbone and linear head. Called under the run's ``init`` seed stream."""
        return Classifier(backbone, task.num_classes)

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """One phase over the whole recipe."""
        return (Phase(name="train", epochs=train.epochs, optimizer=train.optimizer),)

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """Prepare a phase and name its training data; ``model`` is the previous phase's.

        Called once per phase, and again after a restart inside it, when ``model`` has moved on: whatever is computed
        from the model belongs in ``store.once``. Changes made in place are undone by the restart, and draws from
        torch's global stream are seeded.
        """
        return views.train

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """Loss of one batch; reads nothing back from the device."""
        return StepOutput(loss=weighted_cross_entropy(model(batch.images), batch), scalars={})

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        """Deterministic prediction; the model is in evaluation mode."""
        return Prediction(logits=model(images))

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """[B, D], what the head reads."""
        assert isinstance(model, Classifier)
        return model.backbone.pooled(images)

    def head(self, model: nn.Module) -> nn.Linear:
        """The final classifier: ``head`` in ``Phase.trainable``."""
        head = model.head
        assert isinstance(head, nn.Linear)
        return head

    def cam_layer(self, model: nn.Module) -> nn.Module:
        """The module with NCHW output that GradCAM explains."""
        assert isinstance(model, Classifier)
        return model.backbone.last_map

    def found_options(self, model: nn.Module) -> Mapping[str, float]:
        """Values that training found where an option left them open, by the result row's column."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that lives in the method rather than the model, such as GroupDRO's q."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {sorted(state)}")


def weighted_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """mean(w * CE), in float32."""
    losses = F.cross_entropy(logits.float(), batch.y, reduction="none")
    return (batch.weight * losses).mean()
