"""Geometry and colour of batches, against torchvision and against themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from spurbench.config import InputConfig
from spurbench.data import transforms
from spurbench.data.transforms import (
    Crops,
    apply_crops,
    apply_crops_to_boxes,
    apply_crops_to_masks,
    draw_crops,
    evaluation_boxes,
    evaluation_images,
    evaluation_masks,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
"""Normalization that leaves pixel values as they are."""


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_frames(batch, side, seed=0):
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=rng(seed))


def smooth_frames(batch, side):
    """Gradients and slow waves: interpolation methods agree on them."""
    t = torch.linspace(0, 1, side)
    phase = torch.arange(batch).view(-1, 1, 1) / batch
    channels = [
        t[:, None] + 0 * t + 0 * phase,
        0.5 + 0.5 * torch.sin(3 * t + 5 * t[:, None] + phase),
        t * t[:, None] + 0 * phase,
    ]
    return (255 * torch.stack(channels, dim=-1)).round().to(torch.uint8)


def crops_of(*rows):
    top, left, height, width, flip = zip(*rows, strict=True)
    numbers = (torch.tensor(values) for values in (top, left, height, width))
    return Crops(**dict(zip(("top", "left", "height", "width"), numbers, strict=True)), flip=torch.tensor(flip))


def as_chw(frames):
    return frames.permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (64, 64), (33, 32), (35, 32), (37, 10)])
def test_evaluation_is_center_crop_and_normalize(resize, size):
    frames = random_frames(3, resize)
    images = evaluation_images(frames, InputConfig(resize=resize, image_size=size), MEAN, STD)
    cropped = reference.center_crop(as_chw(frames), [size, size])
    expected = reference.normalize(cropped / 255, MEAN, STD)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_masks_are_cropped_like_images():
    frames = random_frames(3, 33)
    config = InputConfig(resize=33, image_size=20)
    masks = (frames[..., 0] > 127).to(torch.uint8)
    images = evaluation_images(frames, config, *PLAIN)
    assert evaluation_masks(masks, config).dtype == torch.bool
    assert torch.equal(evaluation_masks(masks, config), images[:, 0] > 127)


def test_evaluation_boxes_are_clipped_and_dropped():
    config = InputConfig(resize=256, image_size=224)
    nan = math.nan
    boxes = torch.tensor([[[20.0, 30, 120, 250], [0, 0, 16, 100], [0, 0, 17, 17], [nan, nan, nan, nan]]])
    expected = torch.tensor([[[4.0, 14, 104, 224], [nan, nan, nan, nan], [0, 0, 1, 1], [nan, nan, nan, nan]]])
    torch.testing.assert_close(evaluation_boxes(boxes, config), expected, equal_nan=True)


# ---------------------------------------------------------------------------------------------------- memory format


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [24, 1])
def test_memory_format(channels_last, batch, train, size):
    config = InputConfig(resize=32, image_size=size)
    frames = random_frames(batch, 32)
    crops = draw_crops(batch, config, rng())

    def run(**options):
        if train:
            return apply_crops(frames, crops, config, MEAN, STD, **options)
        return evaluation_images(frames, config, MEAN, STD, **options)

    images = run(channels_last=channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, run())
    out = torch.empty(images.shape).to(memory_format=memory_format)
    assert run(channels_last=channels_last, out=out) is out
    assert torch.equal(out, images)


def test_out_must_fit():
    config = InputConfig(resize=32, image_size=24)
    out = torch.empty(2, 3, 24, 24)
    with pytest.raises(ValueError, match="out must be"):
        evaluation_images(random_frames(2, 32), config, MEAN, STD, channels_last=True, out=out)
    with pytest.raises(ValueError, match="out must be"):
        evaluation_images(random_frames(3, 32), config, MEAN, STD, out=out)


def test_frames_must_have_the_configured_size():
    with pytest.raises(ValueError, match="frames must be 32 x 32"):
        evaluation_images(random_frames(2, 31), InputConfig(resize=32, image_size=24), MEAN, STD)


def test_results_can_be_used_for_gradients_after_inference_mode():
    config = InputConfig(resize=40, image_size=40)
    frames = random_frames(64, 40)
    with torch.inference_mode():
        evaluation_images(frames, config, (0.1, 0.2, 0.3), STD)
    images = evaluation_images(frames, config, (0.1, 0.2, 0.3), STD)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (images * weight).sum().backward()
    torch.testing.assert_close(weight.grad[:, 0, 0], images.sum((0, 2, 3)), rtol=1e-3, atol=1e-1)


# --------------------------------------------------------------------------------------------------------- training


def test_center_crops_without_scale():
    config = InputConfig(resize=33, image_size=20, crop_scale=None, flip=False)
    frames = random_frames(4, 33)
    crops = draw_crops(4, config, rng())
    assert torch.equal(apply_crops(frames, crops, config, MEAN, STD), evaluation_images(frames, config, MEAN, STD))


@pytest.mark.parametrize("crop_scale", [None, (0.5, 1.0)])
def test_frames_are_not_changed(crop_scale):
    config = InputConfig(resize=32, image_size=32, crop_scale=crop_scale)
    frames = random_frames(16, 32)
    before = frames.clone()
    apply_crops(frames, draw_crops(16, config, rng()), config, MEAN, STD)
    apply_crops_to_masks(frames[..., 0], draw_crops(16, config, rng()), config)
    assert torch.equal(frames, before)


def test_resize_is_that_of_torchvision_on_uint8():
    config = InputConfig(resize=64, image_size=40, crop_scale=(0.1, 1.0))
    frames = random_frames(16, 64)
    crops = draw_crops(16, config, rng())
    images = apply_crops(frames, crops, config, *PLAIN)
    for index, frame in enumerate(as_chw(frames)):
        place = [int(values[index]) for values in (crops.top, crops.left, crops.height, crops.width)]
        expected = reference.resized_crop(frame, *place, size=[40, 40], antialias=True)
        expected = expected.flip(-1) if crops.flip[index] else expected
        torch.testing.assert_close(images[index], expected.float(), rtol=0, atol=1e-4)


def test_flip_is_a_mirror_image():
    config = InputConfig(resize=32, image_size=32, crop_scale=None)
    frames = random_frames(2, 32)
    images = apply_crops(frames, crops_of((0, 0, 32, 32, True), (0, 0, 32, 32, False)), config, *PLAIN)
    torch.testing.assert_close(images[0], as_chw(frames)[0].flip(-1).float())
    torch.testing.assert_close(images[1], as_chw(frames)[1].float())


@st.composite
def scenes(draw):
    """A geometry and a box that starts and ends on pixel edges."""
    resize = draw(st.integers(16, 48))
    size = draw(st.integers(8, resize))
    height, width = draw(st.integers(4, resize)), draw(st.integers(4, resize))
    top, left = draw(st.integers(0, resize - height)), draw(st.integers(0, resize - width))
    x0, y0 = draw(st.integers(0, resize - 1)), draw(st.integers(0, resize - 1))
    x1, y1 = draw(st.integers(x0 + 1, resize)), draw(st.integers(y0 + 1, resize))
    return resize, size, (top, left, height, width, draw(st.booleans())), (x0, y0, x1, y1)


def paint(resize, box):
    x0, y0, x1, y1 = box
    mask = torch.zeros(1, resize, resize, dtype=torch.uint8)
    mask[:, y0:y1, x0:x1] = 1
    return mask


def pixels_inside(box, size):
    """Pixels of a size x size image whose centres lie in the box; none for NaN."""
    centers = torch.arange(size) + 0.5
    x0, y0, x1, y1 = box.tolist()
    return ((centers >= y0) & (centers < y1))[:, None] & ((centers >= x0) & (centers < x1))


@settings(max_examples=300, deadline=None)
@example((22, 15, (0, 0, 6, 22, True), (11, 1, 12, 2)))  # a corner where both coordinates lie on edges
@given(scenes())
def test_crops_move_images_masks_and_boxes_alike(scene):
    resize, size, crop, box = scene
    config = InputConfig(resize=resize, image_size=size, crop_scale=(0.01, 1.0))
    crops = crops_of(crop)
    painted = paint(resize, box)
    mask = apply_crops_to_masks(painted, crops, config)
    moved = apply_crops_to_boxes(torch.tensor([[box]], dtype=torch.float32), crops, config)[0, 0]
    inside = pixels_inside(moved, size)
    # A centre that falls on an edge between pixels belongs to one side, which mirroring swaps: allow such lines.
    nudges = [torch.tensor([dx, dy, dx, dy]) for dx in (-1e-3, 1e-3) for dy in (-1e-3, 1e-3)]
    certain = torch.stack([pixels_inside(moved + nudge, size) == inside for nudge in nudges]).all(0)
    assert torch.equal(mask[0][certain], inside[certain])
    # The image agrees with the box away from its edges, where the antialiasing filter does not reach.
    image = apply_crops(255 * painted[..., None].expand(-1, -1, -1, 3), crops, config, *PLAIN)[0, 0]
    reach = [1 + 1.5 * max(1.0, size / length) for length in crop[2:4]]
    grow = torch.tensor([-reach[1], -reach[0], reach[1], reach[0]])
    core = pixels_inside(moved - grow, size)
    if not moved.isnan().any():
        assert (image[core] > 250).all()
        assert (image[~pixels_inside(moved + grow, size)] < 5).all()


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_evaluation_crops_images_masks_and_boxes_alike(scene):
    resize, size, _, box = scene
    config = InputConfig(resize=resize, image_size=size)
    painted = paint(resize, box)
    inside = pixels_inside(evaluation_boxes(torch.tensor([[box]], dtype=torch.float32), config)[0, 0], size)
    image = evaluation_images(painted[..., None].expand(-1, -1, -1, 3), config, *PLAIN)[0, 0]
    assert torch.equal(evaluation_masks(painted, config)[0], inside)
    assert torch.equal(image > 0.5, inside)


def test_padding_of_boxes_stays():
    config = InputConfig(resize=32, image_size=24)
    boxes = torch.full((4, 2, 4), math.nan)
    assert apply_crops_to_boxes(boxes, draw_crops(4, config, rng()), config).isnan().all()


@pytest.mark.parametrize("flip", [False, True])
def test_grid_sample_agrees_with_the_resize_of_the_cpu(flip):
    config = InputConfig(resize=64, image_size=48, crop_scale=(0.5, 1.0), flip=flip)
    frames = smooth_frames(32, 64)
    crops = draw_crops(32, config, rng())
    sampled = as_chw(transforms._sample_grid(frames, crops, 48))
    resized = apply_crops(frames, crops, config, *PLAIN)
    difference = (sampled - resized).abs()
    assert difference.mean() < 0.5
    assert difference.max() < 4


def test_grid_sample_of_a_center_crop_is_exact():
    config = InputConfig(resize=32, image_size=24, crop_scale=None, flip=True)
    frames = random_frames(8, 32)
    crops = draw_crops(8, config, rng())
    sampled = as_chw(transforms._sample_grid(frames, crops, 24))
    torch.testing.assert_close(sampled, apply_crops(frames, crops, config, *PLAIN), rtol=0, atol=0.02)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("crop_scale", [None, (0.5, 1.0)])
def test_nothing_is_read_back_from_an_accelerator(crop_scale, channels_last):
    # Tensors on "meta" take the accelerators' path and have no values: reading one raises.
    config = InputConfig(resize=64, image_size=48, crop_scale=crop_scale)
    frames = random_frames(8, 64).to("meta")
    crops = draw_crops(8, config, rng())
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for images in (
        apply_crops(frames, crops, config, MEAN, STD, channels_last=channels_last),
        evaluation_images(frames, config, MEAN, STD, channels_last=channels_last),
    ):
        assert images.shape == (8, 3, 48, 48)
        assert images.device.type == "meta"
        assert images.is_contiguous(memory_format=memory_format)
    for masks in (apply_crops_to_masks(frames[..., 0], crops, config), evaluation_masks(frames[..., 0], config)):
        assert masks.shape == (8, 48, 48)
        assert masks.dtype == torch.bool
    boxes = torch.empty(8, 2, 4, device="meta")
    assert apply_crops_to_boxes(boxes, crops, config).shape == evaluation_boxes(boxes, config).shape == (8, 2, 4)


# ------------------------------------------------------------------------------------------------------------ draws


@settings(max_examples=100, deadline=None)
@given(
    resize=st.integers(1, 300),
    scale=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted).map(tuple),
    seed=st.integers(0, 2**32),
)
def test_crops_lie_in_the_frame(resize, scale, seed):
    crops = draw_crops(50, InputConfig(resize=resize, image_size=1, crop_scale=scale), rng(seed))
    assert all(values.dtype == torch.int64 for values in (crops.top, crops.left, crops.height, crops.width))
    assert (crops.top >= 0).all()
    assert (crops.left >= 0).all()
    assert (crops.height >= 1).all()
    assert (crops.width >= 1).all()
    assert (crops.top + crops.height <= resize).all()
    assert (crops.left + crops.width <= resize).all()


def test_area_and_ratio_are_in_range():
    crops = draw_crops(5000, InputConfig(resize=1000, image_size=1, crop_scale=(0.2, 0.6)), rng())
    area, ratio = crops.height * crops.width / 1000**2, crops.width / crops.height
    assert 0.199 < area.min() < 0.21
    assert 0.59 < area.max() < 0.601
    assert 0.749 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.335


@pytest.mark.parametrize("scale", [(0.7, 1.0), (0.08, 1.0), (0.98, 1.0), (1.0, 1.0)])
def test_distribution_is_that_of_torchvision(scale):
    image = torch.empty(3, 256, 256)
    torch.manual_seed(0)
    expected = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(4000)])
    crops = draw_crops(4000, InputConfig(crop_scale=scale), rng())
    drawn = torch.stack([crops.top, crops.left, crops.height, crops.width], dim=1).numpy()
    levels = np.linspace(0.05, 0.95, 10)
    for column in range(4):
        ours, theirs = (np.quantile(values[:, column], levels) for values in (drawn, expected))
        np.testing.assert_allclose(ours, theirs, atol=0.03 * 256)
        np.testing.assert_allclose(drawn[:, column].mean(), expected[:, column].mean(), atol=0.01 * 256)


def test_the_generator_alone_decides():
    config = InputConfig()
    first, torch_state = draw_crops(20, config, rng(3)), torch.get_rng_state()
    again, other = draw_crops(20, config, rng(3)), draw_crops(20, config, rng(4))
    for name in ("top", "left", "height", "width", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.top, other.top)
    assert torch.equal(torch_state, torch.get_rng_state())


def test_flip_and_crop_do_not_change_each_others_draws():
    both, crop, flip = (
        draw_crops(500, InputConfig(flip=flip, crop_scale=scale), rng())
        for flip, scale in ((True, (0.7, 1.0)), (False, (0.7, 1.0)), (True, None))
    )
    assert torch.equal(both.top, crop.top)
    assert torch.equal(both.flip, flip.flip)
    assert not crop.flip.any()
    assert 200 < both.flip.sum() < 300
