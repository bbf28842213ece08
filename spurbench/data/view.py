"""Lazy, reproducible views of a split: which samples, how often, how weighted, how changed.

A view holds label columns and a reference to the shared frame cache; every operation returns a new view and
decodes nothing. Columns that a method did not declare are absent from the object, not merely hidden.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spurbench.config import InputConfig
from spurbench.data.cache import Frames
from spurbench.data.memory import gather, send
from spurbench.data.ondemand import Rows, announce
from spurbench.data.transforms import (
    Crops,
    apply_crops,
    apply_crops_to_masks,
    draw_crops,
    evaluation_images,
    evaluation_masks,
)
from spurbench.errors import AccessDenied
from spurbench.rng import generator
from spurbench.types import Access, Batch, GroupedBatch, Part, RegionBatch

__all__ = ["BatchSampler", "Columns", "ImageMap", "LoaderSettings", "View", "make_view"]

AHEAD = 2
"""Batches that are decoded ahead where there is no cache."""

ImageMap = Callable[[Tensor, Tensor], Tensor]
"""(uint8 [B, R, R, 3] frames, int64 [B] index) -> uint8 frames of the same shape, on the same device."""


class BatchSampler(Protocol):
    """A method's own batches."""

    def __call__(self, rng: torch.Generator) -> Iterable[Sequence[int]]:
        """Positions in the view, batch by batch, for one epoch; every random draw comes from ``rng`` (CPU)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Label columns of a split; None where they may not be read or do not exist."""

    y: Tensor | None
    group: Tensor | None
    masks: Rows | None
    """uint8 [N, R, R], only with ``REGIONS``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """How batches are made; the position names the random streams."""

    batch_size: int
    input: InputConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool
    device: torch.device
    seed: int
    position: int = 0
    """The phase's position in the run."""
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Some samples of one split, in some order, with weights."""

    split: str
    index: Tensor
    """int64 [n], positions in the split."""
    settings: LoaderSettings
    _frames: Rows
    _columns: Columns
    _weight: Tensor | None = None
    """float32 [N of the split], by sample index."""
    _draw_weight: Tensor | None = None
    _sampler: BatchSampler | None = None
    _image_map: ImageMap | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def y(self) -> Tensor:
        """int64 [n].

        Raises:
            AccessDenied: validation labels without ``VAL_LABELS``.
        """
        if self._columns.y is None:
            raise AccessDenied(f"labels of {self.split} were not declared: add Access.VAL_LABELS to the method")
        return self._columns.y[self.index]

    @property
    def group(self) -> Tensor:
        """int64 [n].

        Raises:
            AccessDenied: groups that the method did not declare, or that the dataset does not have.
        """
        if self._columns.group is None:
            flag = "TRAIN_GROUPS" if self.split == "train" else "VAL_GROUPS"
            raise AccessDenied(f"groups of {self.split} are not available: add Access.{flag} to the method")
        return self._columns.group[self.index]

    def reweight(self, weights: Tensor) -> "View":
        """Loss weights by position in the split, [N]; the loss is mean(w * l)."""
        self._check_length(weights)
        return dataclasses.replace(self, _weight=weights.float().cpu())

    def resample(self, weights: Tensor) -> "View":
        """Each epoch draws len(self) samples with replacement, by weight per position in the split, [N]."""
        self._check_length(weights)
        return dataclasses.replace(self, _draw_weight=weights.double().cpu())

    def batches(self, sampler: BatchSampler) -> "View":
        """Batches that the method composes itself."""
        return dataclasses.replace(self, _sampler=sampler)

    def map_images(self, fn: ImageMap, *, artifact: str) -> "View":
        """Change cached frames before augmentation; ``artifact`` names what the change was computed from."""
        assert artifact, "a view's change must be traceable to an artifact"
        return dataclasses.replace(self, _image_map=fn)

    def subset(self, index: Tensor) -> "View":
        """The samples at these positions of the view, int64 [m]."""
        return dataclasses.replace(self, index=self.index[index.cpu()])

    def at(self, *, position: int, epoch: int, batch_size: int | None = None) -> "View":
        """The same view with the random streams of another phase and epoch."""
        changes = {"position": position, "epoch": epoch, "batch_size": batch_size or self.settings.batch_size}
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changes))  # type: ignore[arg-type]

    def digest(self) -> str | None:
        """A hash of which samples are drawn and how they are weighted; None where a method's own code decides."""
        if self._sampler is not None or self._image_map is not None:
            return None
        digest = hashlib.sha256(self.split.encode())
        for column in (self.index, self._weight, self._draw_weight):
            digest.update(b"-" if column is None else column.numpy().tobytes() + str(column.dtype).encode())
        return digest.hexdigest()

    def num_batches(self) -> int:
        """Batches of one pass; the last one may be smaller."""
        if self._sampler is not None:
            return len(self._order(shuffle=True))
        return -(-len(self) // self.settings.batch_size)

    def loader(self, *, shuffle: bool, augment: bool, start: int = 0) -> Iterator[Batch]:
        """One pass over the view, from batch number ``start``."""
        return (batch for batch, _ in self.parts(shuffle=shuffle, augment=augment, start=start, cut=lambda _: None))

    def parts(
        self, *, shuffle: bool, augment: bool, start: int, cut: Callable[[int], Part | None]
    ) -> Iterator[tuple[Batch, Part | None]]:
        """One pass over a part of every batch; its samples are as in the whole batch.

        Args:
            cut: from the size of a batch to what of it is wanted; None: all.
        """
        order = self._order(shuffle)
        announced = start
        for step, positions in enumerate(order):
            if step >= start:
                for following in order[announced : step + 1 + AHEAD]:
                    announce(self._frames, _cut(following, cut(len(following))))
                announced = step + 1 + AHEAD
                part = cut(len(positions))
                yield self._batch(positions, step, augment, part), part

    def _order(self, shuffle: bool) -> list[Tensor]:
        """Positions in the split, batch by batch."""
        settings = self.settings
        rng = generator(settings.seed, "loader", settings.position, settings.epoch)
        if not shuffle:
            return list(torch.split(self.index, settings.batch_size))
        if self._sampler is not None:
            return [self.index[torch.as_tensor(list(batch))] for batch in self._sampler(rng)]
        if self._draw_weight is not None:
            drawn = torch.multinomial(self._draw_weight[self.index], len(self), replacement=True, generator=rng)
            return list(torch.split(self.index[drawn], settings.batch_size))
        return list(torch.split(self.index[torch.randperm(len(self), generator=rng)], settings.batch_size))

    def _batch(self, positions: Tensor, step: int, augment: bool, part: Part | None) -> Batch:
        settings = self.settings
        size = len(positions)
        positions = _cut(positions, part)
        device = settings.device
        frames = gather(self._frames, positions, device)
        if self._image_map is not None:
            frames = self._image_map(frames, positions)
        masks = None if self._columns.masks is None else gather(self._columns.masks, positions, device)
        if augment:
            rng = generator(settings.seed, "augment", settings.position, settings.epoch, step)
            crops = draw_crops(size, settings.input, rng)
            crops = crops if part is None else _rows_of(crops, part.rows)
            images = apply_crops(
                frames, crops, settings.input, settings.mean, settings.std, channels_last=settings.channels_last
            )
            masks = None if masks is None else apply_crops_to_masks(masks, crops, settings.input)
        else:
            images = evaluation_images(
                frames, settings.input, settings.mean, settings.std, channels_last=settings.channels_last
            )
            masks = None if masks is None else evaluation_masks(masks, settings.input)
        y = self._columns.y
        weight = torch.ones(len(positions)) if self._weight is None else self._weight[positions]
        common = {
            "images": images,
            # Without declared labels there is nothing to read: -1 is no class.
            "y": send(torch.full_like(positions, -1) if y is None else y[positions], device),
            "index": send(positions, device),
            "weight": send(weight, device),
        }
        group = None if self._columns.group is None else send(self._columns.group[positions], device)
        if masks is not None:
            return RegionBatch(**common, mask=masks.bool(), group=group)
        return Batch(**common) if group is None else GroupedBatch(**common, group=group)

    def _check_length(self, weights: Tensor) -> None:
        if weights.shape != (len(self._frames),):
            raise ValueError(
                f"weights must be by position in the split: {len(self._frames)}, got {tuple(weights.shape)}"
            )


def make_view(
    split: str,
    frames: Frames,
    y: Tensor,
    group: Tensor | None,
    access: Access,
    settings: LoaderSettings,
) -> View:
    """The view of a split that a method with ``access`` may have; what it may not read is not in it."""
    train = split == "train"
    labels_allowed = train or Access.VAL_LABELS in access
    groups_allowed = (Access.TRAIN_GROUPS if train else Access.VAL_GROUPS) in access
    return View(
        split=split,
        index=torch.arange(len(y)),
        settings=settings,
        _frames=frames.images,
        _columns=Columns(
            y=y if labels_allowed else None,
            group=group if groups_allowed else None,
            masks=frames.masks if Access.REGIONS in access else None,
        ),
    )


def _cut(positions: Tensor, part: Part | None) -> Tensor:
    return positions if part is None else positions[part.rows]


def _rows_of(crops: Crops, rows: slice) -> Crops:
    return Crops(**{field.name: getattr(crops, field.name)[rows] for field in dataclasses.fields(crops)})
