"""NICO++: 60 kinds of objects in six contexts (track 1), split as SubpopBench does.

::

    nicopp/dg_label_id_mapping.json                                        {"car": 0, "flower": 1, ...}
    nicopp/public_dg_0416/train/{autumn,dim,grass,outdoor,rock,water}/<class>/*.jpg

Only this folder has labels. Of every group, class and context, 75 images (all where there are fewer) are for
evaluation: one third of them, rounded down, is val and the rest test; all others are train. So groups of up to 75
images are absent from training. SubpopBench draws the 75 from an unsorted listing; here they are those that come first
in the order of the sha256 of their names.

The order of the classes is that of the set's own ``dg_label_id_mapping.json`` where it is there, and else the one
below, which was read in other people's code for the set.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from spurbench.data.draws import name_order
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.data.image_table import read_text
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, find_folder, list_records, open_records, subfolders

__all__ = ["CLASSES", "DATASETS", "EVALUATED", "open_nicopp"]

CLASSES = (
    *("car", "flower", "penguin", "camel", "chair", "monitor", "truck", "wheat", "sword", "seal", "lion", "fish"),
    *("dolphin", "lifeboat", "tank", "fishing rod", "sunflower", "cow", "bird", "airplane", "shark", "rabbit", "snake"),
    *("hot air balloon", "hat", "spider", "motorcycle", "tortoise", "dog", "elephant", "chicken", "bee", "gun", "fox"),
    *("phone", "bus", "cat", "sailboat", "cactus", "pumpkin", "train", "dragonfly", "ship", "helicopter", "bicycle"),
    *("squirrel", "bear", "mailbox", "horse", "banana", "mushroom", "cauliflower", "whale", "camera", "beetle"),
    *("monkey", "lemon", "pepper", "sheep", "umbrella"),
)
CONTEXTS = ("autumn", "dim", "grass", "outdoor", "rock", "water")
EVALUATED = 75
"""Images of a group that are for val and test."""
MAPPING = "dg_label_id_mapping.json"
FOLDER = "public_dg_0416"

INFO = DatasetInfo(
    name="nicopp",
    version="1",
    classes=CLASSES,
    attributes=CONTEXTS,
    description="60 kinds of objects in six contexts; in training some kinds lack some contexts",
    license="Free for non-commercial research (NICO++)",
    citation="Zhang, He, Xu, Yu, Shen, Cui: NICO++: Towards Better Benchmarking for Domain Generalization, CVPR 2023, "
    "arXiv 2204.08040; split after Yang, Zhang, Katabi, Ghassemi: Change is Hard, ICML 2023",
    source="track_1.zip and dg_label_id_mapping.json by the links in https://github.com/xxgege/NICO-plus; unpack to "
    f"nicopp/{FOLDER}/",
    archives=(Archive(filename="track_1.zip", into="nicopp"),),
)


@system_errors_as_data_errors()
def open_nicopp(root: Path | None) -> ImageDataset:
    """Open track 1 below a data root.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: a malformed mapping, or a folder that is no class.
    """
    folder = find_folder(
        INFO,
        root,
        (f"nicopp/{FOLDER}", FOLDER, f"track_1/{FOLDER}", f"NICO++/track_1/{FOLDER}"),
        holds=lambda folder: any((folder / "train" / context).is_dir() for context in CONTEXTS),
        expected="train/autumn/, train/dim/ and so on",
    )
    info = replace(INFO, classes=_classes(folder))
    return open_records(info, folder, list(_records(folder, info.classes)))


def _classes(folder: Path) -> tuple[str, ...]:
    """Names by label, from the set's own mapping inside its folder or beside it."""
    path = next((path for path in (folder / MAPPING, folder.absolute().parent / MAPPING) if path.is_file()), None)
    if path is None:
        return CLASSES
    try:
        mapping = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(mapping, dict) or sorted(map(str, mapping.values())) != sorted(map(str, range(len(CLASSES)))):
        raise DataError(f"{path}: expected {len(CLASSES)} names with the labels 0 to {len(CLASSES) - 1}, each once")
    return tuple(sorted(mapping, key=lambda name: int(mapping[name])))


def _records(folder: Path, classes: tuple[str, ...]) -> Iterator[ImageRecord]:
    for attribute, context in enumerate(CONTEXTS):
        if not (folder / "train" / context).is_dir():
            continue
        for class_folder in subfolders(folder / "train" / context):
            if class_folder.name not in classes:
                raise DataError(f"{class_folder} is no class of NICO++; known: {', '.join(classes)}")
            yield from _divided(
                list_records(
                    folder,
                    f"train/{context}/{class_folder.name}",
                    split="train",
                    y=classes.index(class_folder.name),
                    attribute=attribute,
                )
            )


def _divided(group: list[ImageRecord]) -> Iterator[ImageRecord]:
    """The images of one group, for evaluation those that come first in ``name_order``."""
    ordered = sorted((record.key for record in group), key=name_order)[:EVALUATED]
    val, test = set(ordered[: len(ordered) // 3]), set(ordered[len(ordered) // 3 :])
    for record in group:
        yield replace(record, split="val" if record.key in val else "test" if record.key in test else "train")


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_nicopp)}
