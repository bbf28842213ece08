"""CUB-200-2011: the official split, the rule of validation, masks and boxes, damage, and the table of species."""

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cub_layout import SPECIES, CubLayout, pixels, write_cub

from spurbench.data.cub import read_cub, species_table
from spurbench.data.draws import held_out, ranked
from spurbench.data.row_faults import kept_faults
from spurbench.datasets.cub import CLASSES, COUNTS, DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import ImageDataset
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["cub200"]


@pytest.fixture
def cub(tmp_path: Path) -> CubLayout:
    return write_cub(tmp_path / "data")


def opened(root: Path) -> ImageDataset:
    dataset = SPEC.open(root)
    assert isinstance(dataset, ImageDataset)
    return dataset


# --- facts ---


def test_the_table_has_the_published_counts() -> None:
    table = species_table()
    assert [species.number for species in table] == list(range(1, 201))
    assert all(species.folder.startswith(f"{species.number:03}.") for species in table)
    assert sum(species.num_train for species in table) == 5994
    assert sum(species.num_test for species in table) == 5794
    assert {split: sum(counts) for split, counts in COUNTS.items()} == {"train": 4794, "val": 1200, "test": 5794}
    assert [species.name for species in table if species.waterbird != species.really_waterbird] == [
        "Eastern_Towhee",
        "Western_Meadowlark",
        "Western_Wood_Pewee",
    ]
    assert CLASSES[0] == "Black_footed_Albatross"
    assert len(set(CLASSES)) == 200


def test_the_held_out_part_is_a_function_of_names() -> None:
    labels = {f"{species.folder}/{i}.jpg": species.y for species in species_table() for i in range(species.num_train)}
    held = held_out(labels)
    assert len(held) == 1200
    assert tuple(np.bincount([labels[name] for name in held], minlength=200)) == COUNTS["val"]
    assert held_out(dict(reversed(labels.items()))) == held
    # What is held out of one class does not depend on another.
    assert held_out({name: y for name, y in labels.items() if y < 5}) == {name for name in held if labels[name] < 5}


def test_the_rule_of_the_draws_stays() -> None:
    """Golden: splits of published tables depend on it."""
    assert ranked(["a", "b", "c", "d", "e"], "val", seed=0) == ["a", "e", "d", "b", "c"]
    assert ranked(["a", "b", "c", "d", "e"], "val", seed=1) == ["b", "e", "d", "a", "c"]


# --- what is read ---


def test_splits_labels_pixels_masks_and_boxes(cub: CubLayout) -> None:
    dataset = opened(cub.root)
    assert dataset.info.has_masks
    assert dataset.info.has_boxes
    by_name = {bird.name: bird for bird in cub.birds}
    seen: dict[str, str] = {}
    for split in ("train", "val", "test"):
        data = dataset.split(split)
        assert data.group is None
        for position, record in enumerate(data.records):
            bird, sample = by_name[record.key], data[position]
            seen[bird.name] = split
            assert sample.y == bird.number - 1
            assert (split == "test") == (not bird.training)
            assert np.array_equal(sample.image.numpy(), pixels(cub.image(bird)).transpose(2, 0, 1))
            assert sample.mask is not None
            assert np.array_equal(sample.mask.numpy(), bird.levels > 127)
            x, y, width, height = bird.box
            assert sample.boxes is not None
            assert torch.equal(sample.boxes, torch.tensor([[x, y, x + width, y + height]]))
    assert set(seen) == set(by_name)  # Each once, and no _rgb.jpg.
    assert sum(split == "val" for split in seen.values()) == len(SPECIES)  # round(0.2 * 5) of each.


def test_agrees_with_pandas_reading_of_the_lists(cub: CubLayout) -> None:
    """As published code does it: tables joined on the image's id."""
    tables = [
        pd.read_csv(cub.folder / file, sep=" ", names=["id", column], index_col="id")
        for file, column in (
            ("images.txt", "name"),
            ("image_class_labels.txt", "label"),
            ("train_test_split.txt", "training"),
        )
    ]
    theirs = tables[0].join(tables[1:]).reset_index()
    ours = pd.DataFrame([dataclasses.asdict(bird) for bird in read_cub(cub.folder)])
    assert theirs["id"].tolist() == ours["id"].tolist()
    assert theirs["name"].tolist() == ours["name"].tolist()
    assert (theirs["label"] - 1).tolist() == ours["y"].tolist()
    assert theirs["training"].astype(bool).tolist() == ours["is_training"].tolist()


@pytest.mark.parametrize(
    ("where", "root"),
    [
        ("CUB_200_2011/segmentations", "."),
        ("CUB_200_2011/segmentations", "CUB_200_2011"),
        ("segmentations", "."),
        ("segmentations", "CUB_200_2011"),
        ("../segmentations", "."),
    ],
)
def test_conforms_with_masks_inside_or_beside(tmp_path: Path, where: str, root: str) -> None:
    layout = write_cub(tmp_path / "data", segmentations=where)
    assert len(check_dataset(SPEC, layout.root / root)) == len(DATASET_CHECKS)
    assert opened(layout.root / root).info.has_masks


def test_goes_without_masks_and_boxes(cub: CubLayout) -> None:
    shutil.rmtree(cub.segmentations)
    (cub.folder / "bounding_boxes.txt").unlink()
    info = opened(cub.root).info
    assert not info.has_masks
    assert not info.has_boxes
    check_dataset(SPEC, cub.root)


def test_other_counts_warn_in_one_line(cub: CubLayout, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened(cub.root)
    assert len(caplog.records) == 1
    assert "train 24 in 6 groups (published 4,794 in 200 groups)" in caplog.text
    assert len(caplog.text) < 600


def test_the_fingerprint_is_of_the_data_and_not_of_its_place(cub: CubLayout, tmp_path: Path) -> None:
    before = opened(cub.root).fingerprint()
    shutil.copytree(cub.root, tmp_path / "moved")
    assert opened(tmp_path / "moved").fingerprint() == before
    split = cub.folder / "train_test_split.txt"
    split.write_text(split.read_text().replace(f"{cub.birds[0].id} 1\n", f"{cub.birds[0].id} 0\n", 1))
    assert opened(cub.root).fingerprint() != before


def test_check_names_a_bird_among_strangers(cub: CubLayout) -> None:
    assert SPEC.check is not None
    assert not list(SPEC.check(opened(cub.root)))
    labels = cub.folder / "image_class_labels.txt"
    bird = cub.birds[-1]
    labels.write_text(labels.read_text().replace(f"{bird.id} {bird.number}\n", f"{bird.id} 199\n"))
    (fault,) = SPEC.check(opened(cub.root))
    assert fault.severity == "error"
    assert fault.where == f"{cub.folder / 'images.txt'}, line {len(cub.birds)}"
    assert "is labelled 199, which is 199.Winter_Wren, but lies in 200.Common_Yellowthroat/" in fault.problem


# --- what is missing or damaged ---


def test_missing_data_says_what_and_from_where(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"CUB_200_2011/ below --data-root DIR or \$SPURBENCH_DATA, which are"):
        SPEC.open(None)
    with pytest.raises(DataMissing, match=r"(?s)looked for: +images.txt.*https://data.caltech.edu.*segmentations.tgz"):
        SPEC.open(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("images.txt", "3 001.", "x3 001.", r"image_class_labels.txt has no line for id x3"),
        ("images.txt", "13 001.", "3 001.", r"images.txt, line 2: id 3 appears twice"),
        ("images.txt", "3 001.Black_footed_Albatross/", "3 ../", r"images.txt, line 1: .* is not an id and a path"),
        ("image_class_labels.txt", "3 1\n", "3 201\n", r"image_class_labels.txt, line \d+: '201' is not a class from"),
        ("image_class_labels.txt", "\n3 1\n", "\n", r"images.txt, line 1: .*_labels.txt has no line for id 3, 001"),
        ("train_test_split.txt", "3 1\n", "3 2\n", r"train_test_split.txt, line \d+: '2' is not 1 \(training\) or 0"),
        ("train_test_split.txt", "3 1\n", "3\n", r"train_test_split.txt, line 1: '3' is not an id followed by"),
        ("bounding_boxes.txt", "3 2.0 3.5 20.0 21.3", "3 2.0 3.5", r"bounding_boxes.txt, id 3: .* is not x y width"),
    ],
)
def test_damaged_lists_are_named(cub: CubLayout, file: str, old: str, new: str, message: str) -> None:
    path = cub.folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        SPEC.open(cub.root)


def test_an_image_listed_twice_is_refused(cub: CubLayout) -> None:
    path = cub.folder / "images.txt"
    path.write_text(path.read_text().replace(cub.birds[1].name, cub.birds[0].name))
    with pytest.raises(DataError, match=r"line 2: .* was already listed in line 1"):
        SPEC.open(cub.root)


def test_missing_files_are_named(cub: CubLayout) -> None:
    (cub.folder / "image_class_labels.txt").rename(cub.root / "labels")
    with pytest.raises(DataError, match=r"image_class_labels.txt is missing; it is a part of CUB_200_2011.tgz"):
        SPEC.open(cub.root)
    (cub.root / "labels").rename(cub.folder / "image_class_labels.txt")
    cub.mask(cub.birds[4]).unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 48 masks, the first: .*Albatross_0004_43.png \(.*, line 5\)"):
        SPEC.open(cub.root)
    cub.image(cub.birds[2]).unlink()
    with pytest.raises(DataError, match=r"1 of 48 listed images are missing, the first: .*Albatross_0002_23.jpg"):
        SPEC.open(cub.root)


def test_the_check_names_every_faulty_line(cub: CubLayout) -> None:
    first, second, third, fourth, fifth, *_ = cub.birds
    for file, old, new in (
        ("images.txt", f"{first.id} {first.name}", f"{first.id} ../{first.name}"),
        ("images.txt", third.name, second.name),
        ("image_class_labels.txt", f"\n{fourth.id} 1\n", f"\n{fourth.id} 201\n"),
        ("train_test_split.txt", f"\n{second.id} 1\n", "\n"),
    ):
        path = cub.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    cub.image(fifth).unlink()
    with kept_faults() as faults:
        dataset = opened(cub.root)
    labels = (cub.folder / "image_class_labels.txt").read_text().splitlines()
    images = cub.folder / "images.txt"
    assert [(fault.kind, fault.where, fault.problem) for fault in faults] == [
        (
            *("row", f"{cub.folder}/image_class_labels.txt, line {labels.index(f'{fourth.id} 201') + 1}"),
            "'201' is not a class from 1 to 200",
        ),
        (
            *("row", f"{images}, line 1"),
            f"'{first.id} ../{first.name}' is not an id and a path such as 001.Species/1.jpg",
        ),
        ("row", f"{images}, line 2", f"train_test_split.txt has no line for id {second.id}, {second.name}"),
        ("row", f"{images}, line 3", f"{second.name} was already listed in line 2"),
        ("file", f"{images}, line 5", f"image {cub.image(fifth)} is missing"),
    ]
    assert sum(len(dataset.split(name)) for name in dataset.info.splits) == len(cub.birds) - 5


def test_the_check_goes_on_after_lines_that_are_cut_off(cub: CubLayout) -> None:
    first, second, third, *_ = cub.birds
    for file, old, new in (
        ("train_test_split.txt", f"{first.id} 1\n", f"{first.id}\n"),
        ("images.txt", f"{second.id} {second.name}", f"{first.id} {second.name}"),
        ("bounding_boxes.txt", f"\n{third.id} 2.0 3.5 20.0", f"\n{third.id} 2.0 3.5 0.0"),
    ):
        path = cub.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    with kept_faults() as faults:
        dataset = opened(cub.root)
    images = cub.folder / "images.txt"
    told = [
        (
            *("row", f"{cub.folder}/train_test_split.txt, line 1"),
            f"'{first.id}' is not an id followed by a value; is the file cut off?",
        ),
        ("row", f"{images}, line 1", f"train_test_split.txt has no line for id {first.id}, {first.name}"),
        ("row", f"{images}, line 2", f"id {first.id} appears twice"),
        ("box", f"{cub.folder}/bounding_boxes.txt, id {third.id}", "box '2.0 3.5 0.0 21.3' is empty or not finite"),
    ]
    assert [(fault.kind, fault.where, fault.problem) for fault in faults] == told
    records = [record for name in dataset.info.splits for record in dataset.split(name).records]
    assert len(records) == len(cub.birds) - 2
    assert [record.key for record in records if not record.boxes] == [third.name]


def test_a_mask_of_another_size_is_refused(cub: CubLayout) -> None:
    shutil.copy(cub.mask(cub.birds[6]), cub.mask(cub.birds[7]))
    data = opened(cub.root).split("test")
    position = next(i for i, record in enumerate(data.records) if record.key == cub.birds[7].name)
    with pytest.raises(DataError, match=r"mask .* pixels .* but its image .*images.txt, line 8"):
        data[position]
