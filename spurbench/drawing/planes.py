"""Planes, float64 [3, SIZE, SIZE] or [SIZE, SIZE] in [0, 1]: colours, noise, waves, and how a camera stores them."""

from typing import Final

import numpy as np
import numpy.typing as npt

from spurbench.drawing.stream import Stream

__all__ = [
    "BRIGHTNESS",
    "NOISE",
    "SIZE",
    "Plane",
    "Rgb",
    "X",
    "Y",
    "blend",
    "exposed",
    "noise",
    "smoothstep",
    "tinted",
    "triangle",
]

Plane = npt.NDArray[np.float64]
Rgb = tuple[int, int, int]

SIZE: Final = 64
"""Side of an image, pixels."""

BRIGHTNESS: Final = (0.85, 1.15)
"""Range of the factor that brightens or darkens a whole image."""

NOISE: Final = 0.03
"""Deviation of the noise of a single pixel and channel; white is 1."""

_CENTRES: Final = (np.arange(SIZE) + 0.5) / SIZE
_CENTRES.setflags(write=False)
X: Final = _CENTRES[None, :]
"""[1, SIZE], where the columns lie, in image sides."""
Y: Final = _CENTRES[:, None]
"""[SIZE, 1], where the rows lie."""


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


def blend(under: Plane, over: Plane, amount: Plane) -> Plane:
    """``under`` where ``amount`` is 0, ``over`` where it is 1."""
    return under + (over - under) * amount


def triangle(phase: Plane) -> Plane:
    """A wave of period 1 between -1 and 1."""
    return np.abs(4.0 * (phase - np.floor(phase)) - 2.0) - 1.0


def noise(stream: Stream, *lattices: tuple[int, int]) -> Plane:
    """Cloudy noise that fills [0, 1]: one octave per lattice of (rows, columns) cells, each 0.6 of the one before."""
    total = np.zeros((SIZE, SIZE))
    amplitude = 1.0
    for rows, columns in lattices:
        total += amplitude * _stretch(stream.normals(rows + 1, columns + 1))
        amplitude *= 0.6
    low, high = float(total.min()), float(total.max())
    return (total - low) / (high - low)


def exposed(stream: Stream, picture: Plane) -> npt.NDArray[np.uint8]:
    """The picture as a camera would store it: brighter or darker, noisy, 8 bits per channel."""
    seen = picture * stream.uniform(*BRIGHTNESS) + NOISE * stream.normals(*picture.shape)
    return np.floor(np.minimum(np.maximum(seen, 0.0), 1.0) * 255.0 + 0.5).astype(np.uint8)


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
