"""AIM: Amending Inherent Interpretability via Self-Supervised Masking (ICCV 2025, arXiv 2508.11502).

Stages S_l of the backbone are read deep to shallow. Each has a feature branch T_l and a mask branch M_l:

    A_l = M_l(S_l(x))               mask logits, two per position
    B_l = GumbelSoftmax(A_l)        binary, one channel
    O_l = T_l(S_l(x)) * B_l         the part of the features that is seen
    L   = sum_l CE(head_l(O_l), y) + lambda * sum_l (r_l - tau)^2,   r_l = mean of B_l over batch and positions

The prediction reads the fused map. No mask or box is used in training. Widths, norm, length of annealing,
pooling and whether the fused head has its own loss are not given by the paper; each is an option here.

The paper tunes tau by hand for every dataset. Not in the paper: ``tau: auto`` finds one from training images and class
labels alone. While others anneal, t follows the masks down as long as r - t shows that the last bit of their area is
worth less than a fixed price; then it stays, and only the epochs from there on can be selected. It ends where

    sum_l CE(head_l(O_l), y) + price * sum_l r_l      is smallest for the features of that time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.config import TrainConfig
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, MethodConfig, Phase, Progress, TaskInfo, weighted_cross_entropy
from spurbench.nn.area import AnnealShape, annealed, searched
from spurbench.nn.gumbel import hard_mask, sample_mask
from spurbench.nn.mask_estimator import Norm
from spurbench.nn.topdown import Fusion, Pool, TopDown, TopDownOutput, merge_masks, pool_map
from spurbench.types import Batch, Part, Prediction, StepOutput

__all__ = ["METHOD"]


class AIMConfig(MethodConfig):
    """Options of AIM; AIM[num_stages, tau] in the paper's notation, also aim[1,auto]."""

    positional = ("num_stages", "tau")

    num_stages: PositiveInt = 1
    """How many of the deepest stages the top-down path fuses."""
    tau: float | Literal["auto"] = 0.25
    """Target active fraction of every stage's mask, 0 < tau <= 1. ``auto`` searches one on the training set."""
    fusion: Fusion = "guided"
    """``literal`` is the paper's formula; ``guided`` its text (deeper, already masked features are added before a
    shallower stage is gated). The default is guided: a top-down path whose deep stages do not reach the
    shallow ones is not top-down. results/README.md has both measured."""
    area_weight: Annotated[float, Field(ge=0)] = 6.0
    """lambda of the area loss; 6 in the paper."""
    area_loss: Literal["two_sided", "one_sided", "off"] = "two_sided"
    """(r - tau)^2; one_sided penalizes only r > tau; off leaves masks free (the paper's standard sets)."""
    anneal: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of the epochs over which the target falls from 1 to tau. Not given by the paper."""
    anneal_shape: AnnealShape = "linear"
    """How it falls: ``linear`` as in the paper, ``cosine`` (slow at both ends), or ``exponential`` (equal factors)."""
    auto_price: PositiveFloat = 0.5
    """For tau ``auto``: nats of classification loss, summed over the heads, that the area of a whole map must be worth.
    Chosen on synthetic features, where 0.5 finds about one to three times the area of small evidence; a longer search
    and ``pool=active`` end lower."""
    keep_one: bool = False
    """Whether an image whose mask would be empty keeps its best position, in training and in evaluation. Since r is a
    mean over the batch, a small tau can be met by spending all area on one class and knowing the other by its empty
    masks; without noise those images then all get the head's bias. This prevents it."""
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

    @field_validator("area_loss", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of an unquoted off

    @field_validator("tau")
    @classmethod
    def _fraction(cls, tau: float | str) -> float | str:
        if not isinstance(tau, str) and not 0 < tau <= 1:
            raise ValueError("must be greater than 0 and at most 1, or 'auto'")
        return tau

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tau == "auto" and (self.area_loss == "off" or self.area_weight == 0 or self.anneal == 0):
            raise ValueError("tau 'auto' needs an area loss and anneal above 0, the time to search; or give tau")
        return self


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
        self.tau: Tensor | None  # searched; a buffer, so that weights, checkpoints and restarts carry it
        self.register_buffer("tau", torch.ones(()) if config.tau == "auto" else None)

    def run(self, images: Tensor, generator: torch.Generator | None, part: Part | None = None) -> TopDownOutput:
        """All maps; masks are drawn with ``generator`` or, without one, decided by the logits alone.

        Args:
            part: what of the batch ``images`` are; None: all.
        """
        config = self.config

        def mask_from(logits_B2hw: Tensor, level: int) -> Tensor:
            if generator is None:
                return hard_mask(logits_B2hw, keep_one=config.keep_one)
            return sample_mask(logits_B2hw, generator, config.temperature, keep_one=config.keep_one, part=part)

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

    version: ClassVar[int] = 2
    data_parallel = True
    Config = AIMConfig
    paper = "Alshami et al., ICCV 2025, arXiv 2508.11502"

    @property
    def label(self) -> str:
        """``AIM[2,35%]`` or ``AIM[2,auto]``."""
        tau = self.config.tau
        return f"AIM[{self.config.num_stages},{tau if tau == 'auto' else f'{100 * tau:g}%'}]"

    def check(self, backbone: Backbone) -> None:
        """Refuse more stages than the backbone has."""
        backbone.require_stages(self.config.num_stages)

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Backbone, top-down path and heads."""
        self.check(backbone)
        return AIMModel(backbone, self.config, task.num_classes)

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """One phase; an epoch can be selected once tau has its final value, else the label would not be true."""
        (phase,) = super().phases(train)
        if self.config.tau == "auto" and phase.epochs < 2:
            raise ConfigError("tau 'auto' needs at least two epochs: one to search, one to train with what was found")
        return (replace(phase, select_from=self._settled_epoch(phase.epochs)),)

    def tau_at(self, progress: Progress) -> float:
        """The annealed target of a given tau: from 1 at epoch 0, constant within an epoch; the last epoch has tau."""
        assert self.config.tau != "auto", "a searched target is in the model"
        length = self._annealing_epochs(progress.num_epochs)
        done = min(1.0, progress.epoch / length) if length > 0 else 1.0
        return annealed(done, self.config.tau, self.config.anneal_shape)

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """Cross-entropy of every head plus the area loss, from one draw of the masks."""
        assert isinstance(model, AIMModel)
        out = model.run(batch.images, progress.generator("gumbel"), progress.part)
        pooled = model.pooled(out)
        fused_logits = model.head(pooled if self.config.fused_loss else pooled.detach())
        heads = sum(
            (weighted_cross_entropy(logits, batch) for logits in model.stage_logits(out)),
            start=weighted_cross_entropy(fused_logits, batch),
        )
        tau = self.tau_at(progress) if model.tau is None else model.tau
        ratios = [progress.batch_mean(mask) for mask in out.masks]
        area = self.area(ratios, tau)
        scalars = {f"density_{level}": ratio.detach() for level, ratio in enumerate(ratios)}
        scalars |= {"area": area.detach(), "tau": torch.zeros_like(area) + tau}
        settled = self._settled_epoch(progress.num_epochs)
        if model.tau is not None and progress.epoch < settled:
            # A new tensor, not in place: the loss and the log hold the old one.
            model.tau = searched(
                model.tau,
                ratios,
                weight=self.config.area_weight,
                price=self.config.auto_price,
                steps=settled * progress.num_steps,
                positions=min(mask[0].numel() for mask in out.masks),
            )
        return StepOutput(loss=heads + self.config.area_weight * area, scalars=scalars)

    def _annealing_epochs(self, num_epochs: int) -> float:
        """0 where nothing is to be annealed; the last epoch always has the target."""
        return 0.0 if self.config.tau == 1 else min(self.config.anneal * num_epochs, num_epochs - 1)

    def _settled_epoch(self, num_epochs: int) -> int:
        """The first epoch with the final target."""
        return ceil(self._annealing_epochs(num_epochs) - 1e-9)  # 0.07 * 100 is a little more than 7

    def area(self, ratios: Sequence[Tensor], tau: float | Tensor) -> Tensor:
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

    def found_options(self, model: nn.Module) -> Mapping[str, float]:
        """The searched tau."""
        assert isinstance(model, AIMModel)
        return {} if model.tau is None else {"tau": float(model.tau)}

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """[B, W], the pooled fused map."""
        assert isinstance(model, AIMModel)
        return model.pooled(model.run(images, None))

    def cam_layer(self, model: nn.Module) -> nn.Module:
        """The fused map, which is what the prediction reads."""
        assert isinstance(model, AIMModel)
        return model.fused


METHOD = AIM
