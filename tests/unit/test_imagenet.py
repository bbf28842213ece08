"""Subsets of ImageNet: layouts, labels, boxes, masks and damage, with torchvision's and timm's readings as oracles."""

import csv
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from spurbench.dataset import DatasetSpec
from spurbench.datasets.imagenet import DATASETS, imagewoof
from spurbench.datasets.imagenet.boxes import read_boxes
from spurbench.datasets.imagenet.classes import read_classes
from spurbench.datasets.imagenet.hardimagenet import read_mask
from spurbench.datasets.imagenet.imagenet9 import CLASS_FOLDERS, VARIANTS
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import ImageDataset
from spurbench.testing import DATASET_CHECKS, check_dataset

SIZE = (40, 32)
"""Width and height of the images in the fixtures."""
NUM_TRAIN, NUM_TEST = 10, 2
"""Per class; 2 of the 10 validate."""
WOOF = read_classes("imagewoof")
HARD = read_classes("hardimagenet")
CMC = read_classes("imagenet100")


def opened(name: str, root: Path) -> ImageDataset:
    dataset: Any = DATASETS[name].open(root)
    return dataset  # type: ignore[no-any-return]


def save_image(path: Path, number: int, size: tuple[int, int] = SIZE, mode: str = "RGB") -> None:
    """A small image, different for every number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).convert(mode).save(path, "JPEG")


def train_name(wnid: str, i: int) -> str:
    return f"{wnid}_{10 * i + 3}.JPEG"


def test_name(y: int, i: int) -> str:
    return f"ILSVRC2012_val_{NUM_TEST * y + i + 1:08}.JPEG"


test_name.__test__ = False  # type: ignore[attr-defined]


def write_ilsvrc(folder: Path, wnids: Sequence[str], *, flat: bool = False) -> None:
    """Images as ILSVRC-2012 has them; one grey, one CMYK, a stray text file, a further class."""
    modes = {0: "L", 1: "CMYK"}
    for y, wnid in enumerate([*wnids, "n99999999"]):
        for i in range(NUM_TRAIN):
            mode = modes.get(i, "RGB") if y == 0 else "RGB"
            save_image(folder / "train" / wnid / train_name(wnid, i), 100 * y + i, mode=mode)
        for i in range(NUM_TEST):
            save_image(folder / "val" / ("." if flat else wnid) / test_name(y, i), 100 * y + 50 + i)
    (folder / "train" / wnids[0] / "notes.txt").write_text("no image")


def write_solution(path: Path, wnids: Sequence[str]) -> None:
    """Kaggle's table: not in the order of the names, some images with several boxes."""
    rows = [
        (Path(test_name(y, i)).stem, f"{wnid} 1 2 3 4 " * (1 + i))
        for y, wnid in enumerate([*wnids, "n99999999"])
        for i in range(NUM_TEST)
    ]
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("ImageId", "PredictionString"), *reversed(rows)])


def write_xml(path: Path, boxes: Sequence[tuple[str, int, int, int, int]], size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{wnid}</name><pose>Unspecified</pose><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for wnid, x0, y0, x1, y1 in boxes
    )
    path.write_text(
        f"<annotation><folder>val</folder><filename>{path.stem}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size><segmented>0</segmented>{objects}</annotation>"
    )


def labels(dataset: ImageDataset, split: str) -> list[tuple[Path, int]]:
    return [(record.path, record.y) for record in dataset.split(split).records]


def sorted_by_class(found: list[tuple[Path, int]]) -> list[tuple[str, int]]:
    return sorted((str(path), y) for path, y in found)


def assert_conforms(spec: DatasetSpec, root: Path) -> None:
    assert len(check_dataset(spec, root)) == len(DATASET_CHECKS)


# Declarations


@pytest.mark.parametrize(("subset", "number"), [("imagenet100", 100), ("hardimagenet", 15), ("imagewoof", 10)])
def test_the_tables_of_classes_agree_with_timm(subset: str, number: int) -> None:
    spec = importlib.util.find_spec("timm.data")
    assert spec is not None
    assert spec.origin is not None
    info = Path(spec.origin).parent / "_info"
    wnids = (info / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    classes = read_classes(subset)
    assert len(classes) == len({each.name for each in classes}) == number
    assert [each.wnid for each in classes] == sorted(each.wnid for each in classes)
    for each in classes:
        assert wnids[each.index] == each.wnid
        assert lemmas[each.wnid] == each.columns["lemma"]


def test_declared_counts() -> None:
    woof = [DATASETS[name].info for name in ("imagewoof", "imagewoof_320", "imagewoof_160")]
    for info in woof:
        assert info.expected_counts is not None
        assert {name: sum(counts) for name, counts in info.expected_counts.items()} == {
            "train": 9025 - 500,
            "val": 500,
            "test": 3929,
        }
        assert info.archives[0].filename == info.archives[0].url.rpartition("/")[2]
    for name, spec in DATASETS.items():
        assert spec.info.name == name
        assert all((spec.info.description, spec.info.license, spec.info.citation, spec.info.source))


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_missing_data_says_what_to_fetch(name: str, tmp_path: Path) -> None:
    for root, problem in ((None, "needs a data root"), (tmp_path, f"{name} not found below")):
        with pytest.raises(DataMissing, match=problem) as caught:
            DATASETS[name].open(root)
        assert "  get it: " in str(caught.value)
        assert "http" in str(caught.value)


# ImageNet-100


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with ILSVRC-2012 sorted into folders; read only."""
    root = tmp_path_factory.mktemp("ilsvrc")
    write_ilsvrc(root / "imagenet", [each.wnid for each in CMC])
    annotations = root / "imagenet" / "Annotations"
    for y, each in enumerate(CMC):
        for i in range(NUM_TEST):
            # Drawn on twice the image; the second has two objects, one of another class, one empty.
            boxes = [(each.wnid, 10, 8, 40, 36)]
            if i == 1:
                boxes += [(each.wnid, 60, 40, 90, 60), ("n00000001", 0, 0, 5, 5), (each.wnid, 7, 7, 7, 9)]
            write_xml(annotations / "val" / test_name(y, i).replace("JPEG", "xml"), boxes, (80, 64))
    return root


def test_imagenet100_as_torchvision_reads_it(ilsvrc: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = opened("imagenet100", ilsvrc)
    assert not caplog.records, "totals are not verified: data check compares them"
    wnids = [each.wnid for each in CMC]
    for part, splits in (("train", ("train", "val")), ("val", ("test",))):
        oracle = ImageFolder(str(ilsvrc / "imagenet" / part))
        expected = [(path, wnids.index(oracle.classes[y])) for path, y in oracle.samples if oracle.classes[y] in wnids]
        found = [pair for split in splits for pair in labels(dataset, split)]
        assert sorted_by_class(found) == sorted(expected)
        if splits == ("test",):
            assert [(str(path), y) for path, y in found] == expected
    assert dataset.split("val").y.bincount().tolist() == [2] * 100
    assert dataset.info.classes[:2] == ("robin", "Gila monster")
    assert_conforms(DATASETS["imagenet100"], ilsvrc)


def test_boxes_follow_the_size_in_their_file(ilsvrc: Path) -> None:
    dataset = opened("imagenet100", ilsvrc)
    assert dataset.info.has_boxes
    assert not dataset.info.has_masks
    test = dataset.split("test")
    assert test[0].boxes.tolist() == [[5, 4, 20, 18]]  # type: ignore[union-attr]
    assert test[1].boxes.tolist() == [[5, 4, 20, 18], [30, 20, 40, 30]]  # type: ignore[union-attr]
    assert all(not record.boxes for record in dataset.split("train").records)
    assert list(DATASETS["imagenet100"].check(dataset)) == []  # type: ignore[misc]


def test_kaggles_layout_holds_the_same_set(ilsvrc: Path, tmp_path: Path) -> None:
    """Unsorted validation images with their table, and annotations elsewhere: equal labels, boxes and fingerprint."""
    wnids = [each.wnid for each in CMC]
    write_ilsvrc(tmp_path / "ILSVRC/Data/CLS-LOC", wnids, flat=True)
    write_solution(tmp_path / "LOC_val_solution.csv", wnids)
    (tmp_path / "ILSVRC/Annotations/CLS-LOC").mkdir(parents=True)
    (tmp_path / "ILSVRC/Annotations/CLS-LOC/val").symlink_to(ilsvrc / "imagenet/Annotations/val")
    ours, theirs = opened("imagenet100", tmp_path), opened("imagenet100", ilsvrc)
    assert ours.fingerprint() == theirs.fingerprint()
    assert [record.path.name for record in ours.split("test").records] == [
        record.path.name for record in theirs.split("test").records
    ]
    assert ours.info.has_boxes

    missing = tmp_path / "ILSVRC/Data/CLS-LOC/val" / test_name(3, 1)
    missing.unlink()
    with pytest.raises(DataError, match=rf"1 of 200 listed images .*{missing.name} .*LOC_val_solution.csv, line \d+"):
        opened("imagenet100", tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "not sorted into class folders.*LOC_val_solution.csv"),
        ("", "line 1: expected the columns"),
        ("a,b\n", "line 1: expected the columns"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001\n", "line 2: 'ILSVRC2012_val_00000001' is not"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "line 2"),
        ("ImageId,PredictionString\n../../x,n01558993 1 2 3 4\n", "line 2"),
        ("ImageId,PredictionString\n" + 2 * "ILSVRC2012_val_00000001,n01558993 1\n", "line 3: .* appears twice"),
    ],
)
def test_unsorted_validation_images_need_a_good_table(tmp_path: Path, content: str | None, problem: str) -> None:
    for each in CMC:
        save_image(tmp_path / "imagenet/train" / each.wnid / train_name(each.wnid, 0), 0)
    save_image(tmp_path / "imagenet/val" / test_name(0, 0), 1)
    if content is not None:
        (tmp_path / "LOC_val_solution.csv").write_text(content)
    with pytest.raises(DataError, match=problem):
        opened("imagenet100", tmp_path)


def test_another_choice_of_100_classes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "imagenet100"
    for each in CMC[:40]:
        (folder / "train" / each.wnid).mkdir(parents=True)
    (folder / "train" / "n00000001").mkdir()
    (folder / "train" / f"{CMC[40].wnid}.tar").touch()
    (folder / "val").mkdir()
    with pytest.raises(DataError, match=rf"lacks 60 of 100 .* holds 1 others; {CMC[40].wnid}.tar belongs unpacked"):
        opened("imagenet100", tmp_path)


XML = "<annotation><size><width>80</width><height>64</height></size>{}</annotation>"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no xml",
        XML.format("<object>")[:70],
        XML.format("<object><name>n1</name></object>"),
        XML.format("<object><name>n1</name><bndbox><xmin>one</xmin></bndbox></object>"),
        "<annotation><size><width>wide</width></size></annotation>",
    ],
)
def test_damaged_annotations_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.xml"
    path.write_text(content)
    with pytest.raises(DataError, match=r"x\.xml is not a VOC annotation"):
        read_boxes(path)


def test_annotations_without_a_size_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    write_xml(path, [("n1", 1, 2, 300, 4), ("n2", 5, 6, 5, 9)], (0, 0))
    assert read_boxes(path) == ({"n1": [(1.0, 2.0, 300.0, 4.0)]}, None)


def test_boxes_end_with_their_frame(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    write_xml(path, [("n1", -3, 2, 300, 4), ("n1", 80, 3, 90, 9), ("n2", 5, 60, 9, 70)], (80, 64))
    assert read_boxes(path) == ({"n1": [(0.0, 2.0, 80.0, 4.0)], "n2": [(5.0, 60.0, 9.0, 64.0)]}, (80, 64))


def test_labels_are_checked_against_names_and_boxes(ilsvrc: Path, tmp_path: Path) -> None:
    wnids = [each.wnid for each in CMC]
    write_ilsvrc(tmp_path / "imagenet", wnids)
    (tmp_path / "imagenet/Annotations").symlink_to(ilsvrc / "imagenet/Annotations")
    train, val = tmp_path / "imagenet/train", tmp_path / "imagenet/val"
    moved = train / wnids[1] / train_name(wnids[0], 3)
    (train / wnids[0] / moved.name).rename(moved)
    other = val / wnids[5] / test_name(4, 0)
    (val / wnids[4] / other.name).rename(other)
    faults = list(DATASETS["imagenet100"].check(opened("imagenet100", tmp_path)))  # type: ignore[misc]
    assert [(fault.severity, fault.where) for fault in faults] == [("error", str(moved)), ("error", str(other))]
    assert "does not begin with n01692333_" in faults[0].problem
    assert f"its boxes in {tmp_path / 'imagenet/Annotations/val'}" in faults[1].problem


# Hard ImageNet


def hard_levels(number: int) -> Any:
    """uint8 [H, W]: an object of 255, with a faint row of 3 above it."""
    levels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    levels[8 + number % 3 : 20, 10:30] = 255
    levels[7 + number % 3, 10:30] = 3
    return levels


def write_masks(folder: Path) -> None:
    """PNG content under the names of JPEG files, in all modes; every fifth a real JPEG."""
    for y, each in enumerate(HARD):
        names = [("train", train_name(each.wnid, i)) for i in range(NUM_TRAIN)]
        names += [("val", test_name(y, i)) for i in range(NUM_TEST)]
        for number, (part, name) in enumerate(names):
            path = folder / part / f"{each.wnid}_{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = Image.fromarray(hard_levels(number))
            if number % 5 == 4:
                mask.convert("RGB").save(path, "JPEG", quality=95)
            else:
                mask.convert(["L", "RGB", "RGBA", "LA"][number % 5]).save(path, "PNG")


@pytest.fixture
def hard_root(tmp_path: Path) -> Path:
    write_masks(tmp_path / "hardImageNet")
    write_ilsvrc(tmp_path / "imagenet", [each.wnid for each in HARD])
    (tmp_path / "hardImageNet/meta").mkdir()
    (tmp_path / "hardImageNet/meta/idx_to_wnid.pkl").write_bytes(b"never opened")
    return tmp_path


def test_hard_imagenet_joins_masks_and_images(hard_root: Path) -> None:
    dataset = opened("hardimagenet", hard_root)
    assert {name: len(dataset.split(name)) for name in dataset.info.splits} == {"train": 120, "val": 30, "test": 30}
    for name in dataset.info.splits:
        split = dataset.split(name)
        for position, record in enumerate(split.records):
            wnid = HARD[record.y].wnid
            assert record.mask is not None
            assert record.mask.name == f"{wnid}_{record.path.name}"
            assert record.path.parent.name == wnid
            if position % 7 == 0:
                number = (
                    (int(record.path.stem.split("_")[1]) - 3) // 10
                    if name != "test"
                    else NUM_TRAIN + (int(record.path.stem[-8:]) - 1) % NUM_TEST
                )
                lossy = number % 5 == 4
                expected = torch.from_numpy(hard_levels(number) > (127 if lossy else 0))
                assert torch.equal(split[position].mask, expected)  # type: ignore[arg-type]
    assert list(DATASETS["hardimagenet"].check(dataset)) == []  # type: ignore[misc]
    assert_conforms(DATASETS["hardimagenet"], hard_root)


def test_unsorted_validation_images_are_found_by_their_masks(hard_root: Path) -> None:
    ours = opened("hardimagenet", hard_root).fingerprint()
    val = hard_root / "imagenet/val"
    for path in list(val.glob("*/*")):
        path.rename(val / path.name)
    for folder in list(val.glob("n*")):
        folder.rmdir()
    assert opened("hardimagenet", hard_root).fingerprint() == ours


def test_the_authors_own_folder_of_images_serves_as_well(hard_root: Path) -> None:
    ours = opened("hardimagenet", hard_root).fingerprint()
    (hard_root / "imagenet").rename(hard_root / "hardImageNet_images")
    assert opened("hardimagenet", hard_root).fingerprint() == ours


def test_masks_without_images(hard_root: Path) -> None:
    image = hard_root / "imagenet/train" / HARD[0].wnid / train_name(HARD[0].wnid, 1)
    image.unlink()
    with pytest.raises(DataError, match=rf"1 of 180 listed images are missing.*{image} \(mask .*{image.name}\)"):
        opened("hardimagenet", hard_root)
    (hard_root / "imagenet").rename(hard_root / "elsewhere")
    with pytest.raises(DataMissing, match=r"the images .* that belong to the masks in"):
        opened("hardimagenet", hard_root)


@pytest.mark.parametrize("name", ["n00000001_n00000001_3.JPEG", "mask.png", f"{HARD[0].wnid}.JPEG"])
def test_strange_masks_are_named(hard_root: Path, name: str) -> None:
    save_image(hard_root / "hardImageNet/val" / name, 0)
    with pytest.raises(DataError, match=f"val/{name} is not named <wnid>_<image>"):
        opened("hardimagenet", hard_root)


def test_masks_of_another_size_or_damaged(hard_root: Path) -> None:
    dataset = opened("hardimagenet", hard_root)
    first, second = (record.mask for record in dataset.split("test").records[:2])
    assert first is not None
    assert second is not None
    Image.new("L", (8, 9)).save(first, "PNG")
    second.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"is 8 x 9 pixels \(width x height\), but its image .* is 40 x 32"):
        dataset.split("test")[0]
    with pytest.raises(DataError, match=f"{second.name} .* cannot be decoded"):
        dataset.split("test")[1]


def test_faint_pixels_count_in_lossless_masks_only(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 127, 128, 255]] * 8, dtype=np.uint8).repeat(8, axis=1)
    for form, object_levels in (("PNG", 4), ("JPEG", 2)):
        Image.fromarray(levels).save(tmp_path / "mask", form)
        assert read_mask(tmp_path / "mask", "a mask").sum() == 8 * 8 * object_levels


# ImageWoof


def write_woof(folder: Path, size: tuple[int, int] = SIZE) -> list[str]:
    """Official layout; test images are named as ImageNet's training and as its validation images."""
    keys = []
    for y, each in enumerate(WOOF):
        names = [("train", train_name(each.wnid, i)) for i in range(NUM_TRAIN)]
        names += [("val", train_name(each.wnid, 100)), ("val", test_name(y, 0))]
        for number, (part, name) in enumerate(names):
            key = f"{part}/{each.wnid}/{name}"
            save_image(folder / key, 100 * y + number, size)
            keys.append(key)
    columns = [f"noisy_labels_{share}" for share in (0, 1, 5, 25, 50)]
    with (folder / "noisy_imagewoof.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", *columns, "is_valid"])
        writer.writerows([key, *[key.split("/")[1]] * 5, key.startswith("val")] for key in keys)
    return keys


@pytest.mark.parametrize("name", sorted(imagewoof.FOLDERS))
def test_imagewoof_as_torchvision_reads_it(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / imagewoof.FOLDERS[name]
    write_woof(folder)
    with caplog.at_level(logging.WARNING):
        dataset = opened(name, tmp_path)
    assert "is not the published set" in caplog.text
    train, test = ImageFolder(str(folder / "train")), ImageFolder(str(folder / "val"))
    assert train.classes == [each.wnid for each in WOOF]
    assert sorted_by_class(labels(dataset, "train") + labels(dataset, "val")) == sorted(train.samples)
    assert [(str(path), y) for path, y in labels(dataset, "test")] == test.samples
    assert dataset.split("val").y.bincount().tolist() == [2] * 10
    assert list(DATASETS[name].check(dataset)) == []  # type: ignore[misc]
    assert_conforms(DATASETS[name], tmp_path)
    assert opened(name, folder).fingerprint() == dataset.fingerprint(), "the data root may be the folder itself"


def test_all_sizes_validate_on_the_same_images(tmp_path: Path) -> None:
    chosen = []
    for number, (name, folder) in enumerate(imagewoof.FOLDERS.items()):
        write_woof(tmp_path / folder, (40 + number, 32))
        chosen.append([record.key for record in opened(name, tmp_path).split("val").records])
    assert chosen[0] == chosen[1] == chosen[2]
    with pytest.raises(DataError, match="is the set imagewoof_160; use --dataset imagewoof_160"):
        opened("imagewoof", tmp_path / "imagewoof2-160")


@pytest.mark.parametrize(("number", "held_out"), [(247, 49), (260, 50), (600, 50)])
def test_at_most_fifty_images_of_a_class_validate(tmp_path: Path, number: int, held_out: int) -> None:
    write_woof(tmp_path / "imagewoof2")
    for i in range(NUM_TRAIN, number):
        (tmp_path / "imagewoof2/train" / WOOF[3].wnid / train_name(WOOF[3].wnid, i)).touch()  # pixels are not read
    dataset = opened("imagewoof", tmp_path)
    assert dataset.split("val").y.bincount().tolist() == [2, 2, 2, held_out, 2, 2, 2, 2, 2, 2]
    assert int((dataset.split("train").y == 3).sum()) == number - held_out


def test_imagewoof_takes_ilsvrcs_boxes_where_there_are_any(tmp_path: Path) -> None:
    write_woof(tmp_path / "imagewoof2")
    annotations = tmp_path / "imagenet/Annotations"
    wnid = WOOF[0].wnid
    write_xml(annotations / "train" / wnid / f"{wnid}_1003.xml", [(wnid, 0, 0, 40, 64)], (80, 64))
    write_xml(annotations / "val" / "ILSVRC2012_val_00000003.xml", [(WOOF[1].wnid, 8, 8, 16, 16)], (80, 64))
    dataset = opened("imagewoof", tmp_path)
    boxes = {
        s.index: s.boxes.tolist() for s in map(dataset.split("test").__getitem__, range(20)) if s.boxes is not None
    }
    paths = [record.path.name for record in dataset.split("test").records]
    assert {paths[index]: found for index, found in boxes.items()} == {
        f"{wnid}_1003.JPEG": [[0, 0, 20, 32]],
        "ILSVRC2012_val_00000003.JPEG": [[4, 4, 8, 8]],
    }
    assert_conforms(DATASETS["imagewoof"], tmp_path)
    moved = annotations / wnid  # the archive unpacked without the folder train
    (annotations / "train" / wnid).rename(moved)
    assert opened("imagewoof", tmp_path).fingerprint() == dataset.fingerprint()


def test_files_are_checked_against_the_table(tmp_path: Path) -> None:
    keys = write_woof(tmp_path / "imagewoof2")
    (tmp_path / "imagewoof2" / keys[3]).unlink()
    stray = f"train/{WOOF[2].wnid}/{WOOF[2].wnid}_77777.JPEG"
    save_image(tmp_path / "imagewoof2" / stray, 77)
    faults = list(DATASETS["imagewoof"].check(opened("imagewoof", tmp_path)))  # type: ignore[misc]
    assert [fault.problem for fault in faults] == [f"{keys[3]} is missing", "is not listed in noisy_imagewoof.csv"]
    assert faults[0].where.endswith("noisy_imagewoof.csv, line 5")
    assert faults[1].where.endswith(stray)


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    write_woof(tmp_path / "imagewoof2")
    (tmp_path / "imagewoof2/val" / WOOF[4].wnid).rename(tmp_path / "away")
    with pytest.raises(DataError, match=rf"val lacks 1 of 10 class folders \({WOOF[4].wnid}\); was everything"):
        opened("imagewoof", tmp_path)


# ImageNet-9


def write_nine(root: Path, train: str = "original/train") -> None:
    for y, name in enumerate(CLASS_FOLDERS):
        for i in range(NUM_TRAIN):
            save_image(root / train / name / train_name(f"n{y:08}", i), 100 * y + i)
        for v, variant in enumerate(("original", *VARIANTS)):
            for i in range(NUM_TEST):
                stem = f"n{y:08}_{i}" if variant == "original" else f"fg_n{y:08}_{i}_bg_n{v:08}_{i}"
                save_image(root / "bg_challenge" / variant / "val" / name / f"{stem}.JPEG", 1000 * (v + 1) + 10 * y + i)
        for i in range(NUM_TEST):
            path = root / "bg_challenge/fg_mask/val" / name / f"n{y:08}_{i}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, nine_mask(y, i).astype(np.int64 if i else np.uint8))


def nine_mask(y: int, i: int) -> Any:
    mask = np.zeros((SIZE[1], SIZE[0]), dtype=bool)
    mask[y + 2 : y + 12, 5 : 15 + i] = True
    return mask


@pytest.mark.parametrize(
    ("name", "train"),
    [("imagenet9", "original/train"), ("imagenet9", "bg_challenge/original/train"), ("imagenet9l", "in9l/train")],
)
def test_imagenet9(tmp_path: Path, name: str, train: str) -> None:
    write_nine(tmp_path, train)
    dataset = opened(name, tmp_path)
    assert dataset.info.splits == ("train", "val", "test", *VARIANTS)
    assert dataset.info.classes[2] == "wheeled vehicle"
    assert dataset.split("val").y.bincount().tolist() == [2] * 9
    oracle = ImageFolder(str(tmp_path / train))
    assert sorted_by_class(labels(dataset, "train") + labels(dataset, "val")) == sorted(oracle.samples)
    for split, folder in (("test", "original"), *((variant, variant) for variant in VARIANTS)):
        oracle = ImageFolder(str(tmp_path / "bg_challenge" / folder / "val"))
        assert [(str(path), y) for path, y in labels(dataset, split)] == oracle.samples
        for sample in map(dataset.split(split).__getitem__, range(18)):
            if split == "test":
                assert torch.equal(sample.mask, torch.from_numpy(nine_mask(*divmod(sample.index, 2))))  # type: ignore[arg-type]
            else:
                assert sample.mask is None
    assert_conforms(DATASETS[name], tmp_path)


def test_imagenet9_needs_training_images_and_all_masks(tmp_path: Path) -> None:
    write_nine(tmp_path)
    with pytest.raises(DataMissing, match=r"(?s)imagenet9l not found .* training images"):
        opened("imagenet9l", tmp_path)
    mask = tmp_path / "bg_challenge/fg_mask/val/02_wheeled vehicle/n00000002_1.npy"
    mask.unlink()
    with pytest.raises(DataError, match=f"1 of 18 masks are missing, the first: {mask}"):
        opened("imagenet9", tmp_path)
    (tmp_path / "bg_challenge/fg_mask").rename(tmp_path / "away")
    assert not opened("imagenet9", tmp_path).info.has_masks


def save_pickle(path: Path) -> None:
    np.save(path, np.array([object()], dtype=object), allow_pickle=True)


def save_archive(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, nine_mask(0, 0))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_bytes(b""), "is not a NumPy array"),
        (lambda path: path.write_bytes(b"<html>"), "is not a NumPy array"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is not a NumPy array"),
        (save_pickle, "is not a NumPy array"),
        (save_archive, "is not a NumPy array"),
        (lambda path: np.save(path, np.zeros((2, 3, 4))), r"is float64 \(2, 3, 4\); expected numbers"),
        (lambda path: np.save(path, np.zeros((5, 6))), "is 6 x 5 pixels"),
    ],
)
def test_damaged_masks_are_named(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    write_nine(tmp_path)
    dataset = opened("imagenet9", tmp_path)
    mask = dataset.split("test").records[0].mask
    assert mask is not None
    damage(mask)
    with pytest.raises(DataError, match=problem) as caught:
        dataset.split("test")[0]
    assert str(mask) in str(caught.value)
