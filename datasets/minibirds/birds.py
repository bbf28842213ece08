"""Birds: 24 species built from ellipses and tapered strokes.

A bird is described in its own frame: x towards the bill, y down, origin in the middle of the body, lengths in image
sides at scale 1. A ``Pose`` turns its shapes into pixels; ``paint`` puts one shape on a picture. As in ``scenes``, only
exactly rounded operations are used; rotations are given by the tangent t of half their angle, since
cos = (1 - t²) / (1 + t²) and sin = 2 t / (1 + t²) need no trigonometric function.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, floor, sqrt  # the three functions of ``math`` used here are exact or correctly rounded
from typing import Final, Self

import numpy as np

from spurbench.datasets.minibirds.scenes import SIZE, Plane, Rgb, tinted
from spurbench.datasets.minibirds.stream import Stream

__all__ = ["SCALES", "SOFTNESS", "SPECIES", "Ellipse", "Pose", "Species", "Stroke", "bird_shapes", "paint", "settle"]

SCALES: Final = (0.65, 1.1)
"""Range of a bird's size; at 1, lengths in the bird's frame are image sides."""

SOFTNESS: Final = 1.3
"""Width of an outline's fade from bird to background, pixels."""

_WHITE: Final[Rgb] = (240, 240, 235)
_CHARCOAL: Final[Rgb] = (60, 60, 65)
_RUFOUS: Final[Rgb] = (150, 90, 50)
_RED: Final[Rgb] = (200, 60, 40)
_BLUE: Final[Rgb] = (60, 110, 190)
_YELLOW: Final[Rgb] = (220, 180, 60)
_PLUMAGE: Final = (_WHITE, _CHARCOAL, _RUFOUS, _RED, _BLUE, _YELLOW)
_ORANGE: Final[Rgb] = (230, 150, 40)
_BLACK: Final[Rgb] = (40, 40, 40)
_PUPIL: Final[Rgb] = (15, 15, 15)

_LANDBIRDS: Final = (
    "Amber_Thrush",
    "Bramble_Finch",
    "Cedar_Warbler",
    "Dusk_Robin",
    "Elder_Sparrow",
    "Fern_Wren",
    "Gorse_Bunting",
    "Hazel_Jay",
    "Ivory_Tanager",
    "Juniper_Pipit",
    "Knoll_Lark",
    "Linden_Oriole",
)
# Each contains one of the words by which the WaterBirds generator tells waterbirds; no name above does.
_WATERBIRDS: Final = (
    "Marsh_Grebe",
    "North_Gull",
    "Opal_Tern",
    "Pebble_Puffin",
    "Quiet_Mallard",
    "Reef_Cormorant",
    "Shore_Kittiwake",
    "Tidal_Merganser",
    "Umber_Pelican",
    "Velvet_Guillemot",
    "Wave_Albatross",
    "Yarrow_Gadwall",
)
# Steps around the six plumage colours from body to wing and from body to belly, for two halves of each class.
_COLOUR_STEPS: Final = (((1, 3), (2, 5)), ((3, 1), (4, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Species:
    """The typical bird of a species; lengths in image sides at scale 1."""

    name: str
    waterbird: bool
    body: Rgb
    wing: Rgb
    belly: Rgb
    bare: Rgb
    """Colour of bill and legs."""
    length: float
    """Half the body's length."""
    depth: float
    """Half the body's depth."""
    head: float
    """Radius."""
    neck: float
    neck_width: float
    """Half width at the head."""
    bill: float
    bill_width: float
    """Half width at the head."""
    tail: float
    leg: float
    """0 when the legs do not show, as on a swimming bird."""


def _species(number: int) -> Species:
    """Species 0..23: first the landbirds, then the waterbirds.

    Shapes tell the classes apart: waterbirds have long necks and bills and short tails. Colours do not: within each
    class every plumage colour occurs equally often on the body, the wing and the belly, in combinations that differ
    between species.
    """
    waterbird, member = divmod(number, len(_LANDBIRDS))
    half, colour = divmod(member, len(_PLUMAGE))
    to_wing, to_belly = _COLOUR_STEPS[waterbird][half]
    stream = Stream("minibirds", "species", number)
    shape = _waterbird_shape(stream, member) if waterbird else _landbird_shape(stream)
    return Species(
        name=(_WATERBIRDS if waterbird else _LANDBIRDS)[member],
        waterbird=bool(waterbird),
        body=_PLUMAGE[colour],
        wing=_PLUMAGE[(colour + to_wing) % len(_PLUMAGE)],
        belly=_PLUMAGE[(colour + to_belly) % len(_PLUMAGE)],
        bare=_ORANGE if member % 2 else _BLACK,
        **shape,
    )


def _landbird_shape(stream: Stream) -> dict[str, float]:
    return {
        "length": stream.uniform(0.18, 0.23),
        "depth": stream.uniform(0.13, 0.17),
        "head": stream.uniform(0.085, 0.11),
        "neck": stream.uniform(0.02, 0.07),
        "neck_width": stream.uniform(0.07, 0.1),
        "bill": stream.uniform(0.04, 0.08),
        "bill_width": stream.uniform(0.02, 0.035),
        "tail": stream.uniform(0.18, 0.32),
        "leg": stream.uniform(0.08, 0.14),
    }


def _waterbird_shape(stream: Stream, member: int) -> dict[str, float]:
    return {
        "length": stream.uniform(0.24, 0.3),
        "depth": stream.uniform(0.11, 0.15),
        "head": stream.uniform(0.06, 0.08),
        "neck": stream.uniform(0.16, 0.32),
        "neck_width": stream.uniform(0.035, 0.055),
        "bill": stream.uniform(0.11, 0.2),
        "bill_width": stream.uniform(0.022, 0.04),
        "tail": stream.uniform(0.06, 0.12),
        "leg": 0.2 if member % 3 == 0 else 0.0,
    }


SPECIES: Final = tuple(_species(number) for number in range(len(_LANDBIRDS) + len(_WATERBIRDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """A similarity from a bird's frame to pixels: mirror, rotate, scale, shift."""

    cosine: float
    sine: float
    mirror: float
    """-1 turns the bill to the left, 1 to the right."""
    scale: float
    """Pixels per unit length."""
    x: float = 0.0
    y: float = 0.0
    """Where the bird's origin goes, pixels."""

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


Shape = Ellipse | Stroke


def bird_shapes(stream: Stream, species: Species) -> list[Shape]:
    """One individual in the bird's frame, back to front; sizes, joints and tints vary about the species' own."""
    length, depth = _varied(stream, species.length, 0.08), _varied(stream, species.depth, 0.08)
    neck, bill, head = _varied(stream, species.neck), _varied(stream, species.bill), species.head
    body, wing = tinted(stream, species.body, 0.05), tinted(stream, species.wing, 0.05)
    bare = tinted(stream, species.bare, 0.03)

    neck_x, neck_y = 0.75 * length, -0.3 * depth
    cosine, sine = _rotation(stream.normal(0.648, 0.1))  # the neck rises at 66 ± 9 degrees
    head_x, head_y = neck_x + 0.7 * neck * cosine + 0.03, neck_y - neck * sine - 0.03
    bill_x = head_x + 0.6 * head

    tilted, wing_tilted = _rotation(-0.075), _rotation(-0.125)
    return [
        *_legs(stream, species, depth, bare),
        _tail(stream, species, length, wing),
        _ellipse(body, 0.0, 0.0, length, depth, tilted),
        _ellipse(tinted(stream, species.belly, 0.05), 0.02, 0.45 * depth, 0.75 * length, 0.5 * depth, tilted),
        Stroke(
            colour=body,
            x0=neck_x,
            y0=neck_y,
            x1=head_x,
            y1=head_y,
            r0=1.3 * species.neck_width,
            r1=species.neck_width,
        ),
        Stroke(
            colour=bare,
            x0=bill_x,
            y0=head_y,
            x1=bill_x + bill,
            y1=head_y + stream.normal(0.02, 0.02),
            r0=species.bill_width,
            r1=0.4 * species.bill_width,
        ),
        _ellipse(body, head_x, head_y, head, 0.9 * head, (1.0, 0.0)),
        _ellipse(wing, -0.04, -0.01, 0.65 * length, 0.55 * depth, wing_tilted),
        _ellipse(tinted(stream, _PUPIL, 0.0), head_x + 0.02, head_y - 0.015, 0.016, 0.016, (1.0, 0.0)),
    ]


def _legs(stream: Stream, species: Species, depth: float, colour: Plane) -> list[Shape]:
    if species.leg == 0.0:
        return []
    foot = depth + _varied(stream, species.leg)
    return [
        Stroke(colour=colour, x0=hip, y0=0.8 * depth, x1=stream.normal(hip, 0.02), y1=foot, r0=0.014, r1=0.014)
        for hip in (-0.05, 0.05)
    ]


def _tail(stream: Stream, species: Species, length: float, colour: Plane) -> Shape:
    tip = -length - _varied(stream, species.tail)
    return Stroke(colour=colour, x0=-0.7 * length, y0=0.0, x1=tip, y1=stream.normal(0.02, 0.05), r0=0.06, r1=0.03)


def _ellipse(colour: Plane, x: float, y: float, a: float, b: float, direction: tuple[float, float]) -> Shape:
    return Ellipse(colour=colour, x=x, y=y, a=a, b=b, ux=direction[0], uy=direction[1])


def _varied(stream: Stream, value: float, share: float = 0.12) -> float:
    return value * (1.0 + stream.normal(0.0, share))


def _rotation(half_tangent: float) -> tuple[float, float]:
    """Cosine and sine of the angle whose half has this tangent."""
    square = half_tangent * half_tangent
    return (1.0 - square) / (1.0 + square), 2.0 * half_tangent / (1.0 + square)


def settle(stream: Stream, shapes: Iterable[Shape]) -> list[Shape]:
    """The shapes in pixels: randomly sized, turned by a few degrees, facing either way, anywhere they fit.

    A bird longer than the image is centred, so that both its ends are cut alike.
    """
    shapes = list(shapes)
    cosine, sine = _rotation(stream.normal(0.0, 0.075))
    mirror = 1.0 if stream.below(2) else -1.0
    pose = Pose(cosine=cosine, sine=sine, mirror=mirror, scale=SIZE * stream.uniform(*SCALES))
    bounds = [shape.posed(pose).bounds() for shape in shapes]
    x = _offset(stream, min(b[0] for b in bounds), max(b[2] for b in bounds))
    y = _offset(stream, min(b[1] for b in bounds), max(b[3] for b in bounds))
    pose = replace(pose, x=x, y=y)
    return [shape.posed(pose) for shape in shapes]


def _offset(stream: Stream, low: float, high: float, margin: float = 1.0) -> float:
    """A shift that brings the interval low..high into the image, ``margin`` pixels from its border."""
    first, last = margin - low, SIZE - margin - high
    share = stream.uniform()
    return first + (last - first) * (share if first < last else 0.5)


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
