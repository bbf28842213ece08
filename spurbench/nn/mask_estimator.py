"""The mask estimator of AIM: 3x3 conv, three residual blocks with a global-pooling branch, 1x1 conv."""

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["MaskEstimator", "Norm", "make_norm"]

Norm = Literal["batch", "group"]


class MaskEstimator(nn.Module):
    """Stage features [B, C, h, w] to mask logits [B, 2, h, w], channel 0 = keep.

    The paper gives the order of layers and no widths. Hidden width is ``channels / ratio`` (at least 16); the
    pooled vector joins by addition before the last convolution.
    """

    def __init__(self, channels: int, *, ratio: int = 8, norm: Norm = "batch", keep_bias: float = 1.0) -> None:
        super().__init__()
        hidden = max(16, channels // ratio)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False), make_norm(norm, hidden), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential(*(_ResidualBlock(hidden, norm) for _ in range(3)))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True))
        self.logits = nn.Conv2d(hidden, 2, 1)
        # Start by keeping most positions: otherwise the area term (target 1 at first) fights the classifier.
        assert self.logits.bias is not None
        with torch.no_grad():
            self.logits.bias.copy_(torch.tensor([keep_bias / 2, -keep_bias / 2]))

    def forward(self, features_BChw: Tensor) -> Tensor:
        """Mask logits [B, 2, h, w]."""
        hidden = self.blocks(self.stem(features_BChw))
        logits: Tensor = self.logits(hidden + self.pooled(hidden))
        return logits


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and an identity path."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            make_norm(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            make_norm(norm, channels),
        )

    def forward(self, x_BChw: Tensor) -> Tensor:
        return torch.relu(x_BChw + self.branch(x_BChw))


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, or group norm over all channels (one group) for tiny batches."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(1, channels)
