"""Birds: 24 species built from ellipses and tapered strokes.

A bird is described in its own frame: x towards the bill, y down, origin in the middle of the body, lengths in image
sides at scale 1. As everywhere in ``spurbench.drawing``, only exactly rounded operations are used.
"""

from dataclasses import dataclass
from typing import Final

from spurbench.drawing.planes import Plane, Rgb, tinted
from spurbench.drawing.shapes import Ellipse, Shape, Stroke, rotation
from spurbench.drawing.stream import Stream

__all__ = ["SCALES", "SPECIES", "Species", "bird_shapes"]

SCALES: Final = (0.65, 1.1)
"""Range of a bird's size; at 1, lengths in the bird's frame are image sides."""

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


def bird_shapes(stream: Stream, species: Species) -> list[Shape]:
    """One individual in the bird's frame, back to front; sizes, joints and tints vary about the species' own."""
    length, depth = _varied(stream, species.length, 0.08), _varied(stream, species.depth, 0.08)
    neck, bill, head = _varied(stream, species.neck), _varied(stream, species.bill), species.head
    body, wing = tinted(stream, species.body, 0.05), tinted(stream, species.wing, 0.05)
    bare = tinted(stream, species.bare, 0.03)

    neck_x, neck_y = 0.75 * length, -0.3 * depth
    cosine, sine = rotation(stream.normal(0.648, 0.1))  # the neck rises at 66 ± 9 degrees
    head_x, head_y = neck_x + 0.7 * neck * cosine + 0.03, neck_y - neck * sine - 0.03
    bill_x = head_x + 0.6 * head

    tilted, wing_tilted = rotation(-0.075), rotation(-0.125)
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
