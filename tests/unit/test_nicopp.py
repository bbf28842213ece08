"""NICO++: contexts, the order of classes, SubpopBench's shares for evaluation, damage."""

import json
from collections import Counter
from pathlib import Path

import pytest
from layouts import groups_of, write_image

from spurbench.dataset import Dataset
from spurbench.datasets.nicopp import CLASSES, DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["nicopp"]
COUNTS = {
    ("autumn", "car"): 80,
    ("water", "hot air balloon"): 75,
    ("dim", "car"): 7,
    ("rock", "umbrella"): 2,
}
"""Images per context and class: above, at and far below the number that is for evaluation."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    seed = 0
    for (context, label), number in COUNTS.items():
        for i in range(number):
            seed += 1
            folder = tmp_path / "nicopp/public_dg_0416/train" / context / label
            write_image(folder / f"{context}_{i:06}.jpg", seed, (16, 12))
    write_image(tmp_path / "nicopp/public_dg_0416/public_test_flat/0.jpg", 0)
    return tmp_path


def write_mapping(root: Path, mapping: object) -> None:
    (root / "nicopp/dg_label_id_mapping.json").write_text(json.dumps(mapping), encoding="utf-8")


def counts(dataset: Dataset) -> dict[str, Counter[str]]:
    return {split: Counter(groups_of(dataset, split)) for split in ("train", "val", "test")}


def test_a_third_of_75_is_val_and_the_rest_of_them_test(root: Path) -> None:
    assert counts(SPEC.open(root)) == {
        "train": {"car/autumn": 5},
        "val": {"car/autumn": 25, "hot air balloon/water": 25, "car/dim": 2},
        "test": {"car/autumn": 50, "hot air balloon/water": 50, "car/dim": 5, "umbrella/rock": 2},
    }


def test_conforms(root: Path) -> None:
    assert len(check_dataset(SPEC, root)) == len(DATASET_CHECKS)
    write_mapping(root, {name: label for label, name in enumerate(CLASSES)})
    assert len(check_dataset(SPEC, root)) == len(DATASET_CHECKS)


def test_more_images_move_no_other(root: Path) -> None:
    def split_of_each() -> dict[str, str]:
        dataset = SPEC.open(root)
        return {
            record.key: name
            for name in ("train", "val", "test")
            for record in dataset.split(name).records  # type: ignore[attr-defined]
        }

    before = split_of_each()
    write_image(root / "nicopp/public_dg_0416/train/autumn/car/zzz.jpg", 999)
    after = split_of_each()
    moved = [key for key, name in before.items() if after[key] != name]
    assert len(moved) <= 2  # one at the end of val, one at the end of test


def test_sixty_classes() -> None:
    assert len(set(CLASSES)) == 60
    assert SPEC.info.num_groups == 360


def test_the_mapping_of_the_set_is_the_order_of_the_labels(root: Path) -> None:
    write_mapping(root, {name: label for label, name in enumerate(sorted(CLASSES))})
    dataset = SPEC.open(root)
    assert dataset.info.classes == tuple(sorted(CLASSES))
    assert counts(dataset)["train"] == {"car/autumn": 5}
    assert dataset.split("train").y.unique().tolist() == [sorted(CLASSES).index("car")]


@pytest.mark.parametrize("mapping", [[], {"car": 0}, dict.fromkeys(CLASSES, 0), {name: name for name in CLASSES}])
def test_malformed_mappings(root: Path, mapping: object) -> None:
    write_mapping(root, mapping)
    with pytest.raises(DataError, match=r"dg_label_id_mapping\.json: expected 60 names"):
        SPEC.open(root)


def test_a_mapping_that_is_cut_off(root: Path) -> None:
    (root / "nicopp/dg_label_id_mapping.json").write_text('{"car": 0,\n"dog":')
    with pytest.raises(DataError, match=r"dg_label_id_mapping\.json, line 2: not valid JSON"):
        SPEC.open(root)


def test_a_folder_that_is_no_class(root: Path) -> None:
    write_image(root / "nicopp/public_dg_0416/train/grass/unicorn/0.jpg", 0)
    with pytest.raises(DataError, match=r"grass/unicorn is no class of NICO\+\+; known: car, flower"):
        SPEC.open(root)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)nicopp not found .*nicopp/public_dg_0416/.*NICO-plus"):
        SPEC.open(tmp_path)
    with pytest.raises(DataMissing, match=r"needs a data root"):
        SPEC.open(None)
