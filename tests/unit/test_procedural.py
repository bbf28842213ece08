"""Drawn sets beside minibirds: exact counts, pinned pixels, shortcuts that a probe can read, official layouts."""

import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import groups_of, pixels_of
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spurbench.dataset import DatasetSpec
from spurbench.datasets.isic import DATASETS as ISIC
from spurbench.datasets.miniwatermarks.font import text_bitmap
from spurbench.datasets.urbancars import DATASETS as URBANCARS
from spurbench.drawing.sets import DrawnDataset, paired_counts
from spurbench.drawing.shapes import Ellipse, Polygon, Stroke, centre, paint
from spurbench.errors import ConfigError
from spurbench.registry import load_registry

SPECS: dict[str, DatasetSpec] = {
    name: entry.value
    for name, entry in load_registry("datasets").entries.items()
    if name.startswith("mini") and not name.startswith("minibirds")
}
SPLITS = ("train", "val", "test")
EVEN = (250, 250, 250, 250)
PAIRED = {
    100: {"train": (1000, 0, 0, 1000), "val": EVEN, "test": EVEN},
    95: {"train": (950, 50, 50, 950), "val": EVEN, "test": EVEN},
}
COUNTS = {
    "minicars95": {"train": (722, 38, 38, 2, 2, 38, 38, 722), "val": (125,) * 8, "test": (125,) * 8},
    **{
        f"{family}{percent}": counts
        for family, (percent, counts) in product(("minilesions", "minidominoes", "miniwatermarks"), PAIRED.items())
    },
}
# sha256 over images and masks of the first 32 samples. A change here needs a new version of the set.
CHECKSUMS = {
    ("minicars95", "train"): "7bafd4bb9d11987ab3b178c0b24532fa07b32186b71ad3325ae88478bd256e7c",
    ("minicars95", "val"): "be32a5667d71eebdd1f8dc711d0da607e68a0d8910e40dbdf9835d4d54142bd9",
    ("minicars95", "test"): "0323badbf4ee190d6144f440f95e5cac46e4132159419d254c3bc5d914b28c0a",
    ("minilesions100", "train"): "049fa1898f72ee5d0f337531c0454349c15c381cbeec996aeca5f21be6574738",
    ("minilesions100", "val"): "8762b788e765ff1196fa4ab28af34856cd4758f9345b2147f7348cb3be245a8c",
    ("minilesions100", "test"): "66aad1a61c84e6e6e0155f80fdfc1fbe03ceee07aae66f1ae87ca9a830afdbb6",
    ("minilesions95", "train"): "32f03c79fa0d513e644536b8610df0fc0d3a0ff539b87df4aab3784d9407f3b3",
    ("minilesions95", "val"): "8762b788e765ff1196fa4ab28af34856cd4758f9345b2147f7348cb3be245a8c",
    ("minilesions95", "test"): "66aad1a61c84e6e6e0155f80fdfc1fbe03ceee07aae66f1ae87ca9a830afdbb6",
    ("minidominoes100", "train"): "86413ba99b7325c34e6e3cf0f5bb9c6151c904ed1bcb0b8df8f5bbd0df79362e",
    ("minidominoes100", "val"): "27c04fd3a1c20b0779b16aeeecf0c1333409f8f9d4fe2ba1cc4fe026861e3d15",
    ("minidominoes100", "test"): "37b1ce7ddeaed37323bc824db30c0791077d93c62f4300bfc05e5c526539e1b6",
    ("minidominoes95", "train"): "0abc779e79b59ee7cc1054f0adc2ac275afdc5dfbe7cc339d9a5a4e614e649bc",
    ("minidominoes95", "val"): "27c04fd3a1c20b0779b16aeeecf0c1333409f8f9d4fe2ba1cc4fe026861e3d15",
    ("minidominoes95", "test"): "37b1ce7ddeaed37323bc824db30c0791077d93c62f4300bfc05e5c526539e1b6",
    ("miniwatermarks100", "train"): "73901e9e44cd130104676b0e2218c1f47d7e4575857a9c77e3eff0a36db888d9",
    ("miniwatermarks100", "val"): "0aaa90e2eaad77562dc8630e4e8bf33a8e322a2027f9df461a37be78a812064a",
    ("miniwatermarks100", "test"): "576678cf23186ed587960dcbdc5a8fdebc8ae639a93ed4afcf5653b70d4f8f41",
    ("miniwatermarks95", "train"): "d241e1f3c8ba81d3c7ffc6e8b5da1af5b620b650d028a462be51f51e810d1d10",
    ("miniwatermarks95", "val"): "0aaa90e2eaad77562dc8630e4e8bf33a8e322a2027f9df461a37be78a812064a",
    ("miniwatermarks95", "test"): "576678cf23186ed587960dcbdc5a8fdebc8ae639a93ed4afcf5653b70d4f8f41",
}

Features = Callable[[Any], npt.NDArray[np.float64]]


def opened(name: str) -> DrawnDataset[Any]:
    dataset = SPECS[name].open(None)
    assert isinstance(dataset, DrawnDataset)
    return dataset


def write_small(name: str, folder: Path, counts: dict[str, tuple[int, ...]]) -> DrawnDataset[Any]:
    """A set with few images, written as the whole set is."""
    small = replace(opened(name), info=replace(SPECS[name].info, expected_counts=counts))
    write = SPECS[name].write
    assert write is not None
    write.func(small, folder)  # type: ignore[attr-defined]
    assert {path.name for path in folder.iterdir()} == set(SPECS[name].writes)
    return small


def read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


# --- sets ---


def test_names() -> None:
    assert set(SPECS) == set(COUNTS)
    assert all(spec.info.preset == "minisets" for spec in SPECS.values())


@pytest.mark.parametrize("name", COUNTS)
def test_group_counts_are_exact(name: str) -> None:
    dataset = opened(name)
    assert dataset.info.expected_counts == COUNTS[name]
    for split in SPLITS:
        data = dataset.split(split)
        assert data.group is not None
        assert tuple(torch.bincount(data.group, minlength=dataset.info.num_groups).tolist()) == COUNTS[name][split]
        assert torch.equal(data.y, data.group // len(dataset.info.attributes or ()))
        assert data.group[:50].unique().numel() > 1


@pytest.mark.parametrize(("name", "split"), list(product(COUNTS, SPLITS)))
def test_pixels_are_the_published_ones(name: str, split: str) -> None:
    data = opened(name).split(split)
    digest = hashlib.sha256()
    for index in range(32):
        sample = data[index]
        assert sample.mask is not None
        digest.update(sample.image.numpy().tobytes())
        digest.update(sample.mask.numpy().tobytes())
    assert digest.hexdigest() == CHECKSUMS[name, split]


@pytest.mark.parametrize("family", ["minilesions", "minidominoes", "miniwatermarks"])
def test_evaluation_images_do_not_depend_on_the_correlation(family: str) -> None:
    first, second = opened(f"{family}95"), opened(f"{family}100")
    assert first.fingerprint() != second.fingerprint()
    for split in ("val", "test"):
        assert torch.equal(first.split(split)[7].image, second.split(split)[7].image)
        assert first.split(split).y.tolist() == second.split(split).y.tolist()


@pytest.mark.parametrize("name", ["minicars95", "minilesions95", "minidominoes95", "miniwatermarks95"])
def test_images_do_not_depend_on_order_or_thread(name: str) -> None:
    ahead = [opened(name).split("train")[index].image for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        back = list(pool.map(opened(name).split("train").__getitem__, reversed(range(12))))
    assert all(torch.equal(one, other.image) for one, other in zip(ahead, reversed(back), strict=True))


@pytest.mark.parametrize(
    ("name", "smallest", "largest"),
    [("minicars95", 0.03, 0.2), ("minilesions95", 0.02, 0.35), ("miniwatermarks95", 0.05, 0.4)],
)
def test_masks_and_boxes(name: str, smallest: float, largest: float) -> None:
    data = opened(name).split("test")
    for index in range(60):
        sample = data[index]
        assert sample.mask is not None
        assert sample.boxes is not None
        assert smallest < float(sample.mask.double().mean()) < largest
        rows, columns = sample.mask.nonzero().unbind(1)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert sample.boxes.tolist() == [[float(value) for value in box]]


def test_the_core_of_dominoes_is_the_lower_half() -> None:
    sample = opened("minidominoes95").split("train")[3]
    assert sample.mask is not None
    assert sample.boxes is not None
    assert bool(sample.mask[32:].all())
    assert not bool(sample.mask[:32].any())
    assert sample.boxes.tolist() == [[0.0, 32.0, 64.0, 64.0]]


def test_masks_of_cars_and_of_second_objects_are_apart() -> None:
    data = opened("minicars95").split("val")
    drawings = [data.drawing(index) for index in range(60)]
    assert all(drawing.co_object.any() for drawing in drawings)
    assert np.mean([(drawing.co_object & drawing.mask).sum() for drawing in drawings]) < 2
    assert np.mean([drawing.mask.nonzero()[0].mean() for drawing in drawings]) < 38
    assert min(drawing.co_object.nonzero()[0].mean() for drawing in drawings) > 44


def test_watermarks_lie_on_the_object_too_and_leave_its_mask() -> None:
    """A stamp is drawn after the object, from numbers of its own: the same image without it has the same mask."""
    dataset = opened("miniwatermarks95")
    data = dataset.split("test")
    assert data.group is not None
    index = data.group.tolist().index(3)
    stream = dataset._stream("test", index, 3)
    plain = dataset.draw(stream, 2)
    stamped = data.drawing(index)
    assert np.array_equal(plain.mask, stamped.mask)


def test_unknown_splits_and_positions_are_refused() -> None:
    dataset = opened("minicars95")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        dataset.split("tst")
    for index in (-1, 1000):
        with pytest.raises(IndexError, match=r"0\.\.999"):
            dataset.split("test")[index]


@given(st.integers(1, 200), st.integers(0, 100))
def test_paired_counts(half: int, percent: int) -> None:
    size = 2 * half
    if size * percent % 100:
        with pytest.raises(ValueError, match="no whole number"):
            paired_counts(size, percent)
        return
    counts = paired_counts(size, percent)
    assert sum(counts) == size
    assert counts[0] + counts[1] == counts[2] + counts[3] == half
    assert 100 * (counts[0] + counts[3]) == percent * size
    assert min(counts) >= 0


# --- shortcuts ---


def near(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """With the pixels beside it, over which outlines fade."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    return wide


def colours(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Histograms of three channels [3, n]."""
    return np.concatenate([np.histogram(channel, bins=8, range=(0, 256))[0] / channel.size for channel in pixels])


def background_of_car(drawing: Any) -> npt.NDArray[np.float64]:
    return colours(drawing.image[:, ~near(drawing.mask | drawing.co_object)])


def second_object(drawing: Any) -> npt.NDArray[np.float64]:
    return colours(drawing.image[:, drawing.co_object])


def around_object(drawing: Any) -> npt.NDArray[np.float64]:
    return colours(drawing.image[:, ~near(drawing.mask)])


def upper_half(drawing: Any) -> npt.NDArray[np.float64]:
    blocks: npt.NDArray[np.float64] = drawing.image[:, :32].mean(0).reshape(8, 4, 16, 4).mean((1, 3)).ravel()
    return blocks


def lines_of_text(drawing: Any) -> npt.NDArray[np.float64]:
    """How much pixels outside the object differ from their neighbours, in the 7 rows where most and elsewhere."""
    grey = np.where(near(drawing.mask), np.nan, drawing.image.mean(0))
    ridge = np.abs(grey[:, 1:-1] - (grey[:, :-2] + grey[:, 2:]) / 2)
    seen = np.isfinite(ridge)
    rows = np.where(seen, ridge, 0).sum(1) / np.maximum(seen.sum(1), 1)
    windows = np.convolve(rows, np.ones(7) / 7, "valid")
    return np.array([windows.max(), windows.mean(), np.median(windows), rows.std()])


@pytest.mark.parametrize(
    ("name", "features", "attribute"),
    [
        ("minicars95", background_of_car, lambda group: group // 2 % 2),
        ("minicars95", second_object, lambda group: group % 2),
        ("minilesions95", around_object, lambda group: group % 2),
        ("minidominoes95", upper_half, lambda group: group % 2),
        ("miniwatermarks95", lines_of_text, lambda group: group % 2),
    ],
)
def test_the_shortcut_tells_the_class_in_training_only(
    name: str, features: Features, attribute: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A linear probe on pixels outside the object is right as often as the correlation says, and by chance on test."""
    train, test = (opened(name).split(split) for split in ("train", "test"))
    assert test.group is not None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1))
    seen, y = [features(train.drawing(index)) for index in range(400)], train.y[:400].numpy()
    fitted = probe.fit(seen, y).score(seen, y)
    predicted = probe.predict([features(test.drawing(index)) for index in range(300)])
    assert abs(fitted - 0.95) < 0.05
    assert np.mean(predicted == attribute(test.group[:300]).numpy()) > 0.9
    assert abs(np.mean(predicted == test.y[:300].numpy()) - 0.5) < 0.1


# --- official layouts ---


def test_cars_are_read_by_the_loader_of_urbancars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = {"train": (4, 2, 1, 1, 1, 2, 1, 5), "val": (1,) * 8, "test": (2,) * 8}
    small = write_small("minicars95", tmp_path / "data", counts)
    with caplog.at_level(logging.WARNING):
        dataset = URBANCARS["urbancars"].open(tmp_path / "data")
    assert "published 3610/190/190/10" in caplog.text
    assert dataset.info.group_names == small.info.group_names
    for name in SPLITS:
        ours, theirs = small.split(name), dataset.split(name)
        order = sorted(range(len(ours)), key=groups(ours).__getitem__)  # they go by folder, and number within it
        assert groups(theirs) == [groups(ours)[index] for index in order]
        for position, index in enumerate(order):
            read_back, drawn = theirs[position], ours[index]
            assert read_back.mask is not None
            assert drawn.mask is not None
            assert torch.equal(read_back.mask, drawn.mask)
            assert float((read_back.image.int() - drawn.image.int()).abs().double().mean()) < 4  # JPEG
    first = next((tmp_path / "data/urbancars").rglob("000_co_occur_obj_mask.png"))
    assert read(first).shape == (64, 64, 3)
    assert set(np.unique(read(first))) == {0, 255}


def groups(split: Any) -> list[int]:
    found: list[int] = split.group.tolist()
    return found


def test_lesions_are_read_by_the_loader_of_isic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = {"train": (9, 3, 2, 10), "val": (2, 2, 2, 2), "test": (3, 3, 3, 3)}
    small = write_small("minilesions95", tmp_path / "data", counts)
    dataset = ISIC["isic2018_trap1_ruler"].open(tmp_path / "data")
    assert dataset.info.group_names == small.info.group_names
    for name in SPLITS:
        ours, theirs = small.split(name), dataset.split(name)
        assert groups(theirs) == groups(ours)
        for index in range(len(ours)):
            read_back, drawn = theirs[index], ours[index]
            assert read_back.mask is not None
            assert drawn.mask is not None
            assert torch.equal(read_back.mask, drawn.mask)
            assert float((read_back.image.int() - drawn.image.int()).abs().double().mean()) < 4
    for artefact in ("ruler", "hair"):  # all images, in the split of that loader
        everything = ISIC[f"isic2018_{artefact}"].open(tmp_path / "data")
        assert sum(len(everything.split(name)) for name in SPLITS) == 44
    hairy = sum(small.split(name).drawing(i).hair for name in SPLITS for i in range(len(small.split(name))))
    assert hairy == sum("/hair" in group for name in SPLITS for group in groups_of(everything, name))
    header = (tmp_path / "data/isic2018/isic_bias.csv").read_text().split("\n", 1)[0]
    assert header == (";image;dark_corner;hair;gel_border;gel_bubble;ruler;ink;patches;label;label_string")


@pytest.mark.parametrize("name", ["minidominoes95", "miniwatermarks95"])
def test_sets_without_an_official_layout_are_read_as_folders(name: str, tmp_path: Path) -> None:
    small = write_small(name, tmp_path / "data", {"train": (4, 1, 2, 5), "val": (1,) * 4, "test": (2,) * 4})
    dataset = load_registry("datasets").get("folder").value.open(tmp_path / "data")
    assert (dataset.info.classes, dataset.info.attributes) == (small.info.classes, small.info.attributes)
    for split in SPLITS:
        ours, theirs = small.split(split), dataset.split(split)
        assert groups(theirs) == groups(ours)
        for index in range(len(ours)):
            read_back, drawn = theirs[index], ours[index]
            for field in ("image", "mask", "boxes"):
                assert torch.equal(getattr(read_back, field), getattr(drawn, field))


@pytest.mark.parametrize("name", COUNTS)
def test_writing_refuses_a_used_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    write = SPECS[name].write
    assert write is not None
    with pytest.raises(ConfigError, match="not empty"):
        write(tmp_path)


def test_writing_twice_gives_equal_files(tmp_path: Path) -> None:
    counts = {"train": (2, 1, 1, 2), "val": (1,) * 4, "test": (1,) * 4}
    for folder in ("first", "second"):
        write_small("minilesions100", tmp_path / folder, counts)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("first", "second")
    )
    assert len(first) == 2 * 14 + 4
    assert first == second
    assert pixels_of(next((tmp_path / "first").rglob("*.jpg"))).shape == (3, 64, 64)


# --- shapes ---


SQUARE = ((10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0))


@pytest.mark.parametrize("corners", [SQUARE, SQUARE[::-1]])
def test_polygons_are_filled_whichever_way_they_turn(corners: tuple[tuple[float, float], ...]) -> None:
    picture, coverage = np.zeros((3, 64, 64)), np.zeros((64, 64))
    paint(picture, coverage, Polygon(colour=np.ones((3, 1, 1)), corners=corners))
    expected = np.zeros((64, 64), dtype=bool)
    expected[10:30, 10:30] = True
    assert np.array_equal(coverage >= 0.5, expected)
    assert np.array_equal(picture[0] >= 0.5, expected)


@given(
    st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0.1, 0.4), st.sampled_from((-1.0, 1.0)), st.floats(-0.2, 0.2)
)
def test_centred_shapes_have_the_place_and_size_asked_for(
    x: float, y: float, size: float, mirror: float, tilt: float
) -> None:
    colour = np.ones((3, 1, 1))
    shapes = [
        Polygon(colour=colour, corners=((-0.3, 0.1), (0.5, 0.0), (0.2, 0.6))),
        Ellipse(colour=colour, x=0.4, y=0.2, a=0.3, b=0.1),
        Stroke(colour=colour, x0=0.0, y0=0.0, x1=-0.4, y1=0.3, r0=0.1, r1=0.05),
    ]
    bounds = [shape.bounds() for shape in centre(shapes, x, y, size=size, mirror=mirror, tilt=tilt)]
    left, top = min(b[0] for b in bounds), min(b[1] for b in bounds)
    right, bottom = max(b[2] for b in bounds), max(b[3] for b in bounds)
    assert max(right - left, bottom - top) == pytest.approx(64 * size)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((64 * x, 64 * y))


def test_letters() -> None:
    line = text_bitmap("SHORTCUT")
    assert line.shape == (7, 47)
    assert not line[:, 5::6].any()
    letters = [line[:, start : start + 5] for start in range(0, 47, 6)]
    assert np.array_equal(letters[4], letters[7])
    distinct = {letter.tobytes() for letter in letters}
    assert len(distinct) == 7
