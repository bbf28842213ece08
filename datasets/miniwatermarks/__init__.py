"""MiniWatermarks: cartons and barrels, some of them behind a watermark, after ImageNet-W (Whac-A-Mole).

Networks trained on ImageNet take a half transparent line of white characters, 捷径 ("shortcut"), for a sign of the
class carton. Here the line says SHORTCUT, in bitmap letters of 5 x 7 dots, and lies across the picture, often over the
object. It is on all (``miniwatermarks100``) or 95 % (``miniwatermarks95``) of the training images of cartons and on as
few of those of barrels. Both things come in the same colours, in front of the same backgrounds, which tell nothing. val
and test have four groups of equal size and are the same images in both sets. Images are 64 x 64 pixels, drawn when
asked for, with the exact mask of the object, letters in front of it included; 2,000 for training, 1,000 for val and
test each. Nothing is downloaded.

The preset is ``minisets``: that of ``minibirds`` at a higher learning rate, since its backbone was pretrained on birds
and has never seen a carton or a letter.

ImageNet-W itself is a change of images and has no layout (here: ``--dataset NAME+watermark``). So ``spurbench data
generate miniwatermarks95 --to DIR`` writes a folder with ``metadata.csv``, masks and boxes, which ``--dataset DIR``
reads without loss.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from spurbench.dataset import DatasetInfo
from spurbench.datasets.minibirds.scenes import draw_scene
from spurbench.datasets.miniwatermarks.font import text_bitmap
from spurbench.drawing.files import TABLE_FOLDER, write_table_folder
from spurbench.drawing.planes import SIZE, Plane, Rgb, exposed, tinted
from spurbench.drawing.sets import Drawing, DrawnDataset, drawn_spec, paired_splits
from spurbench.drawing.shapes import Ellipse, Polygon, Shape, Stroke, paint, settle
from spurbench.drawing.stream import Stream

__all__ = ["DATASETS", "TEXT", "draw"]

TEXT: Final = "SHORTCUT"
OPACITY: Final = 0.5
"""As in ImageNet-W."""
TOPS: Final = (14, 40)
"""Range of the line's first row; in ImageNet-W it lies at 40 % of the height."""
SCALES: Final = (0.42, 0.62)
"""Range of an object's size."""

_PLAIN: Final = 2
"""The backgrounds of ``minibirds`` that are neither land nor water."""
_COLOURS: Final[tuple[Rgb, ...]] = ((185, 140, 90), (150, 105, 65), (200, 165, 120), (120, 125, 130), (150, 70, 60))
_BITMAP: Final = text_bitmap(TEXT)


def draw(stream: Stream, group: int) -> Drawing:
    """An image of a group: ``2 * carton + watermark``."""
    carton, watermark = divmod(group, 2)
    _, picture = draw_scene(stream, _PLAIN)
    coverage = np.zeros((SIZE, SIZE))
    for shape in settle(stream, _THINGS[carton](stream), SCALES):
        paint(picture, coverage, shape)
    if watermark:
        _stamp(stream, picture)
    return Drawing(image=exposed(stream, picture), mask=coverage >= 0.5)


def _stamp(stream: Stream, picture: Plane) -> None:
    """Write the line over the picture, in place."""
    height, width = _BITMAP.shape
    top, left = TOPS[0] + stream.below(TOPS[1] - TOPS[0] + 1), stream.below(SIZE - width + 1)
    window = picture[:, top : top + height, left : left + width]
    window += (1.0 - window) * (OPACITY * _BITMAP)


def _barrel(stream: Stream) -> list[Shape]:
    wood, hoop, top = _shades(stream)
    half, height = stream.uniform(0.28, 0.34), stream.uniform(0.42, 0.5)
    waist = half + stream.uniform(0.06, 0.1)
    corners = ((-half, -height), (half, -height), (waist, -0.15), (waist, 0.15), (half, height))
    return [
        Ellipse(colour=wood, x=0.0, y=height, a=half, b=0.1),
        Polygon(colour=wood, corners=(*corners, (-half, height), (-waist, 0.15), (-waist, -0.15))),
        Stroke(colour=hoop, x0=-half, y0=-0.2, x1=half, y1=-0.2, r0=0.03, r1=0.03),
        Stroke(colour=hoop, x0=-half, y0=0.2, x1=half, y1=0.2, r0=0.03, r1=0.03),
        Ellipse(colour=top, x=0.0, y=-height, a=half, b=0.1),
    ]


def _carton(stream: Stream) -> list[Shape]:
    front, side, top = _shades(stream)
    width, height, depth = stream.uniform(0.28, 0.34), stream.uniform(0.3, 0.38), stream.uniform(0.2, 0.28)
    right, back = width - 0.1 + depth, -height - 0.5 * depth
    return [
        Polygon(colour=front, corners=((-width, -height), (width - 0.1, -height), (width - 0.1, 0.4), (-width, 0.4))),
        Polygon(
            colour=side,
            corners=((width - 0.1, -height), (right, back), (right, 0.4 - 0.5 * depth), (width - 0.1, 0.4)),
        ),
        Polygon(colour=top, corners=((-width, -height), (depth - width, back), (right, back), (width - 0.1, -height))),
        Stroke(colour=side, x0=-0.05, y0=-height, x1=-0.05, y1=stream.uniform(-0.1, 0.05), r0=0.03, r1=0.03),
    ]


def _shades(stream: Stream) -> tuple[Plane, Plane, Plane]:
    """Of one colour: plain, dark and light."""
    colour = tinted(stream, _COLOURS[stream.below(len(_COLOURS))])
    return colour, 0.65 * colour, np.minimum(1.25 * colour, 1.0)


_THINGS: Final[tuple[Callable[[Stream], list[Shape]], ...]] = (_barrel, _carton)


def _dataset(percent: int) -> DrawnDataset[Drawing]:
    info = DatasetInfo(
        name=f"miniwatermarks{percent}",
        version="1",
        classes=("barrel", "carton"),
        attributes=("plain", "watermark"),
        preset="minisets",
        description=f"Procedural cartons and barrels; a watermark is a sign of cartons in {percent} % of training, "
        "64 px. val and test are group-balanced",
        license="MIT",
        citation="Drawn by spurbench, after ImageNet-W (Li et al., 2023, arXiv:2212.04825)",
        source="drawn on the fly; nothing to download",
        has_boxes=True,
        has_masks=True,
        expected_counts=paired_splits(percent),
    )
    return DrawnDataset(info=info, family="miniwatermarks", draw=draw)


DATASETS = {
    dataset.info.name: drawn_spec(dataset, write_table_folder, TABLE_FOLDER)
    for dataset in (_dataset(100), _dataset(95))
}
