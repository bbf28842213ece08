"""Backgrounds: two families of land, two of water, three of neither.

Pictures are planes, float64 [3, SIZE, SIZE] in [0, 1]. Only exactly rounded operations are used here (+ - * / floor,
min, max, abs): ``exp``, ``sin`` and the like differ in their last bit between maths libraries and processors, which
would change pixels. So edges are cubic smoothsteps, not sigmoids, and waves are triangles.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from spurbench.datasets.minibirds.stream import Stream

__all__ = ["FAMILIES", "SIZE", "SKETCHES", "Plane", "Rgb", "draw_scene", "smoothstep", "tinted"]

Plane = npt.NDArray[np.float64]
Rgb = tuple[int, int, int]

SIZE: Final = 64
"""Side of an image, pixels."""

FAMILIES: Final[tuple[tuple[str, ...], ...]] = (
    ("bamboo_forest", "forest/broadleaf"),
    ("ocean", "lake/natural"),
    ("sand", "bricks", "paint"),
)
"""Background families of place 0 (land), 1 (water) and 2 (neither), by their Places category where they have one."""

_CENTRES: Final = (np.arange(SIZE) + 0.5) / SIZE
_CENTRES.setflags(write=False)
_X: Final = _CENTRES[None, :]
_Y: Final = _CENTRES[:, None]


def draw_scene(stream: Stream, place: int) -> tuple[str, Plane]:
    """A random background of ``place``: its family's name and picture."""
    names = FAMILIES[place]
    name = names[stream.below(len(names))]
    return name, SKETCHES[name](stream)


def smoothstep(low: float, high: float, value: Plane) -> Plane:
    """0 below ``low``, 1 above ``high``, a cubic without corners between."""
    t: Plane = np.minimum(np.maximum((value - low) / (high - low), 0.0), 1.0)
    step: Plane = t * t * (3.0 - 2.0 * t)
    return step


def tinted(stream: Stream, rgb: Rgb, deviation: float = 0.06) -> Plane:
    """The colour ``rgb`` (0..255) with a random tint, float64 [3, 1, 1] in [0, 1]."""
    colour = np.array(rgb, dtype=np.float64) / 255.0 + deviation * stream.normals(3)
    clipped: Plane = np.minimum(np.maximum(colour, 0.0), 1.0).reshape(3, 1, 1)
    return clipped


def _blend(under: Plane, over: Plane, amount: Plane) -> Plane:
    return under + (over - under) * amount


def _triangle(phase: Plane) -> Plane:
    """A wave of period 1 between -1 and 1."""
    return np.abs(4.0 * (phase - np.floor(phase)) - 2.0) - 1.0


def _noise(stream: Stream, *lattices: tuple[int, int]) -> Plane:
    """Cloudy noise that fills [0, 1]: one octave per lattice of (rows, columns) cells, each 0.6 of the one before."""
    total = np.zeros((SIZE, SIZE))
    amplitude = 1.0
    for rows, columns in lattices:
        total += amplitude * _stretch(stream.normals(rows + 1, columns + 1))
        amplitude *= 0.6
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low)


def _stretch(lattice: Plane) -> Plane:
    """Corner values interpolated to [SIZE, SIZE], first along rows, then along columns."""
    up, down = _cell_positions(lattice.shape[0] - 1)
    left, right = _cell_positions(lattice.shape[1] - 1)
    wide = lattice[:, left] + (lattice[:, left + 1] - lattice[:, left]) * right
    return wide[up] + (wide[up + 1] - wide[up]) * down[:, None]


def _cell_positions(cells: int) -> tuple[npt.NDArray[np.intp], Plane]:
    """For every pixel the cell it lies in and its (smoothed) position within, 0..1."""
    position = _CENTRES * cells
    cell = np.floor(position)
    return cell.astype(np.intp), smoothstep(0.0, 1.0, position - cell)


def _bamboo(stream: Stream) -> Plane:
    grass = _noise(stream, (2, 16), (5, 32), (10, 64))
    base = _blend(tinted(stream, (40, 70, 20)), tinted(stream, (150, 180, 80)), grass)
    bend = _noise(stream, (2, 2))
    wave = _triangle(_X * stream.uniform(5.0, 11.0) + stream.uniform() + 0.16 * bend)
    return _blend(base, tinted(stream, (190, 200, 110)), 0.38 * smoothstep(0.1, 0.5, wave))


def _broadleaf(stream: Stream) -> Plane:
    leaves = _noise(stream, (6, 6), (12, 12), (24, 24), (48, 48))
    canopy = _blend(tinted(stream, (20, 50, 20)), tinted(stream, (110, 130, 60)), leaves)
    litter = _noise(stream, (8, 8), (16, 16))
    ground = _blend(tinted(stream, (80, 60, 40)), tinted(stream, (140, 120, 80)), litter)
    edge = stream.uniform(0.6, 0.9)
    return _blend(canopy, ground, smoothstep(edge - 0.05, edge + 0.05, _Y))


def _sky(stream: Stream) -> Plane:
    clouds = _noise(stream, (2, 2), (4, 4), (8, 8))
    return _blend(tinted(stream, (150, 190, 230)), tinted(stream, (235, 235, 240)), clouds)


def _ocean(stream: Stream) -> Plane:
    swell = _noise(stream, (8, 2), (16, 4), (32, 8), (64, 16))
    sea = _blend(tinted(stream, (20, 60, 110)), tinted(stream, (110, 160, 200)), swell)
    horizon = stream.uniform(0.15, 0.45)
    return _blend(_sky(stream), sea, smoothstep(horizon - 0.03, horizon + 0.03, _Y))


def _lake(stream: Stream) -> Plane:
    ripples = _noise(stream, (6, 2), (12, 3), (48, 12))
    water = _blend(tinted(stream, (40, 100, 110)), tinted(stream, (120, 170, 190)), ripples)
    horizon = stream.uniform(0.15, 0.45)
    crest = horizon - stream.uniform(0.03, 0.07) - 0.05 * _noise(stream, (1, 4))[:1]
    shore = _blend(_sky(stream), tinted(stream, (110, 135, 160)), smoothstep(-0.015, 0.015, _Y - crest))
    return _blend(shore, water, smoothstep(horizon - 0.02, horizon + 0.02, _Y))


def _sand(stream: Stream) -> Plane:
    dunes = _noise(stream, (4, 1), (8, 2), (16, 4))
    return _blend(tinted(stream, (190, 160, 110)), tinted(stream, (230, 210, 160)), dunes)


def _bricks(stream: Stream) -> Plane:
    plaster = _noise(stream, (3, 3), (6, 6))
    wall = _blend(tinted(stream, (90, 90, 95)), tinted(stream, (170, 165, 160)), plaster)
    frequency = stream.uniform(5.0, 10.0)
    across = smoothstep(0.4, 0.7, _triangle(_X * frequency))
    down = smoothstep(0.4, 0.7, _triangle(_Y * (1.2 * frequency)))
    return _blend(wall, tinted(stream, (50, 55, 70)), 0.5 * np.maximum(across, down))


def _paint(stream: Stream) -> Plane:
    first, second = ((stream.below(256), stream.below(256), stream.below(256)) for _ in range(2))
    smears = _noise(stream, (2, 2), (4, 4), (8, 8), (16, 16))
    return _blend(tinted(stream, first, 0.2), tinted(stream, second, 0.2), smears)


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
