"""Convex combinations of two images each, their loss, and the Beta distribution that says how much of which.

Nothing here reads a value back from the device. ``share`` is the first image's part, in [0, 1].
"""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cut_mix", "draw_beta", "mix_up", "mixed_cross_entropy"]


def draw_beta(alpha: float, num: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha), float32 [num], on the generator's device.

    torch's own distribution takes no generator. A symmetric Beta is 1/2 + T / (2 sqrt(2 alpha + T^2)) with T of
    Student's t distribution, and T = sqrt(2 alpha (U^(-1/alpha) - 1)) cos(2 pi V) is exact (Bailey, Math. Comp. 1994).

    Args:
        alpha: positive.
    """
    u, v = torch.rand(2, num, generator=generator, device=generator.device)
    w, c = u ** (1 / alpha), torch.cos(2 * pi * v)
    # 1 - T^2 / (2 alpha + T^2), and from it the side below 1/2 without cancellation.
    rest = w / (w + (1 - w) * c.square())
    small = rest / (2 * (1 + torch.sqrt(1 - rest)))
    return torch.where(c < 0, small, 1 - small)


def mix_up(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """The whole images blended: share * images + (1 - share) * others.

    Args:
        images: float [B, 3, H, W].
        others: the same shape.
        share: [B], or [1] for all alike.
    """
    share = share[:, None, None, None]
    return share * images + (1 - share) * others


def cut_mix(images: Tensor, others: Tensor, share: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A box of the other image, of area 1 - share, at a random place; it is cut off at the border.

    Args:
        images: float [B, 3, H, W].
        others: the same shape.
        share: [B] for a box per sample, or [1] for one that all have.

    Returns:
        The images, and the part that the box left of each, shape of ``share``.
    """
    side = torch.sqrt(1 - share)
    centre = torch.rand(2, len(share), generator=generator, device=generator.device)
    rows, columns = (_within(images.shape[2 + axis], side, centre[axis]) for axis in (0, 1))
    box = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(box, others, images), 1 - rows.float().mean(1) * columns.float().mean(1)


def mixed_cross_entropy(
    logits: Tensor, share: Tensor, y: Tensor, weight: Tensor, other_y: Tensor, other_weight: Tensor
) -> Tensor:
    """Mean of share * w * CE(y) + (1 - share) * w' * CE(y'), in float32, 0-d.

    Args:
        logits: [B, C] of the mixed images.
        share: [B] or [1].
        y: int64 [B], of the first images.
        weight: float32 [B], their loss weights.
        other_y: of the second images.
        other_weight: theirs.
    """
    one, other = (F.cross_entropy(logits.float(), label, reduction="none") for label in (y, other_y))
    return (share * weight * one + (1 - share) * other_weight * other).mean()


def _within(length: int, side: Tensor, centre: Tensor) -> Tensor:
    """Positions inside an interval of relative length ``side`` [n] about ``centre`` [n] (both 0..1): bool [n, length].

    In whole pixels as CutMix counts: an odd length loses one.
    """
    half = torch.floor(torch.floor(length * side) / 2)[:, None]
    middle = torch.floor(length * centre)[:, None]
    position = torch.arange(length, device=side.device)
    return (middle - half <= position) & (position < middle + half)
