"""Boxes of ILSVRC-2012: one VOC file in XML per image, as far as an image has one.

The archives of boxes unpack to ``train/<wnid>/<image>.xml`` or ``<wnid>/<image>.xml`` and to ``val/<image>.xml``;
Kaggle's copy has both below ``ILSVRC/Annotations/CLS-LOC/``. Coordinates belong to the size that stands in the file,
which may differ from that of the image. They are taken as they stand, as edges; whether the last pixel belongs to a
box is not documented, and one pixel of 500 does not matter here. An image has as many boxes as it shows objects of its
class; boxes of other classes are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from spurbench.data.image_files import ExistingFiles
from spurbench.data.image_set import ImageRecord
from spurbench.data.image_table import Box
from spurbench.errors import DataError

__all__ = ["annotation_file", "find_annotations", "read_boxes", "with_boxes"]

ANNOTATION_FOLDERS = (
    "Annotations/CLS-LOC",
    "Annotations",
    "ILSVRC/Annotations/CLS-LOC",
    "imagenet/Annotations/CLS-LOC",
    "imagenet/Annotations",
    "imagenet/ILSVRC/Annotations/CLS-LOC",
    "ILSVRC2012/Annotations",
)
"""Below the set's folder, one of those above it, or the data root."""
VALIDATION = "ILSVRC2012_val_"
"""Names of ILSVRC's validation images begin so; those of its training images begin with their wnid."""


def find_annotations(folder: Path, root: Path) -> Path | None:
    """The folder of XML files that goes with the images in ``folder``, below ``root`` or in it."""
    places = [folder]
    while places[-1] != root and places[-1] != places[-1].parent:
        places.append(places[-1].parent)
    candidates = (place / name for place in places for name in ANNOTATION_FOLDERS)
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def with_boxes(records: Sequence[ImageRecord], wnids: Sequence[str], annotations: Path | None) -> list[ImageRecord]:
    """The records with the boxes of their class, where there are any; ``wnids`` in the order of the labels.

    Raises:
        DataError: a malformed file.
    """
    if annotations is None:
        return list(records)
    existing = ExistingFiles()
    completed = []
    for record in records:
        path = annotation_file(annotations, record.path.stem, wnids[record.y], existing)
        boxes, frame = ((), None) if path is None else _boxes_of(path, wnids[record.y])
        completed.append(replace(record, boxes=boxes, box_frame=frame if boxes else None))
    return completed


def annotation_file(annotations: Path, stem: str, wnid: str, existing: ExistingFiles) -> Path | None:
    """The XML file of an image, if there is one."""
    name = f"{stem}.xml"
    folders = ("val", f"val/{wnid}") if stem.startswith(VALIDATION) else (f"train/{wnid}", wnid)
    return next((path for path in (annotations / folder / name for folder in folders) if path in existing), None)


def read_boxes(path: Path) -> tuple[dict[str, list[Box]], tuple[int, int] | None]:
    """All boxes by wnid, clipped to the frame, and the frame's width and height (None where the file has none).

    Boxes without area are left out.

    Raises:
        DataError: not XML, or without the elements of VOC.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
        width, height = (int(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        frame = (width, height) if width > 0 and height > 0 else None
        boxes: dict[str, list[Box]] = {}
        for wnid, box in _objects(root, frame):
            if box[0] < box[2] and box[1] < box[3]:
                boxes.setdefault(wnid, []).append(box)
    except (ElementTree.ParseError, LookupError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is not a VOC annotation (annotation/size, annotation/object/bndbox): {error}; is it cut off? "
            "Unpack the archive of boxes again, or move its folder away to go without boxes"
        ) from error
    return boxes, frame


def _boxes_of(path: Path, wnid: str) -> tuple[tuple[Box, ...], tuple[int, int] | None]:
    boxes, frame = read_boxes(path)
    return tuple(boxes.get(wnid, ())), frame


def _objects(root: ElementTree.Element, frame: tuple[int, int] | None) -> Iterator[tuple[str, Box]]:
    right, bottom = frame or (2**31, 2**31)
    for item in root.iter("object"):
        x0, y0, x1, y1 = (int(float(_text(item, f"bndbox/{edge}"))) for edge in ("xmin", "ymin", "xmax", "ymax"))
        box = (float(max(x0, 0)), float(max(y0, 0)), float(min(x1, right)), float(min(y1, bottom)))
        yield _text(item, "name").strip(), box


def _text(item: ElementTree.Element, name: str) -> str:
    text = item.findtext(name)
    if text is None:
        raise ValueError(f"an object without {name}")
    return text
