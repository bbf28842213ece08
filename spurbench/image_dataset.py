"""What the loaders of image folders share: finding the folder, opening records, comparing counts with published ones.

A loader's own file says where the files of its set lie and what they mean; it ends in ``open_records``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path

from spurbench.data.draws import VAL_FRACTION, held_out
from spurbench.data.image_files import ExistingFiles
from spurbench.data.image_set import ImageRecord, ImageSet, ImageSplit, MaskReader
from spurbench.dataset import Dataset, DatasetInfo, SplitData
from spurbench.errors import DataError, DataMissing

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageDataset",
    "add_masks",
    "find_folder",
    "hold_out_val",
    "list_images",
    "list_records",
    "open_records",
    "require_files",
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

    Args:
        folder: where the set lies, for messages.
        read_mask: how a mask's file becomes a foreground, see ``ImageSet``.

    Raises:
        DataError: a split without samples.
    """
    images = ImageSet(
        records,
        None if info.attributes is None else len(info.attributes),
        splits=info.splits,
        read_mask=read_mask,
    )
    empty = [name for name in info.splits if not len(images.split(name))]
    if empty:
        raise DataError(f"{info.name} in {folder}: no images for {', '.join(empty)}; was everything unpacked?")
    opened = ImageDataset(replace(info, has_masks=images.has_masks, has_boxes=images.has_boxes), images)
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
    if root is None:
        raise DataMissing(
            f"{info.name} needs a data root: pass --data-root DIR or set $SPURBENCH_DATA to the folder that holds "
            f"{names[0]}/. {_advice(info)}"
        )
    if not root.is_dir():
        raise DataMissing(
            f"{info.name}: data root {root} is not a folder; pass --data-root DIR or set $SPURBENCH_DATA. "
            f"{_advice(info)}"
        )
    for folder in (*(root / name for name in names), root):
        if folder.is_dir() and holds(folder):
            return folder
    raise DataMissing(
        f"{info.name} not found below {root}/: looked for {expected} in {', '.join(f'{name}/' for name in names)} "
        f"and in {root}/ itself. {_advice(info)}"
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


def require_files(records: Sequence[ImageRecord]) -> None:
    """Check that the images and masks of records that a table names are there, by one listing per folder.

    Raises:
        DataError: files are missing; says how many, and which rows name the first of them.
    """
    existing = ExistingFiles()
    for what in ("images", "masks"):
        named = [(record, record.path if what == "images" else record.mask) for record in records]
        missing = [(record, path) for record, path in named if path is not None and path not in existing]
        if missing:
            shown = "; ".join(f"{path} ({record.where})" for record, path in missing[:NUM_SHOWN])
            raise DataError(
                f"{len(missing):,} of {len(named):,} listed {what} are missing, the first: {shown}; "
                "was the archive unpacked completely?"
            )


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

    Raises:
        DataError: some masks are there and others are missing.
    """
    existing = ExistingFiles()
    masks = [mask_of(record) for record in records]
    missing = [position for position, mask in enumerate(masks) if mask not in existing]
    if len(missing) == len(masks):
        return list(records)
    if missing:
        first = missing[0]
        raise DataError(
            f"{len(missing):,} of {len(masks):,} masks are missing, the first: {masks[first]} (of "
            f"{records[first].path}); unpack them again, or move all masks away to go without"
        )
    return [replace(record, mask=mask) for record, mask in zip(records, masks, strict=True)]


def warn_about_counts(dataset: Dataset, folder: Path) -> None:
    """Log one warning when the numbers of samples differ from the published ones."""
    info = dataset.info
    differences = []
    for name in info.splits:
        published = (info.expected_counts or {}).get(name)
        found = _counts(dataset.split(name), info, len(published or ()))
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


def _advice(info: DatasetInfo) -> str:
    return f'Get it from {info.source}; or try minibirds100, which needs no download (see README "Datasets")'
