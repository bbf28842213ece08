"""Backgrounds: two families of land, two of water, three of neither.

Only exactly rounded operations are used here, see ``spurbench.drawing``.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from spurbench.drawing.planes import Plane, X, Y, blend, noise, smoothstep, tinted, triangle
from spurbench.drawing.stream import Stream

__all__ = ["FAMILIES", "SKETCHES", "draw_scene"]

FAMILIES: Final[tuple[tuple[str, ...], ...]] = (
    ("bamboo_forest", "forest/broadleaf"),
    ("ocean", "lake/natural"),
    ("sand", "bricks", "paint"),
)
"""Background families of place 0 (land), 1 (water) and 2 (neither), by their Places category where they have one."""


def draw_scene(stream: Stream, place: int) -> tuple[str, Plane]:
    """A random background of ``place``: its family's name and picture."""
    names = FAMILIES[place]
    name = names[stream.below(len(names))]
    return name, SKETCHES[name](stream)


def _bamboo(stream: Stream) -> Plane:
    grass = noise(stream, (2, 16), (5, 32), (10, 64))
    base = blend(tinted(stream, (40, 70, 20)), tinted(stream, (150, 180, 80)), grass)
    bend = noise(stream, (2, 2))
    wave = triangle(X * stream.uniform(5.0, 11.0) + stream.uniform() + 0.16 * bend)
    return blend(base, tinted(stream, (190, 200, 110)), 0.38 * smoothstep(0.1, 0.5, wave))


def _broadleaf(stream: Stream) -> Plane:
    leaves = noise(stream, (6, 6), (12, 12), (24, 24), (48, 48))
    canopy = blend(tinted(stream, (20, 50, 20)), tinted(stream, (110, 130, 60)), leaves)
    litter = noise(stream, (8, 8), (16, 16))
    ground = blend(tinted(stream, (80, 60, 40)), tinted(stream, (140, 120, 80)), litter)
    edge = stream.uniform(0.6, 0.9)
    return blend(canopy, ground, smoothstep(edge - 0.05, edge + 0.05, Y))


def _sky(stream: Stream) -> Plane:
    clouds = noise(stream, (2, 2), (4, 4), (8, 8))
    return blend(tinted(stream, (150, 190, 230)), tinted(stream, (235, 235, 240)), clouds)


def _ocean(stream: Stream) -> Plane:
    swell = noise(stream, (8, 2), (16, 4), (32, 8), (64, 16))
    sea = blend(tinted(stream, (20, 60, 110)), tinted(stream, (110, 160, 200)), swell)
    horizon = stream.uniform(0.15, 0.45)
    return blend(_sky(stream), sea, smoothstep(horizon - 0.03, horizon + 0.03, Y))


def _lake(stream: Stream) -> Plane:
    ripples = noise(stream, (6, 2), (12, 3), (48, 12))
    water = blend(tinted(stream, (40, 100, 110)), tinted(stream, (120, 170, 190)), ripples)
    horizon = stream.uniform(0.15, 0.45)
    crest = horizon - stream.uniform(0.03, 0.07) - 0.05 * noise(stream, (1, 4))[:1]
    shore = blend(_sky(stream), tinted(stream, (110, 135, 160)), smoothstep(-0.015, 0.015, Y - crest))
    return blend(shore, water, smoothstep(horizon - 0.02, horizon + 0.02, Y))


def _sand(stream: Stream) -> Plane:
    dunes = noise(stream, (4, 1), (8, 2), (16, 4))
    return blend(tinted(stream, (190, 160, 110)), tinted(stream, (230, 210, 160)), dunes)


def _bricks(stream: Stream) -> Plane:
    plaster = noise(stream, (3, 3), (6, 6))
    wall = blend(tinted(stream, (90, 90, 95)), tinted(stream, (170, 165, 160)), plaster)
    frequency = stream.uniform(5.0, 10.0)
    across = smoothstep(0.4, 0.7, triangle(X * frequency))
    down = smoothstep(0.4, 0.7, triangle(Y * (1.2 * frequency)))
    return blend(wall, tinted(stream, (50, 55, 70)), 0.5 * np.maximum(across, down))


def _paint(stream: Stream) -> Plane:
    first, second = ((stream.below(256), stream.below(256), stream.below(256)) for _ in range(2))
    smears = noise(stream, (2, 2), (4, 4), (8, 8), (16, 16))
    return blend(tinted(stream, first, 0.2), tinted(stream, second, 0.2), smears)


SKETCHES: Final[dict[str, Callable[[Stream], Plane]]] = {
    "bamboo_forest": _bamboo,
    "forest/broadleaf": _broadleaf,
    "ocean": _ocean,
    "lake/natural": _lake,
    "sand": _sand,
    "bricks": _bricks,
    "paint": _paint,
}
"""How each family is drawn."""
