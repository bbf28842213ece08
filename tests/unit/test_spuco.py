"""SpuCoBirds, SpuCoDogs and SpuCoAnimals: folders, numbering, prepared masks, and a pickle that nobody opens."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import groups_of, pixels_of, write_image
from PIL import Image

from spurbench.datasets.spuco import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

BIRDS = ("spuco_birds", ("landbirds", "waterbirds"), ("land", "water"))
DOGS = ("spuco_dogs", ("small_dogs", "big_dogs"), ("indoor", "outdoor"))
SPLITS = ("train", "val", "test")


def numbers() -> dict[int, str]:
    """The folder of every image by the number that names it; the numbers run through both halves."""
    cells = [
        f"{folder}/{split}/{label}/{place}"
        for folder, labels, places in (BIRDS, DOGS)
        for split, label, place in product(SPLITS, labels, places)
    ]
    return dict(enumerate(cell for cell in cells for _ in range(2)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, folder in numbers().items():
        suffix = (".jpg", ".JPEG", ".png")[number % 3]
        write_image(tmp_path / "spuco" / folder / f"{number}{suffix}", number, (20, 24))
    (tmp_path / "spuco/spuco_animals_masks.pkl").write_bytes(b"cos\nabort\n(tR.")  # would end the process
    return tmp_path


def write_masks(root: Path) -> None:
    folder = root / "spuco/spuco_animals_masks"
    folder.mkdir()
    for number in numbers():
        mask = np.zeros((24, 20), np.uint8)
        mask[number % 20 :, 4:9] = 255
        Image.fromarray(mask).save(folder / f"{number}.png")


@pytest.mark.parametrize("name", ["spuco_birds", "spuco_dogs", "spuco_animals"])
def test_conforms_with_and_without_masks(name: str, root: Path) -> None:
    assert len(check_dataset(DATASETS[name], root)) == len(DATASET_CHECKS)
    assert not DATASETS[name].open(root).info.has_masks
    write_masks(root)
    assert DATASETS[name].open(root).info.has_masks
    assert len(check_dataset(DATASETS[name], root)) == len(DATASET_CHECKS)


def test_animals_number_classes_and_places_through(root: Path) -> None:
    write_masks(root)
    dataset = DATASETS["spuco_animals"].open(root)
    assert dataset.info.classes == ("landbird", "waterbird", "small dog", "big dog")
    assert dataset.info.attributes == ("land", "water", "indoor", "outdoor")
    for split in SPLITS:
        expected = [
            (number, f"{label.removesuffix('s').replace('_', ' ')}/{place}")
            for number, (_, part, label, place) in ((n, folder.split("/")) for n, folder in numbers().items())
            if part == split
        ]
        assert groups_of(dataset, split) == [group for _, group in expected]
        for i, (number, _) in enumerate(expected):
            sample = dataset.split(split)[i]
            path = next((root / "spuco" / numbers()[number]).glob(f"{number}.*"))
            assert torch.equal(sample.image, pixels_of(path))
            assert sample.mask is not None
            assert sample.mask.nonzero()[0].tolist() == [number % 20, 4]


def test_each_half_alone(root: Path) -> None:
    dogs = DATASETS["spuco_dogs"].open(root)
    assert Counter(groups_of(dogs, "train")) == dict.fromkeys(
        ("small dog/indoor", "small dog/outdoor", "big dog/indoor", "big dog/outdoor"), 2
    )
    assert DATASETS["spuco_birds"].open(root / "spuco").split("val").y.tolist() == [0] * 4 + [1] * 4


def test_published_counts() -> None:
    counts = DATASETS["spuco_animals"].info.expected_counts
    assert counts is not None
    assert [sum(counts[split]) for split in SPLITS] == [42_000, 2_100, 4_000]
    assert counts["train"] == (10_000, 500, 0, 0, 500, 10_000, 0, 0, 0, 0, 10_000, 500, 0, 0, 500, 10_000)
    assert DATASETS["spuco_birds"].info.expected_counts == {
        "train": (10_000, 500, 500, 10_000),
        "val": (500, 25, 25, 500),
        "test": (500, 500, 500, 500),
    }


def test_a_missing_mask_is_named(root: Path) -> None:
    write_masks(root)
    (root / "spuco/spuco_animals_masks/3.png").unlink()
    with pytest.raises(DataError, match=r"1 of 48 masks are missing, the first: .*3\.png"):
        DATASETS["spuco_animals"].open(root)
    assert DATASETS["spuco_dogs"].open(root).info.has_masks


def test_missing(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)spuco_animals not found .*spuco_birds/train/ and spuco_dogs/train/"):
        DATASETS["spuco_animals"].open(tmp_path / "spuco/spuco_birds")
    with pytest.raises(DataMissing, match=r"needs a data root"):
        DATASETS["spuco_birds"].open(None)
