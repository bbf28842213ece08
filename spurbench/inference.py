"""One pass of a model over a view: what methods that look back at a trained model have in common."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.data.view import View
from spurbench.method import BaseMethod

__all__ = ["Extracted", "extract"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What a model says about every sample of a view, in the view's order."""

    features: Tensor
    """float32 [n, D], CPU: what the head reads."""
    logits: Tensor
    """float32 [n, C], CPU."""

    def predicted(self) -> Tensor:
        """int64 [n], the class with the largest logit."""
        return self.logits.argmax(1)

    def probabilities(self) -> Tensor:
        """float32 [n, C]."""
        return self.logits.softmax(1)


def extract(method: BaseMethod[Any], model: nn.Module, view: View) -> Extracted:
    """Features and logits of a view in evaluation geometry and mode, in float32 whatever the run's precision.

    The view's samplers and weights play no part, its image map does. Modules are left in the mode they were in;
    tensors are ordinary ones that may take part in a loss.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    features: list[Tensor] = []
    logits: list[Tensor] = []
    try:
        with torch.inference_mode():
            for batch in view.loader(shuffle=False, augment=False):
                inputs = method.features(model, batch.images)
                features.append(inputs.float().cpu())
                # One pass through the trunk: every method's head on its features is its prediction.
                logits.append(method.head(model)(inputs).float().cpu())
    finally:
        for module, mode in training.items():
            module.training = mode
    # Outside of inference mode: its own tensors could not be differentiated through.
    return Extracted(features=torch.cat(features), logits=torch.cat(logits))
