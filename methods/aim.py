"""AIM: Amending Inherent Interpretability via Self-Supervised Masking (ICCV 2025, arXiv 2508.11502).

Stages S_l of the backbone are read deep to shallow. Each has a feature branch T_l and a mask branch M_l:

    A_l = M_l(S_l(x))               mask logits, two per position
    B_l = GumbelSoftmax(A_l)        binary, one channel
    O_l = T_l(S_l(x)) * B_l         the part of the features that is seen
    L   = sum_l CE(head_l(O_l), y) + lambda * sum_l (r_l - tau)^2,   r_l = mean of B_l over batch and positions

The prediction reads the fused map. No mask or box is used in training. Widths, norm, length of annealing,
pooling and whether the fused head has its own loss are not given by the paper; each is an option here.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.config import TrainConfig
from spurbench.method import BaseMethod, MethodConfig, Phase, Progress, TaskInfo, weighted_cross_entropy
from spurbench.nn.gumbel import hard_mask, sample_mask
from spurbench.nn.mask_estimator import Norm
from spurbench.nn.topdown import Fusion, Pool, TopDown, TopDownOutput, merge_masks, pool_map
from spurbench.types import Batch, Prediction, StepOutput

__all__ = ["METHOD"]


class AIMConfig(MethodConfig):
    """Options of AIM; AIM[num_stages, tau] in the paper's notation."""

    positional = ("num_stages", "tau")

    num_stages: PositiveInt = 1
    """How many of the deepest stages the top-down path fuses."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Target active fraction of every stage's mask."""
    fusion: Fusion = "guided"
    """``literal`` is the paper's formula; ``guided`` its text (deeper, already masked features are added before a
    shallower stage is gated). The default is guided: a top-down path whose deep stages do not reach the
    shallow ones is not top-down. results/README.md has both measured."""
    area_weight: Annotated[float, Field(ge=0)] = 6.0
    """lambda of the area loss; 6 in the paper."""
    area_loss: Literal["two_sided", "one_sided", "off"] = "two_sided"
    """(r - tau)^2; one_sided penalizes only r > tau; off leaves masks free (the paper's standard sets)."""
    anneal: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of the epochs over which the target falls linearly from 1 to tau. Not given by the paper."""
    temperature: PositiveFloat = 1.0
    """Of the Gumbel-softmax; 1 in the authors' earlier prototype."""
    width: PositiveInt = 176
    """Common width of the feature branches; with ``estimator_ratio`` it meets the paper's overhead on ConvNeXt-T
    (+0.1 to 1.0 GMACs, +1.9 to 3.7 M parameters for one to three stages)."""
    estimator_ratio: PositiveInt = 8
    """Stage channels per hidden channel of the mask estimator."""
    feature_kernel: Literal[1, 3] = 3
    """Kernel of the feature branch."""
    norm: Norm = "batch"
    """Norm inside the new modules."""
    pool: Pool = "mean"
    """Pooling after masking: ``mean`` over all positions scales features by r, ``active`` does not."""
    keep_bias: float = 1.0
    """Initial margin of keep over drop in the mask logits."""
    fused_loss: bool = True
    """Whether the fused head has its own cross-entropy. If not, it reads detached features."""
    detach_estimator: bool = False
    """Whether the mask estimators' gradients stop before the backbone."""


class AIMModel(nn.Module):
    """Backbone, top-down path, one head per stage and one on the fused map."""

    def __init__(self, backbone: Backbone, config: AIMConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.topdown = TopDown(
            backbone.channels[-config.num_stages :],
            width=config.width,
            estimator_ratio=config.estimator_ratio,
            feature_kernel=config.feature_kernel,
            norm=config.norm,
            keep_bias=config.keep_bias,
        )
        self.fused = nn.Identity()  # a named place for GradCAM
        self.stage_heads = nn.ModuleList(nn.Linear(config.width, num_classes) for _ in range(config.num_stages))
        self.head = nn.Linear(config.width, num_classes)

    def run(self, images: Tensor, generator: torch.Generator | None) -> TopDownOutput:
        """All maps; masks are drawn with ``generator`` or, without one, decided by the logits alone."""
        config = self.config

        def mask_from(logits_B2hw: Tensor, level: int) -> Tensor:
            if generator is None:
                return hard_mask(logits_B2hw)
            return sample_mask(logits_B2hw, generator, config.temperature)

        stages = self.backbone.stages(images, config.num_stages)
        return self.topdown(stages, mask_from, fusion=config.fusion, detach_estimator=config.detach_estimator)  # type: ignore[no-any-return]

    def pooled(self, out: TopDownOutput) -> Tensor:
        """[B, W]: what the final head reads."""
        # Where the fused map can be non-zero: under the last mask if guided, under any if literal.
        support = out.masks[-1] if self.config.fusion == "guided" else merge_masks(out.masks)
        return pool_map(self.fused(out.fused_BWhw), support, self.config.pool)

    def stage_logits(self, out: TopDownOutput) -> list[Tensor]:
        """Logits [B, C] of every stage's own head, on O_l before fusion."""
        pool = self.config.pool
        return [
            head(pool_map(gated, mask, pool))
            for head, gated, mask in zip(self.stage_heads, out.gated, out.masks, strict=True)
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Deterministic logits [B, C], all heads computed (so that costs count them)."""
        out = self.run(images, None)
        self.stage_logits(out)
        logits: Tensor = self.head(self.pooled(out))
        return logits


class AIM(BaseMethod[AIMConfig]):
    """Learn what to look at: a top-down path with binary masks on the backbone's features."""

    Config = AIMConfig
    paper = "Alshami et al., ICCV 2025, arXiv 2508.11502"

    @property
    def label(self) -> str:
        """``AIM[2,35%]``."""
        return f"AIM[{self.config.num_stages},{100 * self.config.tau:g}%]"

    def check(self, backbone: Backbone) -> None:
        """Refuse more stages than the backbone has."""
        backbone.require_stages(self.config.num_stages)

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Backbone, top-down path and heads."""
        self.check(backbone)
        return AIMModel(backbone, self.config, task.num_classes)

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """One phase; an epoch can be selected once tau has reached its target, else the label would not be true."""
        (phase,) = super().phases(train)
        return (replace(phase, select_from=ceil(self._annealing_epochs(phase.epochs))),)

    def tau_at(self, progress: Progress) -> float:
        """The annealed target: linear from 1 at epoch 0 to tau, constant within an epoch; the last epoch has tau."""
        length = self._annealing_epochs(progress.num_epochs)
        done = min(1.0, progress.epoch / length) if length > 0 else 1.0
        return 1.0 + done * (self.config.tau - 1.0)

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """Cross-entropy of every head plus the area loss, from one draw of the masks."""
        assert isinstance(model, AIMModel)
        out = model.run(batch.images, progress.generator("gumbel"))
        pooled = model.pooled(out)
        fused_logits = model.head(pooled if self.config.fused_loss else pooled.detach())
        heads = sum(
            (weighted_cross_entropy(logits, batch) for logits in model.stage_logits(out)),
            start=weighted_cross_entropy(fused_logits, batch),
        )
        tau = self.tau_at(progress)
        ratios = [mask.mean(dtype=torch.float32) for mask in out.masks]
        area = self.area(ratios, tau)
        scalars = {f"density_{level}": ratio.detach() for level, ratio in enumerate(ratios)}
        scalars |= {"area": area.detach(), "tau": area.new_tensor(tau)}
        return StepOutput(loss=heads + self.config.area_weight * area, scalars=scalars)

    def _annealing_epochs(self, num_epochs: int) -> float:
        """0 where nothing is to be annealed; the last epoch always has the target."""
        return 0.0 if self.config.tau == 1 else min(self.config.anneal * num_epochs, num_epochs - 1)

    def area(self, ratios: Sequence[Tensor], tau: float) -> Tensor:
        """sum_l (r_l - tau)^2 over the stages, float32, 0-d."""
        excess = torch.stack(list(ratios)) - tau
        if self.config.area_loss == "off":
            return excess.sum() * 0
        if self.config.area_loss == "one_sided":
            excess = excess.clamp(min=0)
        return excess.square().sum()

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        """Prediction of the fused head with the masks it was made from."""
        assert isinstance(model, AIMModel)
        out = model.run(images, None)
        return Prediction(
            logits=model.head(model.pooled(out)),
            mask=merge_masks(out.masks)[:, 0],
            stage_masks=tuple(mask[:, 0] for mask in out.masks),
        )

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """[B, W], the pooled fused map."""
        assert isinstance(model, AIMModel)
        return model.pooled(model.run(images, None))

    def cam_layer(self, model: nn.Module) -> nn.Module:
        """The fused map, which is what the prediction reads."""
        assert isinstance(model, AIMModel)
        return model.fused


METHOD = AIM
