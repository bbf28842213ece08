"""GroupDRO: Distributionally Robust Neural Networks for Group Shifts (Sagawa et al., ICLR 2020, arXiv 1911.08731).

Batches are group-balanced: an epoch draws N samples with replacement, with weights N / n_g. Per batch

    l_g  = mean loss of group g's samples, 0 if there are none
    q_g <- q_g exp(eta (l_g + C / sqrt(n_g))), divided by its sum
    loss = sum_g q_g l_g, where q is a constant for the gradient

q starts uniform and lives through all epochs. As in the authors' code it covers every group, also one without any
training sample: its loss is always 0, so its share of q only scales the loss down, and shrinks as the others' grow.
The authors' code adds C / sqrt(n_g) to the loss as well: a constant without a gradient, left out here. It divides by
zero where n_g = 0 and C > 0; here such a group is not adjusted. BalancingGroups (arXiv 2110.14503) is eta = 0.1: its q
starts as ones, but is normalized before its first use. SubpopBench (arXiv 2302.12254) draws eta from 1e-3 to 1e-1.

The paper's Waterbirds numbers come with strong weight decay (1.0 at learning rate 1e-5) and selection by worst-group
validation accuracy; neither is part of the method.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.data.balance import balanced_weights, warn_of_empty_groups
from spurbench.data.view import View
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Progress, TaskInfo, Views
from spurbench.types import Access, Batch, GroupedBatch, StepOutput

__all__ = ["METHOD"]


class GroupDROConfig(MethodConfig):
    """Options of GroupDRO."""

    eta: Annotated[float, Field(ge=0)] = 0.01
    """Step size of q; 0.01 in the authors' code, 0.1 in BalancingGroups. 0 leaves the weights uniform."""
    adjustment: Annotated[float, Field(ge=0)] = 0.0
    """C of the generalization adjustment C / sqrt(n_g), which favours small groups in q; 0 (off) to 5 in the paper."""


class GroupDRO(BaseMethod[GroupDROConfig]):
    """Minimize the worst group's loss by weights on groups that rise where the loss is high."""

    Config = GroupDROConfig
    access = Access.TRAIN_GROUPS
    paper = "Sagawa et al., ICLR 2020, arXiv 1911.08731"

    q: Tensor
    """float32 [G], sums to 1."""
    margin: Tensor
    """float32 [G], C / sqrt(n_g)."""

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Backbone and head; q is uniform over all groups."""
        self.q = torch.full((task.num_groups,), 1 / task.num_groups)
        self.margin = torch.zeros(task.num_groups)
        return super().build(backbone, task)

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """Group-balanced batches; groups without a sample are named in the log."""
        group, num_groups, device = views.train.group, len(self.q), views.train.settings.device
        warn_of_empty_groups(self.label, group, num_groups)
        n = torch.bincount(group, minlength=num_groups)
        self.margin = torch.where(n > 0, self.config.adjustment / n.clamp(min=1).sqrt(), 0.0).to(device)
        self.q = self.q.to(device)
        return views.train.resample(balanced_weights(group))

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """One step of q, then the loss under it."""
        assert isinstance(batch, GroupedBatch)
        losses = batch.weight * F.cross_entropy(model(batch.images).float(), batch.y, reduction="none")
        group_losses = self.group_means(losses, batch.group)
        # q exp(eta l) / sum, in logarithms: no step size overflows.
        self.q = torch.softmax(self.q.log() + self.config.eta * (group_losses.detach() + self.margin), dim=0)
        return StepOutput(loss=(self.q * group_losses).sum(), scalars={"q_max": self.q.max()})

    def group_means(self, losses: Tensor, group: Tensor) -> Tensor:
        """[G], the mean of every group's losses [B]; 0 for a group that is not in the batch."""
        members_GB = group == torch.arange(len(self.q), device=group.device)[:, None]
        # No matrix product: autocast would round it to bfloat16.
        return (members_GB * losses).sum(1) / members_GB.sum(1).clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """The weights of the groups."""
        return {"q": self.q}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict`` on the device where q is."""
        self.q = state["q"].to(self.q.device)


METHOD = GroupDRO
