"""The centre-bias test on test images: ``--dataset waterbirds100+peripheral``.

Photographers centre what they take, and so a network, or a mask that it learns, may do well by looking at the middle.
Here every test image is cropped so that its object comes to lie near a corner or a side; masks and boxes follow. The
test is that of AIM (arXiv 2508.11502), which crops birds to the periphery; which crops those are is not published, so
numbers here are not comparable with the paper's.

The crop has the shape of the image, since the network's input is squashed to a square, and is at least ``SMALLEST`` of
it long and wide. Among all such crops it is the one in which the object's centre lies as far as possible from the
crop's, in shares of its sides; among equal ones the largest. The object, which is the hull of an image's boxes or,
without boxes, its mask, stays whole, and stays whole in what the network sees: presets may evaluate the middle 224 of
256 pixels, so that ``MARGIN`` of each side does not count. Where an object touches a border of the image already, the
crop ends there.

Crops also enlarge objects, up to twice, and cut background away. So what accuracy loses is not due to place alone.

Images stay as they are where no crop brings the object farther from the centre, as when it fills the image, and where
there is no box and no mask. How many those are is logged once all images of a split were read, and is the attribute
``kept`` of the split.
"""

from dataclasses import replace
from logging import getLogger
from math import ceil, floor
from threading import Lock

from spurbench.dataset import ChangedSplit, DatasetInfo, DatasetTransform, SplitData
from spurbench.errors import ConfigError
from spurbench.types import Sample

__all__ = ["MARGIN", "SMALLEST", "TRANSFORM", "Peripheral", "crop_away", "peripheral_window"]

logger = getLogger(__name__)

Window = tuple[int, int, int, int]
"""left, top, width, height of a crop, pixels."""

SMALLEST = 0.5
"""A crop's sides are at least this share of the image's."""
STEPS = 64
"""Sizes that are tried, from the whole image down to ``SMALLEST``."""
MARGIN = 1 / 16
"""Share of the crop, at each side, that the network may not see: (256 - 224) / 2 of 256 pixels."""


def peripheral_window(box: tuple[float, float, float, float], width: int, height: int) -> Window | None:
    """The crop of an image of this size that brings the object in ``box`` (xyxy) farthest from the centre.

    None if none brings it farther than it is.
    """
    x0, y0, x1, y1 = box
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    best, farthest = None, _distance(centre_x / width, centre_y / height)
    for step in range(STEPS):
        share = 1 - (1 - SMALLEST) * (step + 1) / STEPS
        crop_width, crop_height = ceil(share * width), ceil(share * height)
        lefts, tops = _ends(x0, x1, width, crop_width), _ends(y0, y1, height, crop_height)
        for left in lefts:
            for top in tops:
                distance = _distance((centre_x - left) / crop_width, (centre_y - top) / crop_height)
                if distance > farthest:
                    best, farthest = (left, top, crop_width, crop_height), distance
    return best


def crop_away(sample: Sample) -> Sample | None:
    """The sample, cropped so that its object lies at the periphery; None where that cannot be."""
    box = _object_box(sample)
    if box is None:
        return None
    _, height, width = sample.image.shape
    window = peripheral_window(box, width, height)
    if window is None:
        return None
    left, top, crop_width, crop_height = window
    rows, columns = slice(top, top + crop_height), slice(left, left + crop_width)
    boxes = sample.boxes
    if boxes is not None:
        boxes = boxes - boxes.new_tensor([left, top, left, top])
    return replace(
        sample,
        image=sample.image[:, rows, columns].contiguous(),
        mask=None if sample.mask is None else sample.mask[rows, columns].contiguous(),
        boxes=boxes,
    )


class Peripheral(ChangedSplit):
    """A split whose images are cropped; labels stay."""

    def __init__(self, plain: SplitData, name: str) -> None:
        super().__init__(plain, self._cropped)
        self._name = name
        self._seen: dict[int, bool] = {}
        self._told = False
        self._lock = Lock()

    @property
    def kept(self) -> int:
        """How many of the images that were read so far are not cropped."""
        with self._lock:
            return sum(self._seen.values())

    def _cropped(self, sample: Sample) -> Sample:
        cropped = crop_away(sample)
        self._note(sample.index, cropped is None)
        return sample if cropped is None else cropped

    def _note(self, index: int, kept: bool) -> None:
        with self._lock:
            self._seen[index] = kept
            if self._told or len(self._seen) < len(self):
                return
            self._told, number = True, sum(self._seen.values())
        if number:
            logger.warning(
                "%s+peripheral: %d of %d images stay as they are, since no crop brings their object farther from the "
                "centre",
                self._name,
                number,
                len(self),
            )


def _distance(x: float, y: float) -> float:
    """Square of the distance from the centre, in shares of the sides."""
    return (x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5)


def _ends(low: float, high: float, length: int, crop: int) -> tuple[int, ...]:
    """Where a crop of ``crop`` of ``length`` pixels may begin so that it shows low..high: the first and last position.

    Inside its margins, or at the image's border if the object is too near to that; empty if neither can be.
    """
    margin, last = MARGIN * crop, length - crop
    first, final = ceil(max(high - crop + margin, 0.0)), floor(min(low - margin, last))
    if first <= final:
        return first, final
    if low < margin and high <= crop - margin:
        return (0,)
    if high > length - margin and low >= last + margin:
        return (last,)
    return ()


def _object_box(sample: Sample) -> tuple[float, float, float, float] | None:
    """What must stay whole: the hull of all boxes, or else of the mask; None where there is neither."""
    if sample.boxes is not None and len(sample.boxes):
        x0, y0 = sample.boxes[:, :2].amin(0).tolist()
        x1, y1 = sample.boxes[:, 2:].amax(0).tolist()
        return x0, y0, x1, y1
    if sample.mask is None or not sample.mask.any():
        return None
    columns, rows = sample.mask.any(0).nonzero()[:, 0], sample.mask.any(1).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _declare(info: DatasetInfo) -> DatasetInfo:
    if not (info.has_boxes or info.has_masks):
        raise ConfigError(
            f"peripheral needs boxes or masks, which {info.name} does not have; "
            "see: spurbench list datasets, columns boxes and masks"
        )
    return replace(info, description=f"{info.description}; test images are cropped, the object is at the periphery")


def _change(split: SplitData, info: DatasetInfo) -> SplitData:
    return Peripheral(split, info.name)


TRANSFORM = DatasetTransform(
    name="peripheral",
    version="1",
    description="Crops with the object at the periphery, the centre-bias test of AIM (arXiv 2508.11502)",
    declare=_declare,
    change=_change,
)
