"""ImageWoof: ten breeds of dogs from ImageNet, in three sizes.

fastai's second edition splits images of ImageNet's training *and* validation set anew, 70 to 30. Its ``val`` is
``test`` here, and ``val`` is held out of its ``train``: 50 images per class, the same in all three sizes
(``hold_out_val`` says which). Networks pretrained on ImageNet have seen a part of ``test``. Labels follow the sorted
wnids. ``imagewoof`` has the images as they are in ImageNet, ``imagewoof_320`` and ``imagewoof_160`` with a shorter side
of so many pixels. Boxes are read for ``test`` where ILSVRC's have one. The labels are the folders;
``noisy_imagewoof.csv`` lists all files and is only compared with them by ``data check``.
"""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_table import read_text
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault
from spurbench.datasets.imagenet.boxes import find_annotations, with_boxes
from spurbench.datasets.imagenet.classes import read_classes
from spurbench.datasets.imagenet.folders import class_records
from spurbench.datasets.imagenet.ilsvrc import BOX_ARCHIVES, LICENSE, AnnotatedDataset, check_ilsvrc, holds_classes
from spurbench.errors import DataError
from spurbench.image_dataset import find_folder, hold_out_val, open_records

__all__ = ["SPECS"]

CLASSES = read_classes("imagewoof")
WNIDS = tuple(each.wnid for each in CLASSES)
NUM_VALIDATION = 50
"""Per class."""
TABLE = "noisy_imagewoof.csv"
FOLDERS = {"imagewoof": "imagewoof2", "imagewoof_320": "imagewoof2-320", "imagewoof_160": "imagewoof2-160"}


@system_errors_as_data_errors()
def open_imagewoof(info: DatasetInfo, root: Path | None) -> AnnotatedDataset:
    """Open the size that ``info`` declares.

    Raises:
        DataMissing: no root was given, or nothing is there.
        DataError: classes are missing, or a malformed annotation.
    """
    folder = find_folder(
        info,
        root,
        (FOLDERS[info.name],),
        holds=partial(holds_classes, classes=CLASSES),
        expected="train/<wnid>/ and val/<wnid>/",
    )
    assert root is not None
    _refuse_other_size(info, folder)
    annotations = find_annotations(folder, root)
    train = hold_out_val(class_records(info, folder, "train", WNIDS, "train"), most=NUM_VALIDATION)
    test = with_boxes(class_records(info, folder, "val", WNIDS, "test"), WNIDS, annotations)
    opened = open_records(info, folder, [*train, *test])
    return AnnotatedDataset(opened.info, opened.images, annotations)


def check_imagewoof(dataset: Dataset) -> Iterator[Fault]:
    """Files in a wrong class folder, and differences to the table of all files, where it is there."""
    yield from check_ilsvrc(dataset, CLASSES)
    assert isinstance(dataset, AnnotatedDataset)
    records = [record for name in dataset.info.splits for record in dataset.split(name).records]
    found = {record.key for record in records}
    table = records[0].path.parents[2] / TABLE
    if not table.is_file():
        return
    listed = dict(_read_table(table))
    for key, line in listed.items():
        if key not in found:
            yield Fault(severity="error", where=f"{table}, line {line}", problem=f"{key} is missing")
    for key in sorted(found - set(listed)):
        yield Fault(severity="error", where=str(table.parent / key), problem=f"is not listed in {TABLE}")


def _info(name: str) -> DatasetInfo:
    folder = FOLDERS[name]
    url = f"https://s3.amazonaws.com/fast-ai-imageclas/{folder}.tgz"
    train, test = (tuple(int(each.columns[part]) for each in CLASSES) for part in ("train", "val"))
    size = name.partition("_")[2]
    return DatasetInfo(
        name=name,
        version="1",
        classes=tuple(each.name for each in CLASSES),
        attributes=None,
        preset="convnext",
        description=f"Ten breeds of dogs from ImageNet{f', shorter side {size} pixels' if size else ''}. Networks "
        "pretrained on ImageNet have seen a part of its test images, and all of the rest",
        license=f"{LICENSE}; the choice of images Apache-2.0",
        citation="Howard: Imagewoof, 2019, https://github.com/fastai/imagenette",
        source=f"{url}, unpacked to {folder}/. For boxes of a part of test, ILSVRC2012_bbox_train_v2.tar.gz and "
        "ILSVRC2012_bbox_val_v3.tar.gz from https://image-net.org/download, as imagenet/Annotations/{train/<wnid>,val}",
        has_boxes=True,
        expected_counts={
            "train": tuple(count - NUM_VALIDATION for count in train),
            "val": (NUM_VALIDATION,) * len(train),
            "test": test,
        },
        archives=(Archive(filename=f"{folder}.tgz", url=url), *BOX_ARCHIVES),
    )


SPECS = {
    name: DatasetSpec(info=info, open=partial(open_imagewoof, info), check=check_imagewoof)
    for name, info in ((name, _info(name)) for name in FOLDERS)
}


def _refuse_other_size(info: DatasetInfo, folder: Path) -> None:
    """Raise when the data root itself is the folder of another size."""
    for name, other in FOLDERS.items():
        if folder.absolute().name == other and name != info.name:
            raise DataError(f"{info.name}: {folder} is the set {name}; use --dataset {name}")


def _read_table(path: Path) -> Iterator[tuple[str, int]]:
    """Every path of the table with its line."""
    reader = csv.reader(read_text(path).splitlines())
    header = next(reader, [])
    if "path" not in header:
        raise DataError(f"{path}, line 1: no column path in {','.join(header)[:80]}")
    column = header.index("path")
    for line, row in enumerate(reader, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} columns, the header has {len(header)}")
        yield row[column], line
