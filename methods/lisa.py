"""LISA: Improving Out-of-Distribution Robustness via Selective Augmentation (Yao et al., ICML 2022, arXiv 2201.00299).

Once per batch a coin (heads with probability p_sel) says what all of its samples are mixed with:

    intra-label    same label, other attribute
    intra-domain   same attribute, other label

and the loss is Mixup's, with one lambda ~ Beta(alpha, alpha) per sample:

    x = lambda x_i + (1 - lambda) x_j,    loss = lambda CE(f(x), y_i) + (1 - lambda) CE(f(x), y_j)

Where paper and code differ, the default is the authors' code. Its batches hold equally many samples of every group, on
both sides of the mix: much of the method's effect on rare groups comes from that. The paper's Algorithm 1 draws x_i
from the whole training set and x_j from all samples that fit (``sampling="uniform"``; SubpopBench, arXiv 2302.12254,
pairs within such batches). Their epoch is one pass over the smallest group; here it is N mixed samples, the recipe's
batch size in each step, made of twice as many images. With ``mix="cutmix"``, their choice for CelebA, a batch shares
one lambda and one box; they state alpha = 2, but the code reads another argument there, whose default is 0.2.

A sample without any partner of the batch's kind stays as it is. If a whole kind has no pair, batches are of the other
kind only. If none has, as under full correlation, training is ERM's, bit for bit; both are said in the log. (There the
authors' code mixes within groups.)
"""

from dataclasses import replace
from logging import getLogger
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import nn

from spurbench.backbone import Backbone
from spurbench.data.balance import warn_of_empty_groups
from spurbench.data.pairs import Pairs
from spurbench.data.view import View
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Progress, TaskInfo, Views
from spurbench.nn.mixing import cut_mix, draw_beta, mix_up, mixed_cross_entropy
from spurbench.types import Access, Batch, StepOutput

__all__ = ["METHOD"]

_log = getLogger(__name__)


class LISAConfig(MethodConfig):
    """Options of LISA; LISA[p_sel]."""

    positional = ("p_sel",)

    p_sel: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of an intra-label batch; 0.5 for Waterbirds and CelebA, 1 for MetaShift."""
    alpha: PositiveFloat = 2.0
    """Of Beta(alpha, alpha)."""
    mix: Literal["mixup", "cutmix"] = "mixup"
    """Of whole images, or a box of the second image in the first."""
    sampling: Literal["balanced", "uniform"] = "balanced"
    """Groups equally often on both sides (the authors' code), or as often as they are (the paper's Algorithm 1)."""


class LISA(BaseMethod[LISAConfig]):
    """Mix across attributes within a class, or across classes within an attribute."""

    Config = LISAConfig
    access = Access.TRAIN_GROUPS
    paper = "Yao et al., ICML 2022, arXiv 2201.00299"

    def __init__(self, config: LISAConfig) -> None:
        super().__init__(config)
        self.num_groups = self.num_attributes = 1
        self.mixes = True
        """Whether batches are pairs."""

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Backbone and head."""
        self.num_groups, self.num_attributes = task.num_groups, task.num_groups // task.num_classes
        return super().build(backbone, task)

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """The training set in pairs; kinds of pairs that do not exist are named in the log."""
        train, p_sel = views.train, self.config.p_sel
        pairs = Pairs(
            group=train.group,
            num_attributes=self.num_attributes,
            p_label=p_sel,
            batch_size=phase.batch_size or train.settings.batch_size,
            balanced=self.config.sampling == "balanced",
        )
        wanted = [kind for kind, p in (("intra-label", p_sel), ("intra-domain", 1 - p_sel)) if p > 0]
        possible = [kind for kind in wanted if pairs.exist(intra_label=kind == "intra-label")]
        self.mixes = bool(possible)
        if not self.mixes:
            _log.warning("%s: the training set has no %s pair to mix, so this is ERM", self.label, " or ".join(wanted))
            return train
        if len(possible) < len(wanted):
            (missing,) = set(wanted) - set(possible)
            _log.warning("%s: the training set has no %s pair; all are %s", self.label, missing, possible[0])
            pairs = replace(pairs, p_label=float(possible == ["intra-label"]))
        if pairs.balanced:
            warn_of_empty_groups(self.label, train.group, self.num_groups)
        return train.batches(pairs)

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """The mixed loss of the batch's first half, each sample mixed with its partner in the second."""
        if not self.mixes:
            return super().training_step(model, batch, progress)
        generator = progress.generator("lisa")
        (images, others), (y, other_y) = batch.images.chunk(2), batch.y.chunk(2)
        (weight, other_weight), (index, other_index) = batch.weight.chunk(2), batch.index.chunk(2)
        # Who is its own partner stays in its own crop.
        others = torch.where((index == other_index)[:, None, None, None], images, others)
        if self.config.mix == "cutmix":
            share = draw_beta(self.config.alpha, 1, generator)
            mixed, share = cut_mix(images, others, share, generator)
        else:
            share = draw_beta(self.config.alpha, len(y), generator)
            mixed = mix_up(images, others, share)
        loss = mixed_cross_entropy(model(mixed), share, y, weight, other_y, other_weight)
        return StepOutput(loss=loss, scalars={})


METHOD = LISA
