"""Binary masks that can be learned: the hard Gumbel-softmax with a straight-through gradient."""

import torch
from torch import Tensor

from spurbench.types import Part

__all__ = ["hard_mask", "sample_mask"]


def sample_mask(
    logits_B2hw: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    *,
    keep_one: bool = False,
    part: Part | None = None,
) -> Tensor:
    """Draw a mask [B, 1, h, w] of exact zeros and ones; its gradient is that of the soft sample.

    Of two logits per position, channel 0 means keep. The difference of two Gumbel draws is one logistic draw, so
    ``softmax((a + g) / T)[keep] = sigmoid((a_keep - a_drop + logistic) / T)`` exactly (Jang et al., 2017;
    Maddison et al., 2017). In float32 whatever the autocast state: a half-precision draw can be infinite.

    Args:
        keep_one: an image whose draw is empty keeps the position with the largest margin of keep over drop.
        part: of the batch that the noise is drawn for; None: all.
    """
    margin_B1hw = _margin(logits_B2hw)
    shape = margin_B1hw.shape if part is None else (part.size, *margin_B1hw.shape[1:])
    uniform = torch.rand(shape, generator=generator, device=margin_B1hw.device, dtype=torch.float32)
    uniform = uniform if part is None else uniform[part.rows]
    uniform = uniform.clamp(1e-7, 1 - 1e-7)  # keeps the noise finite
    logistic = uniform.log() - (-uniform).log1p()
    soft = torch.sigmoid((margin_B1hw + logistic) / temperature)
    hard = (soft >= 0.5).float()
    if keep_one:
        hard = _with_one(hard, margin_B1hw)
    return hard + (soft - soft.detach())  # in this order: the bracket is exactly zero, so that 1 stays 1


def hard_mask(logits_B2hw: Tensor, *, keep_one: bool = False) -> Tensor:
    """The mask without noise, the larger of the two logits: [B, 1, h, w] of zeros and ones."""
    margin_B1hw = _margin(logits_B2hw)
    hard = (margin_B1hw >= 0).float()
    return _with_one(hard, margin_B1hw) if keep_one else hard


def _with_one(hard_B1hw: Tensor, margin_B1hw: Tensor) -> Tensor:
    """Open the position with the largest margin in images that keep nothing (the first of equal ones)."""
    best_B1 = margin_B1hw.flatten(1).argmax(dim=1, keepdim=True)
    positions = torch.arange(margin_B1hw[0].numel(), device=best_B1.device)
    is_best_B1hw = (positions == best_B1).view_as(margin_B1hw)
    empty_B111 = hard_B1hw.amax(dim=(1, 2, 3), keepdim=True) == 0
    return torch.where(empty_B111 & is_best_B1hw, 1.0, hard_B1hw)


def _margin(logits_B2hw: Tensor) -> Tensor:
    """Logit of keeping a position: keep minus drop, float32."""
    logits = logits_B2hw.float()
    return logits[:, :1] - logits[:, 1:]
