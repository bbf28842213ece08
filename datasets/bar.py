"""BAR, Biased Action Recognition: six actions whose training images are nearly all at one kind of place.

The data lie in their git repository, flat: ``{train,test}/<action>_<number>.jpg``. One action is written with a space,
``pole vaulting_12.jpg``. There are no group labels: the places of the test images are unlike those of training by
construction, so the average accuracy on test is the published number, and ours of the worst class comes beside it.

No val split is published. 20 % of every training class are held out by the order of ``hold_out_val``; they are biased
like training.
"""

from collections.abc import Iterator
from pathlib import Path

from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, find_folder, hold_out_val, list_images, open_records

__all__ = ["DATASETS", "open_bar"]

INFO = DatasetInfo(
    name="bar",
    version="1",
    classes=("climbing", "diving", "fishing", "racing", "throwing", "pole vaulting"),
    attributes=None,
    description="Six actions at typical places in training and val, at others in test",
    license="One per image, see metadata.json of the set",
    citation="Nam, Cha, Ahn, Lee, Shin: Learning from Failure: Training Debiased Classifier from Biased Classifier, "
    "NeurIPS 2020, arXiv 2007.02561",
    source="git clone https://github.com/alinlab/BAR (the images are in the repository: train/ and test/)",
    expected_counts={
        "train": (261, 416, 130, 269, 254, 223),
        "val": (65, 104, 33, 67, 63, 56),
        "test": (105, 159, 42, 132, 85, 131),
    },
)


@system_errors_as_data_errors()
def open_bar(root: Path | None) -> ImageDataset:
    """Open the set below a data root.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: an image whose name is not ``<action>_<number>``.
    """
    folder = find_folder(INFO, root, ("BAR", "bar", "BAR-master"), holds=_holds, expected=EXPECTED)
    return open_records(INFO, folder, hold_out_val([*_records(folder, "train"), *_records(folder, "test")]))


EXPECTED = "train/climbing_0.jpg and so on, and test/"


def _holds(folder: Path) -> bool:
    train, test = folder / "train", folder / "test"
    return train.is_dir() and test.is_dir() and any(_action(path) in INFO.classes for path in list_images(train))


def _action(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _records(folder: Path, split: str) -> Iterator[ImageRecord]:
    for path in list_images(folder / split):
        if _action(path) not in INFO.classes:
            raise DataError(
                f"{path} does not tell its action; expected <action>_<number>{path.suffix} with one of "
                f"{', '.join(INFO.classes)}"
            )
        yield ImageRecord(
            where=str(folder / split),
            path=path,
            key=f"{split}/{path.name}",
            split=split,
            y=INFO.classes.index(_action(path)),
        )


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_bar)}
