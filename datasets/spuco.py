"""SpuCoBirds, SpuCoDogs and both together as SpuCoAnimals: ImageNet's animals at usual and unusual places.

95 % of the training images of a class are at its usual place; val is like train, test has groups of equal size. The
tree is the publishers' (BigML-CS-UCLA/SpuCo)::

    spuco_birds/{train,val,test}/{landbirds,waterbirds}/{land,water}/<number>.*
    spuco_dogs/{train,val,test}/{small_dogs,big_dogs}/{indoor,outdoor}/<number>.*

SpuCoAnimals numbers classes and places through, birds first, so that 8 of its 16 groups are empty by construction.

The publishers' masks are one pickle of nearly 10 GB, ``spuco_animals_masks.pkl``, indexed by the numbers that name the
images. It is never read here: a pickle can run any code, and what True means is not settled (their loader calls the
array a mask of the spurious part, its documentation reads as if it kept the core). Who has looked at it can save the
masks as ``spuco_animals_masks/<number>.png`` beside the two folders, white on the animal and black elsewhere: they are
then read for all three sets.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.image_dataset import ImageDataset, add_masks, find_folder, list_records, open_records

__all__ = ["DATASETS", "MASKS", "open_spuco"]

SPLITS = ("train", "val", "test")
MASKS = "spuco_animals_masks"
"""Folder of the masks, beside the folders of the images."""
USUAL = {"train": 10_000, "val": 500, "test": 500}
UNUSUAL = {"train": 500, "val": 25, "test": 500}
"""Images of a class at its usual and at the other place."""


@dataclass(frozen=True, slots=True)
class Half:
    """Two classes and their two places; each class is usually at the place of the same position."""

    folder: str
    classes: tuple[str, str]
    """As their folders are called."""
    places: tuple[str, str]
    source: str
    citation: str = (
        "Joshi, Yang, Xue, Yang, Mirzasoleiman: Towards Mitigating Spurious Correlations in the Wild: A Benchmark and "
        "a more Realistic Dataset, 2023, arXiv 2306.11957"
    )


BIRDS = Half(
    "spuco_birds",
    ("landbirds", "waterbirds"),
    ("land", "water"),
    "https://ucla.box.com/shared/static/zrsx09ik7lqad1e389w06f1c4nbajo9z",
)
DOGS = Half(
    "spuco_dogs",
    ("small_dogs", "big_dogs"),
    ("indoor", "outdoor"),
    "https://ucla.box.com/shared/static/u3dkllvq7a2py4x443pqul295wwd549e",
)
SETS: dict[str, tuple[Half, ...]] = {"spuco_birds": (BIRDS,), "spuco_dogs": (DOGS,), "spuco_animals": (BIRDS, DOGS)}


def _info(name: str, halves: tuple[Half, ...]) -> DatasetInfo:
    classes = tuple(label for half in halves for label in half.classes)
    return DatasetInfo(
        name=name,
        version="1",
        classes=tuple(label.removesuffix("s").replace("_", " ") for label in classes),
        attributes=tuple(place for half in halves for place in half.places),
        description=f"{' and '.join(label.replace('_', ' ') for label in classes)} of ImageNet, 95 % of them at their "
        "usual place in training",
        license="Terms of ImageNet: non-commercial research and education",
        citation=halves[0].citation,
        source=" and ".join(f"{half.source} (unpack to {half.folder}/)" for half in halves),
        has_masks=True,
        expected_counts={split: _counts(split, len(halves)) for split in SPLITS},
    )


def _counts(split: str, halves: int) -> tuple[int, ...]:
    """Samples per group: class ``y`` is usually at place ``y``, and never at a place of the other half."""
    size = 2 * halves
    return tuple(
        USUAL[split] if y == place else UNUSUAL[split] if y // 2 == place // 2 else 0
        for y in range(size)
        for place in range(size)
    )


@system_errors_as_data_errors()
def open_spuco(info: DatasetInfo, halves: tuple[Half, ...], root: Path | None) -> ImageDataset:
    """Open one of the three sets below a data root.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: a split without images, or masks for some images only.
    """
    folder = find_folder(
        info,
        root,
        ("spuco",),
        holds=lambda folder: all((folder / half.folder / "train").is_dir() for half in halves),
        expected=" and ".join(f"{half.folder}/train/" for half in halves),
    )
    records = [
        record
        for split in SPLITS
        for number, half in enumerate(halves)
        for y, label in enumerate(half.classes, start=2 * number)
        for attribute, place in enumerate(half.places, start=2 * number)
        for record in list_records(
            folder, f"{half.folder}/{split}/{label}/{place}", split=split, y=y, attribute=attribute
        )
    ]
    return open_records(info, folder, add_masks(records, lambda record: _mask_of(folder, record)))


def _mask_of(folder: Path, record: ImageRecord) -> Path:
    return folder / MASKS / f"{record.path.stem}.png"


DATASETS = {
    info.name: DatasetSpec(info=info, open=partial(open_spuco, info, halves))
    for info, halves in ((_info(name, halves), halves) for name, halves in SETS.items())
}
