"""Hard ImageNet: 15 classes of ILSVRC-2012 with strong spurious cues, and masks of their objects.

Only masks are published, named ``<wnid>_<ImageNet's file name>``; what has a mask is in the set. The images are taken
from ILSVRC-2012, or from a folder with these classes alone. Labels follow the sorted wnids. ``test`` is ILSVRC's
validation set, ``val`` is held out of the training set: 50 images per class, as many as in ``test``
(``hold_out_val`` says which; the published code chooses nothing on a validation set).

Mask files carry the ending of their images whatever they hold, so they are read by content: the object is above 0 in a
lossless file and above the middle in a JPEG, whose zeros are blurred; a transparency channel is left out. The authors'
code resizes masks with a bilinear filter and takes all above 0, which widens objects by a pixel or so; here masks keep
their edges (nearest neighbour).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spurbench.data.image_files import ExistingFiles, system_errors_as_data_errors
from spurbench.data.image_set import MASK_THRESHOLD, ImageRecord, decode_levels
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.datasets.imagenet.classes import read_classes
from spurbench.datasets.imagenet.ilsvrc import (
    ARCHIVES,
    FOLDERS,
    LICENSE,
    AnnotatedDataset,
    check_ilsvrc,
    holds_classes,
)
from spurbench.errors import DataError
from spurbench.image_dataset import find_folder, hold_out_val, list_images, open_records, require_files

__all__ = ["SPEC", "read_mask"]

CLASSES = read_classes("hardimagenet")
LABELS = {each.wnid: y for y, each in enumerate(CLASSES)}
NUM_VALIDATION = 50
"""Per class."""
MASK_FOLDERS = ("hardImageNet", "HardImageNet", "hard_imagenet", "hardimagenet")
IMAGE_FOLDERS = ("hardImageNet/images", "hardImageNet_images", "hard_imagenet_images", *FOLDERS)
LOSSY_SIGNATURE = b"\xff\xd8"
"""JPEG files begin so."""

INFO = DatasetInfo(
    name="hardimagenet",
    version="1",
    classes=tuple(each.name for each in CLASSES),
    attributes=None,
    preset="convnext",
    description="15 classes of ImageNet with strong spurious cues; masks of the objects. Networks pretrained on "
    "ImageNet have seen its training images",
    license=LICENSE,
    citation="Moayeri, Singla, Feizi: Hard ImageNet: Segmentations for Objects with Strong Spurious Cues, NeurIPS 2022 "
    "Datasets and Benchmarks",
    source="hardImageNet.zip (masks), linked from https://github.com/mmoayeri/HardImageNet, unpacked to hardImageNet/; "
    "and the images: ILSVRC-2012 from https://image-net.org/download (needs an account) as imagenet/{train,val}/"
    "<wnid>/, or the authors' set of these 15 classes, https://umd.box.com/s/gx5qx4w03dgsumjclo7wpbdqov4xxrly, as "
    "hardImageNet_images/{train,val}/<wnid>/",
    has_masks=True,
    likely_counts={"val": (NUM_VALIDATION,) * 15, "test": (50,) * 15},
    archives=(Archive(filename="hardImageNet.zip"), *ARCHIVES),
)


@system_errors_as_data_errors()
def open_hardimagenet(root: Path | None) -> AnnotatedDataset:
    """Join the masks to their images.

    Raises:
        DataMissing: no root was given, or masks or images are not there.
        DataError: a mask of an unknown class, or without its image.
    """
    masks = find_folder(
        INFO,
        root,
        MASK_FOLDERS,
        holds=_holds_masks,
        expected="the masks train/<wnid>_<image> and val/<wnid>_<image>",
    )
    images = find_folder(
        INFO,
        root,
        IMAGE_FOLDERS,
        holds=partial(holds_classes, classes=CLASSES),
        expected=f"the images train/<wnid>/ and val/ that belong to the masks in {masks}",
    )
    train, test = _records(images, masks, "train", "train"), _records(images, masks, "val", "test")
    records = [*hold_out_val(train, most=NUM_VALIDATION), *test]
    opened = open_records(INFO, masks, require_files(records), read_mask=read_mask)
    return AnnotatedDataset(opened.info, opened.images, None)


SPEC = DatasetSpec(info=INFO, open=open_hardimagenet, check=partial(check_ilsvrc, classes=CLASSES))


def read_mask(path: Path, where: str) -> npt.NDArray[np.bool_]:
    """The object, bool [H, W], from a file of any format."""
    levels = decode_levels(path, where)
    with path.open("rb") as stream:
        lossy = stream.read(len(LOSSY_SIGNATURE)) == LOSSY_SIGNATURE
    return levels > (MASK_THRESHOLD if lossy else 0)


def _holds_masks(folder: Path) -> bool:
    return all(
        (folder / part).is_dir() and any(path.name.partition("_")[0] in LABELS for path in list_images(folder / part))
        for part in ("train", "val")
    )


def _records(images: Path, masks: Path, part: str, split: str) -> list[ImageRecord]:
    """Records of the masks of ILSVRC's training or validation set, sorted by class and name."""
    existing = ExistingFiles()
    records = []
    for mask, wnid, name in _names(list_images(masks / part)):
        sorted_path, flat_path = images / part / wnid / name, images / part / name
        records.append(
            ImageRecord(
                where=f"mask {mask}",
                path=flat_path if sorted_path not in existing and flat_path in existing else sorted_path,
                key=f"{part}/{wnid}/{name}",
                split=split,
                y=LABELS[wnid],
                mask=mask,
            )
        )
    return sorted(records, key=lambda record: record.key)


def _names(masks: Sequence[Path]) -> Iterator[tuple[Path, str, str]]:
    """Every mask with its wnid and the name of its image."""
    for mask in masks:
        wnid, _, rest = mask.stem.partition("_")
        if wnid not in LABELS or not rest:
            raise DataError(
                f"{mask} is not named <wnid>_<image> with one of the 15 wnids of Hard ImageNet; move it away"
            )
        yield mask, wnid, f"{rest}.JPEG"
