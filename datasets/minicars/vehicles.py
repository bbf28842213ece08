"""Five kinds of vehicles, seen from the side: the front at x = 0.5, the rear at -0.5, wheels down."""

from collections.abc import Callable
from typing import Final

from spurbench.drawing.planes import Plane, Rgb, tinted
from spurbench.drawing.shapes import Ellipse, Polygon, Shape, Stroke
from spurbench.drawing.stream import Stream

__all__ = ["VEHICLES", "vehicle_shapes"]

_PAINTS: Final[tuple[Rgb, ...]] = (
    (200, 50, 45),
    (45, 85, 170),
    (235, 235, 235),
    (60, 60, 65),
    (225, 180, 50),
    (60, 130, 80),
)
_TYRE: Final[Rgb] = (25, 25, 28)
_HUB: Final[Rgb] = (170, 170, 175)
_GLASS: Final[Rgb] = (120, 160, 185)


def vehicle_shapes(stream: Stream, kind: str) -> list[Shape]:
    """A vehicle of a kind, one of ``VEHICLES``; every kind comes in the same colours."""
    colour = tinted(stream, _PAINTS[stream.below(len(_PAINTS))], 0.05)
    glass = tinted(stream, _GLASS, 0.05)
    return VEHICLES[kind](stream, colour, glass)


def _sedan(stream: Stream, colour: Plane, glass: Plane) -> list[Shape]:
    roof = -_varied(stream, 0.22)
    return [
        Stroke(colour=colour, x0=-0.42, y0=0.0, x1=0.42, y1=0.0, r0=0.085, r1=0.075),
        _trapezoid(colour, (-0.3, 0.3), (-0.15, 0.12), -0.04, roof),
        _trapezoid(glass, (-0.23, 0.22), (-0.13, 0.09), -0.08, roof + 0.03),
        *_wheels(stream, 0.09, 0.08),
    ]


def _hatchback(stream: Stream, colour: Plane, glass: Plane) -> list[Shape]:
    roof = -_varied(stream, 0.23)
    return [
        Stroke(colour=colour, x0=-0.41, y0=0.0, x1=0.42, y1=0.01, r0=0.09, r1=0.07),
        _trapezoid(colour, (-0.48, 0.26), (-0.38, 0.06), -0.02, roof),
        _trapezoid(glass, (-0.41, 0.18), (-0.35, 0.03), -0.08, roof + 0.03),
        *_wheels(stream, 0.09, 0.08),
    ]


def _pickup(stream: Stream, colour: Plane, glass: Plane) -> list[Shape]:
    roof = -_varied(stream, 0.29)
    return [
        _trapezoid(colour, (-0.5, 0.48), (-0.5, 0.48), 0.06, -0.08),
        _trapezoid(colour, (-0.02, 0.3), (0.0, 0.2), -0.06, roof),
        _trapezoid(glass, (0.03, 0.25), (0.04, 0.17), -0.1, roof + 0.03),
        *_wheels(stream, 0.13, 0.11),
    ]


def _jeep(stream: Stream, colour: Plane, glass: Plane) -> list[Shape]:
    roof = -_varied(stream, 0.33)
    return [
        _trapezoid(colour, (-0.45, 0.48), (-0.45, 0.46), 0.07, -0.1),
        _trapezoid(colour, (-0.45, 0.18), (-0.43, 0.12), -0.08, roof),
        _trapezoid(glass, (-0.39, 0.13), (-0.38, 0.09), -0.12, roof + 0.04),
        Ellipse(colour=tinted(stream, _TYRE, 0.02), x=-0.48, y=-0.06, a=0.035, b=0.1),
        *_wheels(stream, 0.13, 0.12),
    ]


def _lorry(stream: Stream, colour: Plane, glass: Plane) -> list[Shape]:
    load = tinted(stream, _PAINTS[stream.below(len(_PAINTS))], 0.05)
    roof = -_varied(stream, 0.34)
    return [
        _trapezoid(load, (-0.5, 0.17), (-0.5, 0.17), 0.07, roof),
        _trapezoid(colour, (0.2, 0.48), (0.22, 0.4), 0.07, -0.2),
        _trapezoid(glass, (0.3, 0.46), (0.3, 0.4), -0.05, -0.17),
        *_wheels(stream, 0.1, 0.085),
    ]


VEHICLES: Final[dict[str, Callable[[Stream, Plane, Plane], list[Shape]]]] = {
    "sedan": _sedan,
    "hatchback": _hatchback,
    "pickup": _pickup,
    "jeep": _jeep,
    "lorry": _lorry,
}
"""How each kind is drawn, from its paint and its glass."""


def _wheels(stream: Stream, y: float, radius: float) -> list[Shape]:
    tyre, hub = tinted(stream, _TYRE, 0.02), tinted(stream, _HUB, 0.04)
    radius = _varied(stream, radius)
    wheels: list[Shape] = []
    for x in (-0.28, 0.29):
        wheels.append(Ellipse(colour=tyre, x=x, y=y, a=radius, b=radius))
        wheels.append(Ellipse(colour=hub, x=x, y=y, a=0.4 * radius, b=0.4 * radius))
    return wheels


def _trapezoid(
    colour: Plane, lower: tuple[float, float], upper: tuple[float, float], bottom: float, top: float
) -> Shape:
    return Polygon(colour=colour, corners=((lower[0], bottom), (upper[0], top), (upper[1], top), (lower[1], bottom)))


def _varied(stream: Stream, value: float, share: float = 0.06) -> float:
    return value * (1.0 + stream.normal(0.0, share))
