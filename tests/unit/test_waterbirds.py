"""WaterBirds and folder datasets: layouts, dialects, regions, damage, and agreement with the wilds package."""

import concurrent.futures
import dataclasses
import logging
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spurbench.data.cub import species_table
from spurbench.dataset import Dataset, DatasetInfo, SplitData
from spurbench.datasets.folder import DATASETS as FOLDER_DATASETS
from spurbench.datasets.waterbirds import DATASETS, FOLDERS, open_waterbirds
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset
from spurbench.types import Sample

Make = Callable[..., Any]
ROOT_95 = "waterbird_complete95_forest2water2"
ROOT_100 = "waterbird_1.0_forest2water2"
SPLITS = ("train", "val", "test")
OTHER_COLUMNS = ("id", "filename", "split", "y", "a")


def open_95(root: Path | None) -> Dataset:
    return DATASETS["waterbirds95"].open(root)


def open_100(root: Path | None) -> Dataset:
    return DATASETS["waterbirds100"].open(root)


def open_folder(root: Path | None) -> Dataset:
    return FOLDER_DATASETS["folder"].open(root)


def samples(dataset: Dataset, layout: Any) -> Iterator[tuple[int, Sample]]:
    """Every sample with the number of its row in the layout."""
    for number, name in enumerate(SPLITS):
        split = dataset.split(name)
        for position, row in enumerate(layout.rows_of(number)):
            yield row, split[position]


def pixels_of(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def assert_reads(dataset: Dataset, layout: Any) -> None:
    """Every row arrives in order, with its pixels, labels and group."""
    for number, name in enumerate(SPLITS):
        split: SplitData = dataset.split(name)
        rows = layout.rows_of(number)
        assert len(split) == len(rows)
        assert split.y.tolist() == [layout.rows[row]["y"] for row in rows]
        assert split.group is not None
        assert split.group.tolist() == [2 * layout.rows[row]["y"] + layout.rows[row]["place"] for row in rows]
        assert split.y.dtype == split.group.dtype == torch.int64
        for position, row in enumerate(rows):
            sample = split[position]
            assert sample.index == position
            assert sample.y == split.y[position]
            assert sample.group == split.group[position]
            assert sample.image.dtype == torch.uint8
            assert sample.image.shape == (3, *reversed(layout.size(row)))
            assert torch.equal(sample.image, pixels_of(layout.image(row)))


# Declarations


def test_declarations_need_no_files() -> None:
    for name, total in {"waterbirds95": 4795, "waterbirds100": 4795}.items():
        info = DATASETS[name].info
        assert info.name == name
        assert info.group_names == ("landbird/land", "landbird/water", "waterbird/land", "waterbird/water")
        assert info.expected_counts is not None
        assert [sum(info.expected_counts[split]) for split in SPLITS] == [total, 1199, 5794]
        assert info.license
        assert info.citation
        assert "https://" in info.source
        assert info.has_masks
        assert info.has_boxes
        assert pickle.loads(pickle.dumps(DATASETS[name])).info == info


# Layouts


@pytest.mark.parametrize(
    "folder",
    [
        ROOT_95,
        "waterbirds_v1.0",
        "waterbirds95",
        f"waterbirds/{ROOT_95}",
        f"cub/data/{ROOT_95}",
        ".",
    ],
)
def test_reads_waterbirds95_layouts(waterbirds_root: Make, folder: str) -> None:
    layout = waterbirds_root(folder)
    dataset = open_95(layout.root)
    assert_reads(dataset, layout)
    assert dataset.info.name == "waterbirds95"
    assert not dataset.info.has_masks
    assert not dataset.info.has_boxes


@pytest.mark.parametrize("folder", [ROOT_100, "waterbird_complete100_forest2water2", "waterbirds100", "."])
def test_reads_waterbirds100_layouts_with_empty_train_groups(waterbirds_root: Make, folder: str) -> None:
    counts = {"train": (3, 0, 0, 2), "val": (2, 2, 2, 2), "test": (2, 2, 2, 2)}
    layout = waterbirds_root(folder, counts=counts)
    dataset = open_100(layout.root)
    assert_reads(dataset, layout)
    assert dataset.split("train").group.bincount(minlength=4).tolist() == [3, 0, 0, 2]  # type: ignore[union-attr]


def test_root_may_be_the_set_itself(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="CUB_200_2011/segmentations", boxes="CUB_200_2011")
    dataset = open_95(layout.folder)
    assert_reads(dataset, layout)
    assert dataset.info.has_masks  # Found beside the set, in the parent of the root.
    assert dataset.info.has_boxes


def test_a_table_that_names_its_own_classes_is_another_set(waterbirds_root: Make) -> None:
    layout = waterbirds_root()
    table = next(layout.root.rglob("metadata.csv"))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},class_name", *(f"{line},truck" for line in lines[1:])]) + "\n")
    with pytest.raises(DataError, match="names its own class_name: it is another set, --dataset"):
        open_95(layout.root)


def test_relative_roots(waterbirds_root: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations")
    monkeypatch.chdir(layout.root)
    assert open_95(Path()).fingerprint() == open_95(layout.root).fingerprint()
    monkeypatch.chdir(layout.folder)
    assert open_95(Path()).fingerprint() == open_95(layout.root).fingerprint()


def test_both_variants_below_one_root(waterbirds_root: Make) -> None:
    first = waterbirds_root(ROOT_95)
    second = waterbirds_root(ROOT_100, counts={"train": (4, 0, 0, 2), "val": (1, 2, 2, 2), "test": (2, 2, 2, 2)})
    assert_reads(open_95(first.root), first)
    assert_reads(open_100(first.root), second)


@pytest.mark.parametrize("name", ["waterbirds95", "waterbirds100"])
def test_no_root(name: str) -> None:
    with pytest.raises(DataMissing, match=r"(?s)--data-root DIR or \$SPURBENCH_DATA.*https://.*minibirds100"):
        DATASETS[name].open(None)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="waterbirds100 not found below") as caught:
        open_100(tmp_path)
    message = str(caught.value)
    for name in FOLDERS["waterbirds100"]:
        assert f"{name}/" in message
    for part in (
        "metadata.csv and 11,788 images",
        "drive.google.com",
        "minibirds100",
        "spurbench data prepare waterbirds100",
    ):
        assert part in message


def test_root_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)elsewhere is not a folder\n.*--data-root"):
        open_95(tmp_path / "elsewhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataMissing, match="is not a folder"):
        open_95(tmp_path / "file")


def test_archive_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / f"{ROOT_95}.tar.gz").touch()
    with pytest.raises(DataMissing, match=r"\.tar\.gz is there but not unpacked"):
        open_95(tmp_path)


@pytest.mark.parametrize(
    ("opened", "folder", "stated"),
    [
        ("waterbirds100", ROOT_95, 95),
        ("waterbirds100", "waterbirds_v1.0", 95),
        ("waterbirds100", "waterbirds95", 95),
        ("waterbirds95", ROOT_100, 100),
        ("waterbirds95", "waterbirds100", 100),
        ("waterbirds95", "waterbird_complete90_forest2water2", 90),
        ("waterbirds100", "waterbird_0.95_forest2water2", 95),
    ],
)
def test_the_other_variant_is_refused(waterbirds_root: Make, opened: str, folder: str, stated: int) -> None:
    layout = waterbirds_root(folder)
    with pytest.raises(DataError, match=f"{opened}: .*states a correlation of {stated} %"):
        DATASETS[opened].open(layout.folder)


def test_the_other_variant_is_refused_through_a_link(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    (layout.root / "waterbirds100").symlink_to(layout.folder)
    with pytest.raises(DataError, match="--dataset waterbirds95"):
        open_100(layout.root)


def test_the_other_variant_without_a_table_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / ROOT_95).mkdir()
    with pytest.raises(DataError, match="states a correlation of 95 %"):
        open_100(tmp_path / ROOT_95)


@pytest.mark.parametrize("folder", ["birds", "waterbirds", "waterbirds_2024", "waterbirds_v2"])
def test_neutral_names_are_accepted(waterbirds_root: Make, folder: str) -> None:
    layout = waterbirds_root(folder)
    assert_reads(open_95(layout.folder), layout)
    assert_reads(open_100(layout.folder), layout)


# Dialects


def test_other_dialect_inside_the_image_folder(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, table="metadata_waterbirds.csv", dialect="other")
    assert_reads(open_95(layout.root), layout)


@pytest.mark.parametrize("table", ["../metadata_waterbirds.csv", "../../metadata_waterbirds.csv"])
def test_other_dialect_above_the_image_folder(waterbirds_root: Make, table: str) -> None:
    layout = waterbirds_root(f"waterbirds/{ROOT_95}", table=table, dialect="other")
    assert_reads(open_95(layout.root), layout)
    assert_reads(open_95(layout.folder), layout)


def test_other_dialect_without_id_and_with_an_unnamed_index(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    expected = open_95(layout.root).fingerprint()
    layout.write_table(OTHER_COLUMNS[1:])
    assert open_95(layout.root).fingerprint() == expected
    layout.write_table(("", *OTHER_COLUMNS[1:]))
    assert open_95(layout.root).fingerprint() == expected


@pytest.mark.parametrize("prefix", ["folder", "table", "absolute", "dot"])
def test_file_names_relative_to_other_folders(waterbirds_root: Make, prefix: str) -> None:
    layout = waterbirds_root(f"waterbirds/{ROOT_95}", masks="segmentations", boxes="CUB_200_2011")
    expected = open_95(layout.root).fingerprint()
    layout.table.unlink()
    start = {
        "folder": ROOT_95,
        "table": f"waterbirds/{ROOT_95}",
        "absolute": str(layout.folder),
        "dot": f"./waterbirds/../waterbirds/{ROOT_95}",
    }[prefix]
    for row in layout.rows:
        row["img_filename"] = f"{start}/{row['img_filename']}"
    layout.table = layout.root / "metadata_waterbirds.csv"
    layout.write_table(OTHER_COLUMNS)
    dataset = open_95(layout.root)
    assert dataset.info.has_masks
    assert dataset.info.has_boxes
    assert dataset.fingerprint() == expected


def test_images_in_quite_another_folder(waterbirds_root: Make, tmp_path: Path) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations", boxes="CUB_200_2011")
    expected = open_95(layout.root).fingerprint()
    for row in layout.rows:
        source, target = layout.folder / row["img_filename"], tmp_path / "elsewhere" / row["img_filename"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
        row["img_filename"] = str(target)
    layout.write_table()
    dataset = open_95(layout.root)
    assert dataset.fingerprint() == expected
    assert dataset.info.has_masks


def test_a_table_above_is_not_taken_for_waterbirds100(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_100, table="../metadata_waterbirds.csv", dialect="other")
    with pytest.raises(DataMissing, match="waterbirds100 not found"):
        open_100(layout.root)
    layout.folder.rename(layout.root / ROOT_95)
    for row in layout.rows:
        row["img_filename"] = f"{ROOT_95}/{row['img_filename']}"
    layout.write_table(OTHER_COLUMNS)
    open_95(layout.root)
    with pytest.raises(DataMissing, match="waterbirds100 not found"):
        open_100(layout.root)


def test_the_official_table_wins(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    (layout.folder / "metadata_waterbirds.csv").write_text("not a table")
    assert_reads(open_95(layout.root), layout)


def test_the_other_table_inside_a_folder_named_100(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_100, table="metadata_waterbirds.csv", dialect="other")
    assert_reads(open_100(layout.root), layout)


def test_byte_order_mark_crlf_and_empty_lines(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    layout.write_table(OTHER_COLUMNS[1:])  # The mark now lies before a column that is needed.
    text = layout.table.read_text()
    layout.table.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    assert_reads(open_95(layout.root), layout)


# Masks and boxes


@pytest.mark.parametrize("masks", [f"{ROOT_95}/segmentations", "CUB_200_2011/segmentations", "segmentations"])
def test_masks_inside_and_beside_cub(waterbirds_root: Make, masks: str) -> None:
    layout = waterbirds_root(ROOT_95, masks=masks)
    dataset = open_95(layout.root)
    assert dataset.info.has_masks
    assert not dataset.info.has_boxes
    for row, sample in samples(dataset, layout):
        assert sample.boxes is None
        assert sample.mask is not None
        assert sample.mask.dtype == torch.bool
        # Palette, LA and RGBA masks are among them; 128 is foreground, 127 is not.
        assert np.array_equal(sample.mask.numpy(), layout.levels(row) > 127)
        assert sample.mask[9, 5]
        assert not sample.mask[30, 5]


@pytest.mark.parametrize("place", ["segmentations", "CUB_200_2011/segmentations"])
def test_masks_in_the_parent_of_the_root(waterbirds_root: Make, place: str) -> None:
    layout = waterbirds_root(ROOT_95, masks=f"../{place}")
    assert open_95(layout.root).info.has_masks


@pytest.mark.parametrize("boxes", ["CUB_200_2011", "../CUB_200_2011", ROOT_95])
def test_boxes_are_joined_by_file_name(waterbirds_root: Make, boxes: str) -> None:
    layout = waterbirds_root(ROOT_95, boxes=boxes)
    dataset = open_95(layout.root)
    assert dataset.info.has_boxes
    assert not dataset.info.has_masks
    for row, sample in samples(dataset, layout):
        x, y, width, height = layout.box(row)
        assert sample.mask is None
        assert sample.boxes is not None
        assert sample.boxes.dtype == torch.float32
        assert sample.boxes.tolist() == [[x, y, x + width, y + height]]


def test_masks_and_boxes_together(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="CUB_200_2011/segmentations", boxes="CUB_200_2011")
    sample = open_95(layout.root).split("test")[0]
    assert sample.mask is not None
    assert sample.boxes is not None


def test_missing_masks(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations")
    lost = layout.root / "segmentations" / layout.mask_key(4)
    lost.unlink()
    with pytest.raises(DataError, match=f"lacks 1 of 27 masks, the first: {lost} .*metadata.csv, line 6"):
        open_95(layout.root)


def test_an_empty_mask_folder_of_the_set(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    (layout.folder / "segmentations").mkdir()
    with pytest.raises(DataError, match="lacks 27 of 27 masks"):
        open_95(layout.root)


def test_masks_and_boxes_of_other_data_are_passed_over(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    other = layout.root / "segmentations" / "003.Sooty_Albatross"
    other.mkdir(parents=True)
    Image.new("L", (8, 8)).save(other / "Sooty.png")
    (layout.root / "images.txt").write_text("1 003.Sooty_Albatross/Sooty.jpg\n")
    (layout.root / "bounding_boxes.txt").write_text("1 0.0 0.0 5.0 5.0\n")
    info = open_95(layout.root).info
    assert not info.has_masks
    assert not info.has_boxes


def test_mask_of_another_size(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations")
    row = layout.rows_of(0)[0]
    mask = layout.root / "segmentations" / layout.mask_key(row)
    Image.new("L", (20, 30), 255).save(mask)
    width, height = layout.size(row)
    with pytest.raises(DataError) as caught:
        open_95(layout.root).split("train")[0]
    for part in (str(mask), str(layout.image(row)), "20 x 30", f"{width} x {height}", f"line {row + 2}"):
        assert part in str(caught.value)


def test_mask_of_zeros_and_ones(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations")
    row = layout.rows_of(0)[0]
    mask = layout.root / "segmentations" / layout.mask_key(row)
    Image.new("L", layout.size(row), 1).save(mask)
    with pytest.raises(DataError, match=r"has no level above 1 .*multiply its values by 255"):
        open_95(layout.root).split("train")[0]
    Image.new("L", layout.size(row), 0).save(mask)
    empty = open_95(layout.root).split("train")[0].mask
    assert empty is not None
    assert not empty.any()


def test_missing_box(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, boxes="CUB_200_2011")
    path = layout.root / "CUB_200_2011" / "bounding_boxes.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("979 ")))  # Id 1000 - 7 * 3: row 3.
    with pytest.raises(DataError, match=r"lacks 1 of 27 boxes, the first that of .*metadata.csv, line 5"):
        open_95(layout.root)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("bounding_boxes.txt", "1 2.0 3.0\n", r"id 1: '2.0 3.0' is not x y width height"),
        ("bounding_boxes.txt", "1 2.0 3.0 wide 5.0\n", "is not x y width height"),
        ("bounding_boxes.txt", "1 2.0 3.0 0.0 5.0\n", "is empty or not finite"),
        ("bounding_boxes.txt", "1 2.0 3.0 nan 5.0\n", "is empty or not finite"),
        ("bounding_boxes.txt", "1 1 1 1 1\n1 2 2 2 2\n", "line 2: id 1 appears twice"),
        ("images.txt", "1 a.jpg\n2\n", r"images.txt, line 2: '2' is not an id followed by a value"),
        ("images.txt", "1 a.jpg\n1 b.jpg\n", "images.txt, line 2: id 1 appears twice"),
    ],
)
def test_malformed_box_files(waterbirds_root: Make, name: str, text: str, problem: str) -> None:
    layout = waterbirds_root(ROOT_95, boxes="CUB_200_2011")
    (layout.root / "CUB_200_2011" / name).write_text(text)
    with pytest.raises(DataError, match=problem):
        open_95(layout.root)


def test_boxes_without_images_txt_are_ignored_aloud(waterbirds_root: Make, caplog: pytest.LogCaptureFixture) -> None:
    layout = waterbirds_root(ROOT_95, boxes="CUB_200_2011")
    (layout.root / "CUB_200_2011" / "images.txt").unlink()
    assert not open_95(layout.root).info.has_boxes
    assert "bounding_boxes.txt is ignored: images.txt" in caplog.text


def test_boxes_are_clipped_and_stray_ones_refused(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, boxes="CUB_200_2011")
    row = layout.rows_of(0)[0]
    width, height = layout.size(row)
    images, boxes = (layout.root / "CUB_200_2011" / name for name in ("images.txt", "bounding_boxes.txt"))
    key = next(line.split()[0] for line in images.read_text().splitlines() if layout.rows[row]["img_filename"] in line)
    others = [line for line in boxes.read_text().splitlines() if line.split()[0] != key]
    boxes.write_text("\n".join([*others, f"{key} -0.5 1.0 {width + 1.0} {height}.0"]))
    assert open_95(layout.root).split("train")[0].boxes.tolist() == [[0, 1, width, height]]  # type: ignore[union-attr]
    boxes.write_text("\n".join([*others, f"{key} {width}.0 1.0 4.0 4.0"]))
    with pytest.raises(DataError, match=f"lies outside its image .*{width} x {height} pixels .*line {row + 2}"):
        open_95(layout.root).split("train")[0]


# Damage: tables


def damaged(layout: Any, text: str | bytes) -> str:
    """The message of opening the layout with this table."""
    layout.table.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as caught:
        open_95(layout.root)
    assert str(layout.table) in str(caught.value)
    return str(caught.value)


def test_damaged_tables(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    text = layout.table.read_text()
    header, *lines = text.splitlines()
    assert "is empty" in damaged(layout, "")
    assert "is empty" in damaged(layout, "\n\n")
    assert "has a header but no rows" in damaged(layout, header)
    message = damaged(layout, text.replace("place,", "background,", 1).replace("split", "fold", 1))
    assert "missing column split, place or a; found: img_id, img_filename, y, fold, background" in message
    assert "missing column img_filename or filename" in damaged(layout, "img_id;img_filename;y;split;place\n")
    assert "column y appears more than once" in damaged(layout, text.replace("img_id", "y", 1))
    assert "line 6: 4 values, expected 6" in damaged(layout, "\n".join([header, *lines[:4], "5,a b/c.jpg,0,1"]))
    assert "line 3: not UTF-8" in damaged(layout, "\n".join([header, *lines[:1]]).encode() + b"\n2,\xff.jpg,0,0,0,x\n")
    assert "line 2: holds a zero byte" in damaged(layout, text.replace(".jpg", "\0", 1))
    assert "line 3: not valid CSV" in damaged(layout, f'{header}\n{lines[0]}\n2,"a.jpg,0,0,0,x\n3,b.jpg,0,0,0,x\n')


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"y": 2}, "y is '2', expected a whole number from 0 to 1"),
        ({"y": -1}, "y is '-1'"),
        ({"y": "1.0"}, "y is '1.0'"),
        ({"y": "waterbird"}, "y is 'waterbird'"),
        ({"y": "1_0"}, "y is '1_0'"),
        ({"y": "٠"}, "y is '٠'"),
        ({"y": "9" * 5000}, "y is '999"),
        ({"y": ""}, "y is ''"),
        ({"place": 2}, "place is '2', expected a whole number from 0 to 1"),
        ({"split": 3}, "split is '3', expected one of 0, 1, 2"),
        ({"split": "train"}, "split is 'train'"),
        ({"img_filename": " "}, "img_filename is blank"),
    ],
)
def test_bad_values(waterbirds_root: Make, values: dict[str, object], problem: str) -> None:
    layout = waterbirds_root(ROOT_95)
    layout.change(3, **values)
    with pytest.raises(DataError, match=f"metadata.csv, line 5: {problem}"):
        open_95(layout.root)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_split_without_rows(waterbirds_root: Make, split: int) -> None:
    layout = waterbirds_root(ROOT_95)
    layout.rows = [row for row in layout.rows if row["split"] != split]
    layout.write_table()
    with pytest.raises(DataError, match=f"no row has split {split}, so the {SPLITS[split]} split is empty"):
        open_95(layout.root)


def test_an_image_listed_twice(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    layout.change(7, img_filename=f"./{layout.rows[2]['img_filename']}")
    with pytest.raises(DataError, match=r"line 9: .* was already listed in line 4"):
        open_95(layout.root)


def test_missing_images(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    for row in range(3, 8):
        layout.image(row).unlink()
    layout.image(5).mkdir()
    with pytest.raises(DataError) as caught:
        open_95(layout.root)
    message = str(caught.value)
    assert "5 of 27 listed images are missing" in message
    for row in (3, 4, 5):
        assert f"{layout.image(row)} (line {row + 2})" in message
    assert str(layout.image(6)) not in message


def test_a_missing_first_image_does_not_hide_where_the_others_are(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    for row in layout.rows:
        row["img_filename"] = f"{ROOT_95}/{row['img_filename']}"
    layout.write_table()
    (layout.root / layout.rows[0]["img_filename"]).unlink()
    with pytest.raises(DataError, match=f"1 of 27 .*{layout.root / layout.rows[0]['img_filename']}"):
        open_95(layout.root)


def test_a_missing_species_folder(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    shutil.rmtree(layout.folder)
    layout.folder.mkdir()
    layout.write_table()
    with pytest.raises(DataError, match="27 of 27 listed images are missing"):
        open_95(layout.root)


def test_refusals_of_the_system_are_data_errors(waterbirds_root: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = waterbirds_root(ROOT_95)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*metadata.csv: Permission denied"):
        open_95(layout.root)


# Damage: images


def test_damaged_images_are_named_with_their_row(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations")
    dataset = open_95(layout.root)
    row = layout.rows_of(2)[1]
    data = layout.image(row).read_bytes()
    for content in (b"", b"not an image", data[:100], data[: len(data) // 2]):
        layout.image(row).write_bytes(content)
        with pytest.raises(DataError) as caught:
            dataset.split("test")[1]
        assert str(layout.image(row)) in str(caught.value)
        assert f"metadata.csv, line {row + 2}" in str(caught.value)
    layout.image(row).write_bytes(data)
    (layout.root / "segmentations" / layout.mask_key(row)).write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=f"segmentations.*line {row + 2}"):
        dataset.split("test")[1]
    layout.image(row).unlink()
    with pytest.raises(DataError, match=r"No such file"):
        dataset.split("test")[1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_random_damage_never_escapes_as_another_error(waterbirds_root: Make, kind: str) -> None:
    layout = waterbirds_root(ROOT_95)
    split = open_95(layout.root).split("train")
    path = layout.image(layout.rows_of(0)[0])
    with Image.open(path) as image:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "text"
        image.convert("RGB").save(path, kind, exif=exif)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), rng.choice((200, len(data)))))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            assert split[0].image.ndim == 3
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_no_warning_leaves_pil(waterbirds_root: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = waterbirds_root(ROOT_95)
    split = open_95(layout.root).split("train")
    width, height = layout.size(layout.rows_of(0)[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)  # PIL now warns of a decompression bomb.
    with pytest.warns(Image.DecompressionBombWarning), Image.open(layout.image(layout.rows_of(0)[0])):
        pass
    assert split[0].image.shape == (3, height, width)
    with pytest.raises(UserWarning, match="ours"):  # Warnings of others are still errors.
        warnings.warn("ours", stacklevel=1)


def test_exif_orientation_is_ignored(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    path = layout.image(layout.rows_of(0)[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert open_95(layout.root).split("train")[0].image.shape == (3, 20, 30)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_deep_images_are_refused(waterbirds_root: Make, mode: str) -> None:
    layout = waterbirds_root(ROOT_95)
    Image.new(mode, (30, 20), 300).save(layout.image(layout.rows_of(0)[0]), "TIFF")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        open_95(layout.root).split("train")[0]


# Access


def test_positions_and_split_names(waterbirds_root: Make) -> None:
    dataset = open_95(waterbirds_root(ROOT_95).root)
    split = dataset.split("val")
    assert split[-1].index == len(split) - 1
    with pytest.raises(IndexError):
        split[len(split)]
    with pytest.raises(ConfigError, match="unknown split 'tests'; did you mean 'test'"):
        dataset.split("tests")


def test_threads_and_processes_read_the_same(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations", boxes="CUB_200_2011")
    split = open_95(layout.root).split("train")
    positions = list(range(len(split))) * 5
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(split.__getitem__, positions))
    copy = pickle.loads(pickle.dumps(split))
    for position, sample in zip(positions, threaded, strict=True):
        for field in dataclasses.fields(Sample):
            values = [getattr(one, field.name) for one in (split[position], sample, copy[position])]
            assert all(torch.equal(torch.as_tensor(values[0]), torch.as_tensor(value)) for value in values[1:])


# Published counts


def test_other_counts_warn_once_with_both_numbers(waterbirds_root: Make, caplog: pytest.LogCaptureFixture) -> None:
    layout = waterbirds_root(ROOT_95)
    open_95(layout.root)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    for part in ("waterbirds95", "train 3/2/2/3 (published 3498/184/56/1057)", "val 2/2/2/2 (published 467/466"):
        assert part in caplog.text


def test_published_counts_are_silent(
    waterbirds_root: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = waterbirds_root(ROOT_95)
    counts: dict[str, tuple[int, ...]] = {"train": (3, 2, 2, 3), "val": (2, 2, 2, 2), "test": (2, 3, 2, 2)}
    info = dataclasses.replace(DATASETS["waterbirds95"].info, expected_counts=counts)
    assert open_waterbirds(info, layout.root).info.expected_counts == counts
    assert not caplog.records


# Corrected labels


LANDBIRD = "021.Eastern_Towhee"  # Published as a waterbird, for its 'tern'.


def with_towhees(layout: Any) -> list[int]:
    """Moves the first waterbirds of each split to the towhees' folder; returns their rows."""
    moved = []
    for split in range(3):
        row = next(row for row in layout.rows_of(split) if layout.rows[row]["y"] == 1)
        source = layout.image(row)
        layout.change(row, img_filename=f"{LANDBIRD}/{source.name}")
        layout.image(row).parent.mkdir(exist_ok=True)
        source.rename(layout.image(row))
        moved.append(row)
    return moved


@pytest.mark.parametrize("draw", ["waterbirds95", "waterbirds100"])
def test_corrected_labels_change_label_and_group_of_three_species_alone(waterbirds_root: Make, draw: str) -> None:
    layout = waterbirds_root(FOLDERS[draw][0])
    moved = with_towhees(layout)
    official, corrected = DATASETS[draw].open(layout.root), DATASETS[f"{draw}_corrected"].open(layout.root)
    assert_reads(official, layout)
    for row in moved:
        layout.rows[row]["y"] = 0
    assert_reads(corrected, layout)
    assert corrected.fingerprint() != official.fingerprint()


def test_corrected_variants_say_what_they_are(waterbirds_root: Make, tmp_path: Path) -> None:
    spec = DATASETS["waterbirds95_corrected"]
    assert spec.info.expected_counts == {"train": (4795,), "val": (1199,), "test": (5794,)}
    assert "landbirds here" in spec.info.description
    with pytest.raises(DataMissing, match=f"(?s)waterbirds95_corrected not found .*{ROOT_95}/"):
        spec.open(tmp_path)
    layout = waterbirds_root(ROOT_100)
    with pytest.raises(DataError, match="states a correlation of 100 %"):
        spec.open(layout.folder)
    layout.folder.rename(layout.root / ROOT_95)
    assert len(check_dataset(spec, layout.root)) == len(DATASET_CHECKS)


# Check against the species


def published(waterbirds_root: Make, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A layout with the species' folders of CUB, and a table of species with its counts."""
    layout = waterbirds_root(ROOT_95)
    for row, values in enumerate(layout.rows):
        folder = "014.Indigo_Bunting" if values["y"] == 0 else (LANDBIRD, "066.Western_Gull")[row % 2]
        source = layout.image(row)
        values["img_filename"] = f"{folder}/{source.name}"
        layout.image(row).parent.mkdir(exist_ok=True)
        source.rename(layout.image(row))
    layout.write_table()
    counts = {name: [0, 0] for name in (LANDBIRD, "014.Indigo_Bunting", "066.Western_Gull")}
    for values in layout.rows:
        counts[str(values["img_filename"]).partition("/")[0]][values["split"] == 2] += 1
    table = [
        dataclasses.replace(species, num_train=counts[species.folder][0], num_test=counts[species.folder][1])
        for species in species_table()
        if species.folder in counts
    ]
    monkeypatch.setattr("spurbench.datasets.waterbirds.species_table", lambda: tuple(table))
    return layout


def faults(name: str, layout: Any) -> list[tuple[str, str, str]]:
    spec = DATASETS[name]
    assert spec.check is not None
    return [(fault.severity, fault.where, fault.problem) for fault in spec.check(spec.open(layout.root))]


def test_the_published_labels_have_no_fault(waterbirds_root: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = published(waterbirds_root, monkeypatch)
    assert faults("waterbirds95", layout) == []
    assert faults("waterbirds95_corrected", layout) == []


def test_check_finds_other_labels_species_and_splits(waterbirds_root: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = published(waterbirds_root, monkeypatch)
    row = next(row for row, values in enumerate(layout.rows) if LANDBIRD in str(values["img_filename"]))
    layout.change(row, y=0)  # As in a corrected release.
    where, name = f"{layout.table}, line {row + 2}", layout.rows[row]["img_filename"]
    assert faults("waterbirds95", layout) == [
        ("error", where, f"{name} is labelled landbird, but {LANDBIRD} is waterbird")
    ]
    assert faults("waterbirds95_corrected", layout) == []
    layout.change(row, y=1, split=0 if layout.rows[row]["split"] == 2 else 2)
    problems = [(where, problem) for _, where, problem in faults("waterbirds95", layout)]
    assert [where for where, _ in problems] == [LANDBIRD, LANDBIRD]
    assert "images in train and val, expected" in problems[0][1]
    assert "images in test, expected" in problems[1][1]


def test_check_finds_folders_that_are_no_species(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    found = faults("waterbirds95", layout)
    row = next(row for row, values in enumerate(layout.rows) if values["y"] == 1)
    name = layout.rows[row]["img_filename"]
    problem = f"{name} lies in 002.Laysan Albatross/, which is none of CUB's 200 species"
    assert ("error", f"{layout.table}, line {row + 2}", problem) in found
    summary = "400 of 400 numbers of images per species and part differ from the published"
    assert ("error", "waterbirds95", summary) in found
    assert sum("expected" in problem for *_, problem in found) == 20


# Fingerprint


def test_fingerprint_ignores_the_place_and_pixels(waterbirds_root: Make, tmp_path: Path) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations", boxes="CUB_200_2011")
    first = open_95(layout.root).fingerprint()
    assert len(bytes.fromhex(first)) == 32
    moved = tmp_path / "moved"
    shutil.copytree(layout.root, moved)
    (moved / ROOT_95).rename(moved / "waterbirds_v1.0")
    (moved / "segmentations").rename(moved / "CUB_200_2011" / "segmentations")
    path = moved / "waterbirds_v1.0" / layout.rows[0]["img_filename"]
    path.write_bytes(bytes(path.stat().st_size))
    assert open_95(moved).fingerprint() == first


@pytest.mark.parametrize("change", ["y", "place", "split", "size", "mask", "box", "order", "rows", "no masks"])
def test_fingerprint_notices(waterbirds_root: Make, change: str) -> None:
    layout = waterbirds_root(ROOT_95, masks="segmentations", boxes="CUB_200_2011")
    before = open_95(layout.root)
    before.fingerprint()
    mask = layout.root / "segmentations" / layout.mask_key(1)
    boxes = layout.root / "CUB_200_2011" / "bounding_boxes.txt"
    row = layout.rows[1]
    match change:
        case "y" | "place":
            layout.change(1, **{change: 1 - row[change]})
        case "split":
            layout.change(1, split=(row["split"] + 1) % 3)
        case "size":
            layout.image(1).write_bytes(layout.image(1).read_bytes() + b"\0")
        case "mask":
            mask.write_bytes(mask.read_bytes() + b"\0")
        case "box":
            boxes.write_text(boxes.read_text().replace("20.5", "20.4", 1))
        case "order":
            layout.rows.reverse()
            layout.write_table()
        case "rows":
            layout.rows.pop()
            layout.write_table()
        case "no masks":
            shutil.rmtree(layout.root / "segmentations")
    assert open_95(layout.root).fingerprint() != before.fingerprint()  # The earlier one is remembered.


def test_fingerprint_of_a_vanished_file(waterbirds_root: Make) -> None:
    layout = waterbirds_root(ROOT_95)
    dataset = open_95(layout.root)
    layout.image(2).unlink()
    with pytest.raises(DataError, match=f"cannot read {layout.image(2)} .*line 4"):
        dataset.fingerprint()


# Folder


def write_folder(folder: Path, table: str, size: tuple[int, int] = (32, 40)) -> Path:
    """A folder with this table and an image for every name in it that ends in .jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text(table)
    for cell in table.replace("\n", ",").split(","):
        if cell.endswith(".jpg"):
            (folder / cell).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(folder / cell)
    return folder


def test_folder_reads_waterbirds_with_its_names(waterbirds_root: Make) -> None:
    layout = waterbirds_root("own", masks="own/segmentations", boxes="own")
    dataset = open_folder(layout.folder)
    assert_reads(dataset, layout)
    expected: DatasetInfo = dataset.info
    assert expected.name == f"folder:{dataset.fingerprint()[:16]}"
    assert expected.classes == ("landbird", "waterbird")
    assert expected.attributes == ("land", "water")
    assert expected.has_masks
    assert expected.has_boxes
    assert expected.preset == "convnext"


def test_a_folder_is_named_after_its_data(waterbirds_root: Make, tmp_path: Path) -> None:
    layout = waterbirds_root("own")
    name = open_folder(layout.folder).info.name
    moved = tmp_path / "elsewhere"
    shutil.copytree(layout.folder, moved)
    assert open_folder(moved).info.name == name
    Image.new("RGB", (31, 17), "red").save(moved / layout.rows[0]["img_filename"])  # the same table, another image
    assert open_folder(moved).info.name != name


def test_folder_keeps_the_groups_of_waterbirds_when_no_place_is_water(tmp_path: Path) -> None:
    table = "img_filename,y,split,place\na.jpg,0,0,0\nb.jpg,1,1,0\nc.jpg,1,2,0\n"
    dataset = open_folder(write_folder(tmp_path / "own", table))
    assert dataset.info.num_groups == 4
    assert dataset.split("val").group.tolist() == [2]  # type: ignore[union-attr]


def test_folder_with_many_classes_and_attributes(tmp_path: Path) -> None:
    table = "filename,split,y,a\nx/a.jpg,train,3,1\nx/b.jpg,val,0,2\nx/c.jpg,2,1,0\nd.jpg,0,2,2\n"
    dataset = open_folder(write_folder(tmp_path / "own", table))
    assert dataset.info.classes == ("class0", "class1", "class2", "class3")
    assert dataset.info.attributes == ("attribute0", "attribute1", "attribute2")
    assert dataset.split("train").group.tolist() == [10, 8]  # type: ignore[union-attr]
    assert dataset.split("val")[0].group == 2


def test_folder_without_attribute(tmp_path: Path) -> None:
    table = "img_filename,split,y\na.jpg,0,0\nb.jpg,1,1\nc.jpg,2,1\n"
    dataset = open_folder(write_folder(tmp_path / "own", table))
    assert dataset.info.attributes is None
    assert dataset.info.group_names == ("class0", "class1")
    assert dataset.split("train").group is None
    assert dataset.split("train")[0].group is None


def test_folder_with_masks_and_boxes_in_the_table(tmp_path: Path) -> None:
    table = (
        "filename,split,y,a,mask_filename,x0,y0,x1,y1\n"
        "a.jpg,0,0,0,m/one.png,1,2.5,30,40\n"
        "b.jpg,1,1,1,,,,,\n"
        "c.jpg,2,1,0,,0,0,32,40\n"
    )
    folder = write_folder(tmp_path / "own", table)
    (folder / "m").mkdir()
    with pytest.raises(DataError, match=r"metadata.csv, line 2: mask .*m/one.png is missing"):
        open_folder(folder)
    Image.new("1", (32, 40), 1).save(folder / "m" / "one.png")
    dataset = open_folder(folder)
    assert dataset.info.has_masks
    assert dataset.info.has_boxes
    first, second = dataset.split("train")[0], dataset.split("val")[0]
    assert first.mask is not None
    assert first.mask.all()
    assert first.boxes is not None
    assert first.boxes.tolist() == [[1, 2.5, 30, 40]]
    assert second.mask is None
    assert second.boxes is None


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("filename,split,y,x0,y0\na.jpg,0,0,1,2\n", "box column x1, y1 is missing"),
        ("filename,split,y,x0,y0,x1,y1\na.jpg,0,0,1,2,,4\n", "line 2: box 1,2,,4 is not four numbers"),
        ("filename,split,y,x0,y0,x1,y1\na.jpg,0,0,3,2,3,4\n", "line 2: box 3,2,3,4 is empty or not finite"),
        ("filename,split,y,x0,y0,x1,y1\na.jpg,0,0,0,0,inf,4\n", "is empty or not finite"),
        ("filename,split,y\na.jpg,0,0\nb.jpg,1,0\nc.jpg,2,0\n", "every row has y = 0"),
        ("filename,split,y\na.jpg,0,100000\n", "line 2: y is '100000', expected a whole number from 0 to 99999"),
        ("filename,split,y\na.jpg,valid,0\n", "split is 'valid', expected one of 0, 1, 2, train, val, test"),
        ("filename,y\na.jpg,0\n", r"missing column split; found: filename, y; expected .*y,split\[,place\]"),
        ("filename,split,y,a\na.jpg,0,0,\n", "line 2: a is ''"),
    ],
)
def test_folder_errors(tmp_path: Path, table: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        open_folder(write_folder(tmp_path / "own", table))


def test_folder_table(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="needs --data-root DIR"):
        open_folder(None)
    with pytest.raises(DataMissing, match="is not a folder"):
        open_folder(tmp_path / "none")
    with pytest.raises(DataMissing, match=r"(?s)no metadata.csv in .*filename,split,y"):
        open_folder(tmp_path)
    table = "filename,split,y\na.jpg,0,0\nb.jpg,1,1\nc.jpg,2,1\n"
    named = open_folder(write_folder(tmp_path, table)).info.name
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata_own.csv")
    assert open_folder(tmp_path).info.name == named
    (tmp_path / "metadata_new.csv").touch()
    with pytest.raises(DataError, match=r"several tables \(metadata_new.csv, metadata_own.csv\)"):
        open_folder(tmp_path)


# Against the wilds package


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # Inside wilds.
def test_agrees_with_wilds(waterbirds_root: Make) -> None:
    from wilds.datasets.waterbirds_dataset import WaterbirdsDataset

    layout = waterbirds_root("waterbirds_v1.0")
    (layout.folder / "RELEASE_v1.0.txt").touch()
    theirs = WaterbirdsDataset(root_dir=str(layout.root), download=False)
    ours = open_95(layout.root)
    groups = theirs._eval_grouper.metadata_to_group(theirs.metadata_array)
    for name in SPLITS:
        split = ours.split(name)
        subset = theirs.get_subset(name)
        assert len(split) == len(subset)
        assert torch.equal(split.y, subset.y_array)
        assert split.group is not None
        assert torch.equal(split.group, groups[torch.as_tensor(subset.indices)])
        for position in range(len(split)):
            image, y, metadata = subset[position]
            sample = split[position]
            assert torch.equal(sample.image, torch.from_numpy(np.array(image)).permute(2, 0, 1))
            assert (sample.y, sample.group) == (int(y), 2 * int(y) + int(metadata[0]))
