"""WaterBirds: birds of CUB-200-2011 on land and water places, at 95 % and at 100 % correlation in training.

The two variants are different random draws, not subsets of each other. Both are read as their publishers lay them
out, and as WILDS, SubpopBench and BalancingGroups do.

The published label is whether the species' name contains one of 17 words, among them 'tern'. So *Eas-tern* Towhee,
*Wes-tern* Meadowlark and *Wes-tern* Wood Pewee, 180 images of landbirds, are labelled waterbird; group_DRO's README
says so. Published numbers are on these labels, and they are the default. In ``waterbirds95_corrected`` and
``waterbirds100_corrected`` the same images have the right label, and their groups follow: of these landbirds most
stand on water in training. MaskTune's "corrected" WaterBirds is another release, and its numbers are not comparable.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from spurbench.data.cub import Species, species_table
from spurbench.data.image_files import search_places, system_errors_as_data_errors
from spurbench.data.image_set import open_image_set
from spurbench.data.image_table import Table, read_table
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault
from spurbench.datasets.cub import CUB_ARCHIVES
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import ImageDataset, dataset_missing, require_root, warn_about_counts

__all__ = ["ATTRIBUTES", "CLASSES", "DATASETS", "FOLDERS", "open_waterbirds", "search_places"]

CLASSES = ("landbird", "waterbird")
ATTRIBUTES = ("land", "water")
TABLE = "metadata.csv"
OTHER_TABLE = "metadata_waterbirds.csv"
"""SubpopBench's and BalancingGroups' table of WaterBirds-95, inside the image folder or up to two folders above it."""
WILDS_FOLDER = "waterbirds_v1.0"
FOLDERS = {
    "waterbirds95": ("waterbird_complete95_forest2water2", WILDS_FOLDER, "waterbirds95"),
    "waterbirds100": ("waterbird_1.0_forest2water2", "waterbird_complete100_forest2water2", "waterbirds100"),
}
"""Names under which each draw is published or kept."""
CORRECTED = "_corrected"
"""End of a variant's name, whose folder is that of the name without it."""
PARENTS = (".", "waterbirds", "cub/data")
"""Where such a folder may lie below the data root."""

_CORRELATION_IN_NAME = re.compile(r"waterbirds?[-_]?(?:complete)?[-_]?(1\.0|0\.\d+|\d{2,3})(?![\d.])")

_CUB_SOURCE = (
    "For masks and boxes, unpack both archives of CUB-200-2011 beside it: "
    f"{CUB_ARCHIVES[0].url} (boxes) and {CUB_ARCHIVES[1].url} (masks)"
)
_LICENSE = "Non-commercial research and education (terms of CUB-200-2011 and Places)"

INFO_95 = DatasetInfo(
    name="waterbirds95",
    version="1",
    classes=CLASSES,
    attributes=ATTRIBUTES,
    preset="convnext",
    description="CUB birds on Places backgrounds; 95 % of the training birds are on the place of their class",
    license=_LICENSE,
    citation="Sagawa, Koh, Hashimoto, Liang: Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, "
    "arXiv 1911.08731",
    source="https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz (the same at "
    "https://downloads.cs.stanford.edu/nlp/data/dro/waterbird_complete95_forest2water2.tar.gz, or as WILDS' "
    "waterbirds v1.0 at https://worksheets.codalab.org/rest/bundles/0x505056d5cdea4e4eaa0e242cbfe2daa4/contents/blob/)"
    f". {_CUB_SOURCE}",
    has_boxes=True,
    has_masks=True,
    expected_counts={
        "train": (3498, 184, 56, 1057),
        "val": (467, 466, 133, 133),
        "test": (2255, 2255, 642, 642),
    },
    archives=(
        Archive(
            filename="waterbird_complete95_forest2water2.tar.gz",
            url="https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz",
        ),
        *CUB_ARCHIVES,
    ),
)

INFO_100 = DatasetInfo(
    name="waterbirds100",
    version="1",
    classes=CLASSES,
    attributes=ATTRIBUTES,
    preset="convnext",
    description="CUB birds on Places backgrounds; every training bird is on the place of its class",
    license=_LICENSE,
    citation="Petryk, Dunlap, Nasseri, Gonzalez, Darrell, Rohrbach: On Guiding Visual Attention with Language "
    "Specification, CVPR 2022, arXiv 2202.08926",
    source="Google Drive, https://drive.google.com/uc?id=1zJpQYGEt1SuwitlNfE06TFyLaWX-st1k "
    f"(linked from https://github.com/spetryk/GALS). {_CUB_SOURCE}",
    has_boxes=True,
    has_masks=True,
    expected_counts={
        "train": (3694, 0, 0, 1101),
        "val": (1199,),
        "test": (2255, 2255, 642, 642),
    },
    likely_counts={"val": (461, 460, 139, 139)},
    archives=(Archive(filename="waterbird_1.0_forest2water2.tar.gz"), *CUB_ARCHIVES),
)


def _corrected(info: DatasetInfo) -> DatasetInfo:
    """The variant with right labels. How many of its birds stand where is not published, only how many there are."""
    assert info.expected_counts is not None
    return replace(
        info,
        name=f"{info.name}{CORRECTED}",
        description=f"{info.description}; three landbird species that are published as waterbirds are landbirds here",
        expected_counts={split: (sum(counts),) for split, counts in info.expected_counts.items()},
        likely_counts=None,
    )


@system_errors_as_data_errors()
def open_waterbirds(info: DatasetInfo, root: Path | None) -> ImageDataset:
    """Open the variant that ``info`` declares below a data root, or in the root itself.

    Raises:
        DataMissing: no root was given, or the variant is not there.
        DataError: the table or the files that it lists are malformed or incomplete.
    """
    root = require_root(info, root, _folders(info)[0])
    folder, table_path = _find(info, root)
    table = read_table(table_path, num_classes=len(CLASSES), num_attributes=len(ATTRIBUTES))
    if own := {"class_name", "attribute_name"} & table.columns:  # the published tables leave names to their readers
        raise DataError(f"{table_path} names its own {own.pop()}: it is another set, --dataset {folder}")
    if _is_corrected(info):
        table = _with_right_labels(table)
    images = open_image_set(table, folder, search_places(folder, root), len(ATTRIBUTES))
    opened = ImageDataset(replace(info, has_masks=images.has_masks, has_boxes=images.has_boxes), images)
    warn_about_counts(opened, folder)
    return opened


def wrong_labels(dataset: Dataset) -> Iterator[Fault]:
    """Birds whose label, species or split is not that of the published set.

    The label follows from the species, and so does the number of test images, since CUB's test split is kept. What is
    wrong with most images is told once, with the first of them after all other faults.
    """
    assert isinstance(dataset, ImageDataset)
    species = {known.folder: known for known in species_table()}
    seen: Counter[tuple[str, bool]] = Counter()
    strangers, labels = [], []
    for split in dataset.info.splits:
        for record in dataset.split(split).records:
            folder = record.path.parent.name
            if folder not in species:
                problem = f"{record.key} lies in {folder}/, which is none of CUB's 200 species"
                strangers.append(Fault(severity="error", where=record.where, problem=problem))
                continue
            seen[folder, split == "test"] += 1
            label = _label(species[folder], _is_corrected(dataset.info))
            if record.y != label:
                problem = f"{record.key} is labelled {CLASSES[record.y]}, but {folder} is {CLASSES[label]}"
                labels.append(Fault(severity="error", where=record.where, problem=problem))
    num_images = len(strangers) + seen.total()
    mostly_strangers = _are_many(strangers, num_images)
    kinds = [
        (strangers, num_images, f"images lie in folders that are none of CUB's 200 species: {_NOT_OF_CUB}"),
        (labels, num_images, "images have another label than their species"),
    ]
    if not mostly_strangers:  # otherwise every species lacks its images, which says nothing more
        counts = list(_wrong_counts(species.values(), seen))
        kinds.append((counts, 2 * len(species), "numbers of images per species and part differ from the published"))
    for faults, of, problem in kinds:
        if _are_many(faults, of):
            problem = f"{len(faults):,} of {of:,} {problem}"
            yield Fault(severity="error", where=dataset.info.name, problem=problem)
    for faults, of, _ in kinds:
        if not _are_many(faults, of):
            yield from faults
    for faults, of, _ in kinds:
        if _are_many(faults, of):
            yield from faults[:_NUM_EXAMPLES]


_NUM_EXAMPLES = 20
"""Faults that are told of a kind that most images have."""
_NOT_OF_CUB = (
    "this is not WaterBirds made of CUB (a drawn set of 'spurbench data generate' is checked as your own: "
    "spurbench data check FOLDER)"
)


def _are_many(faults: Sequence[Fault], of: int) -> bool:
    return len(faults) > max(_NUM_EXAMPLES, of / 2)


def _wrong_counts(species: Iterable[Species], seen: Counter[tuple[str, bool]]) -> Iterator[Fault]:
    for known in species:
        for in_test, expected in ((False, known.num_train), (True, known.num_test)):
            found = seen[known.folder, in_test]
            if found != expected:
                problem = f"{found} images in {'test' if in_test else 'train and val'}, expected {expected}"
                yield Fault(severity="error", where=known.folder, problem=problem)


DATASETS = {
    info.name: DatasetSpec(info=info, open=partial(open_waterbirds, info), check=wrong_labels)
    for info in (INFO_95, INFO_100, _corrected(INFO_95), _corrected(INFO_100))
}


def _folders(info: DatasetInfo) -> tuple[str, ...]:
    return FOLDERS[_draw(info)]


def _draw(info: DatasetInfo) -> str:
    """Which of the two draws a variant is of."""
    return info.name.removesuffix(CORRECTED)


def _is_corrected(info: DatasetInfo) -> bool:
    return info.name.endswith(CORRECTED)


def _label(species: Species, corrected: bool) -> int:
    return int(species.really_waterbird if corrected else species.waterbird)


def _with_right_labels(table: Table) -> Table:
    mislabelled = {known.folder for known in species_table() if known.waterbird != known.really_waterbird}
    rows = tuple(replace(row, y=0) if Path(row.filename).parent.name in mislabelled else row for row in table.rows)
    return replace(table, rows=rows)


def _find(info: DatasetInfo, root: Path) -> tuple[Path, Path]:
    """The image folder and its table."""
    for folder in _candidates(info, root):
        table = _table_of(info, folder)
        if table is not None:
            _refuse_other_variant(info, folder)
            return folder, table
    _refuse_other_variant(info, root)
    raise _not_found(info, root)


def _candidates(info: DatasetInfo, root: Path) -> Iterator[Path]:
    for parent in PARENTS:
        for name in _folders(info):
            yield root / parent / name
    yield root


def _table_of(info: DatasetInfo, folder: Path) -> Path | None:
    """The table of the images in ``folder``, if there is one.

    The other dialect's table was published for WaterBirds-95 alone. With another draw's images, whose names are the
    same, its labels would silently be wrong: for WaterBirds-100 it must lie in a folder of that name.
    """
    tables = [folder / TABLE]
    named = folder.name in _folders(info)
    if named or _draw(info) == "waterbirds95":
        tables.append(folder / OTHER_TABLE)
    if named and _draw(info) == "waterbirds95":
        above = folder.absolute().parent
        tables += [above / OTHER_TABLE, above.parent / OTHER_TABLE]
    return next((table for table in tables if folder.is_dir() and table.is_file()), None)


def _refuse_other_variant(info: DatasetInfo, folder: Path) -> None:
    """Raise when the folder's name, or that of the folder a link leads to, states another correlation."""
    wanted = _correlation(info.name)
    for name in (folder.absolute().name, folder.resolve().name):
        stated = _correlation(name)
        if stated not in (None, wanted):
            others = [f"--dataset {other}" for other in FOLDERS if _correlation(other) == stated]
            raise DataError(
                f"{info.name}: {folder} is named '{name}', which states a correlation of {stated} %, and the draws "
                f"differ. Use {' or '.join([*others, '--data-root DIR with the right folder'])}; "
                f"a folder with a neutral name is taken as it is"
            )


def _correlation(name: str) -> int | None:
    """The correlation in percent that a name states, if it does."""
    if name == WILDS_FOLDER:
        return 95
    match = _CORRELATION_IN_NAME.match(name)
    if match is None:
        return None
    return round(100 * float(match[1])) if "." in match[1] else int(match[1])


def _not_found(info: DatasetInfo, root: Path) -> DataMissing:
    names = ", ".join(f"{name}/" for name in _folders(info))
    number = sum(map(sum, (info.expected_counts or {}).values()))
    archives = (root / f"{name}.tar.gz" for name in _folders(info))
    packed = next((f"; {path} is there but not unpacked" for path in archives if path.is_file()), "")
    return dataset_missing(
        info,
        root,
        f"{info.name} not found below {root}/{packed}",
        f"{TABLE} and {number:,} images in {names} there, in waterbirds/ and in cub/data/, and in {root}/ itself",
    )
