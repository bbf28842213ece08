"""LfF: Learning from Failure (Nam et al., NeurIPS 2020, arXiv 2007.02561).

Two networks train side by side on the same batches: a biased one, f_b, by the generalized cross-entropy, which
amplifies what is easy, and the debiased one, f_d, which predicts, on what the biased one finds hard:

    L   = mean_i GCE(f_b(x_i), y_i) + mean_i w_i CE(f_d(x_i), y_i)
    GCE = q p_y^q CE                                    p_y is a constant for the gradient
    w_i = b_i / (b_i + d_i + 1e-8)                      relative difficulty, a constant
    b_i, d_i = averaged CE of the two networks on sample i, divided by the largest of its class

Where paper and code differ, the default is the authors' code, in this order: the averages take in the current losses
(alpha times the old value; a first visit sets the raw loss), then they are read, and divided by the maximum over all
training samples of the class, those of other batches as they were left. The paper's equation for w_i has neither
average nor division. Its GCE, (1 - p_y^q) / q, has 1/q times the gradient of the code's; ``gce`` selects. SubpopBench
(arXiv 2302.12254) is ``average=0`` with ``class_max=false``. A class whose losses are all 0 makes the authors' code
divide by zero; here its samples get weight 0. The authors use two optimizers, here it is one with the same rates; only
gradient clipping, if the recipe has any, sees the two networks together.

Both networks start from the same backbone weights, with heads of their own. Groups are not used.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.data.view import View
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Progress, TaskInfo, Views
from spurbench.nn.classifier import Classifier
from spurbench.types import Batch, StepOutput

__all__ = ["METHOD"]


class LfFConfig(MethodConfig):
    """Options of LfF; LfF[q]."""

    positional = ("q",)

    q: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Of the generalized cross-entropy: near 0 plain cross-entropy, larger values follow easy samples more."""
    gce: Literal["code", "paper"] = "code"
    """q p^q CE with constant p (``code``), or (1 - p^q) / q (``paper``), whose gradient is 1/q times as large."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Share of the old value in the per-sample average of losses; 0 uses the current losses, as SubpopBench does."""
    class_max: bool = True
    """Whether the averages are divided by the largest of the sample's class; false in SubpopBench."""


class BiasedClassifier(Classifier):
    """The network that is made to follow the bias; no prediction needs it, so it is no overhead."""

    only_for_training = True


class TwoClassifiers(Classifier):
    """The debiased network, which predicts, with the biased one at its side."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.biased = BiasedClassifier(backbone.copy(), num_classes)


class LfF(BaseMethod[LfFConfig]):
    """Weight samples by how much harder they are for a network that was made to follow the bias."""

    Config = LfFConfig
    paper = "Nam et al., NeurIPS 2020, arXiv 2007.02561"

    y: Tensor
    """int64 [N], labels of the training split."""
    average: Tensor
    """float32 [2, N], every sample's averaged loss under the biased and the debiased network; 0 before a visit."""
    visited: Tensor
    """float32 [N], 1 once the sample was in a batch."""
    num_classes: int

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Two backbones, each with a head; no sample has been visited."""
        self.num_classes = task.num_classes
        self.average, self.visited = torch.zeros(2, task.num_train), torch.zeros(task.num_train)
        return TwoClassifiers(backbone, task.num_classes)

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The training set; the averages move to its device."""
        device = views.train.settings.device
        self.y, self.average, self.visited = (x.to(device) for x in (views.train.y, self.average, self.visited))
        return views.train

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """Both networks' losses; neither's gradient reaches the other."""
        assert isinstance(model, TwoClassifiers)
        biased = F.cross_entropy(model.biased(batch.images).float(), batch.y, reduction="none")
        debiased = F.cross_entropy(model(batch.images).float(), batch.y, reduction="none")
        difficulty = self.relative_difficulty(torch.stack([biased, debiased]).detach(), batch)
        biased_loss = (batch.weight * self.generalized_cross_entropy(biased)).mean()
        debiased_loss = (batch.weight * difficulty * debiased).mean()
        scalars = {"biased": biased_loss.detach(), "debiased": debiased_loss.detach(), "weight": difficulty.mean()}
        return StepOutput(loss=biased_loss + debiased_loss, scalars=scalars)

    def generalized_cross_entropy(self, losses: Tensor) -> Tensor:
        """[B] from cross-entropies [B], where p_y = exp(-CE)."""
        q = self.config.q
        if self.config.gce == "paper":
            return (1 - torch.exp(-q * losses)) / q
        return losses * q * torch.exp(-q * losses.detach())

    def relative_difficulty(self, losses_2B: Tensor, batch: Batch) -> Tensor:
        """[B], in [0, 1], after the averages have taken in the losses [2, B] of the biased and the debiased network."""
        old = self.config.average * self.visited[batch.index]
        averaged_2B = self.config.average * self.average[:, batch.index] + (1 - old) * losses_2B
        self.average[:, batch.index] = averaged_2B
        self.visited.index_fill_(0, batch.index, 1.0)  # assigning a number would send it to the device and wait
        if self.config.class_max:
            largest_2C = losses_2B.new_zeros(2, self.num_classes)
            largest_2C = largest_2C.scatter_reduce(1, self.y.expand(2, -1), self.average, "amax")
            # All losses of a class may be 0, whose quotients are to be 0 as well.
            averaged_2B = averaged_2B / largest_2C[:, batch.y].clamp(min=torch.finfo(torch.float32).tiny)
        biased, debiased = averaged_2B
        weight: Tensor = biased / (biased + debiased + 1e-8)
        return weight

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"average": self.average, "visited": self.visited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict`` on the device of the training data."""
        self.average = state["average"].to(self.average.device)
        self.visited = state["visited"].to(self.visited.device)


METHOD = LfF
