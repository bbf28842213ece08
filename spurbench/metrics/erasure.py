"""Erasure: whether a method that shows a mask decides by what lies under it.

The image is blended with a fill outside the mask (or inside it), predicted again, and compared with the prediction on
the whole image. A mask that is gated in feature space hides less than it seems: every position still sees its whole
receptive field, so a prediction may rest on pixels that the mask leaves dark, and EPG cannot tell. If it rests on what
is shown, erasing the outside changes nothing and erasing the inside does. The control keeps another image's mask:
agreement that is as high there comes from the mask's area, or from a model that needs no particular place.

Shape letters: B images, H x W input pixels, h x w mask positions, N samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spurbench.metrics.group import group_counts, worst_group

__all__ = ["FILLS", "Erased", "ErasureCounts", "Fill", "blur", "count_erasure", "erase", "erasures"]

Fill = Literal["mean", "blur"]
Erased = Literal["outside", "inside", "outside_control"]
"""What is gone: all but the mask, the mask, or all but the mask of another image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureCounts:
    """Predictions of one split after one kind of erasure."""

    erased: Erased
    fill: Fill
    n: int
    """Samples; the control has one less, since the first has no other."""
    agree: int
    """Of them, the class is that of the whole image."""
    correct: int
    """Of them, the class is right."""
    worst_group_accuracy: float | None
    """0..1, as on whole images."""


def erase(images_B3HW: Tensor, keep_Bhw: Tensor, filled_B3HW: Tensor) -> Tensor:
    """The images where ``keep`` is 1 and the fill where it is 0, exactly; values between are blend weights.

    Args:
        images_B3HW: float32, normalized.
        keep_Bhw: [0, 1], any type; enlarged by nearest neighbour.
        filled_B3HW: what erased pixels become.
    """
    keep_B1HW = F.interpolate(keep_Bhw[:, None].float(), images_B3HW.shape[2:], mode="nearest")
    return torch.lerp(filled_B3HW, images_B3HW, keep_B1HW, out=torch.empty_like(images_B3HW))  # keeps the layout


def erasures(images_B3HW: Tensor, mask_Bhw: Tensor, other_Bhw: Tensor) -> Iterator[tuple[Erased, Fill, Tensor]]:
    """All kinds of erased images of a batch, one at a time.

    Args:
        images_B3HW: float32, normalized.
        mask_Bhw: [0, 1], of each image.
        other_Bhw: of another image each, for the control.
    """
    keep: dict[Erased, Tensor] = {
        "outside": mask_Bhw.float(),
        "inside": 1 - mask_Bhw.float(),
        "outside_control": other_Bhw,
    }
    for fill, make in FILLS.items():
        filled_B3HW = make(images_B3HW)
        for erased, keep_Bhw in keep.items():
            yield erased, fill, erase(images_B3HW, keep_Bhw, filled_B3HW)


def count_erasure(
    erased: Erased, fill: Fill, guess_N: Tensor, whole_N: Tensor, y_N: Tensor, group_N: Tensor, num_groups: int
) -> ErasureCounts:
    """Compare predictions ``guess`` after erasure with those on whole images and with the labels, all int64 [N]."""
    counts = group_counts(guess_N == y_N, group_N, num_groups)
    worst = worst_group(counts)
    return ErasureCounts(
        erased=erased,
        fill=fill,
        n=len(guess_N),
        agree=int((guess_N == whole_N).sum()),
        correct=int(counts.correct.sum()),
        worst_group_accuracy=None if worst is None else worst.accuracy,
    )


def blur(images_BCHW: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation of 1/16 of the shorter side, cut at three of them, reflected borders.

    At 224 px that is 14 px: shapes are gone, colours of large areas stay. ``mean`` removes those too, at the price of
    edges that no photograph has.
    """
    height, width = images_BCHW.shape[2:]
    sigma = min(height, width) / 16
    dtype, device = images_BCHW.dtype, images_BCHW.device
    rows_HH, columns_WW = (_gaussian(side, sigma, dtype, device) for side in (height, width))
    return rows_HH @ images_BCHW @ columns_WW.mT


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # so that they can be used in and outside of it
def _gaussian(side: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Blur along one axis as a matrix [side, side]: on a CPU products are ten times faster than convolutions with a
    kernel this long. Kept, so that it travels to a device once.
    """
    radius = min(math.ceil(3 * sigma), side - 1)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma).square())
    sources = (torch.arange(side)[:, None] + offsets).abs()
    sources = torch.minimum(sources, 2 * (side - 1) - sources)  # reflected at the last pixel, as by abs at the first
    weights = (kernel / kernel.sum()).expand(side, -1)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, sources, weights).to(device, dtype)


FILLS: Mapping[Fill, Callable[[Tensor], Tensor]] = {"mean": torch.zeros_like, "blur": blur}
"""``mean`` is 0 in normalized space: the mean colour of the backbone's training data."""
