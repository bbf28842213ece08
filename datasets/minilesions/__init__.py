"""MiniLesions: small procedural skin lesions beside a ruler, after the trap sets of ISIC 2018.

A lesion with a smooth outline is benign, one with notches malignant; colour, size and place tell nothing. The attribute
is a ruler at one side of the picture, which in training is there in 95 % (``minilesions95``) or all
(``minilesions100``) of the malignant images and in as few of the benign ones. Hair and dark corners are on some images
of every group. Images are 64 x 64 pixels, drawn when asked for, with the exact mask of the lesion (what a ruler hides
is not in it, hair does not count). Nothing is downloaded.

2,000 images for training, with classes of equal size; val and test have 1,000 each in four groups of equal size, and
are the same images in both sets. They are no medical data, and results on them say nothing about any.

The preset is ``minisets``: that of ``minibirds`` at a higher learning rate, since its backbone was pretrained on birds
and has never seen a lesion.

``spurbench data generate minilesions95 --to DIR`` writes ISIC's own layout with the tables of the first trap set, so
that ``--dataset isic2018_trap1_ruler --data-root DIR`` reads the very same splits; as in the published tables, the rows
of val are in that of train too.
"""

from itertools import count
from pathlib import Path
from typing import Any, Final

from spurbench.dataset import DatasetInfo
from spurbench.datasets.minilesions.drawing import Drawing, draw
from spurbench.drawing.files import require_new_folder, save_jpeg, save_mask, write_csv
from spurbench.drawing.sets import DrawnDataset, drawn_spec, paired_splits

__all__ = ["DATASETS", "write_isic"]

BASE: Final = "isic2018"
IMAGES: Final = "ISIC2018_Task1-2_Training_Input"
MASKS: Final = "ISIC2018_Task1_Training_GroundTruth"
CLASSES: Final = ("benign", "malignant")


def write_isic(dataset: DrawnDataset[Drawing], folder: Path) -> None:
    """Write ``<folder>/isic2018/``: images, masks, the table of all artefacts and the first trap set.

    Raises:
        ConfigError: ``folder`` is not empty.
    """
    require_new_folder(folder)
    base = folder / BASE
    for below in (IMAGES, MASKS):
        (base / below).mkdir(parents=True)
    numbers = count()
    rows = {name: _write_split(dataset, name, base, numbers) for name in dataset.info.splits}
    everything = [row for part in rows.values() for row in part]
    write_csv(base / "isic_bias.csv", _numbered(everything), ";")
    rows["train"] += rows["val"]
    for name, part in rows.items():
        write_csv(base / f"isic_annotated_{name}1.csv", _numbered([{**row, "vasc": 0} for row in part]))


def _write_split(dataset: DrawnDataset[Drawing], name: str, base: Path, numbers: "count[int]") -> list[dict[str, Any]]:
    """Write images and masks, and give their rows."""
    split = dataset.split(name)
    assert split.group is not None
    rows = []
    for index, group in enumerate(split.group.tolist()):
        drawing, stem = split.drawing(index), f"ISIC_{next(numbers):07d}"
        save_jpeg(base / IMAGES / f"{stem}.jpg", drawing.image)
        save_mask(base / MASKS / f"{stem}_segmentation.png", drawing.mask)
        label, ruler = divmod(group, 2)
        artefacts = {
            "dark_corner": int(drawing.dark_corner),
            "hair": int(drawing.hair),
            "gel_border": 0,
            "gel_bubble": 0,
            "ruler": ruler,
            "ink": 0,
            "patches": 0,
        }
        rows.append({"image": f"{stem}.png", **artefacts, "label": label, "label_string": CLASSES[label]})
    return rows


def _numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the unnamed first column of the published tables."""
    return [{"": number, **row} for number, row in enumerate(rows)]


def _dataset(percent: int) -> DrawnDataset[Drawing]:
    info = DatasetInfo(
        name=f"minilesions{percent}",
        version="1",
        classes=CLASSES,
        attributes=("no_ruler", "ruler"),
        preset="minisets",
        description="Procedural skin lesions, malignant if their outline has notches, 64 px; a ruler goes with "
        f"malignant in {percent} % of training. val and test are group-balanced",
        license="MIT",
        citation="Drawn by spurbench, after ISIC 2018 with the trap sets of Bissoto et al. (2020, arXiv:2004.11457)",
        source="drawn on the fly; nothing to download",
        has_boxes=True,
        has_masks=True,
        expected_counts=paired_splits(percent),
    )
    return DrawnDataset(info=info, family="minilesions", draw=draw)


DATASETS = {dataset.info.name: drawn_spec(dataset, write_isic, (BASE,)) for dataset in (_dataset(100), _dataset(95))}
