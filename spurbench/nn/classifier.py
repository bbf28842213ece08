"""Backbone and linear head: the plain model that overheads are measured against."""

from torch import Tensor, nn

from spurbench.backbone import Backbone

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """The timm model itself with a fresh linear head."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits: Tensor = self.head(self.backbone.pooled(images))
        return logits
