"""One image: a bird on a background, as a pure function of its key."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from spurbench.datasets.minibirds import birds, scenes
from spurbench.datasets.minibirds.birds import SPECIES, bird_shapes
from spurbench.datasets.minibirds.scenes import draw_scene
from spurbench.drawing import sets
from spurbench.drawing.planes import BRIGHTNESS, NOISE, SIZE, exposed
from spurbench.drawing.shapes import SOFTNESS, paint, settle
from spurbench.drawing.stream import Stream

__all__ = ["CONSTANTS", "VERSION", "Drawing", "draw"]

VERSION: Final = "1"
"""Raised whenever a pixel, a label or a split changes."""

CONSTANTS: Final = repr((SIZE, BRIGHTNESS, NOISE, birds.SCALES, SOFTNESS, SPECIES, scenes.FAMILIES))
"""What shapes the images, as text: part of a dataset's fingerprint. Code is covered by VERSION."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing(sets.Drawing):
    """A drawn bird on its background."""

    background: str
    """Background family, see ``scenes.FAMILIES``."""


def draw(seed: int, split: str, index: int, species: int, place: int) -> Drawing:
    """Image ``index`` of a split: a bird of ``species`` (0..23) at ``place`` (0 land, 1 water, 2 neither).

    Each call has its own random stream, so images can be drawn in any order, on any thread, on any machine, with
    equal results.
    """
    stream = Stream("minibirds", VERSION, seed, split, index, species, place)
    background, picture = draw_scene(stream, place)
    coverage = np.zeros((SIZE, SIZE))
    for shape in settle(stream, bird_shapes(stream, SPECIES[species]), birds.SCALES):
        paint(picture, coverage, shape)
    return Drawing(image=exposed(stream, picture), mask=coverage >= 0.5, background=background)
