"""Which species are waterbirds, by the names of CUB's folders."""

__all__ = ["WATERBIRDS", "is_waterbird"]

WATERBIRDS = (
    "albatross",
    "auklet",
    "cormorant",
    "frigatebird",
    "fulmar",
    "gull",
    "jaeger",
    "kittiwake",
    "pelican",
    "puffin",
    "tern",
    "gadwall",
    "grebe",
    "mallard",
    "merganser",
    "guillemot",
    "pacific_loon",
)
"""Seabirds and waterfowl."""


def is_waterbird(folder: str, *, corrected: bool = False) -> bool:
    """Whether the species ``"021.Eastern_Towhee"`` counts as a waterbird.

    The published rule looks for ``WATERBIRDS`` anywhere in the name and so finds a tern in eas-tern and wes-tern. The
    corrected one takes them as whole words.
    """
    name = folder.partition(".")[2].lower()
    if corrected:
        return any(f"_{bird}_" in f"_{name}_" for bird in WATERBIRDS)
    return any(bird in name for bird in WATERBIRDS)
