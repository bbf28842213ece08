"""Spawrious: generated images of four dog breeds at six places, in six sets of graded difficulty.

In the one-to-one sets (``o2o``) nearly every training image of a breed is at one place of its own, the rest at a place
that all breeds share; in the many-to-many sets (``m2m``) two breeds share two places. The test split swaps the places.
Labels, places and numbers are those of the publishers' loader (aengusl/spawrious)::

    spawrious224/{0,1}/{desert,jungle,dirt,mountain,snow,beach}/{bulldog,corgi,dachshund,labrador}/*.png

* ``o2o`` training: of folder ``0/`` 3,072 images of a breed at its place and 96 at the shared one, of folder ``1/``
  2,756 and 412. Test: all images of both folders at the breed's test place.
* ``m2m`` training and test: all images of folder ``0/`` at the two places of a breed.

Where published code takes the first images of an unsorted listing, here those are taken that come first in the order
of the sha256 of their names. There is no official val split: the publishers propose a random 20 % of train, and here
it is 20 % of every group by the same order (``hold_out_val``). Groups are breed times place, most of them empty: each
breed is tested at one place (``o2o``) or two (``m2m``), and the paper reports the average accuracy on test.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spurbench.data.draws import name_order
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.image_dataset import ImageDataset, find_folder, hold_out_val, list_records, open_records

__all__ = ["BREEDS", "DATASETS", "PLACES", "Cell", "cells", "open_spawrious"]

BREEDS = ("bulldog", "corgi", "dachshund", "labrador")
"""In the order of the labels."""
PLACES = ("desert", "jungle", "dirt", "mountain", "snow", "beach")
PUBLISHED = 3168
"""Images per folder, place and breed."""
ROOM = {0: 3072, 1: 2756}
"""Images of a breed at its own place that one-to-one training takes from each of the two folders; 97 % and 87 %."""

TABLE_BREEDS = ("bulldog", "dachshund", "labrador", "corgi")
"""In the order of the tables below, which is not that of the labels."""
ONE_TO_ONE = {
    "easy": (("desert", "jungle", "dirt", "snow"), ("dirt", "snow", "desert", "jungle"), "beach"),
    "medium": (("mountain", "beach", "dirt", "jungle"), ("jungle", "dirt", "beach", "snow"), "desert"),
    "hard": (("jungle", "mountain", "snow", "desert"), ("mountain", "snow", "desert", "jungle"), "beach"),
}
"""Place of each breed in training and in test, and the place that all breeds share in training."""
MANY_TO_MANY = {
    "easy": (("desert", "mountain", "dirt", "jungle"), ("dirt", "jungle", "mountain", "desert")),
    "medium": (("beach", "snow", "mountain", "desert"), ("desert", "mountain", "beach", "snow")),
    "hard": (("dirt", "jungle", "snow", "beach"), ("snow", "beach", "dirt", "jungle")),
}
"""Four places in training and in test: the first two for bulldog and dachshund, the others for labrador and corgi."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Images of one breed in one folder, of which a split takes the first ``limit``, or all."""

    split: str
    folder: int
    place: str
    breed: str
    limit: int = PUBLISHED


def cells(kind: str, difficulty: str) -> Iterator[Cell]:
    """What the set of this kind (``o2o`` or ``m2m``) is made of; ``val`` is still part of ``train``."""
    if kind == "o2o":
        train, test, shared = ONE_TO_ONE[difficulty]
        for breed, train_place, test_place in zip(TABLE_BREEDS, train, test, strict=True):
            for folder, limit in ROOM.items():
                yield Cell("train", folder, train_place, breed, limit)
                yield Cell("train", folder, shared, breed, PUBLISHED - limit)
                yield Cell("test", folder, test_place, breed)
    else:
        for split, places in zip(("train", "test"), MANY_TO_MANY[difficulty], strict=True):
            for number, breed in enumerate(TABLE_BREEDS):
                for place in places[:2] if number < 2 else places[2:]:
                    yield Cell(split, 0, place, breed)


def _counts(kind: str, difficulty: str) -> dict[str, tuple[int, ...]]:
    """Samples per split and group of the whole set, after ``hold_out_val``."""
    whole: dict[str, Counter[int]] = {"train": Counter(), "test": Counter()}
    for cell in cells(kind, difficulty):
        whole[cell.split][len(PLACES) * BREEDS.index(cell.breed) + PLACES.index(cell.place)] += cell.limit
    train, test = (tuple(whole[split][group] for group in range(len(BREEDS) * len(PLACES))) for split in whole)
    val = tuple(count // 5 for count in train)
    return {"train": tuple(a - b for a, b in zip(train, val, strict=True)), "val": val, "test": test}


def _info(kind: str, difficulty: str) -> DatasetInfo:
    words = {"o2o": "one place per breed", "m2m": "two places per pair of breeds"}
    return DatasetInfo(
        name=f"spawrious_{kind}_{difficulty}",
        version="1",
        classes=BREEDS,
        attributes=PLACES,
        description=f"Generated dogs, {words[kind]} in training and others in test ({difficulty})",
        license="CC BY 4.0",
        citation="Lynch, Dovonon, Kaddour, Silva: Spawrious: A Benchmark for Fine Control of Spurious Correlation "
        "Biases, 2023, arXiv 2303.05470",
        source="the Dropbox links of https://github.com/aengusl/spawrious; unpack "
        f"{' or '.join(_archives(kind, difficulty))} to spawrious224/",
        expected_counts=_counts(kind, difficulty),
        archives=tuple(Archive(filename=name) for name in _archives(kind, difficulty)),
    )


def _archives(kind: str, difficulty: str) -> tuple[str, ...]:
    """Either of these has the set; there is one with all of it, and one for each one-to-one set."""
    own = (f"spawrious224__{kind}_{difficulty}.tar.gz",) if kind == "o2o" else ()
    return (*own, "spawrious224__entire_dataset.tar.gz")


@system_errors_as_data_errors()
def open_spawrious(info: DatasetInfo, kind: str, difficulty: str, root: Path | None) -> ImageDataset:
    """Open one of the six sets below a data root.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: a split without images.
    """
    needed = {f"{cell.folder}/{cell.place}" for cell in cells(kind, difficulty)}
    folder = find_folder(
        info,
        root,
        ("spawrious224", "spawrious/spawrious224", "spawrious"),
        holds=lambda folder: all((folder / below).is_dir() for below in needed),
        expected=f"{', '.join(f'{below}/' for below in sorted(needed))}",
    )
    records = []
    for cell in cells(kind, difficulty):
        found = list_records(
            folder,
            f"{cell.folder}/{cell.place}/{cell.breed}",
            split=cell.split,
            y=BREEDS.index(cell.breed),
            attribute=PLACES.index(cell.place),
        )
        records += sorted(found, key=lambda record: name_order(record.key))[: cell.limit]
    return open_records(info, folder, hold_out_val(records))


DATASETS = {
    info.name: DatasetSpec(info=info, open=partial(open_spawrious, info, kind, difficulty))
    for kind, table in (("o2o", ONE_TO_ONE), ("m2m", MANY_TO_MANY))
    for difficulty in table
    for info in (_info(kind, difficulty),)
}
