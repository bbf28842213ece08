"""One image: a bird on a background, as a pure function of its key."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from spurbench.datasets.minibirds import birds, scenes
from spurbench.datasets.minibirds.birds import SPECIES, bird_shapes, paint, settle
from spurbench.datasets.minibirds.scenes import SIZE, draw_scene
from spurbench.datasets.minibirds.stream import Stream

__all__ = ["CONSTANTS", "VERSION", "Drawing", "draw"]

VERSION: Final = "1"
"""Raised whenever a pixel, a label or a split changes."""

BRIGHTNESS: Final = (0.85, 1.15)
"""Range of the factor that brightens or darkens a whole image."""

NOISE: Final = 0.03
"""Deviation of the noise of a single pixel and channel; white is 1."""

CONSTANTS: Final = repr((SIZE, BRIGHTNESS, NOISE, birds.SCALES, birds.SOFTNESS, SPECIES, scenes.FAMILIES))
"""What shapes the images, as text: part of a dataset's fingerprint. Code is covered by VERSION."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn image and what is exactly known about it."""

    image: npt.NDArray[np.uint8]
    """[3, SIZE, SIZE], RGB."""
    mask: npt.NDArray[np.bool_]
    """[SIZE, SIZE], True where at least half of a pixel belongs to the bird."""
    background: str
    """Background family, see ``scenes.FAMILIES``."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Smallest box around the mask: xyxy in pixels, half open."""
        columns, rows = np.flatnonzero(self.mask.any(axis=0)), np.flatnonzero(self.mask.any(axis=1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def draw(seed: int, split: str, index: int, species: int, place: int) -> Drawing:
    """Image ``index`` of a split: a bird of ``species`` (0..23) at ``place`` (0 land, 1 water, 2 neither).

    Each call has its own random stream, so images can be drawn in any order, on any thread, on any machine, with
    equal results.
    """
    stream = Stream("minibirds", VERSION, seed, split, index, species, place)
    background, picture = draw_scene(stream, place)
    coverage = np.zeros((SIZE, SIZE))
    for shape in settle(stream, bird_shapes(stream, SPECIES[species])):
        paint(picture, coverage, shape)
    return Drawing(image=_exposed(stream, picture), mask=coverage >= 0.5, background=background)


def _exposed(stream: Stream, picture: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The picture as a camera would store it: brighter or darker, noisy, 8 bits per channel."""
    seen = picture * stream.uniform(*BRIGHTNESS) + NOISE * stream.normals(*picture.shape)
    return np.floor(np.minimum(np.maximum(seen, 0.0), 1.0) * 255.0 + 0.5).astype(np.uint8)
