"""Energy Pointing Game: the share of a map's positive energy that lies on the object.

Rao et al., "Studying How to Efficiently and Effectively Guide Models with Explanations" (arXiv 2303.11932), after
Wang et al., Score-CAM (arXiv 1910.01279); the conventions are those of sukrutrao/Model-Guidance, metrics.py:

    EPG = sum over (i, j) in region of max(map_ij, 0) / sum over all (i, j) of max(map_ij, 0)

with the union of an image's boxes as region, zero energy counted as 0, and the arithmetic mean over images. Everything
is measured in the frame of the model's input.

Shape letters: B images, K boxes, H x W input pixels, h x w map positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MIN_ENERGY", "EPGSums", "EPGValues", "Resize", "boxes_to_region", "energy", "epg"]

Resize = Literal["nearest", "bilinear"]
"""How a map gets to the input's frame: ``nearest`` for binary masks, ``bilinear`` for attributions."""

MIN_ENERGY = 1e-7
"""A map with less energy than this, in the input's frame, has no defined EPG (the reference's threshold)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EPGSums:
    """A mean of EPG in the making, in numbers of the host; ``+`` merges disjoint images."""

    total: float = 0.0
    """Sum of EPG over images with a region; maps without energy add 0."""
    total_area: float = 0.0
    """Sum of region areas as fractions of the image, over images with a region."""
    epg_n: int = 0
    """Images with a region: those in the mean."""
    epg_empty: int = 0
    """Of them, images whose map has no energy; in the mean as 0."""
    epg_no_region: int = 0
    """Images whose object was cropped away; in no mean."""

    def __add__(self, other: "EPGSums") -> "EPGSums":
        return EPGSums(
            total=self.total + other.total,
            total_area=self.total_area + other.total_area,
            epg_n=self.epg_n + other.epg_n,
            epg_empty=self.epg_empty + other.epg_empty,
            epg_no_region=self.epg_no_region + other.epg_no_region,
        )

    @property
    def epg(self) -> float | None:
        """Mean EPG, 0..1; None without an image that has a region."""
        return self.total / self.epg_n if self.epg_n else None

    @property
    def epg_nonempty(self) -> float | None:
        """Mean over maps that have energy, 0..1; None if there is none."""
        num_defined = self.epg_n - self.epg_empty
        return self.total / num_defined if num_defined else None

    @property
    def epg_base_rate(self) -> float | None:
        """Mean EPG of a uniform map, 0..1: the mean area of the regions."""
        return self.total_area / self.epg_n if self.epg_n else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EPGValues:
    """EPG per image, on the device of the maps."""

    epg: Tensor
    """float32 [B], 0..1; 0 where the map has no energy, NaN where the image has no region."""
    empty: Tensor
    """bool [B], whether the map has no energy."""
    area: Tensor
    """float32 [B], 0..1, fraction of the image that is region: the EPG of a uniform map."""

    @staticmethod
    def cat(batches: Sequence["EPGValues"]) -> "EPGValues":
        """One after another; at least one."""
        return EPGValues(
            epg=torch.cat([values.epg for values in batches]),
            empty=torch.cat([values.empty for values in batches]),
            area=torch.cat([values.area for values in batches]),
        )

    def sums(self) -> EPGSums:
        """Add up in double precision. Waits for the device: call it once per split rather than per batch."""
        epg_B, area_B = self.epg.cpu().double(), self.area.cpu().double()
        has_region_B = area_B > 0
        return EPGSums(
            total=float(epg_B[has_region_B].sum()),
            total_area=float(area_B.sum()),
            epg_n=int(has_region_B.sum()),
            epg_empty=int((self.empty.cpu() & has_region_B).sum()),
            epg_no_region=int((~has_region_B).sum()),
        )


def epg(maps_Bhw: Tensor, region_BHW: Tensor, resize: Resize) -> EPGValues:
    """EPG of every image of a batch, without waiting for the device.

    A map with an infinity or a NaN points nowhere and counts as one without energy, so one overflow does not void a
    split's mean.

    Args:
        maps_Bhw: any float type, any sign, at most as large as the region's frame.
        region_BHW: bool, True on the object, in the frame of the model's input.
        resize: see ``Resize``.

    Raises:
        ValueError: shapes that do not fit.
    """
    inside_B, total_B = energy(maps_Bhw, region_BHW, resize)
    area_B = region_BHW.float().mean(dim=(1, 2))
    defined_B = (total_B >= MIN_ENERGY) & (total_B < math.inf)
    epg_B = torch.where(defined_B, inside_B / total_B, 0.0)
    return EPGValues(epg=torch.where(area_B > 0, epg_B, math.nan), empty=~defined_B, area=area_B)


def energy(maps_Bhw: Tensor, region_BHW: Tensor, resize: Resize) -> tuple[Tensor, Tensor]:
    """Positive energy inside the region and in all, float32 [B] each, in the region's frame.

    Arguments and errors are those of ``epg``.
    """
    batch, height, width = region_BHW.shape
    if maps_Bhw.ndim != 3 or len(maps_Bhw) != batch:
        raise ValueError(f"maps {tuple(maps_Bhw.shape)} do not fit regions {tuple(region_BHW.shape)}")
    if maps_Bhw.shape[1] > height or maps_Bhw.shape[2] > width:
        raise ValueError(f"maps {tuple(maps_Bhw.shape[1:])} are larger than their frame {(height, width)}")
    map_BHW = _resize(maps_Bhw.float().clamp(min=0), (height, width), resize)
    return torch.where(region_BHW, map_BHW, 0.0).sum(dim=(1, 2)), map_BHW.sum(dim=(1, 2))


def boxes_to_region(boxes_BK4: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The union of each image's boxes, bool [B, H, W].

    A pixel belongs to a box when its centre does: column j when x0 <= j + 0.5 < x1, and rows likewise. For whole
    numbers these are the half-open ranges x0 <= j < x1 of the reference. Boxes may reach over the border.

    Args:
        boxes_BK4: xyxy in pixels; rows of NaN (padding) or without area cover nothing, and K may be 0.
        size: (H, W), or the side of a square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x0, y0, x1, y1 = boxes_BK4.float().unsqueeze(-1).unbind(dim=2)
    centers_W = torch.arange(width, device=boxes_BK4.device) + 0.5
    centers_H = torch.arange(height, device=boxes_BK4.device) + 0.5
    covers_BKW = (centers_W >= x0) & (centers_W < x1)
    covers_BKH = (centers_H >= y0) & (centers_H < y1)
    # Boxes that cover both row and column, counted by a product: [B, K, H, W] is never held in memory.
    num_boxes_BHW = covers_BKH.float().mT @ covers_BKW.float()
    return num_boxes_BHW > 0


def _resize(maps_Bhw: Tensor, size: tuple[int, int], mode: Resize) -> Tensor:
    if maps_Bhw.shape[1:] == size:
        return maps_Bhw
    align = None if mode == "nearest" else False
    return F.interpolate(maps_Bhw[:, None], size, mode=mode, align_corners=align)[:, 0]
