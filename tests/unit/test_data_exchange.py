"""``spurbench data import`` and ``data export``: tables of others and folder trees, there and back."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from spurbench.cli import main
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import Dataset, DatasetInfo, find_dataset
from spurbench.datatools.exchange import export_table, import_images
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.image_dataset import open_records
from spurbench.testing import check_dataset

Make = Callable[..., Any]
SPLITS = ("train", "val", "test")


def quiet(task: str, done: int, total: int) -> None:
    assert done <= total


def open_folder(folder: Path) -> Dataset:
    return find_dataset("folder").open(folder)


def assert_equal(ours: Dataset, theirs: Dataset) -> None:
    """Every split, label, group, pixel, mask and box."""
    assert ours.info.splits == theirs.info.splits
    assert ours.info.classes == theirs.info.classes
    assert ours.info.attributes == theirs.info.attributes
    assert (ours.info.has_masks, ours.info.has_boxes) == (theirs.info.has_masks, theirs.info.has_boxes)
    for name in ours.info.splits:
        one, two = ours.split(name), theirs.split(name)
        assert torch.equal(one.y, two.y)
        assert (one.group is None) == (two.group is None)
        for index in range(len(one)):
            a, b = one[index], two[index]
            assert (a.y, a.group, a.index) == (b.y, b.group, b.index)
            assert torch.equal(a.image, b.image)
            for part in ("mask", "boxes"):
                left, right = getattr(a, part), getattr(b, part)
                assert (left is None) == (right is None)
                assert left is None or torch.equal(left, right)


def write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)


def write_tree(folder: Path, *leaves: str, per_leaf: int = 2) -> Path:
    for number, leaf in enumerate(leaves):
        for i in range(per_leaf):
            write_image(folder / leaf / f"{i} {number}.png", 100 * number + i)
    return folder


TREE = [f"{s}/{c}/{a}" for s in SPLITS for c in ("dog", "cat") for a in ("out door", "indoor")]


# --- there and back ---


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("regions", [{}, {"masks": "segmentations", "boxes": "CUB_200_2011"}])
def test_export_then_open(waterbirds_root: Make, tmp_path: Path, inside: bool, regions: dict[str, str]) -> None:
    layout = waterbirds_root(**regions)
    dataset = find_dataset("waterbirds95").open(layout.root)
    folder = layout.root if inside else tmp_path / "elsewhere"
    done = export_table(dataset, folder / "metadata.csv", quiet)
    assert done.rows == len(layout.rows)
    assert done.masks == 0
    assert_equal(open_folder(folder), dataset)
    assert open_folder(folder).info.classes == ("landbird", "waterbird")
    # What SubpopBench reads of it, in its own words.
    frame = pd.read_csv(folder / "metadata.csv")
    assert list(frame.columns[:5]) == ["id", "filename", "split", "y", "a"]
    assert all(Path(name).is_absolute() != inside for name in frame["filename"])
    for number, name in enumerate(SPLITS):
        part = frame[frame["split"] == number]
        group = dataset.split(name).group
        assert group is not None
        assert (2 * part["y"] + part["a"]).tolist() == group.tolist()
        assert all((folder / file).is_file() for file in part["filename"])


INFO = DatasetInfo(
    name="odd", version="1", classes=("a, b", 'quoted "c"', "d"), attributes=None, splits=(*SPLITS, "hard", "test.b")
)


def odd(folder: Path, **changes: Any) -> Dataset:
    """Several boxes drawn on another size, masks of 0 and 1, further splits, no attribute, names with commas."""
    records = []
    for number in range(15):
        key = f"im,ages/{number} x.png"
        write_image(folder / key, number)
        mask = folder / "masks" / f"{number}.png"
        mask.parent.mkdir(exist_ok=True)
        levels = np.zeros((24, 20), dtype=np.uint8)
        levels[number : number + 5, 3:9] = 1
        Image.fromarray(levels).save(mask)
        record = ImageRecord(
            where=f"row {number}",
            path=folder / key,
            key=key,
            split=INFO.splits[number % 5],
            y=number % 3,
            mask=mask,
            boxes=((1.25, 2.0, 30.1, 40.7), (0.1, 0.2, 5.0, 6.0))[: number % 3],
            box_frame=(33, 47) if number % 3 else None,
        )
        records.append(replace(record, **changes))
    return open_records(INFO, folder, records, read_mask=lambda path, where: np.asarray(Image.open(path)) > 0)


def test_everything_odd_survives(tmp_path: Path) -> None:
    dataset = odd(tmp_path / "odd")
    table = tmp_path / "out" / "metadata.csv"
    done = export_table(dataset, table, quiet)
    assert (done.rows, done.masks, done.cut_square) == (15, 15, False)
    assert_equal(open_folder(table.parent), dataset)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["split"]: row["split_name"] for row in rows} == dict(
        zip("01234", ("train", "val", "test", "hard", "test.b"), strict=True)
    )
    assert [row["x0"].count(";") for row in rows if row["y"] == "2"] == [1] * 5
    assert "a" not in rows[0]


def test_import_of_an_export_is_equal(tmp_path: Path) -> None:
    dataset = odd(tmp_path / "odd")
    export_table(dataset, tmp_path / "one.csv", quiet)
    assert_equal(import_images(tmp_path / "one.csv", None, tmp_path / "two"), dataset)


def test_squares_are_told(tmp_path: Path) -> None:
    dataset = odd(tmp_path / "odd", center_square=True, mask=None, boxes=(), box_frame=None)
    assert export_table(dataset, tmp_path / "x.csv", quiet).cut_square


def test_computed_images_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minibirds50: images of train are computed and no files.*data generate"):
        export_table(find_dataset("minibirds50").open(None), tmp_path / "x.csv", quiet)


# --- tables of others ---


def images_of(folder: Path, count: int) -> list[str]:
    names = [f"{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        write_image(folder / name, number)
    return names


@pytest.mark.parametrize(
    ("header", "row", "splits"),
    [
        ("img_id,img_filename,y,split,place,place_filename", "{i},{f},{y},{n},{a},/b/x.jpg", SPLITS),
        ("id,filename,split,y,a", "{i},{f},{n},{y},{a}", SPLITS),
        ("filename,split,y,a", "{p}/{f},{n},{y},{a}", SPLITS),
        (",filename,a,y,split", "{i},{f},{a},{y},{s}", SPLITS),
        ("filename,split,y,a", "{f},{n},{y},{a}", (*SPLITS, "split3", "split5")),
        ("filename,split,y,a", "{f},{s},{y},{a}", (*SPLITS, "mixed_rand", "no_fg")),
        ("filename,split,split_name,y,a", "{f},{n},{s},{y},{a}", (*SPLITS, "mixed_rand", "no_fg")),
    ],
)
def test_dialects(tmp_path: Path, header: str, row: str, splits: tuple[str, ...]) -> None:
    names = images_of(tmp_path / "pictures", 12)
    numbers = {name: number for number, name in enumerate(splits)} | ({"split5": 5} if "split5" in splits else {})
    lines = [header]
    expected: dict[str, list[tuple[int, int]]] = {name: [] for name in splits}
    for i, name in enumerate(names):
        split, y, a = splits[i % len(splits)], i % 2, i // 2 % 2
        lines.append(row.format(i=i, f=name, p=tmp_path / "pictures", y=y, a=a, n=numbers[split], s=split))
        expected[split].append((y, 2 * y + a))
    table = tmp_path / "splits.csv"
    table.write_text("\n".join(lines))
    dataset = import_images(table, tmp_path / "pictures", tmp_path / "mine")
    assert dataset.info.splits == splits
    for name, rows in expected.items():
        split_data = dataset.split(name)
        assert split_data.group is not None
        assert list(zip(split_data.y.tolist(), split_data.group.tolist(), strict=True)) == rows
    official = header.startswith("img_id")
    assert dataset.info.classes == (("landbird", "waterbird") if official else ("class0", "class1"))
    assert_equal(open_folder(tmp_path / "mine"), dataset)


def test_import_finds_segmentations(waterbirds_root: Make, tmp_path: Path) -> None:
    layout = waterbirds_root("birds", masks="birds/segmentations", boxes="birds/CUB_200_2011")
    dataset = import_images(layout.table, None, tmp_path / "mine")
    assert dataset.info.has_masks
    assert dataset.info.has_boxes
    assert_equal(dataset, open_folder(layout.folder))


def test_names_in_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    images_of(folder, 3)
    table = folder / "metadata.csv"
    table.write_text(
        "filename,split,y,a,class_name,attribute_name\n0.png,0,0,0,cat,\n1.png,1,2,1,dog,rain\n2.png,2,2,1,,rain\n"
    )
    info = open_folder(folder).info
    assert info.classes == ("cat", "class1", "dog")
    assert info.attributes == ("attribute0", "rain")


PLAIN, NAMED, CLASSES = "filename,split,y", "filename,split,y,split_name", "filename,split,y,class_name"
BOXES = "filename,split,y,x0,y0,x1,y1"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([CLASSES, "0.png,0,0,cat", "1.png,1,0,dog", "2.png,2,1,x"], "line 3: class_name of 0 is 'dog', but 'cat' in"),
        ([CLASSES, "0.png,0,0,cat", "1.png,1,1,cat", "2.png,2,1,"], "line 3: class_name 'cat' stands for 1, but in li"),
        ([NAMED, "0.png,0,0,val"], "line 2: split_name of split 0 is 'val', but split 0 is 'train'"),
        ([NAMED, "0.png,3,0,val"], "line 2: split_name of split 3 is 'val', but that is split 1"),
        ([NAMED, "0.png,3,0,hard", "1.png,3,0,b"], "line 3: split_name of split 3 is 'b', but split 3 is 'hard'"),
        ([NAMED, "0.png,3,0,hard", "1.png,4,0,hard"], "line 3: split_name of split 4 is 'hard', but that is split 3"),
        ([NAMED, "0.png,3,0,valid"], "line 2: split_name is 'valid', expected"),
        ([NAMED, "0.png,3,0,a b"], "line 2: split_name is 'a b', expected"),
        ([NAMED, "0.png,x,0,hard"], "line 2: split is 'x', expected a whole number beside split_name 'hard'"),
        ([PLAIN, "0.png,a b,0"], "line 2: split is 'a b', expected one of 0, 1, 2, train, val, test"),
        ([PLAIN, "0.png,0,0", "1.png,1,1"], "no row has split 2, so the test split is empty"),
        ([BOXES, "0.png,0,0,1;2,1,3,4"], "line 2: box columns hold 2/1/1/1 numbers"),
        ([BOXES, "0.png,0,0,1;2,1;2,3;4,3;x"], "line 2: box 2,2,4,x is not four numbers"),
        (["filename,split,y,y", "0.png,0,0,0"], "column y appears more than once"),
        (["filename,split,y,class_name,class_name", "0.png,0,0,0,0"], "column class_name appears more than once"),
        ([PLAIN, "none.png,0,0", "1.png,1,1", "2.png,2,0"], r"1 of 3 listed .*none.png \(line 2\).*--images DIR"),
        ([PLAIN, "0.png,0,0", "0.png,1,1", "2.png,2,0"], "line 3: 0.png was already listed in line 2"),
        ([], "is empty; expected a header"),
    ],
)
def test_bad_tables(tmp_path: Path, rows: list[str], problem: str) -> None:
    images_of(tmp_path, 3)
    (tmp_path / "splits.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=problem):
        import_images(tmp_path / "splits.csv", None, tmp_path / "mine")
    assert not (tmp_path / "mine" / "metadata.csv").exists()


def test_a_single_class_is_refused_and_leaves_no_table(tmp_path: Path) -> None:
    images_of(tmp_path, 3)
    (tmp_path / "splits.csv").write_text("filename,split,y\n0.png,0,0\n1.png,1,0\n2.png,2,0\n")
    with pytest.raises(DataError, match=r"splits.csv: every image is of class 0; classification needs at least two"):
        import_images(tmp_path / "splits.csv", None, tmp_path / "mine")
    assert not (tmp_path / "mine" / "metadata.csv").exists()


def test_names_that_no_table_can_hold_leave_no_table(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", *TREE)
    folder.rename(tmp_path / " tree")  # cells are read without the space around them
    with pytest.raises(DataError, match=r"tree cannot be told in a table: .*listed images are missing"):
        import_images(tmp_path / " tree", None, tmp_path)
    assert not (tmp_path / "metadata.csv").exists()


def test_other_bad_input(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", *TREE)
    with pytest.raises(DataMissing, match="is neither a table nor a folder"):
        import_images(tmp_path / "none", None, tmp_path / "mine")
    with pytest.raises(DataMissing, match=r"is no tree of image folders, which is split/class"):
        import_images(tmp_path, None, tmp_path / "mine")
    with pytest.raises(ConfigError, match="--images goes with a table"):
        import_images(tmp_path / "tree", tmp_path, tmp_path / "mine")
    (tmp_path / "x.csv").write_text("filename,split,y\n")
    with pytest.raises(DataMissing, match=r"--images .*none is not a folder"):
        import_images(tmp_path / "x.csv", tmp_path / "none", tmp_path / "mine")
    import_images(tmp_path / "tree", None, tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"metadata.csv exists and is not overwritten; remove it"):
        import_images(tmp_path / "tree", None, tmp_path / "mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        export_table(open_folder(tmp_path / "mine"), tmp_path / "mine" / "metadata.csv", quiet)


CELLS = st.sampled_from(
    ["0", "1", "2", "3", "train", "val", "test", "hard", "", "-1", "x", "0.png", "1.png", "1;2", '"']
)
COLUMNS = ("id", "filename", "img_filename", "split", "y", "a", "place", "split_name", "class_name", "mask_filename")
BOX_EDGES = ("x0", "y0", "x1", "y1")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.lists(st.sampled_from([*COLUMNS, *BOX_EDGES]), min_size=1, max_size=9),
    rows=st.lists(st.lists(CELLS, max_size=9), max_size=6),
    junk=st.binary(max_size=6),
)
@example(header=["filename", "split", "y"], rows=[["0.png", "0", "0"], ["1.png", "1", "1"]], junk=b"2.png,2,0\n")
def test_any_table_is_read_or_refused(tmp_path: Path, header: list[str], rows: list[list[str]], junk: bytes) -> None:
    if not (tmp_path / "2.png").exists():
        images_of(tmp_path, 3)
    text = "\n".join(",".join(cells) for cells in (header, *rows))
    (tmp_path / "splits.csv").write_bytes(text.encode() + b"\n" + junk)
    (tmp_path / "mine" / "metadata.csv").unlink(missing_ok=True)
    try:
        splits, told = import_images(tmp_path / "splits.csv", None, tmp_path / "mine").info.splits, ""
    except DataError as error:
        splits, told = SPLITS, str(error)
    assert not told or "splits.csv" in told or "metadata.csv" in told
    assert splits[:3] == SPLITS


# --- trees ---


def test_a_tree_with_attributes(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", *TREE)
    dataset = open_folder(folder)
    assert dataset.info.classes == ("cat", "dog")
    assert dataset.info.attributes == ("indoor", "out door")
    train = dataset.split("train")
    assert train.group is not None
    assert train.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(
        train[6].image,
        torch.from_numpy(np.array(Image.open(folder / "train/dog/out door/0 0.png"))).permute(2, 0, 1),
    )
    check_dataset(find_dataset("folder"), folder)
    imported = import_images(folder, None, tmp_path / "mine")
    assert_equal(imported, dataset)
    assert imported.info.name == dataset.info.name  # the same data


def test_a_tree_without_attributes_numbers_classes_as_torchvision(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", *[f"{s}/{c}" for s in SPLITS for c in ("b", "a", "C", "10", "9")])
    dataset = open_folder(folder)
    assert dataset.info.attributes is None
    for name in SPLITS:
        theirs = ImageFolder(str(folder / name))
        split = dataset.split(name)
        assert list(dataset.info.classes) == theirs.classes
        assert split.y.tolist() == theirs.targets
        for index in range(len(split)):
            assert torch.equal(split[index].image, torch.from_numpy(np.array(theirs[index][0])).permute(2, 0, 1))


def test_other_words_for_splits_further_ones_and_masks(tmp_path: Path) -> None:
    leaves = [f"{s}/{c}" for s in ("Training", "validation", "test", "snow") for c in ("a", "b")]
    folder = write_tree(tmp_path / "tree", *leaves)
    write_tree(folder / "notes" / "a")  # no split: its folders are no classes
    (folder / "notes" / "deep" / "x").mkdir(parents=True)
    for path in [*folder.rglob("*.png")]:
        mask = folder / "segmentations" / path.relative_to(folder)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 24), 255).save(mask)
    dataset = open_folder(folder)
    assert dataset.info.splits == (*SPLITS, "snow")
    assert dataset.info.has_masks
    assert len(dataset.split("snow")) == 4
    assert_equal(import_images(folder, None, tmp_path / "mine"), dataset)


def test_the_name_follows_the_files(tmp_path: Path) -> None:
    folder = write_tree(tmp_path / "tree", *TREE)
    name = open_folder(folder).info.name
    assert name == open_folder(folder).info.name
    folder = folder.rename(tmp_path / "moved")
    assert open_folder(folder).info.name == name
    write_image(folder / "test/cat/indoor/more.png", 7)
    assert open_folder(folder).info.name != name


@pytest.mark.parametrize(
    ("leaves", "problem"),
    [
        (["train/a", "train/b", "val/a"], "has no folder test"),
        (["train/a", "train/b", "val/a", "test/c"], "class 'c' is not in train, which has a, b"),
        (["train/a", "train/b/x", "val/a", "test/a"], "images lie directly in .*train/a, but in folders of attributes"),
        (["train/a", "train/a/x", "train/b", "val/a", "test/a"], "holds images and the folder x/ with images"),
        (["train/a", "train/b", "val/a", "valid/a", "test/a"], "both mean the split val"),
        (["train/a", "train/b", "val/a", "test"], r"no images in .*test; expected split/class"),
    ],
)
def test_bad_trees(tmp_path: Path, leaves: list[str], problem: str) -> None:
    folder = write_tree(tmp_path / "tree", *leaves)
    with pytest.raises(DataError, match=problem):
        open_folder(folder)
    with pytest.raises(DataError, match=problem):
        import_images(folder, None, tmp_path / "mine")


# --- the commands ---


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tree(tmp_path / "tree", *TREE)
    assert main(["data", "import", str(folder), "--to", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'mine' / 'metadata.csv'}: 8 train, 8 val, 8 test; 2 classes, 2 attributes" in out
    assert main(["data", "check", f"{tmp_path / 'mine'}/"]) == 0
    assert "cat/out door" in capsys.readouterr().out
    assert main(["data", "export", str(tmp_path / "mine"), "--to", str(tmp_path / "out.csv")]) == 0
    assert "24 images" in capsys.readouterr().out
    assert main(["data", "import", str(tmp_path / "out.csv"), "--to", str(tmp_path / "again")]) == 0
    assert_equal(open_folder(tmp_path / "again"), open_folder(folder))
    capsys.readouterr()
    assert main(["data", "export", str(tmp_path / "mine"), "--to", str(tmp_path / "out.csv")]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert main(["data", "export", "minibirds50", "--to", str(tmp_path / "x.csv")]) == 2
