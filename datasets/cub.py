"""CUB-200-2011: photographs of 200 species of birds, the source of WaterBirds and TravelingBirds.

Training and test images are the official ones. There is no official validation split: of each species the first 20 %
of its training images (``round(0.2 * n)``, in the order of ``spurbench.data.draws.name_order``) are held out, 1,200 in
all. ``travelingbirds`` holds out the same birds.

Boxes come from ``bounding_boxes.txt``, masks from ``segmentations/`` inside ``CUB_200_2011/`` or beside it (where the
archive unpacks). Masks are grey where annotators disagreed; above 127 is bird. Boxes may be looser than masks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from spurbench.data.cub import CubImage, cub_table, is_cub, read_cub, species_table
from spurbench.data.draws import VAL_FRACTION, held_out
from spurbench.data.image_files import CUB_FOLDER, search_places, system_errors_as_data_errors
from spurbench.data.image_set import find_records
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault
from spurbench.image_dataset import ImageDataset, find_folder, open_records

__all__ = [
    "CLASSES",
    "COUNTS",
    "CUB_ARCHIVES",
    "CUB_SOURCE",
    "DATASETS",
    "open_cub",
    "val_birds",
    "wrong_species",
]

CLASSES = tuple(species.name for species in species_table())
FOLDERS = (CUB_FOLDER, f"cub/{CUB_FOLDER}", f"cub/data/{CUB_FOLDER}")

_VAL_COUNTS = tuple(round(VAL_FRACTION * species.num_train) for species in species_table())
COUNTS = {
    "train": tuple(species.num_train - held for species, held in zip(species_table(), _VAL_COUNTS, strict=True)),
    "val": _VAL_COUNTS,
    "test": tuple(species.num_test for species in species_table()),
}
"""Images per split and species."""

CUB_ARCHIVES = (
    Archive(
        filename="CUB_200_2011.tgz",
        url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        size=1_150_585_339,
        md5="97eceeb196236b17998738112f37df78",
        sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
    ),
    Archive(
        filename="segmentations.tgz",
        url="https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz",
        size=39_272_883,
        md5="4d47ba1228eae64f2fa547c47bc65255",
        sha256="dc77f6cffea0cbe2e41d4201115c8f29a6320ecb04fffd2444f51b8066e4b84f",
    ),
)
"""Birds with boxes, and their masks."""

CUB_SOURCE = f"{CUB_ARCHIVES[0].url} (images, boxes) and {CUB_ARCHIVES[1].url} (masks), unpacked beside each other"

INFO = DatasetInfo(
    name="cub200",
    version="1",
    classes=CLASSES,
    attributes=None,
    description="200 species of birds in their own surroundings; val is 20 % of the official training images",
    license="Non-commercial research and education; images belong to their Flickr owners",
    citation="Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001, 2011",
    source=CUB_SOURCE,
    has_boxes=True,
    has_masks=True,
    expected_counts=COUNTS,
    archives=CUB_ARCHIVES,
)


@system_errors_as_data_errors()
def open_cub(root: Path | None) -> ImageDataset:
    """Open ``CUB_200_2011/`` below a data root, or the root itself.

    Raises:
        DataMissing: no root was given, or CUB is not there.
        DataError: its text files are malformed, or files that they list are missing.
    """
    folder = find_folder(INFO, root, FOLDERS, holds=_holds, expected="images.txt, train_test_split.txt and images/")
    assert root is not None  # otherwise nothing was found
    birds = read_cub(folder)
    held = val_birds(birds)

    def split_of(bird: CubImage) -> str:
        return "test" if not bird.is_training else "val" if bird.name in held else "train"

    table = cub_table(folder, birds, split_of)
    return open_records(INFO, folder, find_records(table, folder / "images", search_places(folder, root)))


def val_birds(birds: Sequence[CubImage]) -> frozenset[str]:
    """Names of the training images that are held out."""
    return held_out({bird.name: bird.y for bird in birds if bird.is_training})


def wrong_species(dataset: Dataset) -> Iterator[Fault]:
    """Images that lie in the folder of another species than their label, by the table of CUB's 200 species."""
    assert isinstance(dataset, ImageDataset)
    for name in dataset.info.splits:
        for record in dataset.split(name).records:
            expected, found = species_table()[record.y].folder, record.path.parent.name
            if found != expected:
                problem = f"{record.key} is labelled {record.y + 1}, which is {expected}, but lies in {found}/"
                yield Fault(severity="error", where=record.where, problem=problem)


DATASETS = {INFO.name: DatasetSpec(info=INFO, open=open_cub, check=wrong_species)}


def _holds(folder: Path) -> bool:
    return is_cub(folder) and (folder / "images").is_dir()
