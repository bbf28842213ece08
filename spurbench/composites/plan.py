"""Which bird goes into which split, on which place and photograph; nothing here opens an image."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from spurbench.composites.labels import is_waterbird
from spurbench.data.csv_columns import read_columns
from spurbench.data.cub import CubImage
from spurbench.data.draws import VAL_FRACTION, ranked
from spurbench.data.image_table import SPLITS, read_table
from spurbench.errors import ConfigError, DataError

__all__ = ["CATEGORIES", "PLACES", "Composite", "assign", "group_counts", "read_plan", "table_text", "with_places"]

PLACES = ("land", "water")
CATEGORIES = (("bamboo_forest", "forest/broadleaf"), ("ocean", "lake/natural"))
"""Categories of Places365 for land and for water."""
COLUMNS = ("img_id", "img_filename", "y", "split", "place", "place_filename")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composite:
    """One image to be made, which is one row of ``metadata.csv``."""

    id: str
    bird: str
    """Path of the photograph, its mask and the composite below their folders: ``"001.Albatross/1.jpg"``."""
    y: int
    """0 landbird, 1 waterbird."""
    split: str
    place: int
    """0 land, 1 water."""
    background: str
    """Path below the folder of Places, beginning with a slash: ``"/o/ocean/00000001.jpg"``."""


def assign(
    birds: Sequence[CubImage],
    backgrounds: Mapping[int, Iterable[str]],
    *,
    correlation: float,
    seed: int,
    corrected: bool = False,
) -> tuple[Composite, ...]:
    """Draw split, place and background of every bird.

    Of the training birds ``round(0.2 * n)`` become the validation split. Of a class with n training birds
    ``round(correlation * n)`` waterbirds and ``round((1 - correlation) * n)`` landbirds stand on water; half of them do
    in validation and test. No photograph is used twice, over all splits.

    Args:
        backgrounds: the photographs of each place, any order.

    Raises:
        ConfigError: a correlation outside of 0 to 1.
        DataError: too few photographs.
    """
    if not 0 <= correlation <= 1:
        raise ConfigError(f"correlation is {correlation:g}, expected a number from 0 to 1, such as 0.95")
    training = [bird.name for bird in birds if bird.is_training]
    held = frozenset(ranked(training, "waterbirds/val", seed)[: round(VAL_FRACTION * len(training))])
    unplaced = [
        Composite(
            id=str(bird.id),
            bird=bird.name,
            y=int(is_waterbird(bird.species, corrected=corrected)),
            split="test" if not bird.is_training else "val" if bird.name in held else "train",
            place=0,
            background="",
        )
        for bird in birds
    ]
    return _with_backgrounds(with_places(unplaced, correlation, seed), backgrounds, seed)


def with_places(composites: Sequence[Composite], correlation: float, seed: int) -> list[Composite]:
    """Draw which birds stand on water; see ``assign``. Backgrounds are left as they are."""
    members: dict[tuple[str, int], list[str]] = defaultdict(list)
    for one in composites:
        members[one.split, one.y].append(one.bird)
    on_water: set[str] = set()
    for (split, y), names in members.items():
        # Like the published script, down to how 1 - c rounds.
        fraction = 0.5 if split != "train" else correlation if y == 1 else 1 - correlation
        on_water.update(ranked(names, f"waterbirds/place/{split}/{y}", seed)[: round(fraction * len(names))])
    return [replace(one, place=int(one.bird in on_water)) for one in composites]


def read_plan(path: Path, *, corrected: bool = False) -> tuple[Composite, ...]:
    """The composites that a WaterBirds ``metadata.csv`` describes.

    Raises:
        DataError: malformed, a column missing, or names of files that lead out of their folders.
    """
    table = read_table(path, num_classes=2, num_attributes=2)
    backgrounds = [cells[0] for _, cells in read_columns(path, ["place_filename"])]
    ids = [cells[0] for _, cells in read_columns(path, ["img_id"])]
    composites = []
    lines: dict[str, int] = {}
    for row, number, background in zip(table.rows, ids, backgrounds, strict=True):
        if not _stays_below(row.filename):
            raise DataError(f"{table.where(row)}: '{row.filename}' is not a path such as 001.Species/1.jpg")
        if not (background.startswith("/") and _stays_below(background[1:])):
            raise DataError(f"{table.where(row)}: '{background}' is not a path such as /o/ocean/00000001.jpg")
        if lines.setdefault(row.filename, row.line) != row.line:
            raise DataError(f"{table.where(row)}: {row.filename} was already listed in line {lines[row.filename]}")
        assert row.attribute is not None  # asked for above
        right = is_waterbird(PurePosixPath(row.filename).parts[0], corrected=True)
        composites.append(
            Composite(
                id=number,
                bird=row.filename,
                y=min(row.y, int(right)) if corrected else row.y,
                split=row.split,
                place=row.attribute,
                background=background,
            )
        )
    return tuple(composites)


def table_text(composites: Iterable[Composite]) -> str:
    """The official ``metadata.csv``."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in composites:
        writer.writerow((one.id, one.bird, one.y, SPLITS.index(one.split), one.place, one.background))
    return stream.getvalue()


def group_counts(composites: Iterable[Composite]) -> dict[str, tuple[int, ...]]:
    """Images per split and group ``2 y + place``."""
    counts = Counter((one.split, 2 * one.y + one.place) for one in composites)
    return {split: tuple(counts[split, group] for group in range(4)) for split in SPLITS}


def _stays_below(name: str) -> bool:
    """Whether it names a file in a folder of the folder that it is joined to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and len(path.parts) > 1


def _with_backgrounds(
    composites: Sequence[Composite], backgrounds: Mapping[int, Iterable[str]], seed: int
) -> tuple[Composite, ...]:
    shuffled: dict[int, Iterator[str]] = {}
    for place, names in backgrounds.items():
        pool = ranked(names, "waterbirds/background", seed)
        needed = sum(one.place == place for one in composites)
        if len(pool) < needed:
            raise DataError(
                f"{needed:,} photographs of {PLACES[place]} are needed, one for each bird, but there are {len(pool):,} "
                f"in {' and '.join(CATEGORIES[place])}; was Places365 unpacked completely?"
            )
        shuffled[place] = iter(pool)
    return tuple(replace(one, background=next(shuffled[one.place])) for one in composites)
