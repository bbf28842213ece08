"""Backgrounds and second objects, two families of urban and two of country."""

from collections.abc import Callable
from typing import Final

from spurbench.drawing.planes import Plane, Rgb, X, Y, blend, noise, smoothstep, tinted, triangle
from spurbench.drawing.shapes import Ellipse, Polygon, Shape, Stroke
from spurbench.drawing.stream import Stream

__all__ = ["BACKGROUNDS", "CO_OBJECTS", "co_object_shapes", "draw_background"]

_RED: Final[Rgb] = (205, 45, 40)
_STEEL: Final[Rgb] = (120, 122, 128)
_BLACK: Final[Rgb] = (40, 38, 38)
_WHITE: Final[Rgb] = (235, 232, 225)


def draw_background(stream: Stream, place: int) -> Plane:
    """A random background of ``place``, 0 urban or 1 country."""
    sketches = BACKGROUNDS[place]
    return sketches[stream.below(len(sketches))](stream)


def co_object_shapes(stream: Stream, place: int) -> list[Shape]:
    """A random second object of ``place``, in a frame of its own."""
    sketches = CO_OBJECTS[place]
    return sketches[stream.below(len(sketches))](stream)


def _street(stream: Stream) -> Plane:
    """Facades with windows above asphalt."""
    wall = blend(tinted(stream, (120, 95, 85)), tinted(stream, (175, 160, 145)), noise(stream, (3, 4), (8, 8)))
    frequency = stream.uniform(4.0, 7.0)
    across = smoothstep(-0.1, 0.2, triangle(X * frequency + stream.uniform()))
    down = smoothstep(-0.1, 0.2, triangle(Y * (0.8 * frequency) + stream.uniform()))
    facade = blend(wall, tinted(stream, (70, 85, 105)), 0.8 * across * down)
    return _on_ground(stream, facade, _asphalt(stream))


def _crosswalk(stream: Stream) -> Plane:
    """A grey wall above a road with white bars."""
    wall = blend(tinted(stream, (130, 130, 135)), tinted(stream, (185, 185, 185)), noise(stream, (4, 4), (12, 12)))
    bars = smoothstep(0.0, 0.3, triangle(X * stream.uniform(4.0, 6.0) + stream.uniform()))
    low = smoothstep(0.68, 0.72, Y)
    road = blend(_asphalt(stream), tinted(stream, (225, 225, 220)), 0.7 * bars * low)
    return _on_ground(stream, wall, road)


def _field_road(stream: Stream) -> Plane:
    """Sky above a meadow."""
    grass = noise(stream, (4, 8), (10, 24), (20, 48))
    meadow = blend(tinted(stream, (70, 105, 40)), tinted(stream, (150, 170, 80)), grass)
    clouds = noise(stream, (2, 2), (4, 4), (8, 8))
    return _on_ground(stream, blend(tinted(stream, (140, 180, 225)), tinted(stream, (235, 238, 240)), clouds), meadow)


def _forest_road(stream: Stream) -> Plane:
    """Leaves above earth."""
    leaves = noise(stream, (6, 6), (12, 12), (24, 24))
    canopy = blend(tinted(stream, (25, 55, 25)), tinted(stream, (105, 135, 65)), leaves)
    litter = noise(stream, (6, 6), (16, 16))
    return _on_ground(stream, canopy, blend(tinted(stream, (105, 80, 55)), tinted(stream, (165, 140, 100)), litter))


def _asphalt(stream: Stream) -> Plane:
    return blend(tinted(stream, (75, 75, 80)), tinted(stream, (125, 125, 128)), noise(stream, (8, 4), (24, 16)))


def _on_ground(stream: Stream, above: Plane, ground: Plane) -> Plane:
    edge = stream.uniform(0.42, 0.58)
    return blend(above, ground, smoothstep(edge - 0.02, edge + 0.02, Y))


def _hydrant(stream: Stream) -> list[Shape]:
    red = tinted(stream, _RED)
    return [
        Stroke(colour=red, x0=0.0, y0=-0.2, x1=0.0, y1=0.45, r0=0.2, r1=0.2),
        Stroke(colour=red, x0=-0.28, y0=0.05, x1=0.28, y1=0.05, r0=0.09, r1=0.09),
        Stroke(colour=red, x0=-0.28, y0=0.5, x1=0.28, y1=0.5, r0=0.1, r1=0.1),
        Ellipse(colour=tinted(stream, (225, 190, 60)), x=0.0, y=-0.35, a=0.2, b=0.15),
    ]


def _stop_sign(stream: Stream) -> list[Shape]:
    red = tinted(stream, _RED)
    corners = ((-0.16, -0.38), (0.16, -0.38), (0.38, -0.16), (0.38, 0.16), (0.16, 0.38), (-0.16, 0.38), (-0.38, 0.16))
    return [
        Stroke(colour=tinted(stream, _STEEL), x0=0.0, y0=0.2, x1=0.0, y1=0.75, r0=0.06, r1=0.06),
        Polygon(colour=red, corners=(*corners, (-0.38, -0.16))),
        Stroke(colour=tinted(stream, _WHITE), x0=-0.2, y0=0.0, x1=0.2, y1=0.0, r0=0.08, r1=0.08),
    ]


def _traffic_light(stream: Stream) -> list[Shape]:
    box = tinted(stream, _BLACK)
    lights = ((-0.38, _RED), (-0.14, (230, 180, 50)), (0.1, (70, 180, 90)))
    return [
        Stroke(colour=tinted(stream, _STEEL), x0=0.0, y0=0.3, x1=0.0, y1=0.75, r0=0.07, r1=0.07),
        Polygon(colour=box, corners=((-0.22, -0.55), (0.22, -0.55), (0.22, 0.27), (-0.22, 0.27))),
        *(Ellipse(colour=tinted(stream, rgb, 0.03), x=0.0, y=y, a=0.13, b=0.11) for y, rgb in lights),
    ]


def _cow(stream: Stream) -> list[Shape]:
    black = tinted(stream, _BLACK, 0.03)
    spots = [
        Ellipse(colour=black, x=stream.uniform(-0.3, 0.25), y=stream.uniform(-0.1, 0.1), a=0.12, b=0.1)
        for _ in range(2)
    ]
    return [*_beast(stream, _WHITE, _WHITE, (-0.12, -0.02)), *spots]


def _horse(stream: Stream) -> list[Shape]:
    return _beast(stream, (130, 80, 45), (115, 70, 40), (-0.38, -0.3))


def _sheep(stream: Stream) -> list[Shape]:
    wool = tinted(stream, (225, 220, 205), 0.04)
    puffs = [Ellipse(colour=wool, x=x, y=-0.14, a=0.18, b=0.16) for x in (-0.28, -0.02, 0.24)]
    return [*_beast(stream, (225, 220, 205), (60, 55, 52), (-0.1, 0.02)), *puffs]


def _beast(stream: Stream, coat: Rgb, face: Rgb, head: tuple[float, float]) -> list[Shape]:
    """On four legs, its head at these two heights: that of the neck's end and of the muzzle."""
    body, skin = tinted(stream, coat, 0.04), tinted(stream, face, 0.04)
    legs: list[Shape] = [
        Stroke(colour=skin, x0=x, y0=0.1, x1=x + 0.02, y1=0.48, r0=0.06, r1=0.05) for x in (-0.36, -0.24, 0.2, 0.32)
    ]
    return [
        *legs,
        Ellipse(colour=body, x=0.0, y=0.0, a=0.46, b=0.22),
        Stroke(colour=body, x0=0.34, y0=-0.05, x1=0.5, y1=head[0], r0=0.13, r1=0.1),
        Stroke(colour=skin, x0=0.5, y0=head[0], x1=0.66, y1=head[1], r0=0.1, r1=0.07),
    ]


BACKGROUNDS: Final[tuple[tuple[Callable[[Stream], Plane], ...], ...]] = (
    (_street, _crosswalk),
    (_field_road, _forest_road),
)
"""Of place 0 (urban) and 1 (country)."""

CO_OBJECTS: Final[tuple[tuple[Callable[[Stream], list[Shape]], ...], ...]] = (
    (_hydrant, _stop_sign, _traffic_light),
    (_cow, _horse, _sheep),
)
"""Likewise."""
