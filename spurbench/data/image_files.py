"""Where the files behind an image table lie: images, masks and boxes, in the folder layouts of the field.

Files are joined by *key*: an image's path below its set, such as ``001.Albatross/Albatross_0046_18.jpg``. Masks carry
the same key with the ending ``.png``, and CUB's ``images.txt`` lists the keys, so that composites on CUB images (which
keep their names and pixel sizes) share the masks and boxes of CUB.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path, PurePosixPath

from spurbench.data.image_table import BOX_COLUMNS, MASK_COLUMN, Box, Table, read_text
from spurbench.data.row_faults import keeping_faults, tell_fault
from spurbench.errors import DataError

__all__ = [
    "CUB_FOLDER",
    "ExistingFiles",
    "ImageFile",
    "cub_lines",
    "find_boxes",
    "find_masks",
    "locate_images",
    "search_places",
    "system_errors_as_data_errors",
]

logger = getLogger(__name__)

CUB_FOLDER = "CUB_200_2011"
MASK_FOLDER = "segmentations"
NUM_SHOWN = 3
"""Missing files that an error lists by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image of a table: where it is, and its key."""

    path: Path
    key: str


@contextlib.contextmanager
def system_errors_as_data_errors() -> Iterator[None]:
    """Turn what the system refuses to read, such as a folder without permission, into ``DataError``."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error


class ExistingFiles:
    """Tells whether files exist, from one listing per folder.

    That is far fewer system calls than one per file, which counts most on network disks.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = self._list(folder)
        return path.name in self._folders[folder]

    @staticmethod
    def _list(folder: Path) -> frozenset[str]:
        try:
            with os.scandir(folder) as entries:
                return frozenset(entry.name for entry in entries if entry.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()


def locate_images(table: Table, folder: Path, existing: ExistingFiles) -> tuple[ImageFile | None, ...]:
    """The image of every row, in row order; None only where a fault of the row was kept (``kept_faults``).

    File names may be absolute, relative to ``folder``, to its parent (they then begin with the folder's name) or to
    the folder of the table.

    Raises:
        DataError: an image is missing or listed twice.
    """
    base = _base(table, folder, existing)
    paths = [_join(base, row.filename) for row in table.rows]
    repeated = _repeated(table, paths)
    missing = [position for position, path in enumerate(paths) if path not in existing]
    if missing and keeping_faults() and len(missing) < len(paths):
        for position in missing:
            tell_fault("file", table.where(table.rows[position]), f"image {paths[position]} is missing")
    elif missing:
        shown = "; ".join(f"{paths[i]} (line {table.rows[i].line})" for i in missing[:NUM_SHOWN])
        raise DataError(
            f"{table.path}: {len(missing):,} of {len(paths):,} listed images are missing, "
            f"the first: {shown}; was the archive unpacked completely?"
        )
    faulty = {*missing, *repeated}
    keys = _keys(paths, folder)
    return tuple(
        None if position in faulty else ImageFile(path=path, key=keys[position]) for position, path in enumerate(paths)
    )


def find_masks(
    table: Table, images: Sequence[ImageFile], folder: Path, places: Sequence[Path], existing: ExistingFiles
) -> tuple[Path | None, ...]:
    """The mask of every row: from the table's column, else from a ``segmentations`` folder; all None without masks.

    ``places`` are the folders to search, ``folder`` among them. A mask folder outside ``folder`` that holds not a
    single mask for this table belongs to other data and is passed over.

    Raises:
        DataError: some masks are there and others are missing.
    """
    if MASK_COLUMN in table.columns:
        return _listed_masks(table, folder, existing)
    keys = [PurePosixPath(image.key).with_suffix(".png") for image in images]
    for region_folder, ours in _region_folders(places, folder):
        masks_folder = region_folder / MASK_FOLDER
        if not masks_folder.is_dir():
            continue
        masks = tuple(masks_folder / key for key in keys)
        missing = [position for position, mask in enumerate(masks) if mask not in existing]
        if missing and keeping_faults() and len(missing) < len(masks):
            for position in missing:
                tell_fault("mask", table.where(table.rows[position]), f"mask {masks[position]} is missing")
            return tuple(mask if mask in existing else None for mask in masks)
        if missing and (ours or len(missing) < len(masks)):
            first = missing[0]
            raise DataError(
                f"{masks_folder} lacks {len(missing):,} of {len(masks):,} masks, the first: {masks[first]} "
                f"({table.where(table.rows[first])}); add them, or move the folder away to go without masks"
            )
        if not missing:
            return masks
    return (None,) * len(images)


def find_boxes(
    table: Table, images: Sequence[ImageFile], folder: Path, places: Sequence[Path]
) -> tuple[tuple[Box, ...], ...]:
    """The boxes of every row: from the table's columns, else one each from CUB's text files; all empty without boxes.

    Searches as ``find_masks`` does.

    Raises:
        DataError: malformed text files, or boxes for some images and not for others.
    """
    if set(BOX_COLUMNS) <= table.columns:
        return tuple(row.boxes for row in table.rows)
    for boxes_folder, ours in _region_folders(places, folder):
        boxes_by_key = _read_cub_boxes(boxes_folder)
        if boxes_by_key is None:
            continue
        boxes = tuple(boxes_by_key.get(image.key, ()) for image in images)
        missing = [position for position, image in enumerate(images) if image.key not in boxes_by_key]
        if missing and keeping_faults() and len(missing) < len(boxes):
            for position in missing:
                problem = f"{boxes_folder}/bounding_boxes.txt has no box of {images[position].key}"
                tell_fault("box", table.where(table.rows[position]), problem)
            return boxes
        if missing and (ours or len(missing) < len(boxes)):
            first = missing[0]
            raise DataError(
                f"{boxes_folder}/bounding_boxes.txt lacks {len(missing):,} of {len(boxes):,} boxes, the first that of "
                f"{images[first].key} ({table.where(table.rows[first])}); names are taken from images.txt beside it"
            )
        if not missing:
            return boxes
    return ((),) * len(images)


def cub_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, id and rest of every line of one of CUB's text files; the rest may hold spaces.

    A line that is not an id and a value, or whose id appeared before, is a fault of that line (``tell_fault``).
    """
    seen = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        key, _, rest = line.strip().partition(" ")
        if not rest.strip():
            tell_fault(
                "row", f"{path}, line {number}", f"'{line}' is not an id followed by a value; is the file cut off?"
            )
        elif key in seen:
            tell_fault("row", f"{path}, line {number}", f"id {key} appears twice")
        else:
            seen.add(key)
            yield number, key, rest.strip()


def search_places(folder: Path, root: Path) -> tuple[Path, ...]:
    """Folders to search for masks and boxes: the set's own, those above it up to the root, and the root's parent."""
    places = [folder]
    while places[-1] != root and places[-1] != places[-1].parent:
        places.append(places[-1].parent)
    return (*places, root.absolute().parent)


def _base(table: Table, folder: Path, existing: ExistingFiles) -> Path:
    """The folder that file names are relative to: the first in which any of the images exists."""
    for base in (folder, folder.absolute().parent, table.path.parent):
        if any(_join(base, row.filename) in existing for row in table.rows):
            return base
    return folder


def _join(base: Path, name: str) -> Path:
    return Path(os.path.normpath(base / name))


def _repeated(table: Table, paths: Sequence[Path]) -> list[int]:
    """Positions of rows whose image an earlier row lists: faults."""
    lines: dict[Path, int] = {}
    repeated = []
    for position, (row, path) in enumerate(zip(table.rows, paths, strict=True)):
        first = lines.setdefault(path, row.line)
        if first != row.line:
            tell_fault("row", table.where(row), f"{row.filename} was already listed in line {first}")
            repeated.append(position)
    return repeated


def _keys(paths: Sequence[Path], folder: Path) -> list[str]:
    """Paths below ``folder``; below their own common folder when some image lies elsewhere.

    Either way the keys of a moved data set stay equal.
    """
    absolute = [path.absolute() for path in paths]
    base = folder.absolute()
    if not all(path.is_relative_to(base) for path in absolute):
        base = Path(os.path.commonpath([path.parent for path in absolute]))
    return [path.relative_to(base).as_posix() for path in absolute]


def _region_folders(places: Sequence[Path], folder: Path) -> Iterator[tuple[Path, bool]]:
    """Folders that may hold masks or boxes, and whether each lies in ``folder`` itself.

    CUB's archives unpack beside each other, while most published code wants the masks inside CUB's folder: both count.
    """
    for place in places:
        yield place, place == folder
        yield place / CUB_FOLDER, place == folder


def _listed_masks(table: Table, folder: Path, existing: ExistingFiles) -> tuple[Path | None, ...]:
    base = _base(table, folder, existing)
    masks = tuple(_join(base, row.mask) if row.mask else None for row in table.rows)
    for row, mask in zip(table.rows, masks, strict=True):
        if mask is not None and mask not in existing:
            problem = f"mask {mask} is missing; correct {MASK_COLUMN} or leave it blank"
            tell_fault("mask", table.where(row), problem)
    return tuple(None if mask is None or mask not in existing else mask for mask in masks)


def _read_cub_boxes(folder: Path) -> dict[str, tuple[Box, ...]] | None:
    """The box by image key, from ``images.txt`` and ``bounding_boxes.txt``; None when ``folder`` has no boxes.

    A line that is no box is told (``tell_fault``), and its image then has none.

    The ids in the two files only link them; they are not row numbers of any other table.
    """
    boxes_path, images_path = folder / "bounding_boxes.txt", folder / "images.txt"
    if not boxes_path.is_file():
        return None
    if not images_path.is_file():
        logger.warning("%s is ignored: images.txt, which says whose boxes they are, is not beside it", boxes_path)
        return None
    keys = {key: name for _, key, name in cub_lines(images_path)}
    boxes = {key: _cub_box(boxes_path, key, text) for _, key, text in cub_lines(boxes_path)}
    return {name: boxes[key] for key, name in keys.items() if key in boxes}


def _cub_box(path: Path, key: str, text: str) -> tuple[Box, ...]:
    """The box as xyxy, from CUB's ``x y width height``; empty where the fault is kept."""
    try:
        x, y, width, height = map(float, text.split())
    except ValueError:
        tell_fault("box", f"{path}, id {key}", f"'{text}' is not x y width height in pixels")
        return ()
    if not (all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0):
        tell_fault("box", f"{path}, id {key}", f"box '{text}' is empty or not finite")
        return ()
    return ((x, y, x + width, y + height),)
