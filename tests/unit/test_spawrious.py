"""Spawrious: six sets from two folders of places, numbers per cell, the swap of places, damage."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from layouts import groups_of, pixels_of, write_image

from spurbench.datasets import spawrious
from spurbench.datasets.spawrious import BREEDS, DATASETS, PLACES, cells
from spurbench.errors import DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

NUMBER = 5
"""Images per folder, place and breed in a fixture."""
NAMES = [f"spawrious_{kind}_{difficulty}" for kind in ("o2o", "m2m") for difficulty in ("easy", "medium", "hard")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole tree, with the folder of another task that lies in the full archive."""
    root = tmp_path_factory.mktemp("spawrious")
    seed = 0
    for folder in (0, 1):
        for place in PLACES:
            for breed in BREEDS:
                for number in range(NUMBER):
                    seed += 1
                    write_image(root / f"spawrious224/{folder}/{place}/{breed}/{number}.png", seed, (16, 16))
    write_image(root / "spawrious224/domain_adaptation_ds/0/beach/corgi/0.png", 0)
    return root


def test_six_sets() -> None:
    assert sorted(DATASETS) == sorted(NAMES)
    assert BREEDS == ("bulldog", "corgi", "dachshund", "labrador")


@pytest.mark.parametrize("name", NAMES)
def test_conforms(name: str, root: Path) -> None:
    assert len(check_dataset(DATASETS[name], root)) == len(DATASET_CHECKS)


def test_one_to_one_groups(root: Path) -> None:
    """Of the fixture's 10 images at the two folders' own place none are cut off; two of them are held out."""
    dataset = DATASETS["spawrious_o2o_easy"].open(root)
    train = Counter(groups_of(dataset, "train"))
    assert train == {
        group: 8
        for breed, place in (("bulldog", "desert"), ("dachshund", "jungle"), ("labrador", "dirt"), ("corgi", "snow"))
        for group in (f"{breed}/{place}", f"{breed}/beach")
    }
    assert Counter(groups_of(dataset, "val")) == dict.fromkeys(train, 2)
    places = {"bulldog": "dirt", "dachshund": "snow", "labrador": "desert", "corgi": "jungle"}
    assert Counter(groups_of(dataset, "test")) == {f"{breed}/{place}": 10 for breed, place in places.items()}


def test_many_to_many_groups(root: Path) -> None:
    dataset = DATASETS["spawrious_m2m_hard"].open(root)
    trained = {"bulldog": "dirt jungle", "dachshund": "dirt jungle", "labrador": "snow beach", "corgi": "snow beach"}
    tested = {"bulldog": "snow beach", "dachshund": "snow beach", "labrador": "dirt jungle", "corgi": "dirt jungle"}
    for split, places, number in (("train", trained, 4), ("val", trained, 1), ("test", tested, 5)):
        expected = {f"{breed}/{place}": number for breed, some in places.items() for place in some.split()}
        assert Counter(groups_of(dataset, split)) == expected


def test_pixels_follow_the_labels(root: Path) -> None:
    for name in ("spawrious_o2o_hard", "spawrious_m2m_medium"):
        dataset = DATASETS[name].open(root)
        for split in ("train", "val", "test"):
            part = dataset.split(split)
            for i, group in enumerate(groups_of(dataset, split)):
                breed, place = group.split("/")
                images = [pixels_of(path) for path in root.glob(f"spawrious224/[01]/{place}/{breed}/*.png")]
                assert any(torch.equal(part[i].image, image) for image in images)


def test_the_limits_of_both_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 5 published images of which 3 and 2 are for the own place, 2 and 3 go to the shared one; no file order."""
    monkeypatch.setattr(spawrious, "ROOM", {0: 3, 1: 2})
    monkeypatch.setattr(spawrious, "PUBLISHED", NUMBER)
    dataset = DATASETS["spawrious_o2o_medium"].open(root)
    whole = Counter(groups_of(dataset, "train")) + Counter(groups_of(dataset, "val"))
    assert set(whole.values()) == {5}
    assert whole["bulldog/mountain"] == whole["bulldog/desert"] == 5
    chosen = [record.key for name in ("train", "val") for record in dataset.split(name).records]  # type: ignore[attr-defined]
    assert sum(key.startswith("0/mountain/bulldog") for key in chosen) == 3
    assert sum(key.startswith("1/mountain/bulldog") for key in chosen) == 2
    assert sum(key.startswith("0/desert/bulldog") for key in chosen) == 2
    first = sorted(chosen)
    assert first != sorted(f"0/mountain/bulldog/{number}.png" for number in range(3))


def test_published_numbers() -> None:
    """Of datasets' own loader: 3,168 per cell; 3,072 + 96 and 2,756 + 412 of the two folders; 25,344 in each part."""
    assert spawrious.ROOM[0] == int(0.97 * 3168)
    assert spawrious.ROOM[1] == int(0.87 * 3168)
    for name in NAMES:
        counts = DATASETS[name].info.expected_counts
        assert counts is not None
        assert sum(counts["train"]) + sum(counts["val"]) == sum(counts["test"]) == 4 * 2 * 3168
        info = DATASETS[name].info
        train = {g: n for g, n in zip(info.group_names, counts["train"], strict=True) if n}
        val = {g: n for g, n in zip(info.group_names, counts["val"], strict=True) if n}
        if "o2o" in name:
            assert sorted(set(train.values())) == [407, 4663]  # 508 - 101 and 5,828 - 1,165
            assert sorted(set(val.values())) == [101, 1165]
        else:
            assert set(train.values()) == {2535}
            assert set(val.values()) == {633}


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
@pytest.mark.parametrize("kind", ["o2o", "m2m"])
def test_no_cell_is_in_training_and_in_test(kind: str, difficulty: str) -> None:
    where = {
        split: {(cell.folder, cell.place, cell.breed) for cell in cells(kind, difficulty) if cell.split == split}
        for split in ("train", "test")
    }
    assert where["train"]
    assert not where["train"] & where["test"]


def test_one_archive_is_enough_for_its_own_set(root: Path, tmp_path: Path) -> None:
    for place in PLACES:
        if place != "mountain":  # not in the easy one-to-one set
            for folder in (0, 1):
                (tmp_path / f"spawrious224/{folder}").mkdir(parents=True, exist_ok=True)
                (tmp_path / f"spawrious224/{folder}/{place}").symlink_to(root / f"spawrious224/{folder}/{place}")
    assert len(DATASETS["spawrious_o2o_easy"].open(tmp_path).split("test")) == 40
    with pytest.raises(DataMissing, match=r"(?s)looked for: .*0/mountain/.*spawrious224__o2o_hard\.tar\.gz"):
        DATASETS["spawrious_o2o_hard"].open(tmp_path)
