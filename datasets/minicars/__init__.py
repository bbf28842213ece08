"""MiniCars: small procedural cars with two shortcuts at once, after UrbanCars (Whac-A-Mole).

Urban cars (sedans, hatchbacks) and country cars (pickups, jeeps) stand in front of an urban or a country background,
and a second object lies below them: a hydrant, stop sign or traffic light, or a cow, horse or sheep. In training
background and second object each match the car in 95 % of the images, independently, so that both are opposed in
0.25 %. Images are 64 x 64 pixels, drawn when asked for, with the exact mask of the car. Nothing is downloaded.

As in UrbanCars, the attribute holds both shortcuts, ``2 * background + object``, val and test have eight equal groups,
the second object lies in the middle of the lower quarter at a quarter of the side, and the car, half as long as the
image, is pasted over it. Here both are moved by a few pixels. ``train`` has a fifth of UrbanCars' images, with the same
shares; ``val`` and ``test`` have as many.

The preset is ``minisets``: that of ``minibirds`` at a higher learning rate, since its backbone was pretrained on birds
and has never seen a car.

``spurbench data generate minicars95 --to DIR`` writes UrbanCars' own layout, with the masks of cars and second objects;
as there, the second object's mask has the pixels that the car hides. ``--dataset urbancars --data-root DIR`` reads it.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from spurbench.dataset import DatasetInfo
from spurbench.datasets.minicars.scenes import co_object_shapes, draw_background
from spurbench.datasets.minicars.vehicles import vehicle_shapes
from spurbench.drawing import sets
from spurbench.drawing.files import require_new_folder, save_jpeg, save_mask
from spurbench.drawing.planes import SIZE, exposed
from spurbench.drawing.sets import DrawnDataset, drawn_spec
from spurbench.drawing.shapes import centre, paint
from spurbench.drawing.stream import Stream

__all__ = ["DATASETS", "Drawing", "draw"]

KINDS: Final = ("urban", "country")
"""Of the car, the background and the second object alike."""
CARS: Final = (("sedan", "hatchback"), ("pickup", "jeep"))

TRAIN: Final = "bg-0.95_co_occur_obj-0.95/train"
BALANCED: Final = "bg-0.5_co_occur_obj-0.5"
FOLDERS: Final = {"train": TRAIN, "val": f"{BALANCED}/val", "test": f"{BALANCED}/test"}
"""UrbanCars' folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing(sets.Drawing):
    """A car, its surroundings, and what lies below it."""

    co_object: npt.NDArray[np.bool_]
    """[SIZE, SIZE], True on the second object, also where the car hides it."""


def draw(stream: Stream, group: int) -> Drawing:
    """An image of a group, ``4 * car + 2 * background + object``, each 0 urban or 1 country."""
    car, background, thing = group // 4, group // 2 % 2, group % 2
    picture = draw_background(stream, background)
    below, coverage = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    x, y = stream.uniform(0.35, 0.65), stream.uniform(0.84, 0.86)
    size, mirror = stream.uniform(0.22, 0.28), 1.0 if stream.below(2) else -1.0
    for shape in centre(co_object_shapes(stream, thing), x, y, size=size, mirror=mirror):
        paint(picture, below, shape)
    x, y = stream.uniform(0.42, 0.58), stream.uniform(0.46, 0.56)
    size, mirror = stream.uniform(0.45, 0.58), 1.0 if stream.below(2) else -1.0
    kind = CARS[car][stream.below(len(CARS[car]))]
    tilt = stream.normal(0.0, 0.02)
    for shape in centre(vehicle_shapes(stream, kind), x, y, size=size, mirror=mirror, tilt=tilt):
        paint(picture, coverage, shape)
    return Drawing(image=exposed(stream, picture), mask=coverage >= 0.5, co_object=below >= 0.5)


INFO = DatasetInfo(
    name="minicars95",
    version="1",
    classes=KINDS,
    attributes=tuple(f"bg-{background}+obj-{thing}" for background, thing in product(KINDS, KINDS)),
    preset="minisets",
    description="Procedural cars with two shortcuts, background and second object, each of which matches 95 % of the "
    "training cars, 64 px; val and test have eight equal groups",
    license="MIT",
    citation="Drawn by spurbench, after UrbanCars (Li et al., 2023, arXiv:2212.04825)",
    source="drawn on the fly; nothing to download",
    has_boxes=True,
    has_masks=True,
    expected_counts={
        "train": (722, 38, 38, 2, 2, 38, 38, 722),
        "val": (125,) * 8,
        "test": (125,) * 8,
    },
)


def write_urbancars(dataset: DrawnDataset[Drawing], folder: Path) -> None:
    """Write ``<folder>/urbancars/`` as UrbanCars is laid out; images are numbered within their group.

    Raises:
        ConfigError: ``folder`` is not empty.
    """
    require_new_folder(folder)
    for name, below in FOLDERS.items():
        split = dataset.split(name)
        assert split.group is not None
        seen: Counter[int] = Counter()
        for index, group in enumerate(split.group.tolist()):
            car, background, thing = (KINDS[bit] for bit in (group // 4, group // 2 % 2, group % 2))
            parent = folder / "urbancars" / below / f"obj-{car}_bg-{background}_co_occur_obj-{thing}"
            parent.mkdir(parents=True, exist_ok=True)
            drawing, number = split.drawing(index), f"{seen[group]:03d}"
            seen[group] += 1
            save_jpeg(parent / f"{number}.jpg", drawing.image)
            save_mask(parent / f"{number}_mask.png", drawing.mask, "RGB")
            save_mask(parent / f"{number}_co_occur_obj_mask.png", drawing.co_object, "RGB")


DATASETS = {
    INFO.name: drawn_spec(DrawnDataset(info=INFO, family="minicars", draw=draw), write_urbancars, ("urbancars",))
}
