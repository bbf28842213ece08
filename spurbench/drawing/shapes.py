"""Shapes with soft outlines: ellipses, tapered strokes, convex polygons, and how they are placed and painted.

A thing is described in its own frame: x towards its front, y down, lengths in image sides at scale 1. A ``Pose`` turns
its shapes into pixels; ``paint`` puts one shape on a picture.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, floor, sqrt  # the three functions of ``math`` used here are exact or correctly rounded
from typing import Final, Self

import numpy as np

from spurbench.drawing.planes import SIZE, Plane
from spurbench.drawing.stream import Stream

__all__ = ["SOFTNESS", "Ellipse", "Polygon", "Pose", "Shape", "Stroke", "centre", "paint", "rotation", "settle"]

SOFTNESS: Final = 1.3
"""Width of an outline's fade from thing to background, pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """A similarity from a thing's frame to pixels: mirror, rotate, scale, shift."""

    cosine: float
    sine: float
    mirror: float
    """-1 turns the front to the left, 1 to the right."""
    scale: float
    """Pixels per unit length."""
    x: float = 0.0
    y: float = 0.0
    """Where the frame's origin goes, pixels."""

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where (x, y) goes."""
        across, down = self.direction(x, y)
        return self.scale * across + self.x, self.scale * down + self.y

    def direction(self, x: float, y: float) -> tuple[float, float]:
        """Where the vector (x, y) points, without change of length."""
        return self.mirror * (self.cosine * x - self.sine * y), self.sine * x + self.cosine * y


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipse:
    """A filled ellipse: half axis ``a`` along (ux, uy), a unit vector, and ``b`` across it."""

    colour: Plane
    """float64 [3, 1, 1]."""
    x: float
    y: float
    a: float
    b: float
    ux: float = 1.0
    uy: float = 0.0

    def posed(self, pose: Pose) -> Self:
        """The same ellipse in pixels."""
        x, y = pose.point(self.x, self.y)
        ux, uy = pose.direction(self.ux, self.uy)
        return replace(self, x=x, y=y, a=self.a * pose.scale, b=self.b * pose.scale, ux=ux, uy=uy)

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest upright box around it, xyxy."""
        half_x = sqrt(self.a * self.ux * self.a * self.ux + self.b * self.uy * self.b * self.uy)
        half_y = sqrt(self.a * self.uy * self.a * self.uy + self.b * self.ux * self.b * self.ux)
        return self.x - half_x, self.y - half_y, self.x + half_x, self.y + half_y

    def distance(self, x: Plane, y: Plane) -> Plane:
        """How far points lie outside (to first order at the outline); negative inside."""
        x, y = x - self.x, y - self.y
        along, across = (x * self.ux + y * self.uy) / self.a, (y * self.ux - x * self.uy) / self.b
        level = np.sqrt(along * along + across * across)
        slope_along, slope_across = along / self.a, across / self.b
        slope = np.sqrt(slope_along * slope_along + slope_across * slope_across)
        tiny = 1e-9  # keeps the quotient finite in the very centre
        return (level - 1.0) * (level + tiny) / (slope + tiny / self.a)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """A line with round ends from (x0, y0) to (x1, y1) whose half width goes from r0 to r1."""

    colour: Plane
    """float64 [3, 1, 1]."""
    x0: float
    y0: float
    x1: float
    y1: float
    r0: float
    r1: float

    def posed(self, pose: Pose) -> Self:
        """The same stroke in pixels."""
        (x0, y0), (x1, y1) = pose.point(self.x0, self.y0), pose.point(self.x1, self.y1)
        return replace(self, x0=x0, y0=y0, x1=x1, y1=y1, r0=self.r0 * pose.scale, r1=self.r1 * pose.scale)

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest upright box around it, xyxy."""
        return (
            min(self.x0 - self.r0, self.x1 - self.r1),
            min(self.y0 - self.r0, self.y1 - self.r1),
            max(self.x0 + self.r0, self.x1 + self.r1),
            max(self.y0 + self.r0, self.y1 + self.r1),
        )

    def distance(self, x: Plane, y: Plane) -> Plane:
        """How far points lie outside; negative inside."""
        dx, dy = self.x1 - self.x0, self.y1 - self.y0
        x, y = x - self.x0, y - self.y0
        along = np.minimum(np.maximum((x * dx + y * dy) / (dx * dx + dy * dy), 0.0), 1.0)
        x, y = x - along * dx, y - along * dy
        return np.sqrt(x * x + y * y) - (self.r0 + (self.r1 - self.r0) * along)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polygon:
    """A filled convex polygon; the order of its corners may turn either way."""

    colour: Plane
    """float64 [3, 1, 1]."""
    corners: tuple[tuple[float, float], ...]

    def posed(self, pose: Pose) -> Self:
        """The same polygon in pixels."""
        return replace(self, corners=tuple(pose.point(x, y) for x, y in self.corners))

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest upright box around it, xyxy."""
        across, down = zip(*self.corners, strict=True)
        return min(across), min(down), max(across), max(down)

    def distance(self, x: Plane, y: Plane) -> Plane:
        """How far points lie outside the line of the farthest side; negative inside."""
        sides = list(zip(self.corners, self.corners[1:] + self.corners[:1], strict=True))
        turn = 1.0 if sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in sides) > 0.0 else -1.0
        farthest = np.full((y.shape[0], x.shape[1]), -np.inf)
        for (x0, y0), (x1, y1) in sides:
            dx, dy = x1 - x0, y1 - y0
            length = turn * sqrt(dx * dx + dy * dy)
            np.maximum(farthest, ((x - x0) * dy - (y - y0) * dx) / length, out=farthest)
        return farthest


Shape = Ellipse | Stroke | Polygon


def rotation(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has this tangent."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


def settle(stream: Stream, shapes: Iterable[Shape], scales: tuple[float, float]) -> list[Shape]:
    """The shapes in pixels: randomly sized, turned by a few degrees, facing either way, anywhere they fit.

    What is longer than the image is centred, so that both its ends are cut alike. At scale 1, lengths in the thing's
    frame are image sides.
    """
    shapes = list(shapes)
    cosine, sine = rotation(stream.normal(0.0, 0.075))
    mirror = 1.0 if stream.below(2) else -1.0
    pose = Pose(cosine=cosine, sine=sine, mirror=mirror, scale=SIZE * stream.uniform(*scales))
    left, top, right, bottom = _bounds(shape.posed(pose) for shape in shapes)
    pose = replace(pose, x=_offset(stream, left, right), y=_offset(stream, top, bottom))
    return [shape.posed(pose) for shape in shapes]


def centre(
    shapes: Iterable[Shape], x: float, y: float, *, size: float, mirror: float = 1.0, tilt: float = 0.0
) -> list[Shape]:
    """The shapes in pixels, the middle of their bounds at (x, y) and the longer side ``size``, all in image sides.

    ``tilt`` is the tangent of half the angle by which they are turned.
    """
    shapes = list(shapes)
    cosine, sine = rotation(tilt)
    pose = Pose(cosine=cosine, sine=sine, mirror=mirror, scale=1.0)
    left, top, right, bottom = _bounds(shape.posed(pose) for shape in shapes)
    scale = SIZE * size / max(right - left, bottom - top)
    middle_x, middle_y = (left + right) / 2.0, (top + bottom) / 2.0
    pose = replace(pose, scale=scale, x=SIZE * x - scale * middle_x, y=SIZE * y - scale * middle_y)
    return [shape.posed(pose) for shape in shapes]


def paint(picture: Plane, coverage: Plane, shape: Shape) -> None:
    """Draw ``shape`` onto ``picture`` [3, SIZE, SIZE] and raise ``coverage`` [SIZE, SIZE] to its own, both in place.

    Coverage is 1 inside, 0 outside, and falls linearly over SOFTNESS pixels; it is 1/2 on the outline.
    """
    left, top, right, bottom = shape.bounds()
    x0, x1 = max(floor(left) - 1, 0), min(ceil(right) + 1, SIZE)
    y0, y1 = max(floor(top) - 1, 0), min(ceil(bottom) + 1, SIZE)
    if x0 >= x1 or y0 >= y1:
        return
    x: Plane = np.arange(x0, x1, dtype=np.float64)[None, :] + 0.5
    y: Plane = np.arange(y0, y1, dtype=np.float64)[:, None] + 0.5
    cover = np.minimum(np.maximum(0.5 - shape.distance(x, y) / SOFTNESS, 0.0), 1.0)
    window = picture[:, y0:y1, x0:x1]
    window += (shape.colour - window) * cover
    seen = coverage[y0:y1, x0:x1]
    np.maximum(seen, cover, out=seen)


def _bounds(shapes: Iterable[Shape]) -> tuple[float, float, float, float]:
    """Of all together, xyxy."""
    left, top, right, bottom = zip(*(shape.bounds() for shape in shapes), strict=True)
    return min(left), min(top), max(right), max(bottom)


def _offset(stream: Stream, low: float, high: float, margin: float = 1.0) -> float:
    """A shift that brings the interval low..high into the image, ``margin`` pixels from its border."""
    first, last = margin - low, SIZE - margin - high
    share = stream.uniform()
    return first + (last - first) * (share if first < last else 0.5)
