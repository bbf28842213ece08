"""Crops with the object at the periphery: where it ends up, what follows it, and when an image stays as it is."""

import logging
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spurbench.config import InputConfig
from spurbench.data.decoding import squash_boxes, squash_mask
from spurbench.data.transforms import evaluation_boxes, evaluation_masks
from spurbench.dataset import find_dataset
from spurbench.datasets.peripheral import MARGIN, SMALLEST, Peripheral, crop_away, peripheral_window
from spurbench.errors import ConfigError
from spurbench.metrics.epg import boxes_to_region
from spurbench.testing import DATASET_CHECKS, check_dataset
from spurbench.types import Sample

Box = tuple[float, float, float, float]
CONVNEXT = InputConfig(resize=256, image_size=224, crop_scale=None, flip=False)


@st.composite
def scenes(draw: st.DrawFn, most: int = 300) -> tuple[int, int, tuple[int, int, int, int]]:
    """Width and height of an image, and a box in it."""
    width, height = draw(st.integers(2, most)), draw(st.integers(2, most))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return width, height, (x0, y0, x1, y1)


def from_centre(box: Box, window: tuple[int, int, int, int]) -> float:
    """Square of the distance between the middle of a box and that of a window, in shares of the window's sides."""
    left, top, width, height = window
    x, y = ((box[0] + box[2]) / 2 - left) / width, ((box[1] + box[3]) / 2 - top) / height
    return (x - 0.5) ** 2 + (y - 0.5) ** 2


def make_sample(width: int, height: int, box: tuple[int, int, int, int], *, boxes: bool = True) -> Sample:
    """Noise, with the box as box and filled as mask."""
    x0, y0, x1, y1 = box
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    table = torch.tensor([box], dtype=torch.float32) if boxes else None
    return Sample(image=torch.from_numpy(pixels), y=0, group=None, index=0, boxes=table, mask=mask)


@settings(deadline=None)
@given(scenes())
def test_the_crop_lies_inside_the_image_and_shows_the_whole_object(scene: tuple[int, int, Box]) -> None:
    width, height, box = scene
    window = peripheral_window(box, width, height)
    assume(window is not None)
    assert window is not None
    left, top, crop_width, crop_height = window
    for start, size, length, low, high in (
        (left, crop_width, width, box[0], box[2]),
        (top, crop_height, height, box[1], box[3]),
    ):
        assert 0 <= start <= start + size <= length
        assert size >= SMALLEST * length
        assert start <= low < high <= start + size
        # What the network may not see at the sides hides nothing of it, unless it lies at that border of the image.
        assert low - start >= MARGIN * size or start == 0
        assert start + size - high >= MARGIN * size or start + size == length


@settings(deadline=None)
@given(scenes())
def test_the_object_comes_to_lie_farther_from_the_centre(scene: tuple[int, int, Box]) -> None:
    width, height, box = scene
    window = peripheral_window(box, width, height)
    if window is not None:
        assert from_centre(box, window) > from_centre(box, (0, 0, width, height))
    assert window == peripheral_window(box, width, height)


@settings(max_examples=40, deadline=None)
@given(scenes(most=14))
def test_no_other_crop_brings_it_farther(scene: tuple[int, int, Box]) -> None:
    """Against every window of the allowed sizes, one by one."""
    width, height, box = scene
    sizes = {
        (-(-width * share // 128), -(-height * share // 128)) for share in range(64, 128)
    }  # 1/2 to 127/128, rounded up
    found = [from_centre(box, (0, 0, width, height))]
    for crop_width, crop_height in sizes:
        for left, top in product(range(width - crop_width + 1), range(height - crop_height + 1)):
            across = shows(box[0], box[2], left, crop_width, width)
            down = shows(box[1], box[3], top, crop_height, height)
            if across and down:
                found.append(from_centre(box, (left, top, crop_width, crop_height)))
    window = peripheral_window(box, width, height)
    reached = from_centre(box, window or (0, 0, width, height))
    assert reached == pytest.approx(max(found), abs=1e-12)


def shows(low: float, high: float, start: int, size: int, length: int) -> bool:
    """Whether a crop of ``size`` from ``start`` shows low..high inside its margins, where the image goes on."""
    margin = MARGIN * size
    inside_left = low - start >= margin or (start == 0 and low < margin)
    inside_right = start + size - high >= margin or (start + size == length and high > length - margin)
    both_waived = low - start < margin and start + size - high < margin
    return inside_left and inside_right and not both_waived


@pytest.mark.parametrize(("box", "corner"), [((40, 40, 50, 50), (0, 0)), ((52, 42, 62, 52), (1, 0))])
def test_a_small_object_in_the_middle_goes_to_the_nearest_corner(box: Box, corner: tuple[int, int]) -> None:
    window = peripheral_window(box, 100, 100)
    assert window is not None
    left, top, width, height = window
    place = ((box[0] + box[2]) / 2 - left) / width, ((box[1] + box[3]) / 2 - top) / height
    assert all(abs(value - end) < 0.18 for value, end in zip(place, corner, strict=True))


@pytest.mark.parametrize("box", [(0, 0, 100, 80), (5, 4, 95, 76)])
def test_what_fills_the_image_stays(box: Box) -> None:
    assert peripheral_window(box, 100, 80) is None


@settings(max_examples=50, deadline=None)
@given(scenes(most=60), st.booleans())
def test_image_mask_and_boxes_are_cropped_alike(scene: tuple[int, int, tuple[int, int, int, int]], boxes: bool) -> None:
    width, height, box = scene
    sample = make_sample(width, height, box, boxes=boxes)
    cropped, window = crop_away(sample), peripheral_window(box, width, height)
    if window is None:
        assert cropped is None
        return
    assert cropped is not None
    left, top, crop_width, crop_height = window
    rows, columns = slice(top, top + crop_height), slice(left, left + crop_width)
    assert torch.equal(cropped.image, sample.image[:, rows, columns])
    assert sample.mask is not None
    assert cropped.mask is not None
    assert torch.equal(cropped.mask, sample.mask[rows, columns])
    assert cropped.mask.sum() == sample.mask.sum()
    assert (cropped.boxes is not None) == boxes
    if cropped.boxes is not None:
        assert torch.equal(boxes_to_region(cropped.boxes[None], (crop_height, crop_width))[0], cropped.mask)
        assert cropped.boxes.dtype == torch.float32
    assert (cropped.y, cropped.group, cropped.index) == (sample.y, sample.group, sample.index)


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_the_network_sees_the_object_whole_and_aside(scene: tuple[int, int, tuple[int, int, int, int]]) -> None:
    """Through the geometry of the preset ``convnext``: squashed to 256 pixels, of which the middle 224 are seen."""
    width, height, box = scene
    x0, y0, x1, y1 = box
    assume(min(x0, width - x1) > width / 16)
    assume(min(y0, height - y1) > height / 16)
    sample = make_sample(width, height, box)
    cropped = crop_away(sample)
    assume(cropped is not None)
    assert cropped is not None
    assert cropped.boxes is not None
    frame = torch.from_numpy(squash_boxes(cropped.boxes, cropped.image, 256))
    seen = evaluation_boxes(frame[None], CONVNEXT)[0]
    assert torch.allclose(seen, frame - 16, atol=1e-3)
    assert cropped.mask is not None
    mask = torch.from_numpy(squash_mask(cropped.mask, 256).copy())
    assert evaluation_masks(mask[None], CONVNEXT).sum() == mask.sum()


def test_several_boxes_stay_whole_together() -> None:
    sample = make_sample(80, 60, (20, 20, 30, 30))
    both = torch.tensor([[20.0, 20.0, 30.0, 30.0], [34.5, 22.0, 40.25, 41.0]])
    cropped = crop_away(replace(sample, boxes=both))
    window = peripheral_window((20, 20, 40.25, 41), 80, 60)
    assert window is not None
    assert cropped is not None
    assert cropped.boxes is not None
    assert torch.equal(cropped.boxes, both - torch.tensor([window[0], window[1], window[0], window[1]]))


class Split:
    """Three images: one whose object can be moved, one that it fills, one without any region."""

    y = torch.tensor([0, 1, 0])
    group = None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        plain = make_sample(40, 40, (15, 15, 25, 25))
        other = (
            plain,
            replace(plain, boxes=torch.tensor([[0.0, 0.0, 40.0, 40.0]])),
            replace(plain, boxes=None, mask=torch.zeros(40, 40, dtype=torch.bool)),
        )
        return replace(other[index], index=index, y=int(self.y[index]))


def test_images_that_stay_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    split = Peripheral(Split(), "toy")
    assert split.kept == 0
    with caplog.at_level(logging.WARNING):
        samples = [split[index] for index in range(3)]
        assert split[1].image.shape == (3, 40, 40)
    assert split.kept == 2
    assert [sample.image.shape[2] < 40 for sample in samples] == [True, False, False]
    assert [record.message for record in caplog.records] == [
        "toy+peripheral: 2 of 3 images stay as they are, since no crop brings their object farther from the centre"
    ]


def test_only_splits_for_testing_are_cropped() -> None:
    spec = find_dataset("minibirds100+peripheral")
    plain, changed = find_dataset("minibirds100").open(None), spec.open(None)
    for name in plain.info.splits:
        ours, theirs = changed.split(name), plain.split(name)
        equal = [torch.equal(ours[index].image, theirs[index].image) for index in range(8)]
        assert any(equal)
        assert all(equal) == (name in ("train", "val"))
    assert "periphery" in changed.info.description
    assert len(check_dataset(spec)) == len(DATASET_CHECKS)


def test_cars_leave_the_middle() -> None:
    """They stand in the middle of every image; the middle fifth of the crops shows a quarter as much of them."""
    plain, changed = (find_dataset(name).open(None).split("test") for name in ("minicars95", "minicars95+peripheral"))
    middle, before = [], []
    for index in range(60):
        ours, theirs = changed[index], plain[index]
        assert ours.image.shape != theirs.image.shape
        for sample, shares in ((ours, middle), (theirs, before)):
            assert sample.mask is not None
            height, width = sample.mask.shape
            core = sample.mask[2 * height // 5 : 3 * height // 5, 2 * width // 5 : 3 * width // 5]
            shares.append(float(core.double().mean()))
        assert ours.mask is not None
        assert theirs.mask is not None
        assert 1 <= float(ours.mask.double().mean() / theirs.mask.double().mean()) <= 4
    assert np.mean(middle) < 0.25 * np.mean(before)


def test_sets_without_regions_are_refused() -> None:
    with pytest.raises(ConfigError, match="peripheral needs boxes or masks, which bar does not have"):
        find_dataset("bar+peripheral")
