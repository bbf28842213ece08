"""ISIC 2018: images, masks and artefact tables, the drawn split and the trap sets, and damage."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import damage_at_random, groups_of, pixels_of, replace_text, write_csv, write_image
from PIL import Image

from spurbench.data.row_faults import kept_faults
from spurbench.datasets.isic import ARTEFACTS, DATASETS, FOLDS, TRAP_ARTEFACTS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

SPLITS = ("train", "val", "test")
IMAGES = "ISIC2018_Task1-2_Training_Input"
MASKS = "ISIC2018_Task1_Training_GroundTruth"
GROUPS = {"ruler": (6, 11, 5, 2), "hair": (12, 5, 1, 6)}
"""Fixture images per group of these artefacts."""


def lesions() -> list[dict[str, Any]]:
    """Rows of isic_bias.csv in the order of names, which have gaps."""
    ruler, hair = ([group for group, n in enumerate(GROUPS[a]) for _ in range(n)] for a in ("ruler", "hair"))
    return [
        {
            "": number,
            "image": f"ISIC_{3 * number:07}.png",
            **dict.fromkeys(ARTEFACTS, 0),
            "ruler": ruler[number] % 2,
            "hair": hair[number] % 2,
            "label": ruler[number] // 2,
            "label_string": ("benign", "malignant")[ruler[number] // 2],
        }
        for number in np.random.default_rng(0).permutation(24)
    ]


def write_isic(root: Path, folder: str = "isic2018", *, tables: str = ".", masks: bool = True) -> Path:
    """The folder; the tables go to ``tables`` below it, as in a clone of their repository unless that is '.'."""
    base = root / folder
    rows = sorted(lesions(), key=lambda row: row["image"])
    for number, row in enumerate(rows):
        stem = Path(row["image"]).stem
        write_image(base / IMAGES / f"{stem}.jpg", number, (40 + number % 3, 32), "L" if number == 1 else "RGB")
        if masks:
            mask = np.zeros((32, 40 + number % 3), dtype=np.uint8)
            mask[8:20, 5 : 10 + number] = 255
            (base / MASKS).mkdir(exist_ok=True)
            Image.fromarray(mask).save(base / MASKS / f"{stem}_segmentation.png")
    (base / IMAGES / "LICENSE.txt").write_text("CC0")
    write_image(base / IMAGES / "ISIC_9999999.jpg", 99)  # An image that no table lists.
    single = tables == "."
    write_csv(base / tables / ("" if single else "artefacts-annotation") / "isic_bias.csv", rows, ";")
    traps = base / tables / ("" if single else "trap-sets")
    for fold in FOLDS:
        order = [rows[i] for i in np.random.default_rng(fold).permutation(24)]
        parts = {"train": order[:18], "val": order[4:8], "test": order[18:]}
        for name, part in parts.items():
            part = [{**row, "vasc": 0} for row in sorted(part, key=lambda row: row["image"])]
            write_csv(traps / f"isic_annotated_{name}{fold}.csv", part)
    return base


def records_of(name: str, root: Path) -> dict[str, tuple[str, int, int | None]]:
    """Split, y and attribute by stem."""
    dataset = DATASETS[name].open(root)
    return {
        record.path.stem: (split, record.y, record.attribute)
        for split in SPLITS
        for record in dataset.split(split).records  # type: ignore[attr-defined]
    }


def test_names_and_declarations() -> None:
    assert len(DATASETS) == 7 + 5 * 4
    for artefact, groups in ARTEFACTS.items():
        info = DATASETS[f"isic2018_{artefact}"].info
        assert info.group_names[1] == f"benign/{artefact}"
        assert info.expected_counts is not None
        assert [sum(column) for column in zip(*info.expected_counts.values(), strict=True)] == list(groups)
        assert sum(groups) == 2594
        assert sum(groups[:2]) == 2075
    for artefact, test in TRAP_ARTEFACTS.items():
        assert sum(test) == 772
        assert {f"isic2018_trap{fold}_{artefact}" for fold in FOLDS} <= set(DATASETS)
    expected = DATASETS["isic2018_patches"].info.expected_counts
    assert expected == {"train": (1134, 111, 309, 0), "val": (378, 37, 104, 1), "test": (378, 37, 104, 1)}


@pytest.mark.parametrize("folder", ["isic2018", "ISIC2018", "."])
def test_reads_images_masks_and_labels(tmp_path: Path, folder: str) -> None:
    base = write_isic(tmp_path, folder)
    rows = {Path(row["image"]).stem: row for row in lesions()}
    for artefact in ("ruler", "hair", "ink"):
        found = records_of(f"isic2018_{artefact}", tmp_path)
        assert {stem: record[1:] for stem, record in found.items()} == {
            stem: (row["label"], row[artefact]) for stem, row in rows.items()
        }
    dataset = DATASETS["isic2018_ruler"].open(tmp_path)
    assert dataset.info.has_masks
    for name in SPLITS:
        split = dataset.split(name)
        for position, record in enumerate(split.records):  # type: ignore[attr-defined]
            sample = split[position]
            assert torch.equal(sample.image, pixels_of(base / IMAGES / f"{record.path.stem}.jpg"))
            with Image.open(base / MASKS / f"{record.path.stem}_segmentation.png") as mask:
                assert sample.mask is not None
                assert np.array_equal(sample.mask.numpy(), np.array(mask) == 255)


@pytest.mark.parametrize("name", ["isic2018_ruler", "isic2018_hair", "isic2018_trap1_ruler", "isic2018_trap5_hair"])
@pytest.mark.parametrize("masks", [True, False])
def test_conforms(tmp_path: Path, name: str, masks: bool) -> None:
    write_isic(tmp_path, masks=masks)
    assert len(check_dataset(DATASETS[name], tmp_path)) == len(DATASET_CHECKS)
    assert DATASETS[name].open(tmp_path).info.has_masks == masks


def test_the_drawn_split_is_the_documented_one(tmp_path: Path) -> None:
    write_isic(tmp_path)
    found = records_of("isic2018_ruler", tmp_path)
    for group, number in enumerate(GROUPS["ruler"]):
        stems = [stem for stem, (_, y, attribute) in found.items() if 2 * y + (attribute or 0) == group]
        stems.sort(key=lambda stem: hashlib.sha256(stem.encode()).digest())
        share = -(-number // 5)
        expected = ["test"] * share + ["val"] * share + ["train"] * (number - 2 * share)
        assert [found[stem][0] for stem in stems] == expected
    dataset = DATASETS["isic2018_ruler"].open(tmp_path)
    assert "malignant/ruler" not in groups_of(dataset, "train")  # Two of them: one is for test, one for val.


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    base = write_isic(tmp_path)
    before = DATASETS["isic2018_hair"].open(tmp_path).fingerprint()
    write_csv(base / "isic_bias.csv", lesions(), ";")
    assert DATASETS["isic2018_hair"].open(tmp_path).fingerprint() == before


def test_validation_is_taken_out_of_the_traps_training(tmp_path: Path) -> None:
    base = write_isic(tmp_path)
    for fold in FOLDS:
        found = records_of(f"isic2018_trap{fold}_ruler", tmp_path)
        assert len(found) == 24
        assert [sum(split == name for split, _, _ in found.values()) for name in SPLITS] == [14, 4, 6]
        for name in ("val", "test"):
            text = (base / f"isic_annotated_{name}{fold}.csv").read_text()
            assert {stem for stem, record in found.items() if record[0] == name} == {
                line.split(",")[1].removesuffix(".png") for line in text.splitlines()[1:]
            }


@pytest.mark.parametrize("tables", [".", "debiasing-skin", "../debiasing-skin"])
def test_tables_in_a_clone_of_their_repository(tmp_path: Path, tables: str) -> None:
    write_isic(tmp_path / "one")
    write_isic(tmp_path / "two", tables=tables)
    for name in ("isic2018_ruler", "isic2018_trap2_ruler"):
        prints = {DATASETS[name].open(tmp_path / place).fingerprint() for place in ("one", "two")}
        assert len(prints) == 1


# Damage


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=rf"(?s){IMAGES}/ and isic_bias.csv in isic2018/.*debiasing-skin"):
        DATASETS["isic2018_ruler"].open(tmp_path)
    base = write_isic(tmp_path)
    (base / "isic_bias.csv").unlink()
    with pytest.raises(DataMissing, match=rf"(?s)isic_bias.csv in {base}/, .*git clone https://.* {tmp_path}/deb"):
        DATASETS["isic2018_ruler"].open(tmp_path)
    DATASETS["isic2018_trap1_ruler"].open(tmp_path)
    (base / "isic_annotated_val1.csv").unlink()
    with pytest.raises(DataMissing, match=r"isic2018_trap1_ruler: isic_annotated_val1.csv not found"):
        DATASETS["isic2018_trap1_ruler"].open(tmp_path)


def test_missing_images_and_masks(tmp_path: Path) -> None:
    base = write_isic(tmp_path)
    (base / MASKS / "ISIC_0000003_segmentation.png").unlink()
    with pytest.raises(DataError, match=r"1 of 24 masks are missing, the first: .*ISIC_0000003_segmentation.png"):
        DATASETS["isic2018_ruler"].open(tmp_path)
    (base / IMAGES / "ISIC_0000003.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 24 listed images .*/ISIC_0000003.jpg \(.*isic_bias.csv, line 3\)"):
        DATASETS["isic2018_ruler"].open(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    base = write_isic(tmp_path)
    Image.new("L", (5, 5), 255).save(base / MASKS / "ISIC_0000003_segmentation.png")
    dataset = DATASETS["isic2018_ruler"].open(tmp_path)
    with pytest.raises(DataError, match=r"ISIC_0000003_segmentation.png is 5 x 5 .*isic_bias.csv, line 3"):
        [dataset.split(name)[i] for name in SPLITS for i in range(len(dataset.split(name)))]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (";ruler", ";rulers", r"missing column ruler; found ;image;dark_corner;.*expected at least image;ruler;label"),
        ("ISIC_0000003", "ISIC_0000000", r"line 3: ISIC_0000000 was already listed in line 2"),
        ("benign", "malignant", r"line \d+: label is 0, which is benign, but label_string 'malignant'"),
        (";0;benign", ";3;benign", r"line \d+: label is '3', expected one of 0, 1"),
        (";0;benign", "", r"line \d+: 9 values, expected 11"),
        (";", ",", r"missing column image"),
    ],
)
def test_malformed_tables(tmp_path: Path, old: str, new: str, message: str) -> None:
    base = write_isic(tmp_path)
    if old == ";":
        replace = (base / "isic_bias.csv").read_text().replace(";", ",")
        (base / "isic_bias.csv").write_text(replace)
    else:
        replace_text(base / "isic_bias.csv", old, new)
    with pytest.raises(DataError, match=message):
        DATASETS["isic2018_ruler"].open(tmp_path)


@pytest.mark.parametrize("name", ["isic_bias.csv", "isic_annotated_train1.csv"])
def test_the_check_names_every_faulty_row(tmp_path: Path, name: str) -> None:
    base = write_isic(tmp_path)
    table, delimiter = base / name, ";" if name == "isic_bias.csv" else ","
    lines = [line.split(delimiter) for line in table.read_text().splitlines()]
    image, ruler, label, text = (lines[0].index(column) for column in ("image", "ruler", "label", "label_string"))
    lines[1][ruler] = "x"
    lines[2].append("1")
    lines[4][image] = lines[3][image]
    lines[5][text] = "odd"
    table.write_text("".join(f"{delimiter.join(line)}\n" for line in lines))
    photograph = base / IMAGES / f"{Path(lines[6][image]).stem}.jpg"
    photograph.unlink()
    mask = base / MASKS / f"{Path(lines[7][image]).stem}_segmentation.png"
    mask.unlink()
    with kept_faults() as faults:
        DATASETS["isic2018_ruler" if delimiter == ";" else "isic2018_trap1_ruler"].open(tmp_path)
    of_table = [fault for fault in faults if fault.where.startswith(f"{table}, ")]
    assert [(fault.kind, fault.where, fault.problem) for fault in of_table] == [
        ("row", f"{table}, line 2", "ruler is 'x', expected one of 0, 1"),
        (
            *("row", f"{table}, line 3"),
            f"{len(lines[0]) + 1} values, expected {len(lines[0])} as in the header; is the file cut off?",
        ),
        ("row", f"{table}, line 5", f"{Path(lines[3][image]).stem} was already listed in line 4"),
        (
            *("row", f"{table}, line 6"),
            f"label is {lines[5][label]}, which is {('benign', 'malignant')[int(lines[5][label])]}, but label_string "
            "'odd'",
        ),
        ("file", f"{table}, line 7", f"image {photograph} is missing"),
        ("mask", f"{table}, line 8", f"mask {mask} is missing"),
    ]


def test_the_check_names_every_image_of_another_fold(tmp_path: Path) -> None:
    base = write_isic(tmp_path)
    (base / "isic_annotated_test1.csv").write_text((base / "isic_annotated_test2.csv").read_text())
    named = {
        name: {line.split(",")[1] for line in (base / f"isic_annotated_{name}1.csv").read_text().splitlines()[1:]}
        for name in SPLITS
    }
    with kept_faults() as faults:
        dataset = DATASETS["isic2018_trap1_ruler"].open(tmp_path)
    assert len(faults) == sum(len(named[name] & named["test"]) for name in ("train", "val")) > 1
    assert len(dataset.split("val")) == len(named["val"] - named["test"])
    assert len(dataset.split("train")) == len(named["train"] - named["val"] - named["test"])


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("isic2018_ruler", "isic_bias.csv"),
        ("isic2018_trap1_ruler", "isic_annotated_train1.csv"),
        ("isic2018_trap1_ruler", "isic_annotated_val1.csv"),
    ],
)
def test_random_damage_is_never_a_traceback(tmp_path: Path, dataset: str, name: str) -> None:
    base = write_isic(tmp_path)
    assert damage_at_random(base / name, lambda: DATASETS[dataset].open(tmp_path)) > 10


def test_tables_of_two_folds(tmp_path: Path) -> None:
    base = write_isic(tmp_path)
    (base / "isic_annotated_test1.csv").write_text((base / "isic_annotated_test2.csv").read_text())
    with pytest.raises(DataError, match=r"isic_annotated_train1.csv, line \d+: ISIC_\d+ is in isic_annotated_test1"):
        DATASETS["isic2018_trap1_ruler"].open(tmp_path)


def test_other_tables_than_the_published_are_faults(tmp_path: Path) -> None:
    write_isic(tmp_path)
    for name, number in {"isic2018_ruler": 1, "isic2018_trap3_ruler": 3}.items():
        spec = DATASETS[name]
        assert spec.check is not None
        faults = list(spec.check(spec.open(tmp_path)))
        assert len(faults) == number
        assert all(fault.severity == "error" and "not the published table" in fault.problem for fault in faults)
