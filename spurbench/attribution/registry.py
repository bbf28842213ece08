"""All attributions by name, with one signature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spurbench.attribution.gradcam import (
    GradCAM,
    Weigh,
    gradcam,
    gradients_where_active,
    mean_gradients,
    xgradcam,
)
from spurbench.attribution.pixels import input_x_gradient, integrated_gradients

__all__ = ["ATTRIBUTIONS", "Attribution", "Maps"]

Forward = Callable[[Tensor], Tensor]
Maps = Callable[[nn.Module, nn.Module, Forward, Tensor, Tensor | None], Tensor]
"""(model, layer, forward, images [B, 3, H, W], target [B] or None for the predicted class) to maps, float32
[B, h, w], at least 0 and in no particular scale; see ``gradcam`` for the arguments."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What explains a prediction, and how its maps get to the input's frame."""

    maps: Maps
    resize: Literal["bilinear", "nearest"]
    weigh: Weigh | None = None
    """Of class activation maps, which come out of the pass that predicts: see ``gradcam.recorded``."""


def _maps_of(explain: Callable[[nn.Module, nn.Module, Forward, Tensor, Tensor | None], GradCAM]) -> Maps:
    return lambda *arguments: explain(*arguments).maps


def _uniform(
    model: nn.Module, layer: nn.Module, forward: Forward, images_B3HW: Tensor, target_B: Tensor | None
) -> Tensor:
    """The same everywhere: a control, whose EPG is the base rate."""
    return torch.ones(len(images_B3HW), 1, 1, device=images_B3HW.device)


ATTRIBUTIONS: Mapping[str, Attribution] = {
    "gradcam": Attribution(_maps_of(gradcam), "bilinear", mean_gradients),
    "xgradcam": Attribution(_maps_of(xgradcam), "bilinear", gradients_where_active),
    "input_x_gradient": Attribution(input_x_gradient, "nearest"),
    "integrated_gradients": Attribution(integrated_gradients, "nearest"),
    "uniform": Attribution(_uniform, "nearest"),
}
"""By the names of ``config.AttributionName``, all of them."""
