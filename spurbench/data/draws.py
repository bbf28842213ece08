"""Choices by chance among named files that come out equal on every machine and with every version of every library.

Names are put in the order of a hash. Neither a file system's order nor a generator's state has a part in it, and a name
keeps its rank when others come or go.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

__all__ = ["VAL_FRACTION", "held_out", "name_order", "ranked"]

VAL_FRACTION = 0.2
"""Part of the training images that is held out where a set has no validation split."""


def name_order(name: str) -> bytes:
    """Sorting by this shuffles names in an order that is the same everywhere and for ever: that of their sha256.

    For draws that published code leaves to the order of a file system or to an unseeded generator.
    """
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def ranked(names: Iterable[str], purpose: str, seed: int) -> list[str]:
    """``names`` in the order of ``sha256(f"{seed}/{purpose}/{name}")``, for draws that a user can make anew."""
    return sorted(names, key=lambda name: (name_order(f"{seed}/{purpose}/{name}"), name))


def held_out(groups: Mapping[str, Hashable], share: float = VAL_FRACTION, most: int | None = None) -> frozenset[str]:
    """Of each group the first ``round(share * n)`` names in ``name_order``, and not more than ``most``.

    Args:
        groups: group (class where there is no attribute) of every training image by its name, which must not say where
            the set lies.
    """
    members: dict[Hashable, list[str]] = defaultdict(list)
    for name, group in groups.items():
        members[group].append(name)
    return frozenset(
        name for names in members.values() for name in sorted(names, key=name_order)[: round(share * len(names))][:most]
    )
