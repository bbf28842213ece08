"""BFFHQ: young or old faces of FFHQ; in training 99.5 % of the young are women and of the old men.

As its publishers (Learning-Debiased-Disentangled) lay it out; a file's name tells its labels, and ``valid`` lies beside
``0.5pct``, not in it::

    bffhq/{0.5pct/{align,conflict}/{0,1}/*.png, valid/*.png, test/*.png}      with names <id>_<y>_<a>.png

The published number is the accuracy on the test images that conflict with the bias, the young men and old women (y
differs from a): that is the split ``test_conflict``, a part of ``test``. The worst group of ``test``, which others
report, is over all four groups.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, find_folder, list_images, open_records, subfolders

__all__ = ["DATASETS", "open_bffhq"]

TRAIN = "0.5pct"
_NAME = re.compile(r".+_([01])_([01])")

INFO = DatasetInfo(
    name="bffhq",
    version="1",
    classes=("young", "old"),
    attributes=("woman", "man"),
    splits=("train", "val", "test", "test_conflict"),
    description="Age of faces; 0.5 % of the training images are young men or old women. test_conflict: those of test, "
    "whose accuracy is the published number",
    license="CC BY-NC-SA 4.0 (FFHQ)",
    citation="Lee, Kim, Lee, Lee, Choo: Learning Debiased Representation via Disentangled Feature Augmentation, "
    "NeurIPS 2021, arXiv 2107.01372; images: Kim, Lee, Choo: BiaSwap, ICCV 2021",
    source="the link in https://github.com/kakaoenterprise/Learning-Debiased-Disentangled; unpack it to bffhq/",
    likely_counts={"train": (19_200,), "val": (1_000,), "test": (1_000,)},
)


@system_errors_as_data_errors()
def open_bffhq(root: Path | None) -> ImageDataset:
    """Open the set below a data root.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: an image whose name has no labels, or others than its folder.
    """
    folder = find_folder(
        INFO,
        root,
        ("bffhq", "BFFHQ"),
        holds=lambda folder: all((folder / name).is_dir() for name in (f"{TRAIN}/align", "valid", "test")),
        expected=f"{TRAIN}/align/, valid/ and test/",
    )
    test = list(_records(folder, "test", "test"))
    records = [
        *_train(folder),
        *_records(folder, "valid", "val"),
        *test,
        *(replace(record, split="test_conflict") for record in test if record.y != record.attribute),
    ]
    return open_records(INFO, folder, records)


def _train(folder: Path) -> Iterator[ImageRecord]:
    for half in ("align", "conflict"):
        if not (folder / TRAIN / half).is_dir():
            continue
        for class_folder in subfolders(folder / TRAIN / half):
            for record in _records(folder, f"{TRAIN}/{half}/{class_folder.name}", "train"):
                if str(record.y) != class_folder.name or (record.y == record.attribute) != (half == "align"):
                    raise DataError(
                        f"{record.path}: its name says class {record.y} and attribute {record.attribute}, its folder "
                        f"{half}/{class_folder.name} another group; is a file in the wrong place?"
                    )
                yield record


def _records(folder: Path, below: str, split: str) -> Iterator[ImageRecord]:
    for path in list_images(folder / below):
        labels = _NAME.fullmatch(path.stem)
        if labels is None:
            raise DataError(f"{path} does not tell its labels; expected <id>_<age>_<gender>{path.suffix}, each 0 or 1")
        yield ImageRecord(
            where=str(folder / below),
            path=path,
            key=f"{below}/{path.name}",
            split=split,
            y=int(labels[1]),
            attribute=int(labels[2]),
        )


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_bffhq)}
