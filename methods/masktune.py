"""MaskTune: fine-tune for one epoch with what the model looked at painted black (Asgari et al., arXiv 2210.00055).

    1. ERM.
    2. A = XGradCAM of the best ERM epoch for the predicted class, for every training image
       T = 1 where A <= mean(A) + 2 std(A), else 0       mean and std over the positive values of this image's A
    3. One epoch of ERM on T * x, from the last ERM epoch with its optimizer state. The result is the final model.

Where the authors' code (aliasgharkhani/Masktune) decides what the paper leaves open, it is followed:

* Best is the highest validation accuracy, without groups. What is trained on is nevertheless the last epoch.
* A is scaled to 0..1, resized bilinearly to the model's input, and scaled again, as pytorch-grad-cam does it; std
  divides by the number of values, not by one less. An image with one positive value, or none, is not masked.
* Their rate is constant, so fine-tuning runs at the rate of training. Here it does so whatever the recipe's schedule
  has come to by the end, without warm-up: one more cosine, or its end at zero, would not be the same method.
* ``iterations`` > 1 explains unmasked images with the model of the round before. Their ``accumulative_masking``,
  off by default, which explains masked images instead, is left out.

Where it is not followed: on Waterbirds they explain the centre crop and stretch its mask over the whole image, so that
masks lie up to a crop's margin off. ``stretch`` does that; the default puts the mask where the model looked, and paints
nothing outside of the crop.

XGradCAM takes activations for positive, as after a ReLU. On maps with both signs (ConvNeXt, Swin) its weights can be
large where a channel's activations cancel.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from spurbench.attribution.gradcam import xgradcam
from spurbench.config import InputConfig, TrainConfig
from spurbench.data.transforms import frame_masks
from spurbench.data.view import View
from spurbench.method import ArtifactStore, BaseMethod, MethodConfig, Phase, Views

__all__ = ["METHOD"]


class MaskTuneConfig(MethodConfig):
    """Options of MaskTune."""

    num_std: Annotated[float, Field(ge=0)] = 2.0
    """Standard deviations above its mean from which an explanation is masked; 2 in the paper."""
    finetune_epochs: PositiveInt = 1
    """Epochs on masked images; 1 in the paper."""
    iterations: PositiveInt = 1
    """Rounds of masking and fine-tuning; the authors' code offers 1 to 3 and takes 1."""
    stretch: bool = False
    """Whether masks of the centre crop are stretched over the whole image, as in the authors' code."""


class MaskTune(BaseMethod[MaskTuneConfig]):
    """Hide what the model looked at, so that it has to look elsewhere."""

    Config = MaskTuneConfig
    paper = "Asgari et al., NeurIPS 2022, arXiv 2210.00055"
    only_last = True

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """ERM, then as many rounds of fine-tuning as asked for, at the full rate."""
        (erm,) = super().phases(train)
        finetune = Phase(
            name="finetune",
            epochs=self.config.finetune_epochs,
            optimizer=train.optimizer.model_copy(update={"schedule": "constant", "warmup": 0.0}),
            init="continue_with_optimizer",
        )
        rounds = range(1, self.config.iterations + 1)
        return (replace(erm, name="erm"), *(replace(finetune, name=f"finetune{n}") for n in rounds))

    def start_phase(self, phase: Phase, model: nn.Module, views: Views, store: ArtifactStore) -> View:
        """Explain the training images once, and train on them with the explanations painted black."""
        if not phase.name.startswith("finetune"):
            return views.train
        rule = "val_accuracy" if phase.name == "finetune1" else "last"
        artifact = f"maps_{phase.name}"
        # Maps are kept, not masks: at the resolution of the layer a whole training set is a few megabytes.
        maps_Nhw = store.once(artifact, lambda: self._explain(model, store.candidate(rule), views.train))
        maps_Nhw = maps_Nhw.to(views.train.settings.device)

        def blacken(frames_BRRC: Tensor, index_B: Tensor) -> Tensor:
            maps_Bhw = maps_Nhw.index_select(0, index_B.to(maps_Nhw.device, non_blocking=True))
            masks_BRR = self.masks(maps_Bhw, views.train.settings.input)
            return frames_BRRC.masked_fill(masks_BRR[..., None], 0)

        return views.train.map_images(blacken, artifact=artifact)

    def masks(self, maps_Bhw: Tensor, config: InputConfig) -> Tensor:
        """Where frames are painted black: bool [B, R, R], of maps [B, h, w] of their centre crops."""
        masks_BSS = salient(maps_Bhw, config.image_size, self.config.num_std)
        if self.config.stretch:
            return F.interpolate(masks_BSS[:, None].float(), config.resize, mode="nearest")[:, 0] != 0
        return frame_masks(masks_BSS, config)

    def _explain(self, model: nn.Module, weights: dict[str, Tensor], view: View) -> Tensor:
        """XGradCAM for the class that ``weights`` predict: float32 [n, h, w], CPU. ``model`` keeps its own weights.

        They are exchanged in place: the forward pass of a copy of a compiled trunk is still the original's.
        """
        own = {name: value.clone() for name, value in model.state_dict().items()}
        layer = self.cam_layer(model)
        try:
            model.load_state_dict(weights)
            model.eval()
            maps = [
                xgradcam(model, layer, lambda x: self.evaluate(model, x).logits, batch.images, None).maps.cpu()
                for batch in view.loader(shuffle=False, augment=False)
            ]
        finally:
            model.load_state_dict(own)
        return torch.cat(maps)


def salient(maps_Bhw: Tensor, size: int, num_std: float) -> Tensor:
    """Positions of the resized maps above mean + num_std * std of their positive values: bool [B, size, size]."""
    resized_BSS = F.interpolate(_scale(maps_Bhw)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    heat_BSS = _scale(resized_BSS)
    positive_BSS = heat_BSS > 0
    count_B11 = positive_BSS.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    mean_B11 = heat_BSS.sum(dim=(1, 2), keepdim=True) / count_B11
    squares_BSS = (heat_BSS - mean_B11).square() * positive_BSS
    std_B11 = (squares_BSS.sum(dim=(1, 2), keepdim=True) / count_B11).sqrt()
    return heat_BSS > mean_B11 + num_std * std_B11


def _scale(maps_Bhw: Tensor) -> Tensor:
    """From 0 to 1; all 0 for a constant map."""
    from_zero_Bhw = maps_Bhw - maps_Bhw.amin(dim=(1, 2), keepdim=True)
    return from_zero_Bhw / (from_zero_Bhw.amax(dim=(1, 2), keepdim=True) + 1e-7)


METHOD = MaskTune
