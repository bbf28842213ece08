"""The Energy Pointing Game against loops in plain Python and boxes drawn by Pillow, and by its properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from spurbench.metrics.epg import EPGSums, EPGValues, Resize, boxes_to_region, energy, epg

seeds = st.integers(0, 2**32 - 1)


def slow_pixel(values: list[list[float]], row: int, column: int, size: int, mode: Resize) -> float:
    """The value of an h x w map at a pixel of a size x size frame, from the definition of the interpolation."""
    h, w = len(values), len(values[0])
    if mode == "nearest":
        return max(values[row * h // size][column * w // size], 0.0)

    def around(position: int, length: int) -> tuple[int, int, float]:
        x = max((position + 0.5) * length / size - 0.5, 0.0)
        low = math.floor(x)
        return low, min(low + 1, length - 1), x - low

    i0, i1, di = around(row, h)
    j0, j1, dj = around(column, w)
    corner = {(i, j): max(values[i][j], 0.0) for i in (i0, i1) for j in (j0, j1)}
    upper = (1 - dj) * corner[i0, j0] + dj * corner[i0, j1]
    lower = (1 - dj) * corner[i1, j0] + dj * corner[i1, j1]
    return (1 - di) * upper + di * lower


def slow_epg(values: Tensor, region: Tensor, mode: Resize) -> float:
    """One image, pixel by pixel."""
    inside = total = 0.0
    rows = values.tolist()
    for i, row in enumerate(region.tolist()):
        for j, is_object in enumerate(row):
            value = slow_pixel(rows, i, j, len(region), mode)
            total += value
            inside += value if is_object else 0.0
    return inside / total


def random_case(seed: int, batch: int = 3, positions: int = 4, size: int = 16) -> tuple[Tensor, Tensor]:
    """Maps of both signs, and regions with at least one pixel."""
    draw = torch.Generator().manual_seed(seed)
    region = torch.rand(batch, size, size, generator=draw) < 0.3
    region[:, 0, 0] = True
    return torch.randn(batch, positions, positions, generator=draw), region


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("positions", "size"), [(4, 16), (8, 64), (7, 28), (16, 16), (1, 8)])
def test_matches_a_slow_double_loop(mode: Resize, positions: int, size: int) -> None:
    maps, region = random_case(positions, positions=positions, size=size)
    maps[:, 0, 0] = 1.0  # so that no map is without energy
    expected = [slow_epg(*pair, mode) for pair in zip(maps, region, strict=True)]
    assert epg(maps, region, mode).epg.tolist() == pytest.approx(expected, abs=1e-5)


def test_by_hand() -> None:
    maps = torch.tensor([[[4.0, -9.0], [1.0, 3.0]]])
    region = torch.tensor([[[True, True], [False, False]]])
    inside, total = energy(maps, region, "bilinear")
    assert (inside.item(), total.item()) == (4.0, 8.0), "negative values neither add nor subtract"
    values = epg(maps, region, "bilinear")
    assert values.epg.tolist() == [0.5]
    assert values.sums() == EPGSums(total=0.5, total_area=0.5, epg_n=1)


@given(seeds, st.sampled_from(["nearest", "bilinear"]), st.floats(1e-2, 1e4))
def test_range_and_scale_invariance(seed: int, mode: Resize, scale: float) -> None:
    maps, region = random_case(seed)
    maps[:, 0, 0] = 1.0
    values = epg(maps, region, mode)
    assert ((values.epg >= 0) & (values.epg <= 1)).all()
    assert torch.allclose(epg(scale * maps, region, mode).epg, values.epg, atol=1e-5)


@given(seeds, st.sampled_from(["nearest", "bilinear"]))
def test_full_image_box_gets_all_energy(seed: int, mode: Resize) -> None:
    maps, _ = random_case(seed)
    maps[:, 0, 0] = 1.0
    region = boxes_to_region(torch.tensor([[[0.0, 0, 16, 16]]]).expand(3, 1, 4), 16)
    assert epg(maps, region, mode).epg.tolist() == [1, 1, 1]


@given(seeds, st.sampled_from(["nearest", "bilinear"]), st.floats(1e-3, 100))
def test_constant_saliency_gets_the_area_fraction(seed: int, mode: Resize, level: float) -> None:
    _, region = random_case(seed)
    values = epg(torch.full((3, 4, 4), level), region, mode)
    fraction = [int(image.sum()) / 256 for image in region]
    assert values.epg.tolist() == pytest.approx(fraction, abs=1e-5)
    assert values.area.tolist() == pytest.approx(fraction, abs=1e-6)
    sums = values.sums()
    assert sums.epg == pytest.approx(sums.epg_base_rate, abs=1e-5)


@given(seeds, st.integers(0, 6))
def test_merging_batches_equals_one_batch(seed: int, cut: int) -> None:
    maps, region = random_case(seed, batch=6)
    maps[1], region[2] = 0, False
    whole = epg(maps, region, "bilinear")
    parts = [epg(maps[part], region[part], "bilinear") for part in (slice(cut), slice(cut, None))]
    joined = EPGValues.cat(parts)
    assert torch.equal(joined.epg.nan_to_num(-1), whole.epg.nan_to_num(-1))
    merged, expected = parts[0].sums() + parts[1].sums(), whole.sums()
    counts = ("epg_n", "epg_empty", "epg_no_region")
    assert [getattr(merged, name) for name in counts] == [getattr(expected, name) for name in counts] == [5, 1, 1]
    for name in ("epg", "epg_nonempty", "epg_base_rate"):
        assert getattr(merged, name) == pytest.approx(getattr(expected, name), abs=1e-9)


def test_image_does_not_depend_on_its_batch() -> None:
    maps, region = random_case(5)
    alone = torch.cat([epg(maps[i : i + 1], region[i : i + 1], "bilinear").epg for i in range(3)])
    assert torch.allclose(alone, epg(maps, region, "bilinear").epg, atol=1e-6)


def test_zero_energy_counts_as_zero_and_is_reported() -> None:
    maps = torch.tensor([[[1.0, 1], [1, 1]], [[0, 0], [0, 0]], [[-1, -2], [-3, -4]], [[1e-9, 0], [0, 0]]])
    region = torch.ones(4, 2, 2, dtype=torch.bool)
    values = epg(maps, region, "nearest")
    assert values.epg.tolist() == [1, 0, 0, 0]
    assert values.empty.tolist() == [False, True, True, True]
    sums = values.sums()
    assert (sums.epg, sums.epg_nonempty, sums.epg_n, sums.epg_empty) == (0.25, 1.0, 4, 3)


def test_image_without_region_is_left_out_and_counted() -> None:
    maps = torch.ones(3, 2, 2)
    maps[2] = 0  # without region and without energy: not one of the empty maps in the mean
    region = torch.tensor([[[True, False], [False, False]], [[False, False]] * 2, [[False, False]] * 2])
    values = epg(maps, region, "nearest")
    assert values.epg[0] == 0.25
    assert values.epg[1:].isnan().all()
    assert values.sums() == EPGSums(total=0.25, total_area=0.25, epg_n=1, epg_empty=0, epg_no_region=2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_map_that_is_not_finite_points_nowhere(bad: float) -> None:
    maps = torch.ones(2, 2, 2)
    maps[0, 0, 0] = bad
    sums = epg(maps, torch.ones(2, 4, 4, dtype=torch.bool), "bilinear").sums()
    assert (sums.epg, sums.epg_empty) == (0.5, 1)


def test_without_images_everything_is_null() -> None:
    sums = epg(torch.zeros(0, 2, 2), torch.zeros(0, 4, 4, dtype=torch.bool), "nearest").sums()
    assert sums == EPGSums()
    assert (sums.epg, sums.epg_nonempty, sums.epg_base_rate) == (None, None, None)


def test_half_precision_maps_are_summed_in_float32() -> None:
    maps = torch.ones(1, 7, 7, dtype=torch.bfloat16)
    region = torch.zeros(1, 224, 224, dtype=torch.bool)
    region[:, :75, :75] = True
    assert epg(maps, region, "nearest").epg.item() == pytest.approx(75 * 75 / 224**2, abs=1e-6)


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 4), max_size=3))
def test_boxes_match_those_drawn_by_pillow(corners: list[tuple[int, int, int, int]]) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1) for a, b, c, d in corners]
    image = Image.new("1", (11, 9))  # boxes reach over the border; width and height differ
    for x0, y0, x1, y1 in boxes:
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=1)  # Pillow includes both corners
    region = boxes_to_region(torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4), (9, 11))
    assert region.dtype == torch.bool
    assert np.array_equal(region[0].numpy(), np.asarray(image))


@given(st.lists(st.integers(-6, 24).map(lambda half: half / 2) | st.floats(-3, 12, width=32), min_size=8, max_size=8))
def test_pixels_belong_to_boxes_by_their_centres(numbers: list[float]) -> None:
    boxes = torch.tensor(numbers).reshape(1, 2, 4)
    region = boxes_to_region(boxes, 8)[0]
    for i in range(8):
        for j in range(8):
            covered = any(x0 <= j + 0.5 < x1 and y0 <= i + 0.5 < y1 for x0, y0, x1, y1 in boxes[0].tolist())
            assert region[i, j].item() is covered


def test_a_centre_on_the_border_belongs_to_the_box_that_begins_there() -> None:
    region = boxes_to_region(torch.tensor([[[0.5, 1.5, 2.5, 3.5]]]), 4)[0]
    assert region.nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]


def test_padding_and_boxes_without_area_cover_nothing() -> None:
    nan = math.nan
    boxes = torch.tensor([[[0, 0, 2, 2], [nan] * 4], [[nan] * 4, [nan] * 4], [[0, 0, 0, 0], [3, 3, 3, 4]]])
    region = boxes_to_region(boxes, 4)
    assert region.sum(dim=(1, 2)).tolist() == [4, 0, 0]
    assert boxes_to_region(torch.zeros(2, 0, 4), (3, 5)).shape == (2, 3, 5)


def test_overlapping_boxes_count_once() -> None:
    boxes = torch.tensor([[[0.0, 0, 3, 3], [1, 1, 4, 4]]])
    assert boxes_to_region(boxes, 8).sum() == 9 + 9 - 4


def test_shapes_that_do_not_fit_are_refused() -> None:
    region = torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="do not fit"):
        epg(torch.ones(3, 2, 2), region, "nearest")
    with pytest.raises(ValueError, match="do not fit"):
        epg(torch.ones(2, 1, 2, 2), region, "nearest")
    with pytest.raises(ValueError, match="larger than their frame"):
        epg(torch.ones(2, 8, 8), region, "nearest")
