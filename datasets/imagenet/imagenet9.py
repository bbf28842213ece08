"""ImageNet-9, the Backgrounds Challenge: nine coarse classes of ImageNet whose test images come on other backgrounds.

``test`` are the original images; the further splits show the same objects on the background of another image of their
class (``mixed_same``), of a random class (``mixed_rand``) or of the next class (``mixed_next``), objects alone on black
(``only_fg``), and backgrounds alone: the object as a black shape (``no_fg``), its box black (``only_bg_b``) or covered
with background (``only_bg_t``). The background gap is the accuracy on ``mixed_same`` minus that on ``mixed_rand``.

The published release has test images only. ``imagenet9`` trains on the set ``original`` and ``imagenet9l`` on the
larger ``in9l``, which are archives of their own. ``val`` is held out of their ``train``, 450 images per class, as many
as in ``test`` (``hold_out_val`` says which); their own ``val`` was not cleaned and is not read. ``test`` has masks,
one NumPy file per image. Images have 224 x 224 pixels; the published models take them without a crop, the preset
resizes to 256 and crops. Folders of classes are named with a space in two cases.
"""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.datasets.imagenet.folders import class_records
from spurbench.datasets.imagenet.ilsvrc import LICENSE
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, add_masks, find_folder, hold_out_val, open_records

__all__ = ["SPECS", "read_mask"]

CLASS_FOLDERS = (
    "00_dog",
    "01_bird",
    "02_wheeled vehicle",
    "03_reptile",
    "04_carnivore",
    "05_insect",
    "06_musical instrument",
    "07_primate",
    "08_fish",
)
FOLDER = "bg_challenge"
ORIGINAL = "original"
VARIANTS = ("mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t")
MASKS = "fg_mask"
TRAIN_FOLDERS = {"imagenet9": ORIGINAL, "imagenet9l": "in9l"}
NUM_VALIDATION = 450
"""Per class."""


@system_errors_as_data_errors()
def open_imagenet9(info: DatasetInfo, root: Path | None) -> ImageDataset:
    """Open the test release and the training set that ``info`` declares.

    Raises:
        DataMissing: no root was given, or one of the two is not there.
        DataError: classes are missing, or masks of some test images.
    """
    folder = find_folder(
        info,
        root,
        (FOLDER, f"imagenet9/{FOLDER}", "imagenet9"),
        holds=_holds_variants,
        expected=f"{ORIGINAL}/val/, {VARIANTS[0]}/val/ and the other variants",
    )
    name = TRAIN_FOLDERS[info.name]
    train_folder = find_folder(
        info,
        root,
        (name, f"{FOLDER}/{name}", f"imagenet9/{name}", f"imagenet9/{FOLDER}/{name}"),
        holds=lambda candidate: (candidate / "train" / CLASS_FOLDERS[0]).is_dir(),
        expected="train/00_dog/ and so on, the training images, which are an archive of their own,",
    )
    train = class_records(info, train_folder, "train", CLASS_FOLDERS, "train")
    test = class_records(info, folder, f"{ORIGINAL}/val", CLASS_FOLDERS, "test")
    records = [*hold_out_val(train, most=NUM_VALIDATION), *add_masks(test, partial(_mask_of, folder))]
    for variant in VARIANTS:
        records += class_records(info, folder, f"{variant}/val", CLASS_FOLDERS, variant)
    return open_records(info, folder, records, read_mask=read_mask)


def _info(name: str) -> DatasetInfo:
    train = TRAIN_FOLDERS[name]
    splits = ("test", *VARIANTS)
    return DatasetInfo(
        name=name,
        version="1",
        classes=tuple(folder.partition("_")[2] for folder in CLASS_FOLDERS),
        attributes=None,
        splits=("train", "val", *splits),
        preset="convnext",
        description="Backgrounds Challenge: nine coarse classes of ImageNet, test images on seven further backgrounds; "
        f"trained on the set {train}. Networks pretrained on ImageNet have seen its training images",
        license=LICENSE,
        citation="Xiao, Engstrom, Ilyas, Madry: Noise or Signal: The Role of Image Backgrounds in Object Recognition, "
        "ICLR 2021, arXiv 2006.09994",
        source="test images: https://github.com/MadryLab/backgrounds_challenge/releases/download/data/"
        f"backgrounds_challenge_data.tar.gz, unpacked to {FOLDER}/; training images: the set {train}, linked from "
        f"https://github.com/MadryLab/backgrounds_challenge, unpacked to {train}/train/",
        has_masks=True,
        likely_counts=dict.fromkeys(splits, (NUM_VALIDATION,) * len(CLASS_FOLDERS)),
        archives=(
            Archive(
                filename="backgrounds_challenge_data.tar.gz",
                url="https://github.com/MadryLab/backgrounds_challenge/releases/download/data/"
                "backgrounds_challenge_data.tar.gz",
            ),
        ),
    )


SPECS = {
    name: DatasetSpec(info=info, open=partial(open_imagenet9, info))
    for name, info in ((name, _info(name)) for name in TRAIN_FOLDERS)
}


def read_mask(path: Path, where: str) -> npt.NDArray[np.bool_]:
    """The object, bool [H, W], from a NumPy file of zeros and ones.

    Raises:
        DataError: not a NumPy file of that kind.
    """
    try:
        with path.open("rb") as stream:
            values = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise DataError(f"mask {path} ({where}) is not a NumPy array: {error}; unpack it again") from error
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise DataError(f"mask {path} ({where}) is {values.dtype} {values.shape}; expected numbers, [height, width]")
    return np.asarray(values > 0)


def _holds_variants(folder: Path) -> bool:
    return all((folder / variant / "val").is_dir() for variant in (ORIGINAL, *VARIANTS))


def _mask_of(folder: Path, record: ImageRecord) -> Path:
    return folder / MASKS / "val" / record.path.parent.name / f"{record.path.stem}.npy"
