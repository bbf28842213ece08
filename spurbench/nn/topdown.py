"""AIM's top-down pathway: mirrored stages whose features are gated by binary masks and fused deep to shallow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spurbench.nn.mask_estimator import MaskEstimator, Norm, make_norm

__all__ = ["Fusion", "Pool", "TopDown", "TopDownOutput", "merge_masks", "pool_map"]

Fusion = Literal["guided", "literal"]
Pool = Literal["mean", "active"]


@dataclass(frozen=True, slots=True)
class TopDownOutput:
    """All maps of one pass, lists ordered deep to shallow."""

    fused_BWhw: Tensor
    """The map that the final prediction reads."""
    gated: list[Tensor]
    """O_l, [B, W, h_l, w_l]."""
    masks: list[Tensor]
    """B_l, [B, 1, h_l, w_l], zeros and ones."""
    mask_logits: list[Tensor]
    """A_l, [B, 2, h_l, w_l]."""


class TopDown(nn.Module):
    """Feature branches T_l, mask branches M_l, gating and fusion of the deepest stages.

    Args:
        channels: of the used stages, shallow to deep.
        width: common width W of the feature branches; summation needs one.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int,
        estimator_ratio: int,
        feature_kernel: int,
        norm: Norm,
        keep_bias: float,
    ) -> None:
        super().__init__()
        deep_first = list(reversed(channels))
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, width, feature_kernel, padding=feature_kernel // 2, bias=False),
                make_norm(norm, width),
                nn.ReLU(),
            )
            for c in deep_first
        )
        self.estimators = nn.ModuleList(
            MaskEstimator(c, ratio=estimator_ratio, norm=norm, keep_bias=keep_bias) for c in deep_first
        )

    def forward(
        self,
        stages: Sequence[Tensor],
        mask_from: Callable[[Tensor, int], Tensor],
        *,
        fusion: Fusion,
        detach_estimator: bool = False,
    ) -> TopDownOutput:
        """Run deep to shallow over ``stages`` (given shallow to deep).

        Args:
            mask_from: turns mask logits [B, 2, h, w] of the l-th deepest stage into a mask [B, 1, h, w]; called
                once per stage, so that the loss and the forward pass see the same draw.
            fusion: ``literal`` gates T_l(S_l) alone and sums the outputs; ``guided`` adds the upsampled deeper
                output before gating, so that what is already masked steers what the shallower stage keeps.
            detach_estimator: whether mask losses leave the backbone alone.
        """
        gated: list[Tensor] = []
        masks: list[Tensor] = []
        logits: list[Tensor] = []
        fused: Tensor | None = None
        for level, stage_BChw in enumerate(reversed(stages)):
            logits_B2hw = self.estimators[level](stage_BChw.detach() if detach_estimator else stage_BChw)
            mask_B1hw = mask_from(logits_B2hw, level)
            features_BWhw = self.features[level](stage_BChw)
            from_above = None if fused is None else _upsample(fused, features_BWhw)
            if from_above is not None and fusion == "guided":
                features_BWhw = features_BWhw + from_above
            # O_l = T_l(S_l(x)) * B_l, one mask channel broadcast over all feature channels.
            output = features_BWhw * mask_B1hw.to(features_BWhw.dtype)
            fused = output if from_above is None or fusion == "guided" else output + from_above
            gated.append(output)
            masks.append(mask_B1hw)
            logits.append(logits_B2hw)
        assert fused is not None
        return TopDownOutput(fused_BWhw=fused, gated=gated, masks=masks, mask_logits=logits)


def pool_map(map_BWhw: Tensor, mask_B1hw: Tensor, pool: Pool) -> Tensor:
    """[B, W]: mean over all positions, or over the active ones (an empty mask gives zeros)."""
    if pool == "mean":
        return map_BWhw.mean(dim=(2, 3))
    return map_BWhw.sum(dim=(2, 3)) / mask_B1hw.sum(dim=(2, 3)).clamp(min=1).to(map_BWhw.dtype)


def merge_masks(masks: Sequence[Tensor]) -> Tensor:
    """Union of nearest-upsampled stage masks, [B, 1, h, w] at the finest stage's resolution."""
    finest = masks[-1]
    merged = finest
    for mask in masks[:-1]:
        merged = merged.maximum(_upsample(mask, finest))
    return merged


def _upsample(deep: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(deep, size=like.shape[2:], mode="nearest") if deep.shape[2:] != like.shape[2:] else deep
