"""Splits that are held in memory, for sets of small images that are put together when they are opened."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spurbench.data.image_table import Box
from spurbench.errors import require_split
from spurbench.types import Sample

__all__ = ["ArraySet", "ArraySplit"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySplit:
    """One split; satisfies ``spurbench.dataset.SplitData``."""

    images: Pixels
    """[n, H, W, 3], RGB."""
    y: Tensor
    """int64 [n]."""
    group: Tensor | None
    """int64 [n]; None without attributes."""
    region: Box | None = None
    """Where the object lies in every image, in whole pixels; its box and, filled, its mask."""

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Sample:
        """A copy of one sample; raises ``IndexError`` where there is none."""
        index = range(len(self))[index]
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).contiguous()
        mask = None
        if self.region is not None:
            x0, y0, x1, y1 = map(int, self.region)
            mask = torch.zeros(image.shape[1:], dtype=torch.bool)
            mask[y0:y1, x0:x1] = True
        return Sample(
            image=image,
            y=int(self.y[index]),
            group=None if self.group is None else int(self.group[index]),
            index=index,
            boxes=None if self.region is None else torch.tensor([self.region], dtype=torch.float32),
            mask=mask,
        )


class ArraySet:
    """All splits of a set."""

    def __init__(self, splits: Mapping[str, ArraySplit]) -> None:
        self._splits = dict(splits)

    def split(self, name: str) -> ArraySplit:
        """The split called ``name``; raises ``ConfigError`` for an unknown name."""
        require_split(name, self._splits)
        return self._splits[name]

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over the names of the splits, pixels, labels, groups and regions, in order."""
        digest = hashlib.sha256()
        for name, split in self._splits.items():
            group = None if split.group is None else split.group.tolist()
            digest.update(repr((name, split.images.shape, split.y.tolist(), group, split.region)).encode())
            digest.update(np.ascontiguousarray(split.images).data)
        return digest.hexdigest()
