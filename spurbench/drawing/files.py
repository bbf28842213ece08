"""Drawn images as files. Two calls write equal bytes wherever Pillow and its JPEG library are the same."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from spurbench.data.image_table import ATTRIBUTE_NAME, BOX_COLUMNS, CLASS_NAME, MASK_COLUMN
from spurbench.drawing.sets import DrawnDataset
from spurbench.errors import ConfigError

__all__ = [
    "TABLE_FOLDER",
    "require_new_folder",
    "save_jpeg",
    "save_mask",
    "save_png",
    "write_csv",
    "write_table_folder",
]

JPEG_QUALITY = 95
TABLE_FOLDER = ("images", "masks", "metadata.csv")
"""What ``write_table_folder`` writes."""


def require_new_folder(folder: Path) -> None:
    """Refuse a folder with something in it.

    Raises:
        ConfigError: it is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a new folder")


def save_jpeg(path: Path, image_3HW: npt.NDArray[np.uint8]) -> None:
    """Write an image with little loss."""
    # Without chroma subsampling, which would blur the colours of so small an image.
    Image.fromarray(image_3HW.transpose(1, 2, 0)).save(path, quality=JPEG_QUALITY, subsampling=0)


def save_png(path: Path, image_3HW: npt.NDArray[np.uint8]) -> None:
    """Write an image without loss."""
    Image.fromarray(image_3HW.transpose(1, 2, 0)).save(path)


def save_mask(path: Path, mask: npt.NDArray[np.bool_], mode: str = "L") -> None:
    """Write a mask [H, W] as levels 0 and 255, in a mode of Pillow such as ``RGB``."""
    Image.fromarray(mask).convert(mode).save(path)


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    """Write a table with the keys of the first row as its header."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, rows[0], delimiter=delimiter, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_table_folder(dataset: DrawnDataset[Any], folder: Path) -> None:
    """Write images, masks and ``metadata.csv`` in SubpopBench's dialect, with names, masks and boxes beside it.

    For sets that stand for one without files of its own. ``--dataset FOLDER`` reads it, without loss.

    Raises:
        ConfigError: ``folder`` is not empty.
    """
    require_new_folder(folder)
    info = dataset.info
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(info.splits):
        split = dataset.split(name)
        images, masks = Path("images", name), Path("masks", name)
        for below in (images, masks):
            (folder / below).mkdir(parents=True)
        assert split.group is not None
        assert info.attributes is not None
        for index, group in enumerate(split.group.tolist()):
            drawing = split.drawing(index)
            y, attribute = divmod(group, len(info.attributes))
            file = f"{index:04d}.png"
            save_png(folder / images / file, drawing.image)
            save_mask(folder / masks / file, drawing.mask)
            rows.append(
                {
                    "id": len(rows) + 1,
                    "filename": (images / file).as_posix(),
                    "split": number,
                    "y": y,
                    "a": attribute,
                    CLASS_NAME: info.classes[y],
                    ATTRIBUTE_NAME: info.attributes[attribute],
                    MASK_COLUMN: (masks / file).as_posix(),
                    **dict(zip(BOX_COLUMNS, drawing.box, strict=True)),
                }
            )
    write_csv(folder / "metadata.csv", rows)
