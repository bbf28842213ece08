"""TravelingBirds: the birds of CUB-200-2011 on a place of their species, which is another one in the test.

Published with Concept Bottleneck Models (arXiv 2007.04612) as ``CUB_fixed``, made by ``CUB/gen_cub_synthetic.py`` of
yewsiang/ConceptBottleneck:

    AdversarialData/CUB_fixed/train_places.json  test_places.json    species -> category of Places
    AdversarialData/CUB_fixed/train/<species>/<image>.jpg            all 11,788 birds on their species' training place
    AdversarialData/CUB_fixed/test/<species>/<image>.jpg             all 11,788 birds on their species' test place

Both folders hold **every** bird. The split is that of CUB, so ``CUB_200_2011/train_test_split.txt`` is needed; taking
each folder as a split, as some code does, trains on the test birds.

Splits
    ``train``: training birds on training places, without ``val``.
    ``val``: 20 % of them, on training places as in the original. That split an unseeded shuffle; here it is the rule
    of ``cub200``, with the same birds. In ``travelingbirds_ood_val`` the same birds stand on **test** places: choosing
    an epoch by them is choosing with knowledge of the shift.
    ``test``: test birds on test places, where each species has the training place of its predecessor in the alphabet.
    ``id_test``: the same test birds on training places. The gap to ``test`` is what the places did.

The set has no attribute, so "worst group" is the worst species. Composites keep size and name of CUB's images: its
masks and boxes apply. In the version of the generator that was read for this, all images of a species stand on one and
the same photograph of their place; the release itself was not at hand.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from spurbench.data.cub import CubImage, cub_table, find_cub, read_cub, species_table
from spurbench.data.image_files import search_places, system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord, find_records
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault
from spurbench.datasets.cub import CLASSES, COUNTS, CUB_ARCHIVES, CUB_SOURCE, val_birds, wrong_species
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, dataset_missing, find_folder, open_records, subfolders

__all__ = ["DATASETS", "open_travelingbirds"]

FOLDERS = ("AdversarialData/CUB_fixed", "CUB_adversarial/CUB_fixed", "CUB_fixed", "CUB_fixed/CUB_fixed")
"""The last where an archive that has the folder inside was unpacked in one."""
TRAIN_PLACES, TEST_PLACES = "train_places.json", "test_places.json"

INFO = DatasetInfo(
    name="travelingbirds",
    version="1",
    classes=CLASSES,
    attributes=None,
    splits=("train", "val", "test", "id_test"),
    description="200 species, each on a place of its own, which is another species' place in test; "
    "id_test has the test birds on training places",
    license="Non-commercial research and education (terms of CUB-200-2011 and Places)",
    citation="Koh, Nguyen, Tang, Mussmann, Pierson, Kim, Liang: Concept Bottleneck Models, ICML 2020, arXiv 2007.04612",
    source="https://worksheets.codalab.org/bundles/0x518829de2aa440c79cd9d75ef6669f27 (the folder CUB_fixed, linked "
    f"from https://github.com/yewsiang/ConceptBottleneck). For the split, boxes and masks: {CUB_SOURCE}",
    has_boxes=True,
    has_masks=True,
    expected_counts={**COUNTS, "id_test": COUNTS["test"]},
    archives=(Archive(filename="CUB_fixed.tar.gz", into="CUB_fixed"), *CUB_ARCHIVES),
)

INFO_OOD_VAL = replace(
    INFO,
    name="travelingbirds_ood_val",
    description=f"{INFO.description}; val too is on test places, so selection knows",
)


@system_errors_as_data_errors()
def open_travelingbirds(info: DatasetInfo, val_places: str, root: Path | None) -> ImageDataset:
    """Open ``CUB_fixed/`` below a data root, inside ``AdversarialData/`` or not, or the root itself.

    Args:
        val_places: the folder of the validation images, ``"train"`` or ``"test"``.

    Raises:
        DataMissing: no root was given, or the set or CUB's text files are not there.
        DataError: the text files are malformed, or files that they list are missing.
    """
    folder = find_folder(info, root, FOLDERS, holds=_holds, expected="train/ and test/ with a folder per species")
    assert root is not None  # otherwise nothing was found
    places = (*search_places(folder, root), folder.absolute().parents[1])  # CUB may lie beside AdversarialData/
    cub = find_cub(places)
    if cub is None:
        raise dataset_missing(
            info,
            root,
            f"{info.name}: {folder} has no split of its own, and CUB's is not found",
            f"CUB_200_2011/ with images.txt, image_class_labels.txt and train_test_split.txt in {root}/ and beside it",
            get=CUB_SOURCE,
        )
    birds = read_cub(cub)
    held = val_birds(birds)
    training = [bird for bird in birds if bird.is_training and bird.name not in held]
    validation = [bird for bird in birds if bird.name in held]
    test = [bird for bird in birds if not bird.is_training]
    records = [
        *_records(cub, training, "train", folder / "train", places),
        *_records(cub, validation, "val", folder / val_places, places),
        *_records(cub, test, "test", folder / "test", places),
        *_records(cub, test, "id_test", folder / "train", places),
    ]
    return open_records(info, folder, records)


def wrong_places(dataset: Dataset) -> Iterator[Fault]:
    """Faults of ``wrong_species``, and tables of places that are missing or do not follow the published rule.

    The rule was read in the generator; the released tables were not at hand, so what differs is a warning.
    """
    yield from wrong_species(dataset)
    assert isinstance(dataset, ImageDataset)
    folder = dataset.split("train").records[0].path.parents[2]
    try:
        train, test = (_read_places(folder / name) for name in (TRAIN_PLACES, TEST_PLACES))
    except DataError as error:
        yield Fault(severity="warning", where=str(folder), problem=str(error))
        return
    species = sorted(train)
    expected = {name: train[species[position - 1]] for position, name in enumerate(species)}
    for name in species:
        if test.get(name) != expected[name]:
            yield Fault(
                severity="warning",
                where=str(folder / TEST_PLACES),
                problem=f"{name} has place {test.get(name)}, expected {expected[name]}, its predecessor's in training",
            )
    if len(set(train.values())) < len(species):
        yield Fault(severity="warning", where=str(folder / TRAIN_PLACES), problem="two species share a training place")
    missing = sorted({known.folder for known in species_table()} - set(train))
    if missing:
        yield Fault(
            severity="warning",
            where=str(folder / TRAIN_PLACES),
            problem=f"{len(missing)} species have no place, the first: {missing[0]}",
        )


DATASETS = {
    info.name: DatasetSpec(info=info, open=partial(open_travelingbirds, info, val_places), check=wrong_places)
    for info, val_places in ((INFO, "train"), (INFO_OOD_VAL, "test"))
}

_SPECIES_FOLDER = re.compile(r"\d{3}\..+")


def _holds(folder: Path) -> bool:
    parts = (folder / "train", folder / "test")
    return all(part.is_dir() and any(_SPECIES_FOLDER.fullmatch(sub.name) for sub in subfolders(part)) for part in parts)


def _records(cub: Path, birds: list[CubImage], split: str, folder: Path, places: tuple[Path, ...]) -> list[ImageRecord]:
    """These birds as images of ``folder``; their keys begin with its name, since names are the same in both."""
    if not birds:
        return []
    found = find_records(cub_table(cub, birds, lambda bird: split), folder, (*places, cub, cub.absolute().parent))
    return [replace(record, key=f"{folder.name}/{record.key}") for record in found]


def _read_places(path: Path) -> dict[str, int]:
    try:
        places = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path.name} is missing") from None
    except ValueError as error:
        raise DataError(f"{path.name} is not JSON: {error}") from None
    if not (isinstance(places, dict) and places and all(isinstance(place, int) for place in places.values())):
        raise DataError(f"{path.name} does not say a number of a place for each species")
    return places
