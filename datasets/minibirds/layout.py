"""Which bird at which place stands at which position of a split. Counts are exact, never drawn by chance."""

from dataclasses import dataclass

from spurbench.datasets.minibirds.birds import SPECIES
from spurbench.datasets.minibirds.drawing import VERSION
from spurbench.drawing.sets import paired_counts
from spurbench.drawing.stream import Stream

__all__ = ["SIZES", "Columns", "group_counts", "pretext_columns", "split_columns"]

SIZES = {"train": 2000, "val": 1000, "test": 1000, "id_val": 500}
"""Images per split."""

_BALANCED = ("val", "test")
_PRETEXT_PLACES = (0, 1, 2, 2, 2)


@dataclass(frozen=True, slots=True)
class Columns:
    """Species and place of every image of a split."""

    species: tuple[int, ...]
    """0..23, see ``birds.SPECIES``."""
    place: tuple[int, ...]
    """0 land, 1 water, 2 neither."""

    @property
    def y(self) -> tuple[int, ...]:
        """1 for a waterbird, 0 for a landbird."""
        return tuple(int(SPECIES[species].waterbird) for species in self.species)


def group_counts(split: str, percent: int) -> tuple[int, int, int, int]:
    """Images per group 2 y + place where ``percent`` of the training images are at the place of their class.

    Both classes have half of the images. ``val`` and ``test`` have equal groups whatever ``percent`` is.
    """
    return paired_counts(SIZES[split], 50 if split in _BALANCED else percent)


def split_columns(seed: int, split: str, percent: int) -> Columns:
    """The shuffled columns of a split. Species occur equally often (±1) within each group and each class."""
    per_class = len(SPECIES) // 2
    cells: list[tuple[int, int]] = []
    counts = group_counts(split, percent)
    for y in (0, 1):
        on_land, on_water = counts[2 * y : 2 * y + 2]
        for turn in range(on_land + on_water):
            cells.append((y * per_class + turn % per_class, int(turn >= on_land)))
    cells = Stream("minibirds", VERSION, seed, split, "order").shuffled(cells)
    return Columns(tuple(species for species, _ in cells), tuple(place for _, place in cells))


def pretext_columns(seed: int, split: str, size: int) -> Columns:
    """Any species anywhere: a fifth of the images on land, a fifth on water, the rest at neither."""
    stream = Stream("minibirds", VERSION, seed, split, "columns")
    cells = [(stream.below(len(SPECIES)), _PRETEXT_PLACES[stream.below(len(_PRETEXT_PLACES))]) for _ in range(size)]
    return Columns(tuple(species for species, _ in cells), tuple(place for _, place in cells))
