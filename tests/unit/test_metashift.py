"""MetaShift's two trees, boxes of GQA's scene graphs, and pickles that want to do more than hold data."""

import json
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import groups_of, pixels_of, write_image

from spurbench.datasets.metashift import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

UNMIXED, MIXED = DATASETS["metashift"], DATASETS["metashift_mixed"]
SPLITS = ("train", "val", "test")
NUMBERS = {
    "train/cat/cat(indoor)": 17,
    "train/dog/dog(outdoor)": 13,
    "test/cat/cat(outdoor)": 8,
    "test/dog/dog(indoor)": 5,
}
CELLS = {"cat(indoor)": (10, 2), "cat(outdoor)": (5, 2), "dog(indoor)": (5, 2), "dog(outdoor)": (10, 2)}
"""Images in the mixed tree's train and val_out_of_domain."""
SIZE = (40, 30)


@pytest.fixture
def unmixed(tmp_path: Path) -> Path:
    seed = 2_317_000
    for below, number in NUMBERS.items():
        for _ in range(number):
            seed += 7
            write_image(tmp_path / "metashift/MetaShift-Cat-Dog-indoor-outdoor" / below / f"{seed}.jpg", seed, SIZE)
    return tmp_path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """As the script leaves it: links to GQA's images, and ids with a list of one group."""
    seed, groups = 5_000, {}
    for group, numbers in CELLS.items():
        for part, number in zip(("train", "val_out_of_domain"), numbers, strict=True):
            folder = tmp_path / "MetaShift-subpopulation-shift" / part / group[:3]
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(number):
                seed += 1
                groups[str(seed)] = [group]
                write_image(tmp_path / f"images/{seed}.jpg", seed, SIZE)
                (folder / f"{seed}.jpg").symlink_to(tmp_path / f"images/{seed}.jpg")
    write_groups(tmp_path, groups)
    return tmp_path


def groups_file(root: Path) -> Path:
    return root / "MetaShift-subpopulation-shift/imageID_to_group.pkl"


def write_groups(root: Path, groups: object) -> None:
    groups_file(root).write_bytes(pickle.dumps(groups))


def write_graphs(path: Path, graphs: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(graphs))


def thing(name: str, x: float, y: float, w: float, h: float) -> dict[str, Any]:
    return {"name": name, "x": x, "y": y, "w": w, "h": h, "attributes": [], "relations": []}


# The unmixed tree


def test_labels_are_subpopbenchs(unmixed: Path) -> None:
    dataset = UNMIXED.open(unmixed)
    assert dataset.info.classes == ("dog", "cat")
    assert dataset.info.attributes == ("outdoor", "indoor")
    whole = sum((Counter(groups_of(dataset, split)) for split in SPLITS), Counter())
    assert whole == {"cat/indoor": 17, "dog/outdoor": 13, "cat/outdoor": 8, "dog/indoor": 5}
    for name in SPLITS:
        split = dataset.split(name)
        for i, record in enumerate(split.records):  # type: ignore[attr-defined]
            assert record.path.parent.name.replace("(", "/").rstrip(")") == groups_of(dataset, name)[i]
            assert torch.equal(split[i].image, pixels_of(record.path))


def test_a_quarter_is_test_and_a_tenth_val(unmixed: Path) -> None:
    dataset = UNMIXED.open(unmixed)
    assert [len(dataset.split(name)) for name in SPLITS] == [43 - 4 - 10, 4, 10]
    likely = UNMIXED.info.likely_counts
    assert likely is not None
    total = sum(count for (count,) in likely.values())
    assert likely == {"train": (total - total // 4 - total // 10,), "val": (total // 10,), "test": (total // 4,)}


def test_the_split_is_pinned(unmixed: Path) -> None:
    """The order of the ids' hashes: nothing may move it, or numbers of one version would be on different images."""
    dataset = UNMIXED.open(unmixed)
    val = sorted(record.path.stem for record in dataset.split("val").records)  # type: ignore[attr-defined]
    assert val == PINNED_VAL
    # Folders do not matter, only ids: the tree says train and test, and both are in all splits.
    assert {record.key.split("/")[0] for record in dataset.split("test").records} == {"train", "test"}  # type: ignore[attr-defined]


PINNED_VAL = ["2317140", "2317189", "2317245", "2317301"]


@pytest.mark.parametrize("graphs", [False, True])
def test_unmixed_conforms(unmixed: Path, graphs: bool) -> None:
    if graphs:
        write_graphs(unmixed / "sceneGraphs/train_sceneGraphs.json", graph_of_all(unmixed))
    dataset = UNMIXED.open(unmixed)
    assert dataset.info.has_boxes == graphs
    assert len(check_dataset(UNMIXED, unmixed)) == len(DATASET_CHECKS)


def graph_of_all(root: Path) -> dict[str, Any]:
    """One cat and one dog in every image."""
    return {
        path.stem: {
            "width": SIZE[0],
            "height": SIZE[1],
            "objects": {"11": thing("cat", 2, 3, 10, 12), "12": thing("dog", 5, 6, 7, 8)},
        }
        for path in (root / "metashift").rglob("*.jpg")
    }


# Boxes


def test_boxes_are_those_of_the_label(unmixed: Path) -> None:
    write_graphs(unmixed / "metashift/sceneGraphs/val_sceneGraphs.json", graph_of_all(unmixed))
    train = UNMIXED.open(unmixed).split("train")
    for i, y in enumerate(train.y.tolist()):
        boxes = train[i].boxes
        assert boxes is not None
        assert boxes.tolist() == [[2, 3, 12, 15] if y == 1 else [5, 6, 12, 14]]


def test_several_boxes_none_and_a_frame_of_another_size(unmixed: Path) -> None:
    ids = sorted(path.stem for path in (unmixed / "metashift").rglob("cat(indoor)/*.jpg"))
    objects = {"2": thing("cat", -4, 5, 10, 90), "1": thing("cat", 60, 20, 10, 10), "3": thing("sofa", 0, 0, 9, 9)}
    outside = {"1": thing("cat", 80, 5, 10, 10), "2": thing("cat", 5, 5, 0, 10), "3": thing("cats", 5, 5, 5, 10)}
    write_graphs(
        unmixed / "sceneGraphs/train_sceneGraphs.json",
        {
            ids[0]: {"width": 2 * SIZE[0], "height": 2 * SIZE[1], "objects": objects},
            ids[1]: {"width": 2 * SIZE[0], "height": 2 * SIZE[1], "objects": outside},
        },
    )
    write_graphs(unmixed / "sceneGraphs/val_sceneGraphs.json", {ids[2]: {"width": 40, "height": 30, "objects": {}}})
    dataset = UNMIXED.open(unmixed)
    found = {
        record.path.stem: dataset.split(name)[i].boxes
        for name in SPLITS
        for i, record in enumerate(dataset.split(name).records)  # type: ignore[attr-defined]
    }
    boxes = found.pop(ids[0])
    assert boxes is not None
    assert boxes.tolist() == [[30, 10, 35, 15], [0, 2.5, 3, 30]]
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"1":', r"train_sceneGraphs\.json is not valid JSON"),
        ("[]", r"train_sceneGraphs\.json is no dictionary"),
        ('{"ID": 3}', r"scene graph of image \d+ is malformed"),
        ('{"ID": {"width": 3, "height": 4}}', r"scene graph of image \d+ is malformed: KeyError\('objects'\)"),
        ('{"ID": {"width": 3, "height": 4, "objects": {"1": {"name": "cat", "x": 1}}}}', "is malformed: KeyError"),
        ('{"ID": {"width": 3, "height": 4, "objects": [1]}}', "is malformed: AttributeError"),
    ],
)
def test_malformed_graphs(unmixed: Path, text: str, message: str) -> None:
    path = unmixed / "sceneGraphs/train_sceneGraphs.json"
    path.parent.mkdir()
    cat = next((unmixed / "metashift").rglob("cat(indoor)/*.jpg"))
    path.write_text(text.replace("ID", cat.stem))
    with pytest.raises(DataError, match=message):
        UNMIXED.open(unmixed)


# The mixed tree


def test_mixed_groups(mixed: Path) -> None:
    dataset = MIXED.open(mixed)
    assert dataset.info.classes == ("cat", "dog")
    names = {group: group.replace("(", "/").rstrip(")") for group in CELLS}
    train = {names[group]: number for group, (number, _) in CELLS.items()}
    assert Counter(groups_of(dataset, "train")) == {name: number * 4 // 5 for name, number in train.items()}
    assert Counter(groups_of(dataset, "val")) == {name: number // 5 for name, number in train.items()}
    assert Counter(groups_of(dataset, "test")) == dict.fromkeys(train, 2)
    groups = pickle.loads(groups_file(mixed).read_bytes())
    for name in SPLITS:
        for group, record in zip(groups_of(dataset, name), dataset.split(name).records, strict=True):  # type: ignore[attr-defined]
            assert [names[entry] for entry in groups[record.path.stem]] == [group]


def test_mixed_conforms(mixed: Path) -> None:
    assert len(check_dataset(MIXED, mixed)) == len(DATASET_CHECKS)


def test_the_script_s_default_has_the_published_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """294 images of each rare cell and 994 of each usual one, 144 of each to test, 100 and 750 to train."""
    groups, number = {}, 0
    for group, train in {"cat(outdoor)": 100, "cat(indoor)": 750, "dog(indoor)": 100, "dog(outdoor)": 750}.items():
        for part, size in (("train", train), ("val_out_of_domain", 144)):
            folder = tmp_path / "MetaShift-subpopulation-shift" / part / group[:3]
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(size):
                number += 1
                (folder / f"{number}.jpg").touch()
                groups[str(number)] = [group]
    write_groups(tmp_path, groups)
    with caplog.at_level(logging.WARNING):
        dataset = MIXED.open(tmp_path)
    assert [len(dataset.split(name)) for name in SPLITS] == [1360, 340, 576]
    assert not caplog.records


ENTRIES = [None, ["dog(indoor)"], "cat(indoor)", ["cat(garden)"], ["cat(indoor)", "cat(outdoor)"]]


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_image_without_its_context(mixed: Path, entry: object) -> None:
    groups = pickle.loads(groups_file(mixed).read_bytes())
    if entry is None:
        del groups["5001"]
    else:
        groups["5001"] = entry
    write_groups(mixed, groups)
    with pytest.raises(DataError, match=r"imageID_to_group\.pkl has .* for image 5001 .*expected \['cat\(outdoor\)'\]"):
        MIXED.open(mixed)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("attacked"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"5001": Attack()}), r"it asks for .*, which is refused"),
        (b"no pickle", "is not a pickle of plain data"),
        (b"", "is not a pickle of plain data"),
        (pickle.dumps({"5001": ["cat(indoor)"]})[:-4], "is not a pickle of plain data"),
        (pickle.dumps(["5001"]), "is no dictionary of image ids"),
    ],
)
def test_bad_pickles(mixed: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str) -> None:
    monkeypatch.chdir(mixed)
    groups_file(mixed).write_bytes(data)
    with pytest.raises(DataError, match=message):
        MIXED.open(mixed)
    assert not Path("attacked").exists()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)metashift not found .*test/cat/cat\(outdoor\)/.*SubpopBench"):
        UNMIXED.open(tmp_path)
    with pytest.raises(DataMissing, match=r"(?s)metashift_mixed not found .*imageID_to_group\.pkl and train/cat/"):
        MIXED.open(tmp_path)
    for spec in (UNMIXED, MIXED):
        with pytest.raises(DataMissing, match=r"needs a data root"):
            spec.open(None)
