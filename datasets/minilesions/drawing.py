"""A skin lesion, with or without a ruler beside it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from spurbench.drawing import sets
from spurbench.drawing.planes import SIZE, Plane, Rgb, X, Y, blend, exposed, noise, smoothstep, tinted
from spurbench.drawing.shapes import SOFTNESS, Stroke, paint, rotation
from spurbench.drawing.stream import Stream

__all__ = ["Drawing", "draw"]

_SKINS: Final[tuple[Rgb, ...]] = ((232, 190, 170), (215, 165, 140), (190, 140, 110), (225, 175, 175))
_PIGMENTS: Final[tuple[tuple[Rgb, Rgb], ...]] = (
    ((95, 60, 45), (150, 100, 75)),
    ((60, 40, 38), (115, 75, 60)),
    ((125, 75, 70), (175, 115, 100)),
)
_HAIR: Final[Rgb] = (55, 40, 35)
_RULER: Final[Rgb] = (228, 230, 225)
_TICK: Final[Rgb] = (35, 35, 40)

_HARMONICS: Final = range(2, 10)
"""Waves around a lesion's border."""
_ROUGHNESS: Final = (0.04, 0.065)
"""Deviation of their amplitudes in radii, benign and malignant."""
_SMOOTH_ABOVE: Final = 3
"""A benign border has no shorter waves than these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing(sets.Drawing):
    """A lesion, and what else is on the picture."""

    hair: bool
    dark_corner: bool


def draw(stream: Stream, group: int) -> Drawing:
    """An image of a group: ``2 * malignant + ruler``.

    Hair and dark corners are on 30 % and 20 % of the images, whatever the group.
    """
    malignant, ruler = divmod(group, 2)
    red, green, blue = _SKINS[stream.below(len(_SKINS))]
    pores = noise(stream, (3, 3), (10, 10), (30, 30))
    picture = blend(
        tinted(stream, (red, green, blue), 0.03), tinted(stream, (red - 25, green - 25, blue - 25), 0.03), pores
    )
    coverage = _paint_lesion(stream, picture, malignant)
    if ruler:
        coverage *= 1.0 - _paint_ruler(stream, picture)
    hair, dark_corner = stream.below(10) < 3, stream.below(10) < 2
    if hair:
        _paint_hair(stream, picture)
    if dark_corner:
        picture *= 1.0 - 0.85 * smoothstep(0.54, 0.66, np.sqrt((X - 0.5) * (X - 0.5) + (Y - 0.5) * (Y - 0.5)))
    return Drawing(image=exposed(stream, picture), mask=coverage >= 0.5, hair=hair, dark_corner=dark_corner)


def _paint_lesion(stream: Stream, picture: Plane, malignant: int) -> npt.NDArray[np.float64]:
    """Draw it in place; its coverage [SIZE, SIZE]."""
    inner, outer = _PIGMENTS[stream.below(len(_PIGMENTS))]
    pigment = blend(tinted(stream, inner, 0.03), tinted(stream, outer, 0.03), noise(stream, (3, 3), (8, 8)))
    centre_x, centre_y = stream.uniform(0.42, 0.58), stream.uniform(0.42, 0.58)
    radius, stretch = stream.uniform(0.15, 0.25), stream.uniform(1.0, 1.35)
    ux, uy = rotation(stream.uniform(-1.0, 1.0))
    x, y = X - centre_x, Y - centre_y
    along, across = (x * ux + y * uy) / (radius * stretch), (y * ux - x * uy) / (radius / stretch)
    level = np.sqrt(along * along + across * across)
    border = _border(stream, along / (level + 1e-9), across / (level + 1e-9), malignant)
    cover = np.minimum(np.maximum(0.5 - (level - border) * (radius * SIZE) / SOFTNESS, 0.0), 1.0)
    picture += (pigment - picture) * cover
    return cover


def _border(stream: Stream, cosine: Plane, sine: Plane, malignant: int) -> Plane:
    """The outline in every direction, 1 on average: waves of random amplitude, by the angle addition formulas."""
    border = np.ones((SIZE, SIZE))
    waves = _ROUGHNESS[malignant] * stream.normals(len(_HARMONICS), 2)
    wave_cosine, wave_sine = cosine, sine
    for number, harmonic in enumerate(_HARMONICS):
        wave_cosine, wave_sine = (
            wave_cosine * cosine - wave_sine * sine,
            wave_sine * cosine + wave_cosine * sine,
        )
        if malignant or harmonic <= _SMOOTH_ABOVE:
            border += float(waves[number, 0]) * wave_cosine + float(waves[number, 1]) * wave_sine
    return np.maximum(border, 0.35)


def _paint_ruler(stream: Stream, picture: Plane) -> npt.NDArray[np.float64]:
    """A light strip with ticks along one side of the picture, in place; where it is, [SIZE, SIZE] of 0 and 1."""
    side, width, phase = stream.below(4), 6 + stream.below(3), stream.below(4)
    strip, ticks = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    strip[:width] = 1.0
    ticks[width - 3 : width, phase::4] = 1.0
    ticks[width - 5 : width, phase::16] = 1.0
    if side % 2:
        strip, ticks = strip.T, ticks.T
    if side >= 2:
        strip, ticks = strip[::-1, ::-1], ticks[::-1, ::-1]
    picture += (tinted(stream, _RULER, 0.03) - picture) * (0.85 * strip)
    picture += (tinted(stream, _TICK, 0.02) - picture) * ticks
    return strip


def _paint_hair(stream: Stream, picture: Plane) -> None:
    """Some thin strokes across the picture, in place."""
    colour = tinted(stream, _HAIR, 0.03)
    ignored = np.zeros((SIZE, SIZE))
    for _ in range(3 + stream.below(5)):
        x, y = stream.uniform(0.0, SIZE), stream.uniform(0.0, SIZE)
        dx, dy = rotation(stream.uniform(-1.0, 1.0))
        half = stream.uniform(0.2, 0.5) * SIZE
        ends = {"x0": x - half * dx, "y0": y - half * dy, "x1": x + half * dx, "y1": y + half * dy}
        paint(picture, ignored, Stroke(colour=colour, r0=0.5, r1=0.3, **ends))
