"""Camelyon17-WILDS: tumour in patches of lymph nodes from five hospitals (arXiv 2012.07421, version 1.0).

Read from WILDS' own layout, ``camelyon17_v1.0/`` with ``metadata.csv`` and ``patches/``, and split as WILDS does: the
table's split (0 train, 1 id_val) holds for hospitals 0, 3 and 4, while all of hospital 1 is ``val`` and all of
hospital 2 is ``test``. Validation is thus on another hospital than training; ``id_val`` is on the same ones.

The attribute is the hospital, so that groups are (label, hospital); WILDS' own number is the plain accuracy on
``test``. A patch is labelled by what its central 32 x 32 of 96 x 96 pixels show: that square is every patch's box.

``wilds`` is not needed. Its loader, which tests compare this one with, would bring pandas and PIL images with
metadata tensors, and no row numbers for messages.
"""

from pathlib import Path

from spurbench.data.csv_columns import TextRow, choose, column_rows, good_rows
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.data.image_table import Box
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.image_dataset import ImageDataset, find_folder, open_records, require_files

__all__ = ["DATASETS", "open_camelyon17"]

FOLDERS = ("camelyon17_v1.0", "camelyon17")
TABLE = "metadata.csv"
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
"""The patient is text: ``004`` is part of file names."""

BINARY = {"0": 0, "1": 1}
HOSPITALS = {str(center): center for center in range(5)}
SPLIT_OF = {"0": "train", "1": "id_val"}
SPLIT_OF_HOSPITAL = {1: "val", 2: "test"}
PATCH = (96, 96)
CENTER: Box = (32.0, 32.0, 64.0, 64.0)

INFO = DatasetInfo(
    name="camelyon17",
    version="1",
    classes=("normal", "tumor"),
    attributes=tuple(f"hospital{center}" for center in HOSPITALS),
    splits=("train", "val", "test", "id_val"),
    description="Lymph node patches: tumour in the centre or not; validated and tested on unseen hospitals",
    license="CC0 1.0",
    citation="Koh, Sagawa et al.: WILDS, ICML 2021, arXiv 2012.07421; Bandi et al., IEEE Trans. Med. Imaging 2018",
    source="https://worksheets.codalab.org/rest/bundles/0xe45e15f39fb54e9d9e919556af67aabe/contents/blob/ "
    "(WILDS' camelyon17 v1.0, 10.7 GB), unpacked into camelyon17_v1.0/",
    has_boxes=True,
    likely_counts={"train": (302436,), "val": (34904,), "test": (85054,), "id_val": (33560,)},
    archives=(
        Archive(
            filename="camelyon17_v1.0.tar.gz",
            url="https://worksheets.codalab.org/rest/bundles/0xe45e15f39fb54e9d9e919556af67aabe/contents/blob/",
            into="camelyon17_v1.0",
        ),
    ),
)


@system_errors_as_data_errors()
def open_camelyon17(root: Path | None) -> ImageDataset:
    """Open Camelyon17-WILDS below a data root, or in the root itself.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: the table is malformed, or patches are missing.
    """
    folder = find_folder(
        INFO,
        root,
        FOLDERS,
        holds=lambda place: (place / TABLE).is_file() and (place / "patches").is_dir(),
        expected=f"{TABLE} and patches/",
    )
    records = good_rows(column_rows(folder / TABLE, COLUMNS), _record_of)
    return open_records(INFO, folder, require_files(list(records)))


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_camelyon17)}


def _record_of(row: TextRow) -> ImageRecord:
    patient, node, x, y, tumor, center, split = row.cells
    hospital = choose("center", center, HOSPITALS)
    slide = f"patient_{patient}_node_{node}"
    key = f"patches/{slide}/patch_{slide}_x_{x}_y_{y}.png"
    return ImageRecord(
        where=row.where,
        path=row.path.parent / key,
        key=key,
        split=SPLIT_OF_HOSPITAL.get(hospital) or choose("split", split, SPLIT_OF),
        y=choose("tumor", tumor, BINARY),
        attribute=hospital,
        boxes=(CENTER,),
        box_frame=PATCH,
    )
