"""JTT: Just Train Twice (Liu et al., ICML 2021, arXiv 2107.09044).

    1. identify  ERM for T epochs; error set E = training samples that the model then misclassifies
    2. upweight  from the initial weights again, ERM on the training set plus lambda copies of every sample in E

No group is read in training; the paper chooses T, lambda and the epoch by worst-group validation accuracy.

Where codes differ:
* Weight of an error: lambda + 1 in the authors' code, which appends lambda copies (``extra``); exactly lambda in
  BalancingGroups (arXiv 2110.14503) and SubpopBench (arXiv 2302.12254) (``exact``).
* Copies make an epoch longer by lambda |E| samples (authors, BalancingGroups); SubpopBench weights the loss instead.
* The authors take E from predictions logged in training mode while epoch T, counted from 0, changes the model;
  BalancingGroups from an epoch without updates, still in training mode. Here it comes from one pass in evaluation mode,
  without augmentation, after T epochs.
* Both phases have the recipe's optimizer, each with a schedule of its own. The authors' is constant, with strong weight
  decay (1.0 at learning rate 1e-5 for Waterbirds).

Under full correlation there is no minority, so E has only hard and noisy samples. It may be empty: then the second
phase is ERM, and the log says so.
"""

from collections.abc import Sequence
from logging import getLogger
from math import ceil
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from spurbench.config import TrainConfig
from spurbench.data.view import View
from spurbench.inference import extract
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Views

__all__ = ["METHOD"]

_log = getLogger(__name__)


class JTTConfig(MethodConfig):
    """Options of JTT."""

    identify_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """T as a fraction of the recipe's epochs, rounded up; 60 of 300 for Waterbirds (1 of 50 for CelebA)."""
    identify_epochs: PositiveInt | None = None
    """T itself, instead of the fraction."""
    upweight: NonNegativeInt = 100
    """lambda; 100 for Waterbirds, 50 for CelebA, from {20, 50, 100} in the authors' script."""
    multiplicity: Literal["extra", "exact"] = "extra"
    """How often an error counts: ``extra`` lambda + 1 times (the authors' code), ``exact`` lambda times."""
    upweight_as: Literal["copies", "weights"] = "copies"
    """``copies`` in the training set make epochs longer (the authors' code); ``weights`` in the loss do not."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.multiplicity == "exact" and self.upweight == 0:
            raise ValueError("multiplicity 'exact' with upweight 0 would drop the errors; give at least 1, or 'extra'")
        return self


class JTT(BaseMethod[JTTConfig]):
    """Train, find the errors, train again with more weight on them."""

    Config = JTTConfig
    paper = "Liu et al., ICML 2021, arXiv 2107.09044"

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """A short first training, then a full one from the initial weights."""
        # 0.07 * 100 is a little more than 7, which is no eighth epoch.
        epochs = self.config.identify_epochs or max(1, ceil(self.config.identify_fraction * train.epochs - 1e-9))
        return (
            Phase(name="identify", epochs=epochs, optimizer=train.optimizer),
            Phase(name="upweight", epochs=train.epochs, optimizer=train.optimizer, init="scratch"),
        )

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The training set; in the second phase with more weight on what the first phase's model gets wrong."""
        if phase.name == "identify":
            return views.train
        wrong = store.once("error_set", lambda: self.errors(model, views.train))
        up = self.config.upweight + (self.config.multiplicity == "extra")
        times = torch.where(wrong, up, 1)
        self._warn(wrong, times)
        if self.config.upweight_as == "weights":
            return views.train.reweight(times)
        return views.train.subset(torch.arange(len(wrong)).repeat_interleave(times))

    def errors(self, model: nn.Module, view: View) -> Tensor:
        """[N], bool: which of the view's samples are misclassified in evaluation mode, without augmentation."""
        return extract(self, model, view).predicted() != view.y

    def _warn(self, wrong: Tensor, times: Tensor) -> None:
        """Log that JTT has become ERM, or very slow."""
        errors, n, longer = int(wrong.sum()), len(wrong), int(times.sum())
        if not errors:
            _log.warning("JTT: all %d training samples are right after identification; what follows is plain ERM", n)
        elif self.config.upweight_as == "copies" and longer > 10 * n:
            _log.warning(
                "JTT: %d of %d training samples are wrong after identification; with their copies an epoch has %d "
                "(a larger --set method.identify_epochs=N gives fewer, --set method.upweight_as=weights makes none)",
                errors,
                n,
                longer,
            )


METHOD = JTT
