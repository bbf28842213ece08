"""Datasets whose images are drawn when they are asked for."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spurbench.dataset import Dataset, DatasetInfo, DatasetSpec
from spurbench.drawing.stream import Stream
from spurbench.errors import require_split
from spurbench.types import Sample

__all__ = ["SEED", "Drawing", "DrawnDataset", "DrawnSplit", "paired_counts"]

SEED: Final = 0
"""Seed of the published datasets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn image and what is exactly known about it."""

    image: npt.NDArray[np.uint8]
    """[3, SIZE, SIZE], RGB."""
    mask: npt.NDArray[np.bool_]
    """[SIZE, SIZE], True where at least half of a pixel belongs to the object."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Smallest box around the mask: xyxy in pixels, half open."""
        columns, rows = np.flatnonzero(self.mask.any(axis=0)), np.flatnonzero(self.mask.any(axis=1))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


D = TypeVar("D", bound=Drawing)


class DrawnSplit(Generic[D]):
    """A split whose images are drawn on access; holds only columns, so it is cheap to make and safe to share."""

    def __init__(self, name: str, draw: Callable[[int], D], *, y: Tensor, group: Tensor | None) -> None:
        self._name, self._draw, self._y, self._group = name, draw, y, group

    @property
    def y(self) -> Tensor:
        """int64 [n]."""
        return self._y

    @property
    def group(self) -> Tensor | None:
        """int64 [n]; None without attributes."""
        return self._group

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> Sample:
        """Draw image ``index``, in a few milliseconds."""
        drawing = self.drawing(index)
        return Sample(
            image=torch.from_numpy(drawing.image),
            y=int(self._y[index]),
            group=None if self._group is None else int(self._group[index]),
            index=index,
            boxes=torch.tensor([drawing.box], dtype=torch.float32),
            mask=torch.from_numpy(drawing.mask),
        )

    def drawing(self, index: int) -> D:
        """The same with all that is known about it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has images 0..{len(self) - 1}, not {index}")
        return self._draw(index)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnDataset(Generic[D]):
    """A dataset in which an image depends on its split, its position and its group, and on nothing else.

    So variants of a family that differ in the correlation of training have equal images where their groups are equal.
    """

    info: DatasetInfo
    """Its ``expected_counts`` are how many images of each group are drawn."""
    family: str
    """Names the random streams, together with the version."""
    draw: Callable[[Stream, int], D]
    """From an image's own stream and its group, 0..num_groups-1."""

    def split(self, name: str) -> DrawnSplit[D]:
        """The split called ``name``; raises ``ConfigError`` for an unknown name."""
        require_split(name, self.info.splits)
        groups = self._groups(name)
        group = torch.tensor(groups)
        return DrawnSplit(
            name,
            partial(self._draw_one, name, groups),
            y=group // len(self.info.attributes or ("",)),
            group=None if self.info.attributes is None else group,
        )

    def fingerprint(self) -> str:
        """Hash of name, version and groups; nothing is drawn. Code is covered by the version."""
        columns = [(name, self._groups(name)) for name in self.info.splits]
        return hashlib.sha256(repr((self.info.name, self.info.version, SEED, columns)).encode()).hexdigest()

    def _groups(self, split: str) -> list[int]:
        """The group of every image, shuffled; counts are exact, never drawn by chance."""
        counts = (self.info.expected_counts or {})[split]
        cells = [group for group, count in enumerate(counts) for _ in range(count)]
        return self._stream(split, "order").shuffled(cells)

    def _draw_one(self, split: str, groups: list[int], index: int) -> D:
        return self.draw(self._stream(split, index, groups[index]), groups[index])

    def _stream(self, *key: str | int) -> Stream:
        return Stream(self.family, self.info.version, SEED, *key)


def paired_splits(percent: int) -> dict[str, tuple[int, ...]]:
    """Images per group of a family's splits: 2,000 for training with this correlation, 1,000 balanced ones for val and
    for test.
    """
    return {"train": paired_counts(2000, percent), "val": paired_counts(1000, 50), "test": paired_counts(1000, 50)}


def drawn_spec(
    dataset: DrawnDataset[D], write: Callable[[DrawnDataset[D], Path], None], writes: tuple[str, ...]
) -> DatasetSpec:
    """What the registry holds of a drawn dataset, of which ``write`` writes ``writes`` to an empty folder."""
    return DatasetSpec(info=dataset.info, open=partial(_open, dataset), write=partial(write, dataset), writes=writes)


def paired_counts(size: int, percent: int) -> tuple[int, int, int, int]:
    """Images per group 2 y + attribute of ``size`` images, ``percent`` of which have the attribute of their class.

    Both classes have half of the images.
    """
    class_size = size // 2
    aligned, rest = divmod(size * percent, 100)
    if rest:
        raise ValueError(f"{percent} % of {size} images is no whole number")
    # An odd number of aligned images gives the second class one more.
    first, second = aligned // 2, aligned - aligned // 2
    return first, class_size - first, class_size - second, second


def _open(dataset: DrawnDataset[D], _root: Path | None) -> Dataset:
    return dataset
