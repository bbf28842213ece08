"""BFFHQ: labels in names, valid beside the training folder, the conflicting part of test as a split of its own."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from layouts import groups_of, pixels_of, write_image

from spurbench.datasets.bffhq import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["bffhq"]
TRAIN = {(0, 0): 6, (0, 1): 1, (1, 0): 2, (1, 1): 5}
"""Images per age and gender."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    seed = 0
    for (y, a), number in TRAIN.items():
        for _ in range(number):
            seed += 1
            half = "align" if y == a else "conflict"
            write_image(tmp_path / f"bffhq/0.5pct/{half}/{y}/{seed}_{y}_{a}.png", seed)
    for split in ("valid", "test"):
        for y, a in TRAIN:
            for _ in range(2):
                seed += 1
                write_image(tmp_path / f"bffhq/{split}/{seed:05}_{y}_{a}.png", seed)
    return tmp_path


def test_groups(root: Path) -> None:
    dataset = SPEC.open(root)
    assert Counter(groups_of(dataset, "train")) == {"young/woman": 6, "young/man": 1, "old/woman": 2, "old/man": 5}
    for split in ("val", "test"):
        assert set(Counter(groups_of(dataset, split)).values()) == {2}
    assert Counter(groups_of(dataset, "test_conflict")) == {"young/man": 2, "old/woman": 2}


def test_pixels(root: Path) -> None:
    dataset = SPEC.open(root)
    for name in dataset.info.splits:
        split = dataset.split(name)
        assert split.group is not None
        for i, record in enumerate(split.records):  # type: ignore[attr-defined]
            y, a = map(int, record.path.stem.split("_")[1:])
            assert int(split.group[i]) == 2 * y + a
            assert torch.equal(split[i].image, pixels_of(record.path))


def test_conforms(root: Path) -> None:
    """The overlap of test and test_conflict is meant; one of train and test would not be."""
    assert len(check_dataset(SPEC, root)) == len(DATASET_CHECKS)
    leaked = root / "bffhq/test/77777_0_0.png"
    leaked.write_bytes((root / "bffhq/0.5pct/align/0/1_0_0.png").read_bytes())
    with pytest.raises(AssertionError, match=r"No image of train or val"):
        check_dataset(SPEC, root, samples=20)


@pytest.mark.parametrize("name", ["align/0/9_1_1.png", "align/0/9_0_1.png", "conflict/1/9_1_1.png"])
def test_a_name_that_contradicts_its_folder(root: Path, name: str) -> None:
    write_image(root / "bffhq/0.5pct" / name, 0)
    with pytest.raises(DataError, match=r"9_._.\.png: its name says class . and attribute ., its folder (align|conf)"):
        SPEC.open(root)


@pytest.mark.parametrize("name", ["valid/17.png", "test/17_2_0.png", "test/_0_1.png", "0.5pct/align/0/17_0.png"])
def test_a_name_without_labels(root: Path, name: str) -> None:
    write_image(root / "bffhq" / name, 0)
    with pytest.raises(DataError, match=r"does not tell its labels; expected <id>_<age>_<gender>\.png"):
        SPEC.open(root)


def test_missing(root: Path) -> None:
    for path in (root / "bffhq/valid").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"bffhq in .*: no images for val"):
        SPEC.open(root)
    (root / "bffhq/valid").rmdir()
    with pytest.raises(DataMissing, match=r"(?s)bffhq not found .*0\.5pct/align/, valid/ and test/.*Learning-Debiased"):
        SPEC.open(root)
    with pytest.raises(DataMissing, match=r"needs a data root"):
        SPEC.open(None)
