"""CelebA: three layouts, the square in the middle, damage, and agreement with wilds and torchvision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import damage_at_random, groups_of, guesses, pixels_of, replace_text, write_csv, write_image
from PIL import Image

from spurbench.data.image_set import ImageRecord, ImageSplit
from spurbench.data.row_faults import kept_faults
from spurbench.dataset import Dataset
from spurbench.datasets.celeba import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.metrics.group import adjusted_accuracy, group_accuracies, group_counts, worst_group
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["celeba"]
LAYOUTS = {"wilds": "celebA_v1.0", "torchvision": "celeba", "kaggle": "archive"}
SPLITS = ("train", "val", "test")
COUNTS = {"train": (3, 2, 2, 0), "val": (2, 2, 1, 1), "test": (2, 3, 2, 1)}
"""Per split and group 2 * blond + male; a training group is empty."""
NAMES = [f"Attribute_{number}" for number in range(40)]
NAMES[9], NAMES[20] = "Blond_Hair", "Male"


def cells() -> list[tuple[str, int]]:
    """Split and group of every image, mixed."""
    every = [(split, group) for split in SPLITS for group in range(4) for _ in range(COUNTS[split][group])]
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))]


def write_celeba(root: Path, layout: str = "wilds") -> Path:
    """The folder that was written."""
    folder = root / LAYOUTS[layout]
    images = folder / "img_align_celeba" / ("img_align_celeba" if layout == "kaggle" else "")
    attributes, partitions = [], []
    for number, (split, group) in enumerate(cells(), start=1):
        name = f"{number:06}.jpg"
        size = (178, 218) if number == 1 else (36, 44 + number % 3)
        write_image(images / name, number, size, "L" if number == 2 else "RGB")
        values = {other: (-1) ** (number + place) for place, other in enumerate(NAMES)}
        values |= {"Blond_Hair": 2 * (group // 2) - 1, "Male": 2 * (group % 2) - 1}
        attributes.append({"image_id": name, **values})
        partitions.append({"image_id": name, "partition": SPLITS.index(split)})
    if layout == "torchvision":
        lines = [f"{row['image_id']}  " + " ".join(f"{row[name]:2}" for name in NAMES) for row in attributes]
        text = "\n".join([str(len(attributes)), " ".join(NAMES) + " ", *lines])
        (folder / "list_attr_celeba.txt").write_text(text + "\n")
        text = "".join(f"{row['image_id']} {row['partition']}\n" for row in partitions)
        (folder / "list_eval_partition.txt").write_text(text)
    else:
        write_csv(folder / "list_attr_celeba.csv", attributes)
        write_csv(folder / "list_eval_partition.csv", partitions)
    return folder


def numbers_of(split: str) -> list[int]:
    return [number for number, (name, _) in enumerate(cells(), start=1) if name == split]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_layout(tmp_path: Path, layout: str) -> None:
    folder = write_celeba(tmp_path, layout)
    images = folder / "img_align_celeba" / ("img_align_celeba" if layout == "kaggle" else "")
    for root in (tmp_path, folder):
        dataset = SPEC.open(root)
        for name in SPLITS:
            split = dataset.split(name)
            expected = [cells()[number - 1][1] for number in numbers_of(name)]
            assert split.group is not None
            assert split.group.tolist() == expected
            assert split.y.tolist() == [group // 2 for group in expected]
            for position, number in enumerate(numbers_of(name)):
                whole = pixels_of(images / f"{number:06}.jpg")
                top = round((whole.shape[1] - whole.shape[2]) / 2)
                assert torch.equal(split[position].image, whole[:, top : top + whole.shape[2]])
    assert len(check_dataset(SPEC, tmp_path)) == len(DATASET_CHECKS)
    assert not dataset.info.has_masks
    assert not dataset.info.has_boxes


def test_all_layouts_are_one_set(tmp_path: Path) -> None:
    prints = set()
    for layout in LAYOUTS:
        write_celeba(tmp_path / layout, layout)
        prints.add(SPEC.open(tmp_path / layout).fingerprint())
    assert len(prints) == 1


def test_order_of_the_tables_does_not_matter_to_the_join(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    before = groups_of(SPEC.open(tmp_path), "test")
    header, *lines = (folder / "list_eval_partition.csv").read_text().splitlines()
    (folder / "list_eval_partition.csv").write_text("\n".join([header, *reversed(lines)]) + "\n")
    assert groups_of(SPEC.open(tmp_path), "test") == before


# Damage


def test_missing_data_says_where_and_what(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)celebA_v1.0/, celeba/, archive/.*mmlab"):
        SPEC.open(tmp_path)
    with pytest.raises(DataMissing, match="--data-root DIR"):
        SPEC.open(None)


@pytest.mark.parametrize(
    ("layout", "name", "old", "new", "message"),
    [
        ("wilds", "list_attr_celeba.csv", "Blond_Hair", "Blonde", "missing column Blond_Hair; found image_id,"),
        ("wilds", "list_attr_celeba.csv", "\n000003.jpg,", "\n000003.jpg,1,", "line 4: 42 values, expected 41"),
        ("wilds", "list_attr_celeba.csv", "000003.jpg", "000004.jpg", "line 5: 000004.jpg was already listed"),
        ("wilds", "list_eval_partition.csv", "000003.jpg", "000004.jpg", "line 5: 000004.jpg was already listed"),
        ("wilds", "list_eval_partition.csv", "000003.jpg", "000003.jpg ,7\n9", "line 4: partition is '7', expected"),
        ("wilds", "list_eval_partition.csv", "000003.jpg", "x.jpg,1\n000003.jpg", "line 4: x.jpg is not in list_attr"),
        ("torchvision", "list_attr_celeba.txt", "22\n", "23\n", "line 1: announces 23 images, but 21 follow"),
        ("torchvision", "list_attr_celeba.txt", "21\n", "many\n", "expected the number of images in line 1"),
        ("torchvision", "list_attr_celeba.txt", "Male", "Boy", "attribute names in line 2"),
        ("torchvision", "list_attr_celeba.txt", "000003.jpg", "000003.jpg 1", "line 5: 42 values"),
        ("torchvision", "list_eval_partition.txt", "000003.jpg", "000003.jpg 1", "line 3: expected a file name and 0"),
    ],
)
def test_malformed_tables(tmp_path: Path, layout: str, name: str, old: str, new: str, message: str) -> None:
    folder = write_celeba(tmp_path, layout)
    if old == "22\n":  # one more is announced than follow
        old = "21\n"
    replace_text(folder / name, old, new)
    with pytest.raises(DataError, match=message):
        SPEC.open(tmp_path)


def test_bad_values_and_missing_files(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path)
    path = folder / "img_align_celeba" / "000003.jpg"
    path.unlink()
    with pytest.raises(DataError, match=rf"1 of 21 listed images are missing, the first: {path} \(.*csv, line 4\)"):
        SPEC.open(tmp_path)
    table = folder / "list_attr_celeba.csv"
    header, first, *rest = table.read_text().splitlines()
    values = first.split(",")
    values[10] = "2"
    table.write_text("\n".join([header, ",".join(values), *rest]))
    with pytest.raises(DataError, match=r"line 2: Blond_Hair is '2', expected one of -1, 0, 1"):
        SPEC.open(tmp_path)
    (folder / "list_eval_partition.csv").unlink()
    with pytest.raises(DataError, match=r"neither list_eval_partition.csv nor list_eval_partition.txt"):
        SPEC.open(tmp_path)


@pytest.mark.parametrize("layout", ["wilds", "torchvision"])
def test_the_check_names_every_faulty_row(tmp_path: Path, layout: str) -> None:
    folder = write_celeba(tmp_path, layout)
    labels, splits = (next(folder.glob(f"{name}.*")) for name in ("list_attr_celeba", "list_eval_partition"))
    head, gap = (1, ",") if layout == "wilds" else (2, " ")
    rows = [line.split(gap) for line in labels.read_text().splitlines()[head:]]
    rows = [[cell for cell in row if cell] for row in rows]
    rows[2][10] = "2"
    rows[4].append("1")
    rows[6][0] = rows[5][0]
    header = labels.read_text().splitlines()[:head]
    labels.write_text("\n".join([*header, *(gap.join(row) for row in rows)]) + "\n")
    replace_text(splits, f"000010.jpg{gap}", f"000010.jpg{gap}9")
    replace_text(splits, "000012.jpg", "x.jpg")
    image = folder / "img_align_celeba" / "000009.jpg"
    image.unlink()
    with kept_faults() as faults:
        dataset = SPEC.open(tmp_path)
    at = 2 if layout == "wilds" else 1  # line of the first image in the table of splits
    assert [(fault.kind, fault.where, fault.problem.partition(",")[0]) for fault in faults] == [
        ("row", f"{splits}, line {at + 9}", f"partition is '9{SPLITS.index(cells()[9][0])}'"),
        ("row", f"{labels}, line {head + 3}", "Blond_Hair is '2'"),
        ("row", f"{labels}, line {head + 5}", "42 values"),
        ("row", f"{labels}, line {head + 7}", "000006.jpg was already listed in line " + str(head + 6)),
        ("row", f"{labels}, line {head + 12}", "000012.jpg is not in " + splits.name),
        ("row", f"{splits}, line {at + 4}", "000005.jpg is not in " + labels.name),
        ("row", f"{splits}, line {at + 6}", "000007.jpg is not in " + labels.name),
        ("row", f"{splits}, line {at + 11}", "x.jpg is not in " + labels.name),
        ("file", f"{labels}, line {head + 9}", f"image {image} is missing"),
    ]
    assert sum(len(dataset.split(name)) for name in SPLITS) == len(cells()) - 6  # 3, 5, 7, 9, 10 and 12
    with pytest.raises(DataError, match=rf"^{splits}, line {at + 9}: partition is"):
        SPEC.open(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["list_attr_celeba", "list_eval_partition"])
def test_random_damage_is_never_a_traceback(tmp_path: Path, layout: str, name: str) -> None:
    folder = write_celeba(tmp_path, layout)
    path = next(folder.glob(f"{name}.*"))
    assert damage_at_random(path, lambda: SPEC.open(tmp_path)) > 10

    def keeping_faults() -> None:
        with kept_faults():
            SPEC.open(tmp_path)

    assert damage_at_random(path, keeping_faults) > 0  # a header, or bytes that are no text


def test_checksums_of_the_text_tables(tmp_path: Path) -> None:
    assert SPEC.check is not None
    write_celeba(tmp_path / "text", "torchvision")
    faults = list(SPEC.check(SPEC.open(tmp_path / "text")))
    assert [(fault.severity, Path(fault.where).name) for fault in faults] == [
        ("error", "list_attr_celeba.txt"),
        ("error", "list_eval_partition.txt"),
    ]
    write_celeba(tmp_path / "csv", "kaggle")
    assert not list(SPEC.check(SPEC.open(tmp_path / "csv")))


# The square in the middle


@pytest.mark.parametrize("size", [(178, 218), (7, 10), (7, 11), (10, 7), (12, 9), (8, 8), (1, 5)])
def test_center_square_is_torchvisions(tmp_path: Path, size: tuple[int, int]) -> None:
    from torchvision.transforms.functional import center_crop

    path = tmp_path / "image.png"
    write_image(path, 0, size)
    record = ImageRecord(where="", path=path, key="", split="train", y=0, center_square=True)
    with Image.open(path) as image:
        theirs = center_crop(image, [min(size), min(size)])
    ours = ImageSplit([record], None)[0].image
    assert torch.equal(ours, torch.from_numpy(np.array(theirs)).permute(2, 0, 1))


def test_masks_and_boxes_follow_the_square(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", 0, (10, 20))
    mask = np.zeros((20, 10), dtype=np.uint8)
    mask[4:8, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    record = ImageRecord(
        where="",
        path=tmp_path / "image.png",
        key="",
        split="train",
        y=0,
        mask=tmp_path / "mask.png",
        boxes=((2.0, 4.0, 6.0, 8.0), (0.0, 16.0, 3.0, 20.0)),
        center_square=True,
    )
    sample = ImageSplit([record], None)[0]
    assert sample.mask is not None
    assert torch.equal(sample.mask, torch.from_numpy(mask[5:15] > 0))
    assert sample.boxes is not None
    assert sample.boxes.tolist() == [[2.0, 0.0, 6.0, 3.0]]  # The other one lies below the square.
    assert ImageSplit([replace(record, boxes=record.boxes[1:])], None)[0].boxes is None


# Against others' loaders


@pytest.mark.usefixtures("torch_scatter")
def test_agrees_with_wilds(tmp_path: Path) -> None:
    from wilds import get_dataset

    folder = write_celeba(tmp_path)
    (folder / "RELEASE_v1.0.txt").touch()
    theirs = get_dataset("celebA", root_dir=str(tmp_path), download=False)
    ours: Dataset = SPEC.open(tmp_path)
    for name in SPLITS:
        split, subset = ours.split(name), theirs.get_subset(name)
        assert split.group is not None
        assert len(split) == len(subset)
        assert torch.equal(split.y, subset.y_array)
        assert torch.equal(split.group, theirs._eval_grouper.metadata_to_group(subset.metadata_array))
        for position in range(len(split)):
            image = torch.from_numpy(np.array(subset[position][0])).permute(2, 0, 1)
            side = image.shape[2]
            top = round((image.shape[1] - side) / 2)
            assert torch.equal(split[position].image, image[:, top : top + side])
        guess = guesses(split.y, 2, seed=1)
        results, _ = theirs.eval(guess, split.y, subset.metadata_array)
        counts = group_counts(guess == split.y, split.group, 4)
        for group, name_of_group in enumerate(theirs._eval_grouper.group_field_str(group) for group in range(4)):
            assert results[f"count_{name_of_group}"] == counts.n[group]
            share = group_accuracies(counts)[group]
            assert results[f"acc_{name_of_group}"] == pytest.approx(0 if share is None else share)
        worst = worst_group(counts)
        assert worst is not None
        assert results["acc_wg"] == pytest.approx(worst.accuracy)
        if name == "train":  # At its own frequencies the adjusted accuracy is the plain one.
            assert results["acc_avg"] == pytest.approx(adjusted_accuracy(counts, counts.n))


def test_agrees_with_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CelebA

    folder = write_celeba(tmp_path, "torchvision")
    number = len(cells())
    names = [f"{i:06}.jpg" for i in range(1, number + 1)]
    for file, columns in {"identity_CelebA": 1, "list_bbox_celeba": 4, "list_landmarks_align_celeba": 10}.items():
        head = "" if columns == 1 else f"{number}\n" + " ".join("x" * columns) + "\n"
        (folder / f"{file}.txt").write_text(head + "".join(f"{name} {' '.join(['1'] * columns)}\n" for name in names))
    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    ours = SPEC.open(tmp_path)
    for name, their_name in zip(SPLITS, ("train", "valid", "test"), strict=True):
        theirs = CelebA(str(tmp_path), split=their_name)
        split = ours.split(name)
        assert split.group is not None
        assert torch.equal(split.y, theirs.attr[:, theirs.attr_names.index("Blond_Hair")])
        assert torch.equal(split.group - 2 * split.y, theirs.attr[:, theirs.attr_names.index("Male")])
