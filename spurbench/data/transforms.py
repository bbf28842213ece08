"""Geometry and colour on whole batches: images, boxes and masks move together.

Frames are the squashed images of the cache, R x R with R = ``config.resize``; inputs are what the model sees, S x S
with S = ``config.image_size``. Everything runs on the device of its input and never waits for an accelerator:
parameters are drawn on the CPU, so they are equal on every device, and only travel towards it.

Shape letters: B batch, R frame side, S input side, C channels, K boxes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spurbench.config import InputConfig
from spurbench.data.memory import empty, send

__all__ = [
    "Crops",
    "apply_crops",
    "apply_crops_to_boxes",
    "apply_crops_to_masks",
    "draw_crops",
    "evaluation_boxes",
    "evaluation_images",
    "evaluation_masks",
    "frame_masks",
]

NUM_TRIES = 10
ASPECT_RATIOS = (3 / 4, 4 / 3)
"""As RandomResizedCrop."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crops:
    """One rectangle of the frame per image, and whether the image is mirrored afterwards. Always on the CPU."""

    top: Tensor
    """int64 [B], frame pixels; the rectangle lies inside the frame."""
    left: Tensor
    """int64 [B]."""
    height: Tensor
    """int64 [B], at least 1."""
    width: Tensor
    """int64 [B], at least 1."""
    flip: Tensor
    """bool [B]."""


# ------------------------------------------------------------------------------------------------------- evaluation


def evaluation_images(
    frames_BRRC: Tensor,
    config: InputConfig,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The normalized centre crop, float32 [B, 3, S, S].

    Args:
        frames_BRRC: uint8 [B, R, R, 3].
        config: Gives R and S.
        mean: Of each channel, for values in 0..1.
        std: Likewise.
        channels_last: Memory format of the result, which is logically NCHW either way.
        out: Where to write, float32 [B, 3, S, S] in that memory format, if not to memory of the function's choice.
    """
    return _normalize(_center(frames_BRRC, config), mean, std, channels_last=channels_last, out=out)


def evaluation_masks(masks_BRR: Tensor, config: InputConfig) -> Tensor:
    """The centre crop of masks (0 is background), bool [B, S, S]."""
    return _center(masks_BRR, config) != 0


def frame_masks(masks_BSS: Tensor, config: InputConfig) -> Tensor:
    """Masks of the centre crop put back to where it lies in the frame: bool [B, R, R], False around it."""
    masks_BRR = masks_BSS.new_zeros((len(masks_BSS), config.resize, config.resize), dtype=torch.bool)
    _center(masks_BRR, config).copy_(masks_BSS)
    return masks_BRR


def evaluation_boxes(boxes_BK4: Tensor, config: InputConfig) -> Tensor:
    """Boxes in the centre crop, [B, K, 4], clipped to it; NaN where nothing is left of a box."""
    offset = _center_offset(config)
    return _clip(boxes_BK4 - offset, config.image_size)


# --------------------------------------------------------------------------------------------------------- training


def draw_crops(n: int, config: InputConfig, generator: torch.Generator) -> Crops:
    """Draw ``n`` crops with the distribution of torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Without ``crop_scale`` they are centre crops. Flips are drawn first and always, so neither option changes what
    the other draws.

    Args:
        n: B.
        config: Geometry.
        generator: On the CPU.
    """
    heads = torch.rand(n, generator=generator) < 0.5
    flip = heads if config.flip else torch.zeros(n, dtype=torch.bool)
    if config.crop_scale is None:
        offset = torch.full((n,), _center_offset(config))
        side = torch.full((n,), config.image_size)
        return Crops(top=offset, left=offset, height=side, width=side, flip=flip)
    height, width = _draw_sizes(n, config.resize, config.crop_scale, generator)
    place = torch.rand(2, n, dtype=torch.float64, generator=generator)
    top = (place[0] * (config.resize - height + 1)).long()
    left = (place[1] * (config.resize - width + 1)).long()
    return Crops(top=top, left=left, height=height, width=width, flip=flip)


def apply_crops(
    frames_BRRC: Tensor,
    crops: Crops,
    config: InputConfig,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Cut out, resize to S x S, mirror and normalize: float32 [B, 3, S, S].

    On a CPU the resize is antialiased, bit for bit torchvision's on uint8 tensors. On an accelerator it is one
    bilinear ``grid_sample`` for the batch, which differs where a crop shrinks a lot. Arguments are those of
    ``evaluation_images``.
    """
    _check_frames(frames_BRRC, config)
    if _are_centered(crops, config):
        pixels_BSSC = _mirror(_center(frames_BRRC, config), crops.flip)
    elif frames_BRRC.device.type == "cpu":
        pixels_BSSC = _mirror_in_place(_resize_each(frames_BRRC, crops, config.image_size), crops.flip)
    else:
        pixels_BSSC = _sample_grid(frames_BRRC, crops, config.image_size)
    return _normalize(pixels_BSSC, mean, std, channels_last=channels_last, out=out)


def apply_crops_to_masks(masks_BRR: Tensor, crops: Crops, config: InputConfig) -> Tensor:
    """The same for masks (0 is background), by nearest neighbour: bool [B, S, S], equal on every device."""
    _check_frames(masks_BRR, config)
    size = config.image_size
    if _are_centered(crops, config):
        center_BSS = _center(masks_BRR, config) != 0
        return _mirror(center_BSS, crops.flip)
    rows_BS = _nearest_pixels(crops.top, crops.height, size)
    columns_BS = _nearest_pixels(crops.left, crops.width, size)
    columns_BS = torch.where(crops.flip[:, None], columns_BS.flip(1), columns_BS)
    rows_BS, columns_BS = (send(index, masks_BRR.device) for index in (rows_BS, columns_BS))
    images_B = torch.arange(len(masks_BRR), device=masks_BRR.device)
    return masks_BRR[images_B[:, None, None], rows_BS[:, :, None], columns_BS[:, None, :]] != 0


def apply_crops_to_boxes(boxes_BK4: Tensor, crops: Crops, config: InputConfig) -> Tensor:
    """The same for boxes in frame pixels: [B, K, 4] in input pixels, clipped; NaN where nothing is left of a box."""
    size = config.image_size
    starts_B2 = torch.stack([crops.left, crops.top], dim=1)
    scales_B2 = size / torch.stack([crops.width, crops.height], dim=1).double()
    geometry_B5 = torch.cat([starts_B2.double(), scales_B2, crops.flip[:, None].double()], dim=1)
    geometry_B15 = send(geometry_B5.to(boxes_BK4.dtype), boxes_BK4.device)[:, None]
    starts_B14, scales_B14 = (geometry_B15[..., part].repeat(1, 1, 2) for part in (slice(0, 2), slice(2, 4)))
    moved_BK4 = (boxes_BK4 - starts_B14) * scales_B14
    x0, y0, x1, y1 = moved_BK4.unbind(-1)
    mirrored_BK4 = torch.stack([size - x1, y0, size - x0, y1], dim=-1)
    return _clip(torch.where(geometry_B15[..., 4:] != 0, mirrored_BK4, moved_BK4), size)


# --------------------------------------------------------------------------------------------------------- geometry


def _check_frames(frames: Tensor, config: InputConfig) -> None:
    if frames.shape[1:3] != (config.resize, config.resize):
        raise ValueError(f"frames must be {config.resize} x {config.resize}, got {tuple(frames.shape[1:3])}")


def _center_offset(config: InputConfig) -> int:
    """Rounded half to even, as torchvision's CenterCrop."""
    return round((config.resize - config.image_size) / 2)


def _center(frames: Tensor, config: InputConfig) -> Tensor:
    """A view of the centre, [B, R, R, ...] -> [B, S, S, ...]."""
    _check_frames(frames, config)
    start = _center_offset(config)
    stop = start + config.image_size
    return frames[:, start:stop, start:stop]


def _are_centered(crops: Crops, config: InputConfig) -> bool:
    """Whether all rectangles are the plain centre crop; reads CPU tensors only."""
    offset, side = _center_offset(config), config.image_size
    expected = ((crops.height, side), (crops.width, side), (crops.top, offset), (crops.left, offset))
    return all(bool((values == value).all()) for values, value in expected)


def _draw_sizes(
    n: int, resize: int, crop_scale: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Heights and widths, int64 [n] each.

    All tries are drawn at once and the first that fits is taken; the whole frame (torchvision's fallback, for a
    square) if none does.
    """
    low, high = crop_scale
    log_low, log_high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    uniform = torch.rand(2, n, NUM_TRIES, dtype=torch.float64, generator=generator)
    area = resize**2 * (low + (high - low) * uniform[0])
    aspect = torch.exp(log_low + (log_high - log_low) * uniform[1])
    heights, widths = torch.sqrt(area / aspect).round().long(), torch.sqrt(area * aspect).round().long()
    fits = (heights > 0) & (heights <= resize) & (widths > 0) & (widths <= resize)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    height, width = (torch.where(found, sizes.gather(1, first)[:, 0], resize) for sizes in (heights, widths))
    return height, width


def _nearest_pixels(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The frame pixel under the centre of each input pixel, int64 [B, S]; whole numbers, so no rounding differs."""
    odd_S = 2 * torch.arange(size) + 1
    return start[:, None] + odd_S * length[:, None] // (2 * size)


def _clip(boxes_BK4: Tensor, size: int) -> Tensor:
    clipped_BK4 = boxes_BK4.clamp(0, size)
    x0, y0, x1, y1 = clipped_BK4.unbind(-1)
    visible = (x1 > x0) & (y1 > y0)
    return torch.where(visible[..., None], clipped_BK4, math.nan)


# ----------------------------------------------------------------------------------------------------------- pixels


def _mirror(pixels: Tensor, flip_B: Tensor) -> Tensor:
    """Flip the columns (dimension 2) of some images; ``pixels`` may be read-only memory and stays as it is."""
    if pixels.device.type == "cpu":
        return _mirror_in_place(pixels.clone(memory_format=torch.contiguous_format), flip_B)
    flip = send(flip_B, pixels.device).view(-1, *[1] * (pixels.ndim - 1))
    return torch.where(flip, pixels.flip(2), pixels)


def _mirror_in_place(pixels: Tensor, flip_B: Tensor) -> Tensor:
    """On the CPU. Mirrored images are put back one by one: an indexed assignment copies byte by byte."""
    chosen = flip_B.nonzero()[:, 0]
    mirrored = pixels.index_select(0, chosen).flip(2).numpy()
    target = pixels.numpy()
    for source, index in enumerate(chosen.tolist()):
        target[index] = mirrored[source]
    return pixels


def _resize_each(frames_BRRC: Tensor, crops: Crops, size: int) -> Tensor:
    """Each crop through the uint8 antialiased resize, one image at a time: uint8 [B, S, S, 3].

    That is several times faster on a CPU than sampling the batch at once. Copies go through NumPy, because those of
    torch meet at a barrier of all threads for every image.
    """
    frames = frames_BRRC.numpy()
    pixels_BSSC = empty((len(frames), size, size, frames.shape[3]), torch.uint8, frames_BRRC.device)
    target = pixels_BSSC.numpy()
    rectangles = torch.stack([crops.top, crops.left, crops.height, crops.width], dim=1).tolist()
    for index, (top, left, height, width) in enumerate(rectangles):
        crop = np.ascontiguousarray(frames[index, top : top + height, left : left + width])
        crop_1CHW = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)  # in this order it counts as channels_last
        resized_1CSS = F.interpolate(crop_1CHW, (size, size), mode="bilinear", antialias=True)
        target[index] = resized_1CSS[0].permute(1, 2, 0).numpy()
    return pixels_BSSC


def _sample_grid(frames_BRRC: Tensor, crops: Crops, size: int) -> Tensor:
    """Crop, resize and mirror the whole batch by bilinear interpolation: float32 [B, S, S, 3], 0..255.

    Coordinates are computed elementwise and not by ``affine_grid``, whose matrix product loses tenths of pixels in
    TF32 or under autocast.
    """
    side = frames_BRRC.shape[1]
    sign = 1 - 2 * crops.flip.long()
    centers = torch.stack([2 * crops.left + crops.width, 2 * crops.top + crops.height]) / side - 1
    extents = torch.stack([sign * crops.width, crops.height]) / side
    geometry_4B = send(torch.cat([centers, extents]).float(), frames_BRRC.device)
    steps_S = (2 * torch.arange(size, device=frames_BRRC.device) + 1) / size - 1
    x_BS = geometry_4B[0, :, None] + geometry_4B[2, :, None] * steps_S
    y_BS = geometry_4B[1, :, None] + geometry_4B[3, :, None] * steps_S
    grid_BSS2 = torch.stack([x_BS[:, None, :].expand(-1, size, -1), y_BS[:, :, None].expand(-1, -1, size)], dim=-1)
    frames_BCRR = frames_BRRC.permute(0, 3, 1, 2).float()
    sampled_BCSS = F.grid_sample(frames_BCRR, grid_BSS2, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled_BCSS.permute(0, 2, 3, 1)


def _normalize(
    pixels_BSSC: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    channels_last: bool,
    out: Tensor | None,
) -> Tensor:
    """(pixels / 255 - mean) / std as float32 [B, 3, S, S]: one conversion into the result, one multiply-add in it."""
    batch, height, width, channels = pixels_BSSC.shape
    shape = (batch, channels, height, width)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if out is None:
        stored = (batch, height, width, channels) if channels_last else shape
        out = empty(stored, torch.float32, pixels_BSSC.device)
        out = out.permute(0, 3, 1, 2) if channels_last else out
    elif out.shape != shape or not out.is_contiguous(memory_format=memory_format):
        raise ValueError(f"out must be {shape} and contiguous in {memory_format}")
    out.copy_(pixels_BSSC.permute(0, 3, 1, 2))
    scale_C, shift_C = _scale_and_shift(tuple(mean), tuple(std), pixels_BSSC.device)
    if channels_last:
        # Whole rows of pixels with the constants repeated: broadcasting over three channels would not vectorize.
        rows_BSP = out.permute(0, 2, 3, 1).view(batch, height, width * channels)
        torch.addcmul(shift_C.repeat(width), rows_BSP, scale_C.repeat(width), out=rows_BSP)
    else:
        torch.addcmul(shift_C.view(-1, 1, 1), out, scale_C.view(-1, 1, 1), out=out)
    return out


@lru_cache(maxsize=64)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The constants of pixels * scale + shift, float32 [C] each; kept, so that they travel to a device once."""
    with torch.inference_mode(False):  # so that they can be used in and outside of it
        mean_C, std_C = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        scale_C, shift_C = (1 / (255 * std_C)).float(), (-mean_C / std_C).float()
        return send(scale_C, device), send(shift_C, device)
