"""What the loaders of image folders share: finding the folder, opening records, comparing counts with published ones.

A loader's own file says where the files of its set lie and what they mean; it ends in ``open_records``.
"""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Literal

from spurbench.data.draws import VAL_FRACTION, held_out
from spurbench.data.image_files import ExistingFiles
from spurbench.data.image_set import ImageRecord, ImageSet, ImageSplit, MaskReader
from spurbench.data.image_table import SPLITS
from spurbench.data.row_faults import keeping_faults, tell_fault
from spurbench.dataset import Dataset, DatasetInfo, SplitData
from spurbench.errors import DataError, DataMissing, data_missing

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageDataset",
    "add_masks",
    "dataset_missing",
    "find_folder",
    "hold_out_val",
    "list_images",
    "list_records",
    "open_records",
    "require_files",
    "require_root",
    "subfolders",
    "warn_about_counts",
]

logger = getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """An opened dataset of image files."""

    info: DatasetInfo
    images: ImageSet

    def split(self, name: str) -> ImageSplit:
        """The split called ``name``; raises ``ConfigError`` for an unknown name."""
        return self.images.split(name)

    def fingerprint(self) -> str:
        """Hash of file names, sizes, labels and splits, in order."""
        return self.images.fingerprint()


def open_records(
    info: DatasetInfo, folder: Path, records: Sequence[ImageRecord], *, read_mask: MaskReader | None = None
) -> ImageDataset:
    """The dataset of these records, its declaration completed by what was found; other counts than published warn.

    Without records it has none of the splits that are declared beside train, val and test.

    Args:
        folder: where the set lies, for messages.
        read_mask: how a mask's file becomes a foreground, see ``ImageSet``.

    Raises:
        DataError: train, val or test without samples.
    """
    images = ImageSet(
        records,
        None if info.attributes is None else len(info.attributes),
        splits=info.splits,
        read_mask=read_mask,
    )
    empty = [name for name in info.splits if not len(images.split(name))]
    if needed := [name for name in empty if name in SPLITS]:
        raise DataError(f"{info.name} in {folder}: no images for {', '.join(needed)}; was everything unpacked?")
    splits = tuple(name for name in info.splits if name not in empty)
    found = replace(info, splits=splits, has_masks=images.has_masks, has_boxes=images.has_boxes)
    opened = ImageDataset(found, images)
    warn_about_counts(opened, folder)
    return opened


def find_folder(
    info: DatasetInfo,
    root: Path | None,
    names: Sequence[str],
    *,
    holds: Callable[[Path], bool],
    expected: str,
) -> Path:
    """The folder of a set: the first of ``names`` below the data root, or the root itself, that ``holds`` its files.

    Args:
        names: paths below the root, the official one first, such as ``"celebA_v1.0"``.
        holds: whether a folder that exists is the set's.
        expected: what such a folder holds, for the message: ``"metadata.csv and patches/"``.

    Raises:
        DataMissing: no root was given, or nothing fits; says where was searched and where to get it.
    """
    root = require_root(info, root, names[0])
    for folder in (*(root / name for name in names), root):
        if folder.is_dir() and holds(folder):
            return folder
    below = ", ".join(f"{name}/" for name in names)
    raise dataset_missing(
        info, root, f"{info.name} not found below {root}/", f"{expected} in {below} and in {root}/ itself"
    )


def require_root(info: DatasetInfo, root: Path | None, name: str) -> Path:
    """The data root, below which a set is looked for in the folder ``name``.

    Raises:
        DataMissing: no root was given, or it is not there.
    """
    if root is None:
        where = f"{name}/ below --data-root DIR or $SPURBENCH_DATA, which are not given"
        raise dataset_missing(info, None, f"{info.name} needs a data root", where)
    if not root.is_dir():
        what = f"{info.name} not found: the data root {root} is not a folder"
        raise dataset_missing(info, None, what, f"{name}/ below --data-root DIR or $SPURBENCH_DATA")
    return root


def dataset_missing(
    info: DatasetInfo, root: Path | None, what: str, looked_for: str, *, get: str | None = None
) -> DataMissing:
    """The refusal of a set that is not below ``root``, with what to do about it.

    Args:
        get: where to get what is missing, unless that is the whole set.
    """
    place = "DIR" if root is None else shlex.quote(str(root))
    command = "prepare" if info.archives else "check"
    return data_missing(
        what,
        looked_for=looked_for,
        get=info.source if get is None else get,
        then=f"spurbench data {command} {info.name} --data-root {place}",
        instead="--dataset minibirds100, which needs no download",
    )


def list_images(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Image files directly in ``folder``, sorted by name, so that no order of a file system gets into a split."""
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(tuple(suffixes)) and not entry.name.startswith(".")  # macOS leaves ._1.jpg
        )
    return [folder / name for name in names]


def subfolders(folder: Path) -> Iterator[Path]:
    """Folders directly in ``folder``, sorted by name, hidden ones left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return (folder / name for name in names)


def require_files(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """The records that a table names: their images and masks must be there, by one listing per folder.

    Within ``kept_faults`` each missing file is told; its record is then left out, or goes without its mask.

    Raises:
        DataError: files are missing; says how many, and which rows name the first of them.
    """
    existing = ExistingFiles()
    advice = "was the archive unpacked completely?"
    images = [(record, record.path) for record in records]
    masks = [(record, record.mask) for record in records if record.mask is not None]
    no_image = _missing("file", "listed images", images, existing, advice)
    no_mask = _missing("mask", "listed masks", masks, existing, advice)
    return [
        replace(record, mask=None) if record.mask in no_mask else record
        for record in records
        if record.path not in no_image
    ]


NUM_SHOWN = 3
"""Missing files that an error lists by name."""


def list_records(base: Path, below: str, *, split: str, y: int, attribute: int | None = None) -> list[ImageRecord]:
    """A record for every image in the folder ``below`` a set's folder ``base``; none where it does not exist."""
    folder = base / below
    if not folder.is_dir():
        return []
    return [
        ImageRecord(where=str(folder), path=path, key=f"{below}/{path.name}", split=split, y=y, attribute=attribute)
        for path in list_images(folder)
    ]


def hold_out_val(
    records: Sequence[ImageRecord], *, share: float = VAL_FRACTION, most: int | None = None
) -> list[ImageRecord]:
    """Moves a part of every training group to ``val``, for sets that are published without one; see ``held_out``.

    The order of the records stays.
    """
    groups = {record.key: (record.y, record.attribute) for record in records if record.split == "train"}
    held = held_out(groups, share, most)
    return [replace(r, split="val") if r.split == "train" and r.key in held else r for r in records]


def add_masks(records: Sequence[ImageRecord], mask_of: Callable[[ImageRecord], Path]) -> list[ImageRecord]:
    """The records with the masks that ``mask_of`` names, or unchanged when not one of those files is there.

    Within ``kept_faults`` each missing mask is told, and its record goes without.

    Raises:
        DataError: some masks are there and others are missing.
    """
    existing = ExistingFiles()
    masks = [(record, mask_of(record)) for record in records]
    if not any(mask in existing for _, mask in masks):
        return list(records)
    advice = "unpack them again, or move all masks away to go without"
    missing = _missing("mask", "masks", masks, existing, advice)
    return [record if mask in missing else replace(record, mask=mask) for record, mask in masks]


def _missing(
    kind: Literal["file", "mask"],
    what: str,
    named: Sequence[tuple[ImageRecord, Path]],
    existing: ExistingFiles,
    advice: str,
) -> frozenset[Path]:
    """Which of the named files are missing, after each of them was told; if all are, they are told in one error."""
    missing = [(record, path) for record, path in named if path not in existing]
    if keeping_faults() and len(missing) < len(named):
        for record, path in missing:
            tell_fault(kind, record.where, f"{'image' if kind == 'file' else 'mask'} {path} is missing")
    elif missing:
        shown = "; ".join(f"{path} ({record.where})" for record, path in missing[:NUM_SHOWN])
        raise DataError(f"{len(missing):,} of {len(named):,} {what} are missing, the first: {shown}; {advice}")
    return frozenset(path for _, path in missing)


def warn_about_counts(dataset: Dataset, folder: Path) -> None:
    """Log one warning when the numbers of samples differ from the published ones."""
    info = dataset.info
    differences = []
    for name in dict.fromkeys([*info.splits, *(info.expected_counts or {})]):
        published = (info.expected_counts or {}).get(name)
        found = _counts(dataset.split(name), info, len(published or ())) if name in info.splits else (0,)
        if published is not None and found != published:
            differences.append(f"{name} {_slashed(found)} (published {_slashed(published)})")
    if differences:
        logger.warning(
            "%s in %s is not the published set, so its numbers are not comparable; samples per group %s: %s",
            info.name,
            folder,
            ", ".join(info.group_names) if info.num_groups <= MAX_NAMED else f"({info.num_groups} groups)",
            "; ".join(differences),
        )


MAX_NAMED = 16
"""Groups that a warning lists by name."""


def _counts(split: SplitData, info: DatasetInfo, length: int) -> tuple[int, ...]:
    """Samples per group, or in all where only the total is published."""
    if length == 1:
        return (len(split),)
    column = split.y if split.group is None else split.group
    return tuple(column.bincount(minlength=info.num_groups).tolist())


def _slashed(counts: tuple[int, ...]) -> str:
    if len(counts) > MAX_NAMED:
        return f"{sum(counts):,} in {sum(count > 0 for count in counts)} groups"
    return "/".join(map(str, counts))
