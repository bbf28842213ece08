"""The target of an area loss weight * (r - t)^2: annealed to a given fraction, or searched for at a price."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["AnnealShape", "annealed", "searched"]

AnnealShape = Literal["linear", "cosine", "exponential"]


def annealed(done: float, tau: float, shape: AnnealShape) -> float:
    """From 1 at ``done`` = 0 to ``tau`` at 1, never rising."""
    if shape == "cosine":
        return tau + (1.0 - tau) * (1.0 + math.cos(math.pi * done)) / 2
    if shape == "exponential":  # equal factors in equal times
        return float(tau**done)
    return 1.0 + done * (tau - 1.0)


@torch.no_grad()
def searched(
    target: Tensor, densities: Sequence[Tensor], *, weight: float, price: float, steps: int, positions: int
) -> Tensor:
    """The next target, so that in the end no stage pays more than ``price`` for its area.

    Where a density r rests, the two losses balance: dCE/dr = -2 weight (r - t). So the distance from the target tells
    what classification would give for a little more area. The target t falls while that is below the price, rises
    while it is above, and rests where r minimizes CE + price * r:

        u = clip(1 - 2 weight (r - t) / price, -1, 1),   t <- t exp(-rate u)

    Args:
        target: 0-d, t; 1 at first.
        densities: r of every stage, 0-d; the one that is farthest above the target decides.
        weight: of the area loss.
        price: nats of classification loss for the area of a whole map.
        steps: of the search. Half of them suffice to close all but one position; the rest is for coming to rest.
        positions: of the coarsest mask; one of them is the smallest target.
    """
    paid = 2 * weight * (torch.stack(list(densities)) - target).amax()
    fall = (1 - paid / price).clamp(-1, 1)
    rate = 2 * math.log(positions) / steps
    return (target * torch.exp(-rate * fall)).clamp(1 / positions, 1)
