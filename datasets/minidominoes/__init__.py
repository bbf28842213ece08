"""MiniDominoes: a digit above a vehicle, drawn, after the dominoes of MNIST and CIFAR-10.

The lower half of an image shows an automobile or a truck in front of any of four backgrounds, the upper half a zero or
a one, white on black. The label is the vehicle. The digit agrees with it in all (``minidominoes100``) or 95 %
(``minidominoes95``) of training and not in val and test, whose four groups are of equal size and the same images in
both sets. As in ``dominoes``, mask and box are the half with the vehicle, so half of the image is core. Images are 64 x
64 pixels, drawn when asked for; 2,000 for training, 1,000 for val and test each. Nothing is downloaded.

The preset is ``minisets``: that of ``minibirds`` at a higher learning rate, since its backbone was pretrained on birds
and has never seen a vehicle or a digit.

The set of MNIST and CIFAR-10 has no files of its own: it is put together from theirs. So ``spurbench data generate
minidominoes95 --to DIR`` writes a folder with ``metadata.csv``, masks and boxes, which ``--dataset DIR`` reads without
loss.
"""

from typing import Final

import numpy as np

from spurbench.dataset import DatasetInfo
from spurbench.datasets.minicars.scenes import draw_background
from spurbench.datasets.minicars.vehicles import vehicle_shapes
from spurbench.drawing.files import TABLE_FOLDER, write_table_folder
from spurbench.drawing.planes import SIZE, exposed, tinted
from spurbench.drawing.sets import Drawing, DrawnDataset, drawn_spec, paired_splits
from spurbench.drawing.shapes import Ellipse, Shape, Stroke, centre, paint
from spurbench.drawing.stream import Stream

__all__ = ["DATASETS", "draw"]

VEHICLES: Final = (("sedan", "hatchback"), ("pickup", "lorry"))
HALF: Final = SIZE // 2


def draw(stream: Stream, group: int) -> Drawing:
    """An image of a group: ``2 * truck + one``."""
    truck, one = divmod(group, 2)
    ignored = np.zeros((SIZE, SIZE))
    picture = draw_background(stream, stream.below(2))
    kind = VEHICLES[truck][stream.below(len(VEHICLES[truck]))]
    shapes = vehicle_shapes(stream, kind)
    mirror, size = 1.0 if stream.below(2) else -1.0, stream.uniform(0.5, 0.75)
    x, y = stream.uniform(0.4, 0.6), stream.uniform(0.72, 0.78)
    for shape in centre(shapes, x, y, size=size, mirror=mirror, tilt=stream.normal(0.0, 0.02)):
        paint(picture, ignored, shape)
    picture[:, :HALF] = 0.0
    x, y = stream.uniform(0.4, 0.6), stream.uniform(0.23, 0.27)
    for shape in centre(_digit(stream, one), x, y, size=stream.uniform(0.3, 0.38), tilt=stream.normal(0.0, 0.06)):
        paint(picture, ignored, shape)
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    mask[HALF:] = True
    return Drawing(image=exposed(stream, picture), mask=mask)


def _digit(stream: Stream, one: int) -> list[Shape]:
    white, black = tinted(stream, (245, 245, 245), 0.02), tinted(stream, (0, 0, 0), 0.0)
    width, line = stream.uniform(0.28, 0.36), stream.uniform(0.09, 0.13)
    if one:
        return [Stroke(colour=white, x0=0.05, y0=-0.45, x1=stream.uniform(-0.12, 0.05), y1=0.45, r0=line, r1=line)]
    return [
        Ellipse(colour=white, x=0.0, y=0.0, a=width, b=0.5),
        Ellipse(colour=black, x=0.0, y=0.0, a=width - 1.6 * line, b=0.5 - 1.6 * line),
    ]


def _dataset(percent: int) -> DrawnDataset[Drawing]:
    info = DatasetInfo(
        name=f"minidominoes{percent}",
        version="1",
        classes=("automobile", "truck"),
        attributes=("zero", "one"),
        preset="minisets",
        description=f"A drawn digit above a drawn vehicle, which it tells in {percent} % of training, 64 px; the core "
        "is the lower half. val and test are group-balanced",
        license="MIT",
        citation="Drawn by spurbench, after the dominoes of Shah et al. (2020, arXiv:2006.07710)",
        source="drawn on the fly; nothing to download",
        has_boxes=True,
        has_masks=True,
        expected_counts=paired_splits(percent),
    )
    return DrawnDataset(info=info, family="minidominoes", draw=draw)


DATASETS = {
    dataset.info.name: drawn_spec(dataset, write_table_folder, TABLE_FOLDER)
    for dataset in (_dataset(100), _dataset(95))
}
