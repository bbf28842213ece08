"""iWildCam2020-WILDS: animals before camera traps, at places unseen in training (arXiv 2012.07421, version 2.0).

Read from WILDS' own layout, ``iwildcam_v2.0/`` with ``metadata.csv`` and the images of all splits in ``train/``. The
table names the split: ``val`` and ``test`` are other cameras than ``train``, ``id_val`` and ``id_test`` the same ones
on other days. There are 182 classes, though WILDS' text says 186; their names are in the release's ``categories.csv``.

There is no attribute. The camera would be one, but classes x cameras are thousands of groups of few images or none,
and no published number uses them; so the worst class is reported.

How the columns relate to WILDS' numbers: ``accuracy`` is its ``acc_avg``, ``group_mean_accuracy`` (over classes) is its
``recall-macro_all``. The official number, ``F1-macro_all``, counts false alarms too; rows have it under ``official``,
as ``macro_f1``.
"""

from pathlib import Path

from spurbench.data.csv_columns import TextRow, choose, column_rows, good_rows
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.image_dataset import ImageDataset, find_folder, open_records, require_files
from spurbench.metrics.f1 import macro_f1

__all__ = ["DATASETS", "open_iwildcam"]

FOLDERS = ("iwildcam_v2.0", "iwildcam")
TABLE = "metadata.csv"
IMAGES = "train"
COLUMNS = ("filename", "y", "split")
CLASS_INDEX = {str(y): y for y in range(182)}

INFO = DatasetInfo(
    name="iwildcam",
    version="1",
    classes=tuple(f"class{y}" for y in CLASS_INDEX),
    attributes=None,
    splits=("train", "val", "test", "id_val", "id_test"),
    description="Camera trap images of 182 species, empty ones among them; validated and tested at unseen places",
    license="Community Data License Agreement, Permissive, 1.0",
    citation="Koh, Sagawa et al.: WILDS, ICML 2021, arXiv 2012.07421; Beery, Cole, Gjoka: The iWildCam 2020 "
    "Competition Dataset, arXiv 2004.10340",
    source="https://worksheets.codalab.org/rest/bundles/0x6313da2b204647e79a14b468131fcd64/contents/blob/ "
    "(WILDS' iwildcam v2.0, 12 GB), unpacked into iwildcam_v2.0/",
    likely_counts={"train": (129809,), "val": (14961,), "test": (42791,), "id_val": (7314,), "id_test": (8154,)},
    archives=(
        Archive(
            filename="iwildcam_v2.0.tar.gz",
            url="https://worksheets.codalab.org/rest/bundles/0x6313da2b204647e79a14b468131fcd64/contents/blob/",
            into="iwildcam_v2.0",
        ),
    ),
    official={"macro_f1": macro_f1},
)


@system_errors_as_data_errors()
def open_iwildcam(root: Path | None) -> ImageDataset:
    """Open iWildCam2020-WILDS below a data root, or in the root itself.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: the table is malformed, or images are missing.
    """
    folder = find_folder(
        INFO,
        root,
        FOLDERS,
        holds=lambda place: (place / TABLE).is_file() and (place / IMAGES).is_dir(),
        expected=f"{TABLE} and {IMAGES}/",
    )
    records = good_rows(column_rows(folder / TABLE, COLUMNS), _record_of)
    return open_records(INFO, folder, require_files(list(records)))


SPLIT_OF = {name: name for name in INFO.splits}

DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_iwildcam)}


def _record_of(row: TextRow) -> ImageRecord:
    filename, y, split = row.cells
    return ImageRecord(
        where=row.where,
        path=row.path.parent / IMAGES / filename,
        key=f"{IMAGES}/{filename}",
        split=choose("split", split, SPLIT_OF),
        y=choose("y", y, CLASS_INDEX),
    )
