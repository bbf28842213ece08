"""ImageNet-100: 100 classes of ILSVRC-2012, the list of Contrastive Multiview Coding.

Other lists go by the same name; the numbers of one say nothing about another. Labels follow the sorted wnids. ``test``
is ILSVRC's validation set of these classes, ``val`` is held out of the training set: 50 images per class, as many as
in ``test`` (``hold_out_val`` says which). Boxes are read for ``test``, where all images have some.
"""

from functools import partial
from pathlib import Path

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.datasets.imagenet.boxes import find_annotations, with_boxes
from spurbench.datasets.imagenet.classes import read_classes
from spurbench.datasets.imagenet.folders import class_records
from spurbench.datasets.imagenet.ilsvrc import (
    ARCHIVES,
    BOX_ARCHIVES,
    FOLDERS,
    LICENSE,
    AnnotatedDataset,
    check_ilsvrc,
    holds_classes,
    validation_records,
)
from spurbench.image_dataset import find_folder, hold_out_val, open_records

__all__ = ["SPEC"]

CLASSES = read_classes("imagenet100")
WNIDS = tuple(each.wnid for each in CLASSES)
NUM_VALIDATION = 50
"""Per class."""

INFO = DatasetInfo(
    name="imagenet100",
    version="1",
    classes=tuple(each.name for each in CLASSES),
    attributes=None,
    preset="convnext",
    description="100 classes of ImageNet (the CMC list); boxes for test. Networks pretrained on ImageNet have seen "
    "its training images",
    license=LICENSE,
    citation="Tian, Krishnan, Isola: Contrastive Multiview Coding, ECCV 2020, arXiv 1906.05849; Russakovsky et al.: "
    "ImageNet Large Scale Visual Recognition Challenge, IJCV 2015, arXiv 1409.0575",
    source="https://image-net.org/download (needs an account): ILSVRC2012_img_train.tar, whose inner archives belong "
    "into imagenet/train/<wnid>/, and ILSVRC2012_img_val.tar, into imagenet/val/<wnid>/; for boxes "
    "ILSVRC2012_bbox_val_v3.tar.gz, into imagenet/Annotations/val/. Kaggle's copy (ILSVRC/, LOC_val_solution.csv) is "
    "read as it is. A folder imagenet100/ with these 100 classes alone is enough",
    has_boxes=True,
    likely_counts={"train": (121_689,), "val": (NUM_VALIDATION,) * 100, "test": (50,) * 100},
    archives=(*ARCHIVES, *BOX_ARCHIVES),
)


@system_errors_as_data_errors()
def open_imagenet100(root: Path | None) -> AnnotatedDataset:
    """Open it from all of ILSVRC-2012, or from a folder of its classes alone.

    Raises:
        DataMissing: no root was given, or nothing is there.
        DataError: classes are missing, or unsorted validation images cannot be told apart.
    """
    folder = find_folder(
        INFO,
        root,
        ("imagenet100", *FOLDERS),
        holds=partial(holds_classes, classes=CLASSES),
        expected="train/<wnid>/ and val/",
    )
    assert root is not None
    annotations = find_annotations(folder, root)
    train = hold_out_val(class_records(INFO, folder, "train", WNIDS, "train"), most=NUM_VALIDATION)
    test = with_boxes(validation_records(INFO, folder, root, CLASSES), WNIDS, annotations)
    opened = open_records(INFO, folder, [*train, *test])
    return AnnotatedDataset(opened.info, opened.images, annotations)


SPEC = DatasetSpec(info=INFO, open=open_imagenet100, check=partial(check_ilsvrc, classes=CLASSES))
