"""Last-layer retraining without group labels (LaBonte et al., NeurIPS 2023, arXiv 2309.08534), SELF included.

    1. erm       ERM with class-balanced batches
    2. finetune  the last layer alone, on points of a random half of validation, in class-balanced batches:
                 class_balanced          all of the half, from a fresh head, for 100 epochs
                 dropout_disagreement    SELF: the n points with the largest KL(q || p), from ERM's head, for 250 steps;
                                         p: the model's probabilities, q: the same with dropout on the features

Class labels of validation are read, groups are not; the paper tunes n, rate and dropout by worst-group accuracy on the
other half, here they are options. As in the authors' code:
* the last layer is trained on augmented images with a constant rate and weight decay on weights and biases;
* SGD is without momentum: it is set to 0.9 where PyTorch's SGD does not look. ``momentum`` turns it on.
Different from it: the trunk stays in evaluation mode, where theirs goes on updating batch statistics, also while q is
computed. Their early-stop disagreement needs the weights of an earlier epoch of the same training, which phases do not
hand over, and is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from spurbench.config import OptimizerConfig, TrainConfig
from spurbench.data.balance import balanced_weights
from spurbench.data.view import View
from spurbench.errors import ConfigError
from spurbench.inference import extract
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Views
from spurbench.types import Access

__all__ = ["METHOD"]


class SELFConfig(MethodConfig):
    """Options of last-layer retraining and SELF."""

    positional = ("points",)

    points: Literal["class_balanced", "dropout_disagreement"] = "class_balanced"
    """What the last layer is trained on."""
    balanced_erm: bool = True
    """Whether the first phase draws class-balanced batches (authors' code) or is plain ERM."""
    held_out: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of validation to take points from, rounded down; the authors keep the other half for tuning."""
    retrain_epochs: PositiveInt = 100
    """Passes over the points, for class_balanced."""
    num_points: PositiveInt = 500
    """n, for disagreement; 20, 100 or 500 in the paper. All points where there are fewer."""
    steps: PositiveInt = 250
    """Steps of SGD, for disagreement."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Probability to drop a feature, for disagreement; 0.5, 0.7 or 0.9 in the paper."""
    lr: PositiveFloat | None = None
    """Rate of SGD; if not set 3e-3 for class_balanced, 1e-2 for disagreement (of 1e-4, 1e-3, 1e-2 in the paper)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of SGD, on weights and biases of the last layer."""
    batch_size: PositiveInt = 32
    """Of the second phase."""


@dataclass(frozen=True, slots=True)
class BalancedBatches:
    """Passes of n draws with replacement in which classes are equally likely, cut into batches, until ``steps``."""

    y: Tensor
    """int64 [n], of the view."""
    steps: int
    batch_size: int

    def __call__(self, rng: torch.Generator) -> Iterator[list[int]]:
        """Positions in the view."""
        weights = balanced_weights(self.y)
        done = 0
        while done < self.steps:
            drawn = torch.multinomial(weights, len(weights), replacement=True, generator=rng)
            batches = torch.split(drawn, self.batch_size)[: self.steps - done]
            yield from (batch.tolist() for batch in batches)
            done += len(batches)


class SELF(BaseMethod[SELFConfig]):
    """ERM, then the last layer on class-balanced held-out points."""

    Config = SELFConfig
    access = Access.VAL_LABELS
    paper = "LaBonte et al., NeurIPS 2023, arXiv 2309.08534"
    only_last = True

    @property
    def label(self) -> str:
        """``CB-LLR`` is the paper's class-balanced last-layer retraining."""
        return {"class_balanced": "CB-LLR", "dropout_disagreement": "SELF[dropout]"}[self.config.points]

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """The second one is a single epoch of as many steps as the method needs."""
        config = self.config
        sgd = OptimizerConfig(
            name="sgd",
            lr=config.lr or (3e-3 if config.points == "class_balanced" else 1e-2),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            decay_vectors=True,
            schedule="constant",
        )
        return (
            Phase(name="erm", epochs=train.epochs, optimizer=train.optimizer),
            Phase(name="finetune", epochs=1, optimizer=sgd, trainable="head", batch_size=config.batch_size),
        )

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The training set, then the chosen points of validation."""
        num_held_out = int(self.config.held_out * len(views.val))
        held_out = views.val.subset(store.once("held_out", lambda: torch.randperm(len(views.val))[:num_held_out]))
        if len(torch.unique(held_out.y)) < 2:
            raise ConfigError(
                f"{self.label} needs two classes among its held-out points, there are {num_held_out} of "
                f"{len(views.val)} validation samples; raise held_out"
            )
        if phase.name != "finetune":
            return views.train.resample(balanced_weights(views.train.y)) if self.config.balanced_erm else views.train
        if self.config.points == "class_balanced":
            self.head(model).reset_parameters()
            steps = self.config.retrain_epochs * -(-len(held_out) // self.config.batch_size)
        else:
            held_out = held_out.subset(store.once("points", lambda: self.disagreements(model, held_out)))
            steps = self.config.steps
        return held_out.batches(BalancedBatches(held_out.y, steps, self.config.batch_size))

    def disagreements(self, model: nn.Module, view: View) -> Tensor:
        """Positions int64 [n] of the samples on which the model and the model with dropout differ most."""
        seen = extract(self, model, view)
        head = self.head(model)
        dropped = F.dropout(seen.features, self.config.dropout)
        regularized = F.linear(dropped, head.weight.detach().cpu(), head.bias.detach().cpu())
        distance = divergence(seen.logits, regularized)
        return distance.topk(min(self.config.num_points, len(distance))).indices


def divergence(logits: Tensor, regularized: Tensor) -> Tensor:
    """KL(q || p) [n] of q = softmax(regularized) from p = softmax(logits), both [n, C]."""
    log_p, log_q = logits.log_softmax(1), regularized.log_softmax(1)
    return (log_q.exp() * (log_q - log_p)).sum(1)


METHOD = SELF
