"""The watermark of ImageNet-W: its place, its strength, and the published code as the oracle where it is installed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spurbench.data.decoding import squash_image
from spurbench.dataset import find_dataset
from spurbench.datasets.watermark import stamp
from spurbench.testing import check_dataset


def network_input(image: torch.Tensor) -> torch.Tensor:
    """The middle 224 x 224 of the image squashed to 256 x 256, int64 [3, 224, 224]."""
    return torch.from_numpy(squash_image(image, 256).copy()).permute(2, 0, 1)[:, 16:240, 16:240].long()


def photo(width: int, height: int) -> torch.Tensor:
    coarse = np.random.default_rng(0).integers(0, 256, (3, height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width].copy())


def test_only_splits_for_testing_are_stamped() -> None:
    plain, changed = find_dataset("minibirds100").open(None), find_dataset("minibirds100+watermark").open(None)
    for name in plain.info.splits:
        ours, theirs = changed.split(name)[5], plain.split(name)[5]
        assert torch.equal(ours.image, theirs.image) == (name in ("train", "val"))
        assert (ours.y, ours.group, ours.index) == (theirs.y, theirs.group, theirs.index)
        assert ours.mask is not None
        assert theirs.mask is not None
        assert torch.equal(ours.mask, theirs.mask)
    assert "watermark" in changed.info.description
    check_dataset(find_dataset("minibirds100+watermark"))


@pytest.mark.parametrize("size", [(256, 256), (500, 375), (213, 160)])
def test_the_line_lies_where_the_published_one_does(size: tuple[int, int]) -> None:
    """Its box in the network's input is that of characters of 36 pixels at x 0.01 and y 0.4 of 224 pixels."""
    white = network_input(stamp(torch.zeros(3, *reversed(size), dtype=torch.uint8)))[0]
    exact = size == (256, 256)
    rows, columns = (white > (0 if exact else 24)).nonzero().unbind(1)
    tolerance = 0 if exact else 2
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert all(abs(int(ours) - theirs) <= tolerance for ours, theirs in zip(box, (3, 100, 217, 135), strict=True)), box
    assert abs(int(white.max()) - 128) <= (0 if exact else 40)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 255))
def test_it_only_brightens_by_at_most_half_the_way_to_white(width: int, height: int, level: int) -> None:
    plain = torch.full((3, height, width), level, dtype=torch.uint8)
    stamped = stamp(plain)
    assert stamped.dtype == torch.uint8
    assert stamped.shape == plain.shape
    assert bool((stamped >= plain).all())
    assert int(stamped.max()) <= level + (255 - level) * 128 / 255 + 0.5
    assert int(plain.min()) == level


def test_the_published_code_draws_the_same() -> None:
    published = pytest.importorskip("imagenet_w", reason="pip install imagenet-w").AddWatermark(224)
    for size, mean_difference in (((256, 256), 0.5), ((500, 375), 12.0)):
        image = photo(*size)
        plain = network_input(image)
        theirs = (published(plain.to(torch.uint8)) * 255).round().long()
        ours = network_input(stamp(image))
        changed = theirs != plain
        difference = (ours - theirs).abs().double()
        assert float(difference[changed].mean()) < mean_difference
        if size == (256, 256):
            assert int(difference.max()) <= 1
