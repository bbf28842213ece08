"""BAR: flat folders, an action with a space, no attribute, a held-out val."""

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from layouts import groups_of, pixels_of, write_image

from spurbench.datasets.bar import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["bar"]
PUBLISHED = {
    "climbing": (326, 105),
    "diving": (520, 159),
    "fishing": (163, 42),
    "racing": (336, 132),
    "throwing": (317, 85),
    "pole vaulting": (279, 131),
}
"""Images in the repository's train and test."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    seed = 0
    for split, number in (("train", 6), ("test", 3)):
        for action in PUBLISHED:
            for i in range(number):
                seed += 1
                write_image(tmp_path / "BAR" / split / f"{action}_{i}.jpg", seed, mode="L" if seed == 1 else "RGB")
    (tmp_path / "BAR/metadata.json").write_text("{}")
    (tmp_path / "BAR/train/.DS_Store").touch()
    (tmp_path / "BAR/train/._climbing_0.jpg").touch()  # macOS leaves these
    return tmp_path


def test_labels_and_pixels(root: Path) -> None:
    dataset = SPEC.open(root)
    assert dataset.split("train").group is None
    assert Counter(groups_of(dataset, "train")) == dict.fromkeys(PUBLISHED, 5)
    assert Counter(groups_of(dataset, "val")) == dict.fromkeys(PUBLISHED, 1)
    assert Counter(groups_of(dataset, "test")) == dict.fromkeys(PUBLISHED, 3)
    test = dataset.split("test")
    for i, record in enumerate(test.records):  # type: ignore[attr-defined]
        assert record.path.name.rpartition("_")[0] == dataset.info.classes[int(test.y[i])]
        assert torch.equal(test[i].image, pixels_of(record.path))


def test_conforms(root: Path) -> None:
    assert len(check_dataset(SPEC, root)) == len(DATASET_CHECKS)
    assert len(check_dataset(SPEC, root / "BAR")) == len(DATASET_CHECKS)


def test_the_whole_set_has_the_published_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By names alone: 20 % of each class are held out."""
    for split, column in (("train", 0), ("test", 1)):
        (tmp_path / "BAR" / split).mkdir(parents=True)
        for action, numbers in PUBLISHED.items():
            for i in range(numbers[column]):
                (tmp_path / "BAR" / split / f"{action}_{i}.jpg").touch()
    with caplog.at_level(logging.WARNING):
        dataset = SPEC.open(tmp_path)
    assert not caplog.records
    assert len(dataset.split("train")) + len(dataset.split("val")) == 1941
    assert len(dataset.split("test")) == 654


@pytest.mark.parametrize("name", ["skiing_1.jpg", "climbing.jpg", "vaulting_3.jpg"])
def test_a_name_without_a_known_action(root: Path, name: str) -> None:
    write_image(root / "BAR/test" / name, 0)
    with pytest.raises(DataError, match=rf"{name} does not tell its action; expected <action>_<number>\.jpg"):
        SPEC.open(root)


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(DataMissing, match=r"(?s)bar not found .*train/climbing_0\.jpg .*github\.com/alinlab/BAR"):
        SPEC.open(tmp_path)
    with pytest.raises(DataMissing, match=r"needs a data root"):
        SPEC.open(None)
