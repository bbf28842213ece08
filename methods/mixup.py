"""Mixup: Beyond Empirical Risk Minimization (Zhang et al., ICLR 2018, arXiv 1710.09412).

    lambda ~ Beta(alpha, alpha)
    x      = lambda x_i + (1 - lambda) x_j,   j a random permutation of the batch
    loss   = lambda CE(f(x), y_i) + (1 - lambda) CE(f(x), y_j)

The authors' code, and SubpopBench (arXiv 2302.12254) after it, draws one lambda per batch; ``draws="sample"`` draws one
for every pair. alpha is 0.2 in SubpopBench (tuned from 0.1 to 10); the authors use 0.1 to 0.4 on ImageNet and 1 on
CIFAR. Groups are not used.
"""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import nn

from spurbench.method import BaseMethod, MethodConfig, Progress
from spurbench.nn.mixing import draw_beta, mix_up, mixed_cross_entropy
from spurbench.types import Batch, StepOutput

__all__ = ["METHOD"]


class MixupConfig(MethodConfig):
    """Options of Mixup; Mixup[alpha]."""

    positional = ("alpha",)

    alpha: PositiveFloat = 0.2
    """Of Beta(alpha, alpha): small values leave most images nearly as they are, 1 is uniform."""
    draws: Literal["batch", "sample"] = "batch"
    """Whether lambda is drawn once per batch (the authors' code) or for every sample."""


class Mixup(BaseMethod[MixupConfig]):
    """Train on convex combinations of pairs of images and of their labels."""

    Config = MixupConfig
    paper = "Zhang et al., ICLR 2018, arXiv 1710.09412"

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """The mixed loss on the mixed batch."""
        generator = progress.generator("mixup")
        n = len(batch.y)
        share = draw_beta(self.config.alpha, 1 if self.config.draws == "batch" else n, generator)
        partner = torch.randperm(n, generator=generator, device=generator.device)
        logits = model(mix_up(batch.images, batch.images[partner], share))
        loss = mixed_cross_entropy(logits, share, batch.y, batch.weight, batch.y[partner], batch.weight[partner])
        return StepOutput(loss=loss, scalars={})


METHOD = Mixup
