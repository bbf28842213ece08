"""TravelingBirds: which bird is in which split and on which place, where the folder may lie, damage."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cub_layout import CubLayout, pixels, write_cub
from PIL import Image

from spurbench.datasets.cub import DATASETS as CUB_DATASETS
from spurbench.datasets.travelingbirds import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import ImageDataset
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["travelingbirds"]


@dataclass(frozen=True)
class Layout:
    root: Path
    fixed: Path
    cub: CubLayout


def write_fixed(fixed: Path, cub: CubLayout) -> None:
    """Every bird in both folders, each time with other pixels."""
    rng = np.random.default_rng(3)
    for bird in cub.birds:
        for domain in ("train", "test"):
            path = fixed / domain / bird.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*bird.levels.shape, 3), dtype=np.uint8)).save(path)
    species = sorted({bird.name.partition("/")[0] for bird in cub.birds})
    places = [17 * position + 4 for position in range(len(species))]
    tables = {"train": places, "test": np.roll(places, 1).tolist()}  # As gen_cub_synthetic.py writes it.
    for domain, values in tables.items():
        (fixed / f"{domain}_places.json").write_text(json.dumps(dict(zip(species, values, strict=True)), indent=4))


@pytest.fixture
def birds(tmp_path: Path) -> Layout:
    root = tmp_path / "data"
    layout = Layout(root, root / "AdversarialData" / "CUB_fixed", write_cub(root))
    write_fixed(layout.fixed, layout.cub)
    return layout


def opened(root: Path, name: str = "travelingbirds") -> ImageDataset:
    dataset = DATASETS[name].open(root)
    assert isinstance(dataset, ImageDataset)
    return dataset


def names(dataset: ImageDataset, split: str) -> list[str]:
    return [record.key.partition("/")[2] for record in dataset.split(split).records]


# --- what is read ---


@pytest.mark.parametrize(("name", "val"), [("travelingbirds", "train"), ("travelingbirds_ood_val", "test")])
def test_birds_places_masks_and_boxes(birds: Layout, name: str, val: str) -> None:
    dataset = opened(birds.root, name)
    by_name = {bird.name: bird for bird in birds.cub.birds}
    for split, domain in {"train": "train", "val": val, "test": "test", "id_test": "train"}.items():
        data = dataset.split(split)
        for position, key in enumerate(names(dataset, split)):
            bird, sample = by_name[key], data[position]
            assert bird.training == (split in ("train", "val"))
            assert sample.y == bird.number - 1
            assert np.array_equal(sample.image.numpy().transpose(1, 2, 0), pixels(birds.fixed / domain / bird.name))
            assert sample.mask is not None
            assert np.array_equal(sample.mask.numpy(), bird.levels > 127)
            x, y, width, height = bird.box
            assert sample.boxes is not None
            assert sample.boxes[0].tolist() == pytest.approx([x, y, x + width, y + height])


def test_the_split_is_that_of_cub200(birds: Layout) -> None:
    ours, theirs = opened(birds.root), CUB_DATASETS["cub200"].open(birds.root)
    assert isinstance(theirs, ImageDataset)
    for split in ("train", "val", "test"):
        assert names(ours, split) == [record.key for record in theirs.split(split).records]
    assert names(ours, "id_test") == names(ours, "test")
    assert not set(names(ours, "train")) & set(names(ours, "test"))  # As by taking each folder for a split.


def test_the_published_counts() -> None:
    assert SPEC.info.expected_counts is not None
    totals = {split: sum(counts) for split, counts in SPEC.info.expected_counts.items()}
    assert totals == {"train": 4794, "val": 1200, "test": 5794, "id_test": 5794}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_conforms(birds: Layout, name: str) -> None:
    assert len(check_dataset(DATASETS[name], birds.root)) == len(DATASET_CHECKS)


@pytest.mark.parametrize(
    "folder", ["CUB_fixed", "AdversarialData/CUB_fixed", "CUB_adversarial/CUB_fixed", "CUB_fixed/CUB_fixed"]
)
@pytest.mark.parametrize("root", ["above", "itself"])
def test_the_root_may_lie_above_or_be_the_folder(tmp_path: Path, folder: str, root: str) -> None:
    fixed = tmp_path / "data" / folder
    write_fixed(fixed, write_cub(fixed.parent))
    dataset = opened(tmp_path / "data" if root == "above" else fixed)
    assert dataset.info.has_masks
    assert dataset.info.has_boxes
    assert len(dataset.split("train")) == 24


def test_cub_may_lie_beside_the_folder_around(birds: Layout) -> None:
    assert len(opened(birds.fixed.parent).split("test")) == 18
    assert len(opened(birds.fixed).split("test")) == 18


def test_images_of_the_two_places_have_keys_of_their_own(birds: Layout) -> None:
    dataset = opened(birds.root)
    keys = [record.key for split in dataset.info.splits for record in dataset.split(split).records]
    assert len(set(keys)) == len(keys)
    before = dataset.fingerprint()
    assert opened(birds.root, "travelingbirds_ood_val").fingerprint() != before
    shutil.copytree(birds.root, birds.root.parent / "moved")
    assert opened(birds.root.parent / "moved").fingerprint() == before


# --- check ---


def test_check_compares_the_places(birds: Layout) -> None:
    assert SPEC.check is not None
    faults = list(SPEC.check(opened(birds.root)))
    assert [(fault.severity, fault.problem) for fault in faults] == [  # The fixture has six species.
        ("warning", "194 species have no place, the first: 003.Sooty_Albatross")
    ]
    path = birds.fixed / "test_places.json"
    places = json.loads(path.read_text())
    places["014.Indigo_Bunting"] = 99
    path.write_text(json.dumps(places))
    faults = list(SPEC.check(opened(birds.root)))
    assert faults[0].problem == "014.Indigo_Bunting has place 99, expected 21, its predecessor's in training"
    assert faults[0].where == str(path)
    path.unlink()
    (fault,) = SPEC.check(opened(birds.root))
    assert fault.problem == "test_places.json is missing"
    path.write_text("[1, 2")
    (fault,) = SPEC.check(opened(birds.root))
    assert "is not JSON" in fault.problem


# --- what is missing or damaged ---


def test_missing_data_says_what_and_from_where(birds: Layout, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="needs a data root"):
        SPEC.open(None)
    with pytest.raises(
        DataMissing, match=r"(?s)AdversarialData/CUB_fixed/.* https://worksheets.codalab.org/bundles/0x5188"
    ):
        SPEC.open(tmp_path)
    birds.cub.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataMissing, match=r"(?s)has no split of its own, and CUB's is not found.* CUB_200_2011/ .*caltech"
    ):
        SPEC.open(birds.root)


def test_another_sets_train_and_test_are_not_taken(tmp_path: Path) -> None:
    for domain in ("train", "test"):
        (tmp_path / domain / "n01440764").mkdir(parents=True)
    with pytest.raises(DataMissing, match="travelingbirds not found"):
        SPEC.open(tmp_path)


def test_a_missing_image_is_named(birds: Layout) -> None:
    test_bird = next(bird for bird in birds.cub.birds if not bird.training)
    path = birds.fixed / "test" / test_bird.name
    path.unlink()
    with pytest.raises(DataError, match=rf"1 of 18 listed images are missing, the first: {path} \(line 6\)"):
        SPEC.open(birds.root)


def test_a_folder_without_images_is_named(birds: Layout) -> None:
    for path in (birds.fixed / "train").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="24 of 24 listed images are missing"):
        SPEC.open(birds.root)
