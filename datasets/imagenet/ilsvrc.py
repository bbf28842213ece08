"""Where ILSVRC-2012 lies below a data root, and what the subsets of it share.

Training images are in ``train/<wnid>/``; validation images in ``val/<wnid>/``, or all in ``val/`` as they are
published. Nothing in their names then tells their class, so Kaggle's table ``LOC_val_solution.csv`` must lie beside.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spurbench.data.image_files import ExistingFiles
from spurbench.data.image_set import ImageRecord
from spurbench.data.image_table import read_text
from spurbench.dataset import Archive, Dataset, DatasetInfo, Fault
from spurbench.datasets.imagenet.boxes import VALIDATION, annotation_file, read_boxes
from spurbench.datasets.imagenet.classes import ImageNetClass
from spurbench.datasets.imagenet.folders import class_records
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, list_images, require_files

__all__ = [
    "ARCHIVES",
    "BOX_ARCHIVES",
    "FOLDERS",
    "LICENSE",
    "AnnotatedDataset",
    "check_ilsvrc",
    "holds_classes",
    "validation_records",
]

FOLDERS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC", "ILSVRC")
"""Names under which ILSVRC-2012 is kept, the third by Kaggle."""
SOLUTION = "LOC_val_solution.csv"
LICENSE = "Non-commercial research and education (ImageNet's terms of access)"
ARCHIVES = (
    Archive(filename="ILSVRC2012_img_train.tar", md5="1d675b47d978889d74fa0da5fadfb00e", into="imagenet/train"),
    Archive(filename="ILSVRC2012_img_val.tar", md5="29b22e2961454d5413ddabcf34fc5622", into="imagenet/val"),
)
BOX_ARCHIVES = (
    Archive(filename="ILSVRC2012_bbox_train_v2.tar.gz", into="imagenet/Annotations/train"),
    Archive(filename="ILSVRC2012_bbox_val_v3.tar.gz", into="imagenet/Annotations"),
)


@dataclass(frozen=True, slots=True)
class AnnotatedDataset(ImageDataset):
    """A subset of ILSVRC-2012, with the folder of XML files that its boxes are from."""

    annotations: Path | None


def holds_classes(folder: Path, classes: Iterable[ImageNetClass]) -> bool:
    """Whether a folder has ``train`` with any of the classes, be it as an archive, and ``val``."""
    train = folder / "train"
    return (folder / "val").is_dir() and any(
        (train / each.wnid).is_dir() or (train / f"{each.wnid}.tar").is_file() for each in classes
    )


def validation_records(
    info: DatasetInfo, folder: Path, root: Path, classes: Sequence[ImageNetClass]
) -> list[ImageRecord]:
    """Records of ILSVRC's validation images of these classes, as the split test; keys as if sorted into folders.

    Raises:
        DataError: unsorted images whose table is not there, malformed, or names images that are missing.
    """
    wnids = [each.wnid for each in classes]
    if any((folder / "val" / wnid).is_dir() for wnid in wnids):
        return class_records(info, folder, "val", wnids, "test")
    if not list_images(folder / "val"):
        raise DataError(f"{info.name}: {folder / 'val'} is empty; unpack ILSVRC2012_img_val.tar there")
    table = _find_solution(folder, root)
    if table is None:
        raise DataError(
            f"{info.name}: the images in {folder / 'val'} are not sorted into class folders, and nothing in their "
            f"names tells their class. Put Kaggle's {SOLUTION} into {root}/, or move them to val/<wnid>/, for example "
            "by constructing torchvision.datasets.ImageNet from the official archives"
        )
    labels = {wnid: y for y, wnid in enumerate(wnids)}
    records = [
        ImageRecord(
            where=f"{table}, line {line}",
            path=folder / "val" / f"{name}.JPEG",
            key=f"val/{wnid}/{name}.JPEG",
            split="test",
            y=labels[wnid],
        )
        for line, name, wnid in _read_solution(table)
        if wnid in labels
    ]
    return sorted(require_files(records), key=lambda record: record.key)


def check_ilsvrc(dataset: Dataset, classes: Sequence[ImageNetClass]) -> Iterator[Fault]:
    """What only ILSVRC's images can have: files in a folder of another class than their names or their boxes say."""
    assert isinstance(dataset, AnnotatedDataset)
    existing = ExistingFiles()
    for split in dataset.info.splits:
        for record in dataset.split(split).records:
            wnid, stem = classes[record.y].wnid, record.path.stem
            if not stem.startswith((f"{wnid}_", VALIDATION)):
                problem = f"is in the class {wnid}, but its name does not begin with {wnid}_ or {VALIDATION}"
                yield Fault(severity="error", where=str(record.path), problem=problem)
            if split != "test" or dataset.annotations is None:
                continue
            xml = annotation_file(dataset.annotations, stem, wnid, existing)
            shown = {} if xml is None else read_boxes(xml)[0]
            if shown and wnid not in shown:
                problem = f"is in the class {wnid}, but its boxes in {xml} are of {', '.join(sorted(shown))}"
                yield Fault(severity="error", where=str(record.path), problem=problem)


def _find_solution(folder: Path, root: Path) -> Path | None:
    places = [folder / "val", folder]
    while places[-1] != root and places[-1] != places[-1].parent:
        places.append(places[-1].parent)
    return next((place / SOLUTION for place in places if (place / SOLUTION).is_file()), None)


def _read_solution(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, image name and wnid of every image; the boxes in the table are not needed."""
    reader = csv.reader(read_text(path).splitlines())
    header = next(reader, [])
    if header != ["ImageId", "PredictionString"]:
        raise DataError(f"{path}, line 1: expected the columns ImageId,PredictionString, got {','.join(header)[:80]}")
    seen = set()
    for line, row in enumerate(reader, start=2):
        words = row[1].split() if len(row) == 2 else []
        if not words or not row[0].startswith(VALIDATION) or "/" in row[0]:
            raise DataError(f"{path}, line {line}: '{','.join(row)[:80]}' is not {VALIDATION}...,<wnid> <box> ...")
        if row[0] in seen:
            raise DataError(f"{path}, line {line}: {row[0]} appears twice")
        seen.add(row[0])
        yield line, row[0], words[0]
