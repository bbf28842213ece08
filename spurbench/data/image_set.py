"""Splits of image files: labels at hand, pixels decoded one sample at a time."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from spurbench.data.image_files import ExistingFiles, find_boxes, find_masks, locate_images
from spurbench.data.image_table import SPLITS, Box, Table
from spurbench.errors import DataError, require_split
from spurbench.types import Sample

__all__ = [
    "MASK_THRESHOLD",
    "ImageRecord",
    "ImageSet",
    "ImageSplit",
    "MaskReader",
    "decode_levels",
    "find_records",
    "image_size",
    "open_image_set",
    "read_mask_above_middle",
]

MASK_THRESHOLD = 127
"""Foreground is brighter than this. CUB's masks are grey where annotators disagreed and at their smoothed edges, and
no threshold is published; the middle of 0..255 is where at least half of the annotators saw the bird."""

MaskReader = Callable[[Path, str], npt.NDArray[np.bool_]]
"""From a mask's file and the row that names it (for messages) to the foreground, bool [H, W]."""

_DEEP_MODES = ("I", "F")
"""Beginnings of the PIL modes with more than 8 bits per channel, which conversion would clip to white."""

_QUIET_PIL = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """Everything known about one image without opening it."""

    where: str
    """Its row, for messages: ``"data/metadata.csv, line 7"``; the folder for sets without a table."""
    path: Path
    key: str
    """Path below the set's folder."""
    split: str
    y: int
    attribute: int | None = None
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    """In pixels of the image, or of ``box_frame``."""
    box_frame: tuple[int, int] | None = None
    """Width and height of the image that the boxes were drawn on, where that may differ from the file's."""
    center_square: bool = False
    """Only the largest square in the middle of the file counts: what lies beside it is cut off on decoding, from the
    mask and the boxes too, as by torchvision's ``CenterCrop(min(width, height))``."""


class ImageSplit:
    """One split; satisfies ``spurbench.dataset.SplitData``. Holds no open file, so threads may share it."""

    def __init__(
        self, records: Sequence[ImageRecord], num_attributes: int | None, read_mask: MaskReader | None = None
    ) -> None:
        self._records = tuple(records)
        self._foreground_of = read_mask or read_mask_above_middle
        self._y = torch.tensor([record.y for record in self._records], dtype=torch.int64)
        self._group: Tensor | None = None
        if num_attributes is not None:
            attributes = torch.tensor([record.attribute for record in self._records], dtype=torch.int64)
            self._group = self._y * num_attributes + attributes

    @property
    def y(self) -> Tensor:
        """int64 [n]."""
        return self._y

    @property
    def group(self) -> Tensor | None:
        """int64 [n]; None without attributes."""
        return self._group

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample.

        Raises:
            DataError: a damaged image or mask, a mask of another size than its image, a box beside its image.
            IndexError: no such position.
        """
        index = range(len(self._records))[index]
        record = self._records[index]
        image = _read_image(record)
        sample = Sample(
            image=image,
            y=record.y,
            group=None if self._group is None else int(self._group[index]),
            index=index,
            boxes=_box_tensor(record, image) if record.boxes else None,
            mask=None if record.mask is None else self._mask(record, record.mask, image),
        )
        return _center_square(sample) if record.center_square else sample

    def _mask(self, record: ImageRecord, path: Path, image: Tensor) -> Tensor:
        """The foreground as bool [H, W]."""
        foreground = self._foreground_of(path, record.where)
        height, width = image.shape[1:]
        if foreground.shape != (height, width):
            raise DataError(
                f"mask {path} is {foreground.shape[1]} x {foreground.shape[0]} pixels (width x height), but its image "
                f"{record.path} is {width} x {height} ({record.where}); masks must be as large as their images"
            )
        return torch.from_numpy(foreground)

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """What is known of every sample, in order."""
        return self._records

    @property
    def read_mask(self) -> MaskReader:
        """How a mask's file becomes a foreground."""
        return self._foreground_of


class ImageSet:
    """All splits of a set whose files have been found.

    ``records`` are in any order that does not depend on the file system; within its split a record's place is the
    sample's index. ``read_mask`` reads masks that are not grey levels with the object above the middle.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        num_attributes: int | None,
        *,
        splits: Sequence[str] = SPLITS,
        read_mask: MaskReader | None = None,
    ) -> None:
        self._records = tuple(records)
        self.has_masks = any(record.mask is not None for record in self._records)
        self.has_boxes = any(record.boxes for record in self._records)
        parts: dict[str, list[ImageRecord]] = {name: [] for name in splits}
        for record in self._records:
            parts[record.split].append(record)
        self._splits = {name: ImageSplit(part, num_attributes, read_mask) for name, part in parts.items()}

    def split(self, name: str) -> ImageSplit:
        """Samples in the order of the records; raises ``ConfigError`` for an unknown name."""
        require_split(name, self._splits)
        return self._splits[name]

    def fingerprint(self) -> str:
        """Hex sha256 over names, sizes in bytes, labels, splits and boxes in order; pixels are not read.

        The order counts, for it gives the samples their index. The place of the set on the disk does not.

        Raises:
            DataError: a file has vanished since the set was opened.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for record in self._records:
            mask = None if record.mask is None else (record.mask.name, _size(record.mask, record.where))
            size = _size(record.path, record.where)
            row = (record.key, size, record.y, record.attribute, record.split, mask, record.boxes, record.box_frame)
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()


def open_image_set(table: Table, folder: Path, places: Sequence[Path], num_attributes: int | None) -> ImageSet:
    """Find the files of ``table`` and make its splits; see ``find_records``."""
    return ImageSet(find_records(table, folder, places), num_attributes, splits=table.splits)


def find_records(table: Table, folder: Path, places: Sequence[Path]) -> list[ImageRecord]:
    """The files of every row; see ``locate_images``, ``find_masks`` and ``find_boxes``.

    ``folder`` holds the images; ``places`` are the folders to search for masks and boxes.

    Raises:
        DataError: files are missing or malformed.
    """
    existing = ExistingFiles()
    located = locate_images(table, folder, existing)
    images = [image for image in located if image is not None]
    if len(images) < len(located):
        table = replace(table, rows=tuple(row for row, image in zip(table.rows, located, strict=True) if image))
    masks = find_masks(table, images, folder, places, existing)
    boxes = find_boxes(table, images, folder, places)
    return [
        ImageRecord(
            where=table.where(row),
            path=image.path,
            key=image.key,
            split=row.split,
            y=row.y,
            attribute=row.attribute,
            mask=mask,
            boxes=found,
        )
        for row, image, mask, found in zip(table.rows, images, masks, boxes, strict=True)
    ]


def _read_image(record: ImageRecord) -> Tensor:
    """uint8 [3, H, W], RGB; alpha is dropped and EXIF orientation ignored, as in the code of all published numbers."""
    pixels = _decode(record.path, record.where, "RGB")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_mask_above_middle(path: Path, where: str) -> npt.NDArray[np.bool_]:
    """A mask as grey levels 0 to 255: the foreground is brighter than ``MASK_THRESHOLD``."""
    levels = decode_levels(path, where)
    if levels.max() == 1:
        raise DataError(
            f"mask {path} has no level above 1 ({where}); "
            f"expected 0 (background) to 255 (object): multiply its values by 255"
        )
    return levels > MASK_THRESHOLD


def _box_tensor(record: ImageRecord, image: Tensor) -> Tensor:
    """float32 [n, 4], clipped to the image: printed with one decimal, boxes may stick out by a fraction."""
    height, width = image.shape[1:]
    frame_width, frame_height = record.box_frame or (width, height)
    scales = (width / frame_width, height / frame_height) * 2
    inside = []
    for box in record.boxes:
        x0, y0, x1, y1 = (edge * scale for edge, scale in zip(box, scales, strict=True))
        x0, x1 = max(x0, 0.0), min(x1, float(width))
        y0, y1 = max(y0, 0.0), min(y1, float(height))
        if x0 >= x1 or y0 >= y1:
            raise DataError(
                f"box {box} (x0, y0, x1, y1) lies outside its image {record.path}, "
                f"which is {width} x {height} pixels ({record.where})"
            )
        inside.append([x0, y0, x1, y1])
    return torch.tensor(inside, dtype=torch.float32)


def _center_square(sample: Sample) -> Sample:
    """Image, mask and boxes cut to the largest square in the middle; a box of which nothing is left is left out."""
    height, width = sample.image.shape[1:]
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)  # half to even, as torchvision
    rows, columns = slice(top, top + side), slice(left, left + side)
    boxes = sample.boxes
    if boxes is not None:
        boxes = (boxes - torch.tensor([left, top, left, top])).clamp(0, side)
        boxes = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    return replace(
        sample,
        image=sample.image[:, rows, columns],
        mask=None if sample.mask is None else sample.mask[rows, columns],
        boxes=boxes if boxes is not None and len(boxes) else None,
    )


def decode_levels(path: Path, where: str) -> npt.NDArray[np.uint8]:
    """An image file as grey levels, uint8 [H, W].

    Raises:
        DataError: not decodable, or more than 8 bits per channel.
    """
    return _decode(path, where, "L")


def image_size(path: Path, where: str) -> tuple[int, int]:
    """Width and height by an image file's header; its pixels may still be damaged.

    Raises:
        DataError: no image file.
    """
    _silence_pil()
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # as in _decode
        raise _undecodable(path, where, error) from error


def _decode(path: Path, where: str, mode: str) -> npt.NDArray[np.uint8]:
    """The pixels of a file in PIL mode ``RGB`` or ``L``: [H, W, 3] or [H, W]."""
    _silence_pil()
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(_DEEP_MODES):
                raise DataError(
                    f"{path} ({where}) has more than 8 bits per channel ({image.mode}); convert it to 8 bits"
                )
            return np.array(image.convert(mode))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Damaged bytes raise nearly anything in PIL: OSError, SyntaxError, struct.error...
        raise _undecodable(path, where, error) from error


def _undecodable(path: Path, where: str, error: Exception) -> DataError:
    return DataError(
        f"{path} ({where}) cannot be decoded: {error}; is the file damaged or cut off? Copy or unpack it again"
    )


def _silence_pil() -> None:
    """Ignore warnings that PIL itself raises, such as on odd EXIF data, which is not used here.

    A filter that stays: ``warnings.catch_warnings`` is not safe where several threads decode.
    """
    if _QUIET_PIL not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _size(path: Path, where: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path} ({where}): {error.strerror or error}") from error
