"""CelebA: blond hair of 202,599 faces, which goes with gender (Blond_Hair x Male of group_DRO, arXiv 1911.08731).

Read from any of the three layouts that are in use, at the folder's usual name or at the data root itself:

    celebA_v1.0/  list_attr_celeba.csv  list_eval_partition.csv  img_align_celeba/000001.jpg                   WILDS
    celeba/       list_attr_celeba.txt  list_eval_partition.txt  img_align_celeba/000001.jpg             torchvision
    archive/      list_attr_celeba.csv  list_eval_partition.csv  img_align_celeba/img_align_celeba/000001.jpg  Kaggle

The two tables are joined by file name, not by position. Splits are the official ones, groups those of group_DRO and
WILDS: 2 * blond + male.

The images, 178 x 218, are cut on decoding to the 178 x 178 in their middle, as in all published numbers. Those then
resize to 224 x 224 and crop nothing more, which is ``--set input.resize=224`` here; the recipe's 256 takes the middle
224 once more. There are no masks, and the boxes of ``list_bbox_celeba.txt`` belong to the unaligned photographs.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from spurbench.data.csv_columns import TextRow, choose, column_rows, good_rows, require_new
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.data.image_table import SPLITS, read_text
from spurbench.data.row_faults import tell_fault
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, find_folder, open_records, require_files

__all__ = ["DATASETS", "open_celeba"]

Value = TypeVar("Value")

FOLDERS = ("celebA_v1.0", "celeba", "archive", "celeba-dataset", "CelebA")
IMAGES = "img_align_celeba"
ATTRIBUTES_TABLE = "list_attr_celeba"
SPLITS_TABLE = "list_eval_partition"
TARGET, ATTRIBUTE = "Blond_Hair", "Male"

BINARY = {"-1": 0, "0": 0, "1": 1}
SPLIT_OF = {str(number): name for number, name in enumerate(SPLITS)}
CHECKSUMS = {
    f"{ATTRIBUTES_TABLE}.txt": "75e246fa4810816ffd6ee81facbd244c",
    f"{SPLITS_TABLE}.txt": "d32c9cbf5e040fd4025c592c306e6668",
}
"""md5 of the published tables, as torchvision lists them; the CSV forms have none."""

INFO = DatasetInfo(
    name="celeba",
    version="1",
    classes=("not_blond", "blond"),
    attributes=("female", "male"),
    description="Aligned faces: blond hair or not; few blond faces are male",
    license="Non-commercial research only, no redistribution",
    citation="Liu, Luo, Wang, Tang: Deep Learning Face Attributes in the Wild, ICCV 2015; as used by Sagawa "
    "et al., ICLR 2020, arXiv 1911.08731",
    source="http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (img_align_celeba.zip, list_attr_celeba.txt and "
    "list_eval_partition.txt into celeba/), as WILDS' celebA v1.0 (1.3 GB, into celebA_v1.0/) at "
    "https://worksheets.codalab.org/rest/bundles/0xfe55077f5cd541f985ebf9ec50473293/contents/blob/, or from "
    "https://www.kaggle.com/datasets/jessicali9530/celeba-dataset",
    expected_counts={
        "train": (71629, 66874, 22880, 1387),
        "val": (8535, 8276, 2874, 182),
        "test": (9767, 7535, 2480, 180),
    },
    archives=(
        Archive(
            filename="celebA_v1.0.tar.gz",
            url="https://worksheets.codalab.org/rest/bundles/0xfe55077f5cd541f985ebf9ec50473293/contents/blob/",
            into="celebA_v1.0",
        ),
        Archive(filename="img_align_celeba.zip", md5="00d2c5bc6d35e252742224ab0c1e8fcb", into="celeba"),
    ),
)


@system_errors_as_data_errors()
def open_celeba(root: Path | None) -> ImageDataset:
    """Open CelebA below a data root, or in the root itself.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: a table is malformed, the tables do not fit each other, or images are missing.
    """
    folder = find_folder(
        INFO, root, FOLDERS, holds=_is_celeba, expected=f"{ATTRIBUTES_TABLE}.csv or .txt and {IMAGES}/"
    )
    splits, labels = _read_splits(_table(folder, SPLITS_TABLE)), _read_labels(_table(folder, ATTRIBUTES_TABLE))
    labels.require_names_in(splits)
    splits.require_names_in(labels)
    images = _images(folder)
    records = [
        ImageRecord(
            where=labels.where(name),
            path=images / name,
            key=name,
            split=splits.values[name],
            y=y,
            attribute=attribute,
            center_square=True,
        )
        for name, (y, attribute) in labels.values.items()
        if name in splits.values
    ]
    return open_records(INFO, folder, require_files(records))


def check_tables(dataset: Dataset) -> Iterator[Fault]:
    """Compare the text tables with the published ones; the CSV forms come without checksums."""
    if not isinstance(dataset, ImageDataset):
        return
    images = dataset.split("train").records[0].path.parent
    folder = images.parent.parent if images.parent.name == IMAGES else images.parent
    for name, md5 in CHECKSUMS.items():
        path = folder / name
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else md5
        if found != md5:
            problem = f"is not the published table: md5 {found}, not {md5}"
            yield Fault(severity="error", where=str(path), problem=problem)


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_celeba, check=check_tables)}


def _is_celeba(folder: Path) -> bool:
    tables = ((folder / f"{ATTRIBUTES_TABLE}{suffix}").is_file() for suffix in (".csv", ".txt"))
    return any(tables) and (folder / IMAGES).is_dir()


def _table(folder: Path, name: str) -> Path:
    """The CSV form of a table, else the text form."""
    path = folder / f"{name}.csv"
    other = path.with_suffix(".txt")
    if not path.is_file() and not other.is_file():
        raise DataError(f"{folder} has neither {path.name} nor {other.name}")
    return path if path.is_file() else other


def _images(folder: Path) -> Path:
    """The images' folder; Kaggle's archive has it twice."""
    doubled = folder / IMAGES / IMAGES
    return doubled if doubled.is_dir() else folder / IMAGES


@dataclass(frozen=True, slots=True)
class _Named(Generic[Value]):
    """What a table says of the images that it names."""

    path: Path
    lines: dict[str, int]
    """Of all images that it names."""
    values: dict[str, Value]
    """Of the images whose rows are good."""

    def where(self, name: str) -> str:
        return f"{self.path}, line {self.lines[name]}"

    def require_names_in(self, other: "_Named[Any]") -> None:
        """Tell the images that the other table does not name."""
        for name in self.lines:
            if name not in other.lines:
                tell_fault("row", self.where(name), f"{name} is not in {other.path.name}")


def _read_named(path: Path, rows: Iterable[TextRow], read: Callable[[list[str]], Value]) -> _Named[Value]:
    lines: dict[str, int] = {}

    def named(row: TextRow) -> tuple[str, Value]:
        name, *cells = row.cells
        require_new(lines, name, row.line)
        return name, read(cells)

    return _Named(path, lines, dict(good_rows(rows, named)))


def _read_splits(path: Path) -> _Named[str]:
    rows = column_rows(path, ("image_id", "partition")) if path.suffix == ".csv" else _split_rows(path)
    return _read_named(path, rows, lambda cells: choose("partition", cells[0], SPLIT_OF))


def _split_rows(path: Path) -> Iterator[TextRow]:
    for number, (line, cells) in enumerate(_words(path)):
        if len(cells) == 2:
            yield TextRow(path, line, number, cells)
        else:
            problem = "expected a file name and 0, 1 or 2; is the file cut off?"
            tell_fault("row", f"{path}, line {line}", problem)


def _read_labels(path: Path) -> _Named[tuple[int, int]]:
    """Class and attribute of every image."""
    columns = (TARGET, ATTRIBUTE)
    rows = column_rows(path, ("image_id", *columns)) if path.suffix == ".csv" else _label_rows(path)

    def labels(cells: list[str]) -> tuple[int, int]:
        y, attribute = (choose(column, text, BINARY) for column, text in zip(columns, cells, strict=True))
        return y, attribute

    return _read_named(path, rows, labels)


def _label_rows(path: Path) -> Iterator[TextRow]:
    """The form that CelebA comes in: a count, the names of the attributes, then a line per image."""
    lines = _words(path)
    _, count = next(lines, (1, []))
    _, names = next(lines, (2, []))
    if len(count) != 1 or not count[0].isdecimal() or not {TARGET, ATTRIBUTE} <= set(names):
        raise DataError(f"{path}: expected the number of images in line 1 and attribute names in line 2")
    blond, male = names.index(TARGET) + 1, names.index(ATTRIBUTE) + 1
    found = 0
    for number, (line, cells) in enumerate(lines):
        found += 1
        if len(cells) == len(names) + 1:
            yield TextRow(path, line, number, [cells[0], cells[blond], cells[male]])
        else:
            problem = f"{len(cells)} values, expected a file name and {len(names)}; is the file cut off?"
            tell_fault("row", f"{path}, line {line}", problem)
    if found != int(count[0]):
        problem = f"announces {count[0]} images, but {found:,} follow; is the file cut off?"
        tell_fault("row", f"{path}, line 1", problem)


def _words(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of every line that is not empty."""
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        if words := text.split():
            yield line, words
