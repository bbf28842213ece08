"""Erasure: exact where the mask is all or nothing, true to models whose field of view is known, and its engine part."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from spurbench.data.cache import Frames
from spurbench.engine.evaluation import SplitArrays, _Erasure
from spurbench.metrics.erasure import FILLS, ErasureCounts, blur, count_erasure, erase, erasures
from spurbench.types import Prediction

SIZE, N = 32, 23


@pytest.fixture
def images() -> Tensor:
    noise = torch.randn(N, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return blur(noise) * 4 + noise


@pytest.fixture
def masks() -> Tensor:
    """Binary, 4 x 4 positions, each with the same number of active ones in other places."""
    order = torch.rand(N, 16, generator=torch.Generator().manual_seed(1)).argsort(1)
    return (order < 5).float().view(N, 4, 4)


def linear(images: Tensor) -> Tensor:
    """Logits [B, 7] that read every pixel."""
    weight = torch.randn(images[0].numel(), 7, generator=torch.Generator().manual_seed(2))
    return images.flatten(1) @ weight


@dataclass(frozen=True)
class Seeing:
    """A model that reads only pixels under its own mask, or only others; masks are looked up by sample."""

    masks: Tensor
    inside: bool = True

    def __call__(self, images: Tensor, index: Tensor) -> Prediction:
        seen = self.masks[index].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        return Prediction(logits=linear(images * (seen if self.inside else 1 - seen)), mask=self.masks[index])


def measure(model: Any, images: Tensor, batch_size: int, masks: Tensor) -> dict[tuple[str, str], ErasureCounts]:
    """As the engine does, with labels of which the model is right about most."""
    frames = Frames(images=torch.zeros(N, 1, 1, 3, dtype=torch.uint8), masks=None, boxes=None)
    whole = model(images, torch.arange(N)).logits.argmax(1)
    y = torch.where(torch.arange(N) % 5 == 0, (whole + 1) % 7, whole)
    arrays = SplitArrays(name="test", frames=frames, y=y, group=None)
    erasure = _Erasure()
    for index in torch.arange(N).split(batch_size):
        erasure.add(lambda changed, index=index: model(changed, index), images[index], masks[index])
    return {(counts.erased, counts.fill): counts for counts in erasure.counts(whole, arrays, 7)}


def kinds() -> Iterator[tuple[str, str]]:
    return ((erased, fill) for fill in FILLS for erased in ("outside", "inside", "outside_control"))


@pytest.mark.parametrize("fill", list(FILLS))
def test_all_or_nothing_is_exact(images: Tensor, fill: str) -> None:
    filled = FILLS[fill](images)  # type: ignore[index]
    assert not torch.equal(filled, images)
    for dtype in (torch.float32, torch.bfloat16, torch.bool):
        assert torch.equal(erase(images, torch.ones(N, 4, 4, dtype=dtype), filled), images)
        assert torch.equal(erase(images, torch.zeros(N, 4, 4, dtype=dtype), filled), filled)


def test_soft_masks_are_blend_weights_and_the_layout_stays(images: Tensor) -> None:
    keep = torch.rand(N, 8, 8, generator=torch.Generator().manual_seed(3))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    erased = erase(channels_last, keep, torch.full_like(images, 2.0))
    assert erased.is_contiguous(memory_format=torch.channels_last)
    for i, j in ((0, 0), (13, 30), (31, 31)):
        expected = keep[:, i // 4, j // 4, None] * images[:, :, i, j] + (1 - keep[:, i // 4, j // 4, None]) * 2.0
        assert torch.allclose(erased[:, :, i, j], expected, atol=1e-6)


def test_a_mask_of_ones_or_zeros(images: Tensor, masks: Tensor) -> None:
    """Nothing outside to erase: every prediction stays. Nothing inside: likewise."""

    def model(changed: Tensor, index: Tensor) -> Prediction:
        return Prediction(logits=linear(changed))

    ones = measure(model, images, 10, torch.ones_like(masks))
    zeros = measure(model, images, 10, torch.zeros_like(masks))
    for fill in FILLS:
        assert ones["outside", fill].agree == ones["outside", fill].n == N
        assert zeros["inside", fill].agree == N
        assert ones["inside", fill].agree < N
        assert zeros["outside", fill].agree < N


def test_a_model_that_reads_only_what_its_mask_shows(images: Tensor, masks: Tensor) -> None:
    honest, lying = (measure(Seeing(masks, inside=inside), images, 10, masks) for inside in (True, False))
    for fill in FILLS:
        assert honest["outside", fill].agree == N
        assert honest["inside", fill].agree < N
        assert lying["inside", fill].agree == N
        assert lying["outside", fill].agree < N
        assert honest["outside_control", fill].agree < N - 1, "the same area elsewhere is not enough"


def test_the_control_keeps_the_mask_of_the_sample_before(images: Tensor, masks: Tensor) -> None:
    before = Seeing(masks.roll(1, 0))
    for batch_size in (1, 10, N):
        counts = measure(before, images, batch_size, masks)
        for fill in FILLS:
            assert counts["outside_control", fill].n == N - 1
            assert counts["outside_control", fill].agree == N - 1
            assert counts["outside", fill].agree < N


def test_batches_play_no_part(images: Tensor, masks: Tensor) -> None:
    whole = measure(Seeing(masks), images, N, masks)
    assert list(whole) == list(kinds())
    for batch_size in (1, 2, 7, 22):
        assert measure(Seeing(masks), images, batch_size, masks) == whole


def test_counts_by_hand() -> None:
    guess, whole, y = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1, 1])
    group = torch.tensor([0, 2, 2, 3])
    assert count_erasure("inside", "mean", guess, whole, y, group, 4) == ErasureCounts(
        erased="inside", fill="mean", n=4, agree=2, correct=3, worst_group_accuracy=0.5
    )
    nothing = torch.empty(0, dtype=torch.int64)
    assert count_erasure("outside_control", "blur", *[nothing] * 4, num_groups=4).worst_group_accuracy is None


def test_every_kind_once_and_not_all_at_once(images: Tensor, masks: Tensor) -> None:
    made = erasures(images, masks, masks.roll(1, 0))
    assert isinstance(made, Iterator)
    assert [(erased, fill) for erased, fill, _ in made] == list(kinds())


def test_blur_matches_scipy(images: Tensor) -> None:
    """scipy calls a border that does not repeat the last pixel ``mirror``."""
    sigma = SIZE / 16
    expected = gaussian_filter(images.double().numpy(), sigma, mode="mirror", axes=(2, 3), radius=6)
    assert np.abs(blur(images).numpy() - expected).max() < 1e-5


def test_blur_keeps_constant_images_and_nearly_the_mean(images: Tensor) -> None:
    flat = torch.tensor([-2.0, 0.0, 1.5]).view(1, 3, 1, 1).expand(2, 3, SIZE, SIZE)
    assert torch.allclose(blur(flat), flat, atol=1e-6)
    assert torch.allclose(blur(images).mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=0.1)
    assert (blur(images).var(dim=(2, 3)) < images.var(dim=(2, 3))).all()


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_blur_takes_any_size(size: int) -> None:
    images = torch.ones(1, 3, size, size)
    assert torch.allclose(blur(images), images)


def test_a_single_sample_has_no_control() -> None:
    erasure = _Erasure()
    erasure.add(lambda x: Prediction(logits=linear(x)), torch.zeros(1, 3, SIZE, SIZE), torch.ones(1, 4, 4))
    frames = Frames(images=torch.zeros(1, 1, 1, 3, dtype=torch.uint8), masks=None, boxes=None)
    arrays = SplitArrays(name="test", frames=cast(Frames, frames), y=torch.zeros(1, dtype=torch.int64), group=None)
    counts = {c.erased: c.n for c in erasure.counts(torch.zeros(1, dtype=torch.int64), arrays, 7)}
    assert counts == {"outside": 1, "inside": 1, "outside_control": 0}
