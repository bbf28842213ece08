"""FMoW-WILDS: what stands on a satellite image, in later years and in all regions (arXiv 2012.07421, version 1.1).

Read from WILDS' own layout, ``fmow_v1.1/`` with ``rgb_metadata.csv``, ``country_code_mapping.csv`` and ``images/``,
and split as WILDS does: the table's train rows before 2013 are ``train``, its val rows before 2013 ``id_val`` and
from 2013 to 2015 ``val``, its test rows before 2013 ``id_test`` and since 2016 ``test``. All other rows, the
sequestered ones (``seq``) among them, are not used, but they count in the numbers of the image files.

The attribute is the region of the country; countries without one are in ``Other``. Groups are therefore (class,
region), 62 x 6, and WGA is the worst of these. The official number is another one, the worst *region*: the lowest
accuracy over all classes of a region, ``Other`` left out. It is in every result row, under ``official``, as
``worst_region_accuracy``. Select with ``val_accuracy``: the worst of 372 groups is mostly a group of one image or two.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from torch import Tensor

from spurbench.data.csv_columns import TextRow, choose, column_rows, good_rows
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.data.row_faults import BadRow
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, find_folder, open_records, require_files
from spurbench.metrics.group import group_counts, worst_group

__all__ = ["DATASETS", "OTHER", "REGIONS", "open_fmow", "worst_region_accuracy"]

FOLDERS = ("fmow_v1.1", "fmow")
TABLE = "rgb_metadata.csv"
COUNTRIES = "country_code_mapping.csv"
COLUMNS = ("split", "category", "country_code", "timestamp")

REGIONS = ("Asia", "Europe", "Africa", "Americas", "Oceania", "Other")
OTHER = REGIONS.index("Other")
"""The attribute that the official worst region leaves out."""

CLASSES = (
    "airport", "airport_hangar", "airport_terminal", "amusement_park", "aquaculture", "archaeological_site", "barn",
    "border_checkpoint", "burial_site", "car_dealership", "construction_site", "crop_field", "dam", "debris_or_rubble",
    "educational_institution", "electric_substation", "factory_or_powerplant", "fire_station", "flooded_road",
    "fountain", "gas_station", "golf_course", "ground_transportation_station", "helipad", "hospital",
    "impoverished_settlement", "interchange", "lake_or_pond", "lighthouse", "military_facility",
    "multi-unit_residential", "nuclear_powerplant", "office_building", "oil_or_gas_facility", "park",
    "parking_lot_or_garage", "place_of_worship", "police_station", "port", "prison", "race_track", "railway_bridge",
    "recreational_facility", "road_bridge", "runway", "shipyard", "shopping_mall", "single-unit_residential",
    "smokestack", "solar_farm", "space_facility", "stadium", "storage_tank", "surface_mine", "swimming_pool",
    "toll_booth", "tower", "tunnel_opening", "waste_disposal", "water_treatment_facility", "wind_farm", "zoo",
)  # fmt: skip
CLASS_INDEX = {name: index for index, name in enumerate(CLASSES)}

BEFORE_2013, FROM_2013, FROM_2016 = range(3)
SPLIT_OF = {
    ("train", BEFORE_2013): "train",
    ("val", BEFORE_2013): "id_val",
    ("test", BEFORE_2013): "id_test",
    ("val", FROM_2013): "val",
    ("test", FROM_2016): "test",
}
TABLE_SPLITS = {name: name for name in ("train", "val", "test", "seq")}


def worst_region_accuracy(y_N: Tensor, predicted_N: Tensor, group_N: Tensor | None) -> float | None:
    """The official number, WILDS' ``acc_worst_region``, 0..1. None where all samples are in ``Other``."""
    assert group_N is not None
    region_N = group_N % len(REGIONS)
    official_N = region_N != OTHER
    worst = worst_group(group_counts((predicted_N == y_N)[official_N], region_N[official_N], len(REGIONS)))
    return None if worst is None else worst.accuracy


INFO = DatasetInfo(
    name="fmow",
    version="1",
    classes=CLASSES,
    attributes=REGIONS,
    splits=("train", "val", "test", "id_val", "id_test"),
    description="Satellite images of 62 kinds of land use: tested on later years, official for the worst region",
    license="FMoW Challenge Public License, https://github.com/fMoW/dataset/blob/master/LICENSE",
    citation="Koh, Sagawa et al.: WILDS, ICML 2021, arXiv 2012.07421; Christie et al.: Functional Map of the World, "
    "CVPR 2018",
    source="https://worksheets.codalab.org/rest/bundles/0xaec91eb7c9d548ebb15e1b5e60f966ab/contents/blob/ "
    "(WILDS' fmow v1.1, 54 GB), unpacked into fmow_v1.1/",
    likely_counts={"train": (76863,), "val": (19915,), "test": (22108,), "id_val": (11483,), "id_test": (11327,)},
    archives=(
        Archive(
            filename="fmow_v1.1.tar.gz",
            url="https://worksheets.codalab.org/rest/bundles/0xaec91eb7c9d548ebb15e1b5e60f966ab/contents/blob/",
            into="fmow_v1.1",
        ),
    ),
    official={"worst_region_accuracy": worst_region_accuracy},
)


@system_errors_as_data_errors()
def open_fmow(root: Path | None) -> ImageDataset:
    """Open FMoW-WILDS below a data root, or in the root itself.

    Raises:
        DataMissing: no root was given, or the set is not there.
        DataError: a table is malformed, or images are missing.
    """
    folder = find_folder(
        INFO,
        root,
        FOLDERS,
        holds=lambda place: (place / TABLE).is_file() and (place / "images").is_dir(),
        expected=f"{TABLE}, {COUNTRIES} and images/",
    )
    region_of = _read_regions(folder / COUNTRIES)
    rows = good_rows(column_rows(folder / TABLE, COLUMNS), partial(_record_of, region_of=region_of))
    return open_records(INFO, folder, require_files([record for record in rows if record is not None]))


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_fmow)}


def _record_of(row: TextRow, region_of: Mapping[str, int]) -> ImageRecord | None:
    """None for a row that is in no split."""
    given, category, country, timestamp = row.cells
    split = SPLIT_OF.get((choose("split", given, TABLE_SPLITS), _period(timestamp)))
    if split is None:
        return None
    key = f"images/rgb_img_{row.number}.png"
    return ImageRecord(
        where=row.where,
        path=row.path.parent / key,
        key=key,
        split=split,
        y=choose("category", category, CLASS_INDEX),
        attribute=region_of.get(country, OTHER),
    )


def _read_regions(path: Path) -> dict[str, int]:
    """Index of the region by three-letter country code."""
    if not path.is_file():
        raise DataError(f"{path} is missing; it says which country is in which region, and is part of the release")
    allowed = {name: index for index, name in enumerate(REGIONS)} | {"": OTHER}

    def region_of(row: TextRow) -> tuple[str, int]:
        code, region = row.cells
        return code, choose("region", region, allowed)

    return dict(good_rows(column_rows(path, ("alpha-3", "region")), region_of))


def _period(timestamp: str) -> int:
    """Which of the three periods a time, ``2016-01-31T10:20:30Z``, is in; UTC where it names no zone."""
    try:
        time = datetime.fromisoformat(timestamp)
        year = (time.astimezone(UTC) if time.tzinfo else time).year
    except (ValueError, OverflowError):
        raise BadRow(f"timestamp is '{timestamp}', expected 2016-01-31T10:20:30Z") from None
    return FROM_2016 if year >= 2016 else FROM_2013 if year >= 2013 else BEFORE_2013
