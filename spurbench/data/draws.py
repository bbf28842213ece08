"""Choices by chance among named files that come out equal on every machine and with every version of every library.

Names are put in the order of a hash of seed, purpose and name. Neither a file system's order nor a generator's state
has a part in it, and a name keeps its rank when others come or go.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

__all__ = ["VAL_FRACTION", "held_out", "ranked"]

VAL_FRACTION = 0.2
"""Part of the training images that is held out where a set has no validation split."""


def ranked(names: Iterable[str], purpose: str, seed: int = 0) -> list[str]:
    """``names`` in the order of ``sha256(f"{seed}/{purpose}/{name}")``."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest(), name))


def held_out(
    labels: Mapping[str, int], fraction: float = VAL_FRACTION, purpose: str = "val", seed: int = 0
) -> frozenset[str]:
    """Of each class the first ``round(fraction * n)`` names as ``ranked`` orders them.

    Args:
        labels: class of every training image by its name, which must not say where the set lies.
    """
    by_class: dict[int, list[str]] = defaultdict(list)
    for name, label in labels.items():
        by_class[label].append(name)
    return frozenset(
        name for names in by_class.values() for name in ranked(names, purpose, seed)[: round(fraction * len(names))]
    )
