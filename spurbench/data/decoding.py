"""Decoding a split with threads: images, masks and boxes squashed to one size, in order."""

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from spurbench.errors import DataError
from spurbench.types import Sample

__all__ = [
    "Bytes",
    "Chunk",
    "Floats",
    "Samples",
    "available_cores",
    "decode_in_order",
    "decode_samples",
    "mixed_masks",
    "single_threaded_operations",
    "squash_boxes",
    "squash_image",
    "squash_mask",
]

CHUNK = 16
"""Samples that one thread decodes before it hands them over."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Samples(Protocol):
    """What the cache needs of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """Decode one sample; called from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some consecutive samples, decoded and squashed."""

    images: Bytes
    """[b, R, R, 3]."""
    masks: Bytes | None
    """0 or 1, [b, R, R]."""
    boxes: list[Floats | None]
    """[n, 4] per sample, in frame pixels."""


def decode_samples(split: Samples, resize: int, indices: Sequence[int]) -> Chunk:
    """These samples, at least one, decoded by this thread.

    Raises:
        DataError: a damaged sample, or masks for some only.
    """
    samples = [split[index] for index in indices]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    if masks and len(masks) < len(samples):
        raise mixed_masks(indices[0], indices[-1] + 1)
    return Chunk(
        images=np.stack([squash_image(sample.image, resize) for sample in samples]),
        masks=np.stack([squash_mask(mask, resize) for mask in masks]) if masks else None,
        boxes=[None if s.boxes is None else squash_boxes(s.boxes, s.image, resize) for s in samples],
    )


def mixed_masks(start: int, stop: int) -> DataError:
    """The error for a split in which only some samples have a mask."""
    return DataError(
        f"some samples have a mask and others have none, first seen at samples {start} to {stop - 1}; "
        "a split needs a mask for every image or for none"
    )


def squash_image(image_3HW: Tensor, resize: int) -> Bytes:
    """A uint8 image [3, H, W] as a frame [R, R, 3]: the aspect ratio is not kept."""
    pixels_HW3: Bytes = np.ascontiguousarray(image_3HW.permute(1, 2, 0).numpy())
    if pixels_HW3.shape[:2] == (resize, resize):
        return pixels_HW3
    return np.asarray(Image.fromarray(pixels_HW3).resize((resize, resize), Image.Resampling.BILINEAR))


def squash_mask(mask_HW: Tensor, resize: int) -> Bytes:
    """A bool mask [H, W] as 0 and 1, [R, R]."""
    pixels_HW: Bytes = np.ascontiguousarray(mask_HW.numpy()).view(np.uint8)
    if pixels_HW.shape == (resize, resize):
        return pixels_HW
    return np.asarray(Image.fromarray(pixels_HW).resize((resize, resize), Image.Resampling.NEAREST))


def squash_boxes(boxes_n4: Tensor, image_3HW: Tensor, resize: int) -> Floats:
    """Boxes of an image [3, H, W] in pixels of its frame, [n, 4]."""
    _, height, width = image_3HW.shape
    size = np.array([width, height, width, height], dtype=np.float64)
    return (boxes_n4.numpy().astype(np.float64) * resize / size).astype(np.float32)


def decode_in_order(split: Samples, resize: int, threads: int, start: int = 0) -> Generator[Chunk, None, None]:
    """All chunks from sample ``start`` on; decoded ahead, but never more than a few per thread are in memory."""
    decode = partial(decode_samples, split, resize)
    pending: deque[Future[Chunk]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for first in range(start, len(split), CHUNK):
            pending.append(pool.submit(decode, range(first, min(first + CHUNK, len(split)))))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def single_threaded_operations() -> Iterator[None]:
    """Threads that decode side by side must not each start a team of threads for every small tensor operation."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
