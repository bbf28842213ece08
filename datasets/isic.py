"""ISIC 2018: skin lesions, benign or malignant, with what else is on the picture, and expert masks of the lesion.

Images and masks are those of the challenge's Task 1-2 training set (arXiv 1902.03368), artefacts and diagnosis those of
Bissoto et al. (arXiv 2004.11457, github.com/alceubissoto/debiasing-skin):

    isic2018/ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
    isic2018/ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
    isic2018/isic_bias.csv                       separated by semicolons, names end in .png
    isic2018/isic_annotated_train1.csv ...       of the trap sets

The tables may also lie in ``artefacts-annotation/`` and ``trap-sets/``, as in that repository, and a clone of it,
``debiasing-skin/``, in the set's folder or beside it. Without the ground truth the set has no masks.

``isic2018_ruler`` and so on, one per artefact: all 2,594 images, the attribute is that artefact. No split is published.
Here, of each group (label and artefact) the first fifth goes to test and the next to val, both rounded up, in the order
of ``name_order`` (sha256 of the stem ``ISIC_0000000``). Groups differ between artefacts, hence the splits do. Only two
malignant lesions carry a patch, which leaves none of that group for training.

``isic2018_trap1_ruler`` and so on: the five published trap sets, in which artefacts go with the label in training and
against it in test. All rows of their val tables are in the train tables too; here they are taken out of train. Of the
seven artefacts those are offered whose four groups all have test images.
"""

import hashlib
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from spurbench.data.csv_columns import TextRow, choose, column_rows, good_rows, require_new
from spurbench.data.draws import name_order
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.data.row_faults import BadRow, tell_fault
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault
from spurbench.image_dataset import (
    ImageDataset,
    add_masks,
    dataset_missing,
    find_folder,
    list_images,
    open_records,
    require_files,
)

__all__ = ["ARTEFACTS", "DATASETS", "FOLDS", "TRAP_ARTEFACTS"]

FOLDERS = ("isic2018", "ISIC2018", "isic")
IMAGES = "ISIC2018_Task1-2_Training_Input"
MASKS = "ISIC2018_Task1_Training_GroundTruth"
BIAS_TABLE = "isic_bias.csv"
TABLE_FOLDERS = (".", "artefacts-annotation", "trap-sets")
CLONE = "debiasing-skin"

CLASSES = ("benign", "malignant")
BINARY = {"0": 0, "1": 1}
FIFTH = 5

ARTEFACTS = {
    "dark_corner": (1349, 726, 285, 234),
    "hair": (821, 1254, 255, 264),
    "gel_border": (1485, 590, 430, 89),
    "gel_bubble": (1065, 1010, 262, 257),
    "ruler": (1100, 975, 210, 309),
    "ink": (1696, 379, 456, 63),
    "patches": (1890, 185, 517, 2),
}
"""Images per group: benign without and with the artefact, malignant without and with."""

FOLDS = range(1, 6)
TRAP_ARTEFACTS = {
    "dark_corner": (278, 340, 144, 10),
    "hair": (409, 209, 38, 116),
    "gel_bubble": (454, 164, 25, 129),
    "ruler": (89, 529, 141, 13),
}
"""Test images per group, equal in all five folds."""

CHECKSUMS = {
    "isic_bias.csv": "04fbb74b44d33498afd41a66cfd73e500c2b197e540feb7f4a7553dc8023ddc8",
    "isic_annotated_train1.csv": "004e4461e430e887c2fdfc2185d459cecee6e90fbd51e5dc0d650cb31d781c49",
    "isic_annotated_train2.csv": "62301111f20d42c9f9c35e7c00c43172d4b70cf54854b58db60e1a88e1a20371",
    "isic_annotated_train3.csv": "3831795fb2bfd33e75a46c5bf4106d9b174cd3a2d9d93a67209852b8aec52ecc",
    "isic_annotated_train4.csv": "24e0fccf6ac16effb62dc0fda0e736ccf0165d55dbbfa98622f584e4f63b101a",
    "isic_annotated_train5.csv": "116a11f111f89b51adf9b9c16bf8604797c3891fda346f2631a0bfcaf5a91926",
    "isic_annotated_val1.csv": "a8cd9fe473202d62d2778bc96ddf767f1bff7c4222bb9487eb51667475eab254",
    "isic_annotated_val2.csv": "2d6bb172a0be04b5d3d2dcc13ccbdc517971b1f8f7fe49f1445122204620bd12",
    "isic_annotated_val3.csv": "8d12e942108c3353960f3d7fdd1910cf094c92c79d13bbd396fe53fa759426ad",
    "isic_annotated_val4.csv": "49dfdef7ad1c8d2ed237997565850912ed2bea29a407c012b0c89af8759d5840",
    "isic_annotated_val5.csv": "ce9c08147745b33e9cee0d44eb1a5a9b357a9755fe951a44ae6c994cf5489f4f",
    "isic_annotated_test1.csv": "3f20b79d191f2d3c69ab9e03b285dc36cf3608dc096553e8093f2fbca4dcbfc2",
    "isic_annotated_test2.csv": "e2069b54192aa451315508ff1f6923bdf5478e6628e707489867edd730597c54",
    "isic_annotated_test3.csv": "fd8f3fb9da774db1376a8ee5673b8f7ae0c32f078258053adca47822fdafa1d5",
    "isic_annotated_test4.csv": "1d268034ff9ca40758784f4f1cec460ef678e6e46f4db0e228e5cd9505facb2b",
    "isic_annotated_test5.csv": "562d5ea2e4dddb6fb8486b335028a7fc480e3e23f57cd1f3ccb119d2ddb41b37",
}
"""sha256 of the published tables, with LF at the ends of lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesion:
    """A row of a table."""

    where: str
    stem: str
    y: int
    attribute: int


@system_errors_as_data_errors()
def open_isic(info: DatasetInfo, artefact: str, fold: int | None, root: Path | None) -> ImageDataset:
    """Open a variant below a data root, or in the root itself.

    Args:
        info: the variant's declaration.
        artefact: column that is the attribute.
        fold: of the trap sets; None for all images with the split of this file.
        root: the data root.

    Raises:
        DataMissing: no root was given, or images or tables are not there.
        DataError: a table is malformed, or images or masks are missing.
    """
    folder = find_folder(
        info, root, FOLDERS, holds=lambda place: (place / IMAGES).is_dir(), expected=f"{IMAGES}/ and {BIAS_TABLE}"
    )
    splits = _drawn_splits(info, folder, artefact) if fold is None else _trap_splits(info, folder, artefact, fold)
    images = {path.stem: path for path in list_images(folder / IMAGES)}
    records = []
    for split, lesions in splits.items():
        for lesion in lesions:
            path = images.get(lesion.stem, folder / IMAGES / f"{lesion.stem}.jpg")
            record = ImageRecord(
                where=lesion.where,
                path=path,
                key=f"{IMAGES}/{path.name}",
                split=split,
                y=lesion.y,
                attribute=lesion.attribute,
            )
            records.append(record)
    masks = folder / MASKS
    records = add_masks(require_files(records), lambda record: masks / f"{record.path.stem}_segmentation.png")
    return open_records(info, folder, records)


def check_tables(dataset: Dataset) -> Iterator[Fault]:
    """Compare the tables that were read with the published ones."""
    if not isinstance(dataset, ImageDataset):
        return
    records = (record for name in dataset.info.splits for record in dataset.split(name).records)
    for path in sorted({Path(record.where.rpartition(", line ")[0]) for record in records}):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        found, published = hashlib.sha256(content).hexdigest(), CHECKSUMS.get(path.name)
        if found != published:
            problem = f"is not the published table: sha256 {found}, not {published}"
            yield Fault(severity="error", where=str(path), problem=problem)


def _drawn_splits(info: DatasetInfo, folder: Path, artefact: str) -> dict[str, list[_Lesion]]:
    """All lesions, drawn into splits; see the top of this file."""
    groups: dict[tuple[int, int], list[_Lesion]] = defaultdict(list)
    for lesion in _read_table(_find_table(info, folder, BIAS_TABLE), artefact, ";"):
        groups[lesion.y, lesion.attribute].append(lesion)
    splits: dict[str, list[_Lesion]] = {name: [] for name in info.splits}
    for key in sorted(groups):
        lesions = sorted(groups[key], key=lambda lesion: name_order(lesion.stem))
        _, val, test = _shares(len(lesions))
        splits["test"] += lesions[:test]
        splits["val"] += lesions[test : test + val]
        splits["train"] += lesions[test + val :]
    return {name: sorted(lesions, key=lambda lesion: lesion.stem) for name, lesions in splits.items()}


def _shares(number: int) -> tuple[int, int, int]:
    """How many of a group's images go to train, val and test."""
    test = -(-number // FIFTH)
    val = min(test, number - test)
    return number - test - val, val, test


def _trap_splits(info: DatasetInfo, folder: Path, artefact: str, fold: int) -> dict[str, list[_Lesion]]:
    tables = {name: _find_table(info, folder, f"isic_annotated_{name}{fold}.csv") for name in info.splits}
    splits = {name: list(_read_table(table, artefact, ",")) for name, table in tables.items()}
    test, val = ({lesion.stem for lesion in splits[name]} for name in ("test", "val"))
    for name in ("train", "val"):
        for lesion in splits[name]:
            if lesion.stem in test:
                problem = f"{lesion.stem} is in {tables['test'].name} too; are they of one fold?"
                tell_fault("row", lesion.where, problem)
    splits["val"] = [lesion for lesion in splits["val"] if lesion.stem not in test]
    splits["train"] = [lesion for lesion in splits["train"] if lesion.stem not in val | test]
    return splits


def _read_table(path: Path, artefact: str, delimiter: str) -> Iterator[_Lesion]:
    seen: dict[str, int] = {}

    def lesion(row: TextRow) -> _Lesion:
        image, attribute, label, name = row.cells
        stem = Path(image).stem
        require_new(seen, stem, row.line)
        y = choose("label", label, BINARY)
        if name != CLASSES[y]:
            raise BadRow(f"label is {label}, which is {CLASSES[y]}, but label_string '{name}'")
        return _Lesion(where=row.where, stem=stem, y=y, attribute=choose(artefact, attribute, BINARY))

    return good_rows(column_rows(path, ("image", artefact, "label", "label_string"), delimiter=delimiter), lesion)


def _find_table(info: DatasetInfo, folder: Path, name: str) -> Path:
    places = [base / below for base in (folder, folder / CLONE, folder.parent / CLONE) for below in TABLE_FOLDERS]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise dataset_missing(
        info,
        folder.parent,
        f"{info.name}: {name} not found",
        f"{name} in {folder}/, its {' and '.join(TABLE_FOLDERS[1:])}, and a clone {CLONE}/ there or beside it",
        get=f"git clone https://github.com/alceubissoto/debiasing-skin {shlex.quote(str(folder.parent / CLONE))}",
    )


_BUCKET = "https://isic-challenge-data.s3.amazonaws.com/2018"
_PLAIN = DatasetInfo(
    name="isic2018",
    version="1",
    classes=CLASSES,
    attributes=None,
    license="CC0 or CC BY-NC 4.0, depending on the image; https://challenge.isic-archive.com/data",
    citation="Codella et al.: Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv 1902.03368; Bissoto, Valle, "
    "Avila: Debiasing Skin Lesion Datasets and Models? Not So Fast, CVPR Workshops 2020, arXiv 2004.11457",
    source="https://challenge.isic-archive.com/data/#2018 (Task 1-2 training input and Task 1 ground truth, unpacked "
    "into isic2018/) and the tables from https://github.com/alceubissoto/debiasing-skin (cloned beside it)",
    has_masks=True,
    archives=(
        Archive(filename=f"{IMAGES}.zip", url=f"{_BUCKET}/{IMAGES}.zip", into="isic2018"),
        Archive(filename=f"{MASKS}.zip", url=f"{_BUCKET}/{MASKS}.zip", into="isic2018"),
    ),
)


def _drawn(artefact: str, groups: Sequence[int]) -> DatasetInfo:
    return replace(
        _PLAIN,
        name=f"isic2018_{artefact}",
        attributes=_attributes(artefact),
        description=f"Skin lesions, with and without {artefact.replace('_', ' ')}; split drawn by spurbench",
        expected_counts=dict(zip(_PLAIN.splits, zip(*map(_shares, groups), strict=True), strict=True)),
    )


def _trap(fold: int, artefact: str, test: tuple[int, ...]) -> DatasetInfo:
    return replace(
        _PLAIN,
        name=f"isic2018_trap{fold}_{artefact}",
        attributes=_attributes(artefact),
        description=f"Skin lesions, trap set {fold}: {artefact.replace('_', ' ')} and other artefacts go with the "
        "label in training and against it in test",
        expected_counts={"train": (1563,), "val": (259,), "test": test},
    )


def _attributes(artefact: str) -> tuple[str, str]:
    return f"no_{artefact}", artefact


def _spec(info: DatasetInfo, artefact: str, fold: int | None = None) -> DatasetSpec:
    return DatasetSpec(info=info, open=partial(open_isic, info, artefact, fold), check=check_tables)


DATASETS = {
    spec.info.name: spec
    for spec in (
        *(_spec(_drawn(artefact, groups), artefact) for artefact, groups in ARTEFACTS.items()),
        *(
            _spec(_trap(fold, artefact, test), artefact, fold)
            for fold, (artefact, test) in product(FOLDS, TRAP_ARTEFACTS.items())
        ),
    )
}
