"""Content-adaptive downsampling (Hesse, Schaub-Meyer and Roth, 2023, arXiv 2305.09504), adapted to classification.

With S the map that enters the backbone's last stage f:

    high = f(S),    low = upsample(f(avgpool2(S)))            the same weights
    m    = hard Gumbel-softmax of estimator(S), T = 1         one decision per 2x2 positions of S, 1 = high resolution
    out  = m * high + (1 - m) * low
    L    = CE + (mean of 1 - m over the batch - target)^2

The original is a segmentation network: its two last stages run at stride 8 (dilated) or 16. Here the
high-resolution path is the backbone as it was pretrained (all m = 1 is the plain backbone), and the other one sees
S at half the resolution; this needs no dilation and works at any depth. Estimator (max-pooled in the middle), nearest
upsampling, the loss, and batch norms with shared weights but running statistics of their own follow the authors' code
(visinf/cad). Three differences: their loss draws a second mask of its own, ours counts the one that is used; their
noise stays on in evaluation, ours is off; their estimator learns at a tenth of the backbone's rate, ours at
that of all new modules, from torch's initial weights instead of Kaiming's.

The method reroutes computation and deletes nothing: a position outside the mask is still seen, at half
resolution. ``Prediction.mask`` says where the network looked closely. Costs are dense, of both paths.
"""

import copy
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spurbench.backbone import Backbone
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, MethodConfig, Progress, TaskInfo, weighted_cross_entropy
from spurbench.nn.classifier import Classifier
from spurbench.nn.gumbel import hard_mask, sample_mask
from spurbench.nn.inside import Decision
from spurbench.types import Batch, Prediction, StepOutput

__all__ = ["METHOD"]


class CADConfig(MethodConfig):
    """Options of content-adaptive downsampling; cad[low_fraction]."""

    positional = ("low_fraction",)

    low_fraction: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Target share of positions at low resolution; 0.3 is the authors' default, their reported run has 0.5."""
    budget_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the squared distance from the target; 1 in the authors' code."""


class CAD(BaseMethod[CADConfig]):
    """Choose per position whether the last stage sees full or half resolution."""

    Config = CADConfig
    paper = "Hesse et al., 2023, arXiv 2305.09504"

    @property
    def label(self) -> str:
        """``CAD[30%]``, the share at low resolution."""
        return f"CAD[{100 * self.config.low_fraction:g}%]"

    def check(self, backbone: Backbone) -> None:
        """Refuse trunks whose last stage cannot be run at two resolutions."""
        last_stage(backbone, None)

    def build(self, backbone: Backbone, task: TaskInfo) -> nn.Module:
        """Classifier whose backbone's last stage runs twice."""
        name, channels = last_stage(backbone, task.image_size)
        return CADModel(backbone, name, channels, task.num_classes)

    def training_step(self, model: nn.Module, batch: Batch, progress: Progress) -> StepOutput:
        """Cross-entropy plus the distance from the target, from one draw of the mask."""
        assert isinstance(model, CADModel)
        noise = progress.generator("gumbel")
        with model.decision.by(lambda logits_B2hw: sample_mask(logits_B2hw, noise)) as masks:
            loss = weighted_cross_entropy(model(batch.images), batch)
        high = masks[0].mean()
        budget = (1 - high - self.config.low_fraction).square()
        scalars = {"density_0": high.detach(), "budget": budget.detach()}
        return StepOutput(loss=loss + self.config.budget_weight * budget, scalars=scalars)

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        """Prediction with its mask [B, h, w], 1 = high resolution."""
        assert isinstance(model, CADModel)
        with model.decision.by(hard_mask) as masks:
            logits = model(images)
        return Prediction(logits=logits, mask=masks[0][:, 0], stage_masks=(masks[0][:, 0],))


class CADModel(Classifier):
    """The classifier, with ``TwoResolutions`` as the trunk's last stage; a plain pass decides without noise."""

    def __init__(self, backbone: Backbone, name: str, channels: int, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.decision = Decision()
        self.estimator = nn.Sequential(
            nn.Conv2d(channels, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 2, 3, padding=1),
        )
        stage = backbone.trunk.get_submodule(name)
        backbone.trunk.set_submodule(name, TwoResolutions(stage, self.estimator, self.decision))


class TwoResolutions(nn.Module):
    """A stage that is run on its input and on the input at half resolution."""

    def __init__(self, stage: nn.Module, estimator: nn.Module, decision: Decision) -> None:
        super().__init__()
        self.high = stage
        # A copy that shares all parameters and has buffers of its own: batch norms see other statistics there.
        self.low = copy.deepcopy(stage, {id(parameter): parameter for parameter in stage.parameters()})
        self.estimator = (estimator,)  # in a tuple, so that it is not a part of the trunk
        self.decision = decision

    def forward(self, s_BChw: Tensor) -> Tensor:
        """What the stage alone would give, in shape."""
        high = self.high(s_BChw)
        low = F.interpolate(self.low(halved(s_BChw)), size=high.shape[2:])
        mask_B1hw = self.decision(self.estimator[0](s_BChw))
        mask_B1hw = F.interpolate(mask_B1hw, size=high.shape[2:]).to(high.dtype)
        out: Tensor = mask_B1hw * high + (1 - mask_B1hw) * low
        return out


def halved(s_BChw: Tensor) -> Tensor:
    """The map at half the resolution, rounded up."""
    return F.avg_pool2d(s_BChw, 2, ceil_mode=True)


def last_stage(backbone: Backbone, image_size: int | None) -> tuple[str, int]:
    """Name of the trunk's last stage and the channels of its input, from a pass without values.

    Raises:
        ConfigError: a stage that is not made of convolutions on NCHW maps, or images too small to be halved there.
    """
    info: list[dict[str, Any]] = list(backbone.trunk.feature_info)  # type: ignore[arg-type]
    name = info[-1].get("module", "")
    layers = backbone.trunk.get_submodule(name).modules()
    is_spatial = any(isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1 for layer in layers)
    in_nchw = getattr(backbone.trunk, "output_fmt", "NCHW") == "NCHW"
    if not name or not is_spatial or not in_nchw:
        raise ConfigError(
            f"cad runs the last stage at two resolutions, and what timm names as that of {backbone.name} has no "
            "spatial convolution on NCHW maps; choose a ConvNet such as resnet50, convnext_tiny or minibirds_resnet"
        )
    twin = copy.deepcopy(backbone).to("meta").eval()
    inputs: list[Tensor] = []
    twin.trunk.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    size = image_size or int(backbone.trunk.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    with torch.no_grad():
        twin.pooled(torch.zeros(1, 3, size, size, device="meta"))
    s_BChw = inputs[0]
    height, width = s_BChw.shape[2:]
    if min(height, width) < 4:
        raise ConfigError(
            f"cad halves the map that enters the last stage of {backbone.name}: for images of {size} px it is "
            f"{height}x{width}, and it must be 4x4 or larger; use larger images"
        )
    return name, s_BChw.shape[1]


METHOD = CAD
