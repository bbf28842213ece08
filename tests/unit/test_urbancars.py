"""UrbanCars: eight groups by two shortcuts, masks beside the images, damage."""

import logging
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import groups_of, pixels_of, write_image
from PIL import Image

from spurbench.datasets.urbancars import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["urbancars"]
KINDS = ("urban", "country")
FOLDERS = {
    "train": "bg-0.95_co_occur_obj-0.95/train",
    "val": "bg-0.5_co_occur_obj-0.5/val",
    "test": "bg-0.5_co_occur_obj-0.5/test",
}
CELLS = [(split, *kinds) for split in FOLDERS for kinds in product(KINDS, repeat=3)]


def folder_of(split: str, car: str, background: str, co_object: str) -> str:
    return f"urbancars/{FOLDERS[split]}/obj-{car}_bg-{background}_co_occur_obj-{co_object}"


def mask_of(seed: int) -> np.ndarray:
    mask = np.zeros((40, 40), dtype=bool)
    mask[5 + seed % 7 : 30, 3:20] = True
    return mask


def write_urbancars(root: Path) -> None:
    """Two images per cell, one in the cell that is rarest; names of three and of four digits."""
    for seed, (split, *kinds) in enumerate(CELLS):
        folder = root / folder_of(split, *kinds)
        rare = split == "train" and kinds == ["country", "urban", "urban"]
        for number in (7,) if rare else (7, 1000):
            write_image(folder / f"{number:03}.jpg", 100 * seed + number, (40, 40))
            levels = (mask_of(seed) * 255).astype(np.uint8)
            Image.fromarray(np.stack([levels] * 3, axis=2)).save(folder / f"{number:03}_mask.png")
            Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).save(folder / f"{number:03}_co_occur_obj_mask.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_urbancars(tmp_path)
    return tmp_path


def test_labels_groups_and_masks(root: Path) -> None:
    dataset = SPEC.open(root)
    assert dataset.info.has_masks
    for name in FOLDERS:
        split = dataset.split(name)
        expected = [
            (car, f"{car}/bg-{background}+obj-{co_object}", seed, number)
            for seed, (cell_split, car, background, co_object) in enumerate(CELLS)
            if cell_split == name
            for number in ("007", "1000")
            if not (name == "train" and (car, background, co_object) == ("country", "urban", "urban"))
            or number == "007"
        ]
        assert groups_of(dataset, name) == [group for _, group, _, _ in expected]
        assert [dataset.info.classes[y] for y in split.y.tolist()] == [car for car, *_ in expected]
        for i, (_, _, seed, number) in enumerate(expected):
            sample = split[i]
            assert torch.equal(sample.image, pixels_of(root / folder_of(*CELLS[seed]) / f"{number}.jpg"))
            assert sample.mask is not None
            assert np.array_equal(sample.mask.numpy(), mask_of(seed))


def test_group_is_four_times_the_car_plus_twice_the_background_plus_the_object(root: Path) -> None:
    dataset = SPEC.open(root)
    group = dataset.split("val").group
    assert group is not None
    assert group.tolist() == [number for number in range(8) for _ in range(2)]
    assert dataset.info.group_names[4 * 1 + 2 * 0 + 1] == "country/bg-urban+obj-country"


def test_conforms(root: Path) -> None:
    assert len(check_dataset(SPEC, root)) == len(DATASET_CHECKS)


def test_published_counts_are_those_of_the_generator(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """n = int(ratio * N) per class, with N = 4,000 for train and 500 for val and test; files without pixels."""
    for split, car, background, co_object in CELLS:
        share = 1.0
        for shortcut in (background, co_object):
            share *= (0.95 if shortcut == car else 0.05) if split == "train" else 0.5
        folder = tmp_path / folder_of(split, car, background, co_object)
        folder.mkdir(parents=True)
        for number in range(int((4000 if split == "train" else 500) * share + 1e-6)):
            (folder / f"{number:03}.jpg").touch()
    with caplog.at_level(logging.WARNING):
        dataset = SPEC.open(tmp_path)
    assert [len(dataset.split(name)) for name in FOLDERS] == [8000, 1000, 1000]
    assert not caplog.records


def test_a_small_set_warns_and_opens(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SPEC.open(root / "urbancars")
    assert "train 2/2/2/2/1/2/2/2 (published 3610/190/190/10/10/190/190/3610)" in caplog.text


def test_without_any_mask(root: Path) -> None:
    for path in root.rglob("*_mask.png"):
        path.unlink()
    dataset = SPEC.open(root)
    assert not dataset.info.has_masks
    assert dataset.split("test")[0].mask is None


def test_a_missing_mask_is_named(root: Path) -> None:
    lost = root / folder_of("val", "urban", "urban", "urban") / "007_mask.png"
    lost.unlink()
    with pytest.raises(DataError, match=r"1 of 47 masks are missing, the first: .*007_mask\.png"):
        SPEC.open(root)


def test_a_mask_of_another_size_is_named(root: Path) -> None:
    path = root / folder_of("test", "urban", "urban", "urban") / "007_mask.png"
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"007_mask\.png is 12 x 10 pixels .* 40 x 40"):
        SPEC.open(root).split("test")[0]


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)urbancars not found below .* looked for: +bg-0\.95.*Whac-A-Mole"):
        SPEC.open(tmp_path)
    with pytest.raises(DataMissing, match=r"(?s)needs a data root.* check urbancars --data-root DIR"):
        SPEC.open(None)
