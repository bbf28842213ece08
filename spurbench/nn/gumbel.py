"""Binary masks that can be learned: the hard Gumbel-softmax with a straight-through gradient."""

import torch
from torch import Tensor

__all__ = ["hard_mask", "sample_mask"]


def sample_mask(logits_B2hw: Tensor, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Draw a binary mask [B, 1, h, w]; its gradient is that of the soft sample.

    Of two logits per position, channel 0 means keep. The difference of two Gumbel draws is one logistic draw, so
    ``softmax((a + g) / T)[keep] = sigmoid((a_keep - a_drop + logistic) / T)`` exactly (Jang et al., 2017;
    Maddison et al., 2017). In float32 whatever the autocast state: a half-precision draw can be infinite.
    """
    margin_B1hw = _margin(logits_B2hw)
    uniform = torch.rand(margin_B1hw.shape, generator=generator, device=margin_B1hw.device, dtype=torch.float32)
    uniform = uniform.clamp(1e-7, 1 - 1e-7)  # keeps the noise finite
    logistic = uniform.log() - (-uniform).log1p()
    soft = torch.sigmoid((margin_B1hw + logistic) / temperature)
    hard = (soft >= 0.5).float()
    return hard + soft - soft.detach()


def hard_mask(logits_B2hw: Tensor) -> Tensor:
    """The mask without noise, the larger of the two logits: [B, 1, h, w] of zeros and ones."""
    return (_margin(logits_B2hw) >= 0).float()


def _margin(logits_B2hw: Tensor) -> Tensor:
    """Logit of keeping a position: keep minus drop, float32."""
    logits = logits_B2hw.float()
    return logits[:, :1] - logits[:, 1:]
