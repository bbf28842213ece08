"""Any folder of images with a table in one of the two dialects, or a tree of folders: own data without writing code."""

import shlex
from pathlib import Path

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import open_image_set
from spurbench.data.image_table import Table, read_table
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.datasets.waterbirds import ATTRIBUTES, CLASSES, search_places
from spurbench.errors import DataError, data_missing
from spurbench.image_dataset import ImageDataset
from spurbench.image_tree import TREE, read_tree

__all__ = ["DATASETS"]

NAME_DIGITS = 16
"""Hex digits of the fingerprint that name the dataset."""


@system_errors_as_data_errors()
def open_folder(root: Path | None) -> ImageDataset:
    """Open the folder ``root`` itself, which holds ``metadata.csv`` (or one ``metadata_*.csv``), or is a tree.

    The dataset is named after its fingerprint (names and sizes of images and masks, labels, splits, boxes) and not
    after its place: results on different data stay apart, and those on a folder that was moved together.

    Raises:
        DataMissing: no folder was given, or it has neither table nor tree.
        DataError: the table or the files that it lists are malformed or incomplete.
    """
    if root is None:
        raise data_missing("dataset 'folder' needs --data-root DIR (or $SPURBENCH_DATA)", looked_for=_EXPECTED)
    table = _table(root)
    classes, attributes = _names(table)
    images = open_image_set(table, root, search_places(root, root), None if attributes is None else len(attributes))
    info = DatasetInfo(
        name=f"folder:{images.fingerprint()[:NAME_DIGITS]}",
        version="1",
        classes=classes,
        attributes=attributes,
        splits=table.splits,
        preset="convnext",
        description=f"Images listed in {table.path.name}",
        has_boxes=images.has_boxes,
        has_masks=images.has_masks,
    )
    return ImageDataset(info, images)


_EXPECTED = (
    "the folder of a table metadata.csv with the columns img_filename,y,split[,place] or filename,split,y[,a] "
    "and, optionally, mask_filename, x0,y0,x1,y1, class_name or attribute_name; "
    f"or a tree {TREE}"
)

DATASETS = {
    "folder": DatasetSpec(
        info=DatasetInfo(
            name="folder",
            version="1",
            classes=(),
            attributes=None,
            preset="convnext",
            description="Your own images: --data-root names a folder with metadata.csv; classes are read from it",
            source=f"Your own data: {_EXPECTED}",
        ),
        open=open_folder,
    )
}


def _table(root: Path) -> Table:
    if not root.is_dir():
        raise data_missing(f"{root} is not a folder", looked_for=_EXPECTED)
    path = root / "metadata.csv"
    if path.is_file():
        return read_table(path, own=True)
    others = sorted(root.glob("metadata_*.csv"))
    if len(others) == 1:
        return read_table(others[0], own=True)
    if others:
        names = ", ".join(other.name for other in others)
        raise DataError(
            f"{root} has several tables ({names}) and no metadata.csv; rename the one to use to metadata.csv"
        )
    tree = read_tree(root)
    if tree is not None:
        return tree
    below = sorted(path.parent for path in root.glob("*/metadata.csv"))
    if below:
        what = f"no metadata.csv in {root}/, but there is one in {below[0]}"
        raise data_missing(what, then=f"spurbench data check {shlex.quote(str(below[0]))}")
    raise data_missing(f"no metadata.csv in {root}/", looked_for=_EXPECTED)


def _names(table: Table) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Names of classes and attributes: the table's own, those of WaterBirds for one that fits it, or numbers."""
    num_classes, num_attributes = table.num_classes, table.num_attributes
    if num_classes < 2:
        raise DataError(f"{table.path}: every row has y = 0; classification needs at least two classes")
    classes = _named("class", table.class_names())
    if num_attributes is None:
        return classes, None
    attributes = _named("attribute", table.attribute_names())
    unnamed = not any((*table.class_names(), *table.attribute_names()))
    official = {"img_filename", "place"} <= table.columns
    if unnamed and official and num_classes == len(CLASSES) and num_attributes <= len(ATTRIBUTES):
        return CLASSES, ATTRIBUTES
    return classes, attributes


def _named(word: str, names: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(f"{word}{number}" if name is None else name for number, name in enumerate(names))
