"""Tables that other code reads and writes: SubpopBench's ``id,filename,split,y,a``, with what it does not know beside.

An imported or exported table is ``metadata.csv`` of a folder that ``--dataset DIR`` opens. Beside SubpopBench's columns
it has names of classes, attributes and further splits, masks and boxes, as far as there are any.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from spurbench.data.image_set import ImageRecord, ImageSplit, find_records, image_size, read_mask_above_middle
from spurbench.data.image_table import (
    ATTRIBUTE_NAME,
    BOX_COLUMNS,
    CLASS_NAME,
    MASK_COLUMN,
    SPLIT_NAME,
    SPLITS,
    Box,
    Table,
    read_table,
)
from spurbench.dataset import Dataset, find_dataset
from spurbench.datatools.threads import in_order
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.image_tree import TREE, read_tree
from spurbench.io import atomic_write

__all__ = ["Exported", "export_table", "import_images"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    rows: int
    masks: int
    """Masks that were written as PNG files, because theirs are not grey levels."""
    cut_square: bool
    """Whether the dataset cuts its images to a square, which the files that the table lists are not."""


def export_table(dataset: Dataset, path: Path, progress: Progress) -> Exported:
    """Write a dataset of image files as a table; file names are relative to its folder if the files lie there.

    Raises:
        ConfigError: the table exists, or the images are no files.
        DataError: a damaged file.
    """
    _require_new(path)
    splits = [_files_of(dataset, name) for name in dataset.info.splits]
    records = [record for split in splits for record in split.records]
    folder = path.parent
    masks_folder = folder / f"{path.stem}_masks"
    masks: list[str] = []
    written = 0
    for name, split in zip(dataset.info.splits, splits, strict=True):
        if split.read_mask is read_mask_above_middle:
            masks += [_mask_name(record, folder) for record in split.records]
            continue
        write = partial(_write_mask, split, masks_folder / name, folder)
        for done, mask in enumerate(in_order(write, split.records), start=1):
            masks.append(mask)
            written += bool(mask)
            progress(f"masks of {name}", done, len(split))
    boxes = list(in_order(_boxes_of, records))
    _write_table(
        path,
        records,
        masks,
        boxes,
        splits=dataset.info.splits,
        classes=dataset.info.classes,
        attributes=dataset.info.attributes or (),
        columns=("filename", "a"),
    )
    return Exported(rows=len(records), masks=written, cut_square=any(record.center_square for record in records))


def import_images(source: Path, images: Path | None, to: Path) -> Dataset:
    """Write ``metadata.csv`` to the folder ``to`` from a table or a tree of folders, and open it.

    Args:
        source: a table in one of the two dialects, in which further splits may be numbered or named; or a tree.
        images: folder that a table's file names are relative to; by default that of the table.
        to: folder for the new table; images stay where they are.

    Raises:
        ConfigError: there is a table already.
        DataMissing: no source, or it is no tree.
        DataError: a malformed table, a file that is missing.
    """
    path = to / "metadata.csv"
    table, folder = _source(source, images)
    _require_new(path)
    if table.num_classes < 2:
        raise DataError(f"{source}: every image is of class 0; classification needs at least two classes")
    try:
        records = find_records(table, folder, (folder, folder.absolute().parent))
    except DataError as error:
        hint = f"; file names are taken relative to {folder}, choose another with --images DIR" if table.columns else ""
        raise DataError(f"{error}{hint}") from error
    _write_table(
        path,
        records,
        [_mask_name(record, to) for record in records],
        [record.boxes for record in records],
        splits=table.splits,
        classes=table.class_names(),
        attributes=table.attribute_names(),
        columns=("img_filename", "place") if {"img_filename", "place"} <= table.columns else ("filename", "a"),
    )
    try:
        opened = find_dataset("folder").open(to)
    except DataError as error:
        path.unlink()
        raise DataError(f"{source} cannot be told in a table: {error}") from error
    return opened


# --------------------------------------------------------------------------------------------------------- reading


def _require_new(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists and is not overwritten; remove it, or choose another place with --to")


def _source(source: Path, images: Path | None) -> tuple[Table, Path]:
    """The table of the images, and the folder that its file names are relative to."""
    if source.is_file():
        folder = source.parent if images is None else images
        if not folder.is_dir():
            raise DataMissing(f"--images {folder} is not a folder")
        return read_table(source, own=True, further_splits=True), folder
    if not source.is_dir():
        raise DataMissing(f"{source} is neither a table nor a folder")
    if images is not None:
        raise ConfigError(f"--images goes with a table; {source} is a folder")
    tree = read_tree(source)
    if tree is None:
        raise DataMissing(f"{source} is no tree of image folders, which is {TREE}; or name a table: {source}/TABLE.csv")
    return tree, source


def _files_of(dataset: Dataset, name: str) -> ImageSplit:
    split = dataset.split(name)
    if not isinstance(split, ImageSplit):
        raise ConfigError(
            f"{dataset.info.name}: images of {name} are computed and no files, so a table cannot list them; procedural "
            f"sets are written by: spurbench data generate NAME --to DIR"
        )
    return split


def _boxes_of(record: ImageRecord) -> tuple[Box, ...]:
    """Boxes in pixels of the file."""
    if record.box_frame is None:
        return record.boxes
    width, height = image_size(record.path, record.where)
    across, down = width / record.box_frame[0], height / record.box_frame[1]
    return tuple((x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in record.boxes)


def _mask_name(record: ImageRecord, folder: Path) -> str:
    return "" if record.mask is None else _name(record.mask, folder)


def _write_mask(split: ImageSplit, masks_folder: Path, folder: Path, record: ImageRecord) -> str:
    """Write a mask as grey levels 0 and 255, and give its name."""
    if record.mask is None:
        return ""
    foreground = split.read_mask(record.mask, record.where)
    path = masks_folder / PurePosixPath(record.key).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(foreground, 255, 0).astype(np.uint8)).save(path)
    return _name(path, folder)


# --------------------------------------------------------------------------------------------------------- writing


def _write_table(
    path: Path,
    records: Sequence[ImageRecord],
    masks: Sequence[str],
    boxes: Sequence[tuple[Box, ...]],
    *,
    splits: Sequence[str],
    classes: Sequence[str | None],
    attributes: Sequence[str | None],
    columns: tuple[str, str],
) -> None:
    """A row per record; columns that would be empty are left out."""
    filename, attribute = columns
    numbers = {name: number for number, name in enumerate(splits)}
    cells: dict[str, Iterable[object]] = {
        "id": range(1, len(records) + 1),
        filename: (_name(record.path, path.parent) for record in records),
        "split": (numbers[record.split] for record in records),
        "y": (record.y for record in records),
    }
    if any(record.attribute is not None for record in records):
        cells[attribute] = (record.attribute for record in records)
    if len(splits) > len(SPLITS):
        cells[SPLIT_NAME] = (record.split for record in records)
    if any(classes):
        cells[CLASS_NAME] = (classes[record.y] or "" for record in records)
    if any(attributes):
        cells[ATTRIBUTE_NAME] = (
            "" if record.attribute is None else attributes[record.attribute] or "" for record in records
        )
    if any(masks):
        cells[MASK_COLUMN] = masks
    if any(boxes):
        cells |= dict(zip(BOX_COLUMNS, _box_cells(boxes), strict=True))
    _write_csv(path, cells)


def _box_cells(boxes: Sequence[tuple[Box, ...]]) -> Iterator[list[str]]:
    """Four columns; several boxes of an image are parted by semicolons."""
    for edge in range(4):
        yield [";".join(_number(box[edge]) for box in found) for found in boxes]


def _number(value: float) -> str:
    """The shortest text that stands for this very number."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _write_csv(path: Path, cells: Mapping[str, Iterable[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(cells)
    writer.writerows(zip(*cells.values(), strict=True))
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode())


def _name(path: Path, folder: Path) -> str:
    """How a table in ``folder`` calls a file: relative if it lies below, otherwise with its whole path."""
    absolute, base = path.absolute(), folder.absolute()
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else str(absolute)
