"""Frames without a cache: decoded when they are asked for, by threads, ahead of their use where it is announced.

For sets that are too large to store decoded. The pixels are those of the cache, so numbers do not depend on the choice.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spurbench.data.decoding import Chunk, Samples, available_cores, decode_samples, mixed_masks

__all__ = ["MAX_THREADS", "DecodedRows", "Decoder", "Rows", "announce"]

MAX_THREADS = 32
KEPT_BYTES = 256 << 20
"""Decoded frames that stay for a second look: masks and boxes are asked for after the images."""


class Decoder:
    """Decodes samples of one split by position; shared by its images, masks and boxes."""

    def __init__(self, split: Samples, resize: int, threads: int | None = None) -> None:
        self.split, self.resize = split, resize
        self.has_masks = decode_samples(split, resize, range(min(1, len(split)))).masks is not None
        self._pool = ThreadPoolExecutor(threads or min(available_cores(), MAX_THREADS), thread_name_prefix="decode")
        self._ahead: dict[int, Future[Chunk]] = {}
        """Announced and not taken yet."""
        self._known: OrderedDict[int, Future[Chunk]] = OrderedDict()
        """Taken, the longest unused first."""
        self._most_kept = KEPT_BYTES // (4 * resize * resize)

    def start(self, positions: Tensor) -> None:
        """Begin to decode; returns at once."""
        for index in positions.tolist():
            if index not in self._known and index not in self._ahead:
                self._ahead[index] = self._pool.submit(decode_samples, self.split, self.resize, (index,))

    def take(self, positions: Tensor) -> list[Chunk]:
        """One chunk per position, in this order; waits for what is not decoded yet.

        Raises:
            DataError: a damaged sample, or one with a mask where the first has none.
        """
        self.start(positions)
        for index in positions.tolist():
            if index in self._ahead:
                self._known[index] = self._ahead.pop(index)
            self._known.move_to_end(index)
        chunks = [self._known[index].result() for index in positions.tolist()]
        for index, chunk in zip(positions.tolist(), chunks, strict=True):
            if (chunk.masks is not None) != self.has_masks:
                raise mixed_masks(0, index + 1)
        while len(self._known) > max(self._most_kept, len(positions)):
            self._known.popitem(last=False)
        return chunks


class DecodedRows:
    """Stands where an array of the cache would, [N, ...]; every look at rows decodes them."""

    device = torch.device("cpu")

    def __init__(self, decoder: Decoder, part: Literal["images", "masks", "boxes"]) -> None:
        self.decoder, self.part = decoder, part

    def __len__(self) -> int:
        return len(self.decoder.split)

    @property
    def shape(self) -> torch.Size:
        """[N, R, R, 3] of images, [N, R, R] of masks."""
        side = self.decoder.resize
        return torch.Size((len(self), side, side, 3) if self.part == "images" else (len(self), side, side))

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Rows, as the cache would give them; boxes are padded to the most in these rows."""
        positions = torch.arange(len(self))[index]
        chunks = self.decoder.take(positions)
        if self.part == "boxes":
            return _padded([chunk.boxes[0] for chunk in chunks])
        arrays = [chunk.images if self.part == "images" else chunk.masks for chunk in chunks]
        return torch.from_numpy(np.concatenate([array for array in arrays if array is not None]))


Rows = Tensor | DecodedRows
"""An array [N, ...] of which some rows at a time are read, by an int64 [B] or a slice."""


def announce(rows: Rows, positions: Tensor) -> None:
    """Say which rows will be asked for soon; nothing happens where they are at hand."""
    if isinstance(rows, DecodedRows):
        rows.decoder.start(positions)


def _padded(boxes: Sequence[np.ndarray | None]) -> Tensor:
    """float32 [B, K, 4], NaN where there is no box."""
    most = max((len(rows) for rows in boxes if rows is not None), default=0)
    padded = torch.full((len(boxes), max(most, 1), 4), torch.nan)
    for number, rows in enumerate(boxes):
        if rows is not None:
            padded[number, : len(rows)] = torch.from_numpy(rows)
    return padded
