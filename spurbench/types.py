"""The plain data that travels between datasets, methods and the engine.

Shape letters used throughout: B batch, C classes or channels, H x W input pixels,
h x w feature positions, n boxes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Flag, auto

from torch import Tensor

__all__ = [
    "Access",
    "Batch",
    "GroupedBatch",
    "OfficialMetric",
    "Part",
    "Prediction",
    "RegionBatch",
    "Sample",
    "StepOutput",
]


class Access(Flag):
    """Supervision that a method may read beyond images and class labels of the training set."""

    NONE = 0
    TRAIN_GROUPS = auto()
    VAL_GROUPS = auto()
    VAL_LABELS = auto()
    REGIONS = auto()

    def names(self) -> str:
        """``"none"`` or the flags joined by ``+``, lower case; the form stored in result rows."""
        return "+".join((flag.name or "").lower() for flag in self) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image as its dataset stores it, before any transform."""

    image: Tensor
    """uint8 [3, H, W], RGB."""
    y: int
    """Class index."""
    group: int | None
    """``y * num_attributes + attribute``; None when the dataset has no attribute."""
    index: int
    """Position in its split, 0..n-1, stable within (dataset, version, split)."""
    boxes: Tensor | None = None
    """float32 [n, 4], xyxy in pixels of ``image``, half open."""
    mask: Tensor | None = None
    """bool [H, W], True on the foreground object."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one of several processes has of a step's batch."""

    rows: slice
    """Of the whole batch."""
    size: int
    """Samples of the whole batch."""
    share: float
    """Weight of this process's mean in the mean over the whole batch; 1 over all processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What every method gets: no group, no region."""

    images: Tensor
    """float [B, 3, H, W], normalized."""
    y: Tensor
    """int64 [B]."""
    index: Tensor
    """int64 [B], positions in the split."""
    weight: Tensor
    """float32 [B], loss weights; 1 unless a view was reweighted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedBatch(Batch):
    """A batch for methods that declared ``TRAIN_GROUPS`` or ``VAL_GROUPS``."""

    group: Tensor
    """int64 [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionBatch(Batch):
    """A batch for methods that declared ``REGIONS``."""

    mask: Tensor | None
    """bool [B, H, W] in the frame of ``images``; None when the dataset has no masks."""
    group: Tensor | None = None
    """int64 [B] when groups were declared too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a method says about a batch of images, in evaluation mode."""

    logits: Tensor
    """float [B, C]."""
    mask: Tensor | None = None
    """[0, 1], [B, h, w], merged over stages; None when the method has no mask."""
    stage_masks: tuple[Tensor, ...] = ()
    """Per-stage masks [B, h_l, w_l], deep to shallow."""

    def detach(self) -> "Prediction":
        """The same numbers without a graph."""
        return Prediction(
            logits=self.logits.detach(),
            mask=None if self.mask is None else self.mask.detach(),
            stage_masks=tuple(mask.detach() for mask in self.stage_masks),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """The loss of one training step and what to log about it."""

    loss: Tensor
    """0-d, to be minimized."""
    scalars: Mapping[str, Tensor]
    """0-d tensors on the device, never floats: reading one would stop the device."""


OfficialMetric = Callable[[Tensor, Tensor, Tensor | None], float | None]
"""A number that a dataset's publishers report, 0..1, from labels, predictions and groups of a split's samples.

Each is int64 [N]; groups are None when the dataset has no attribute. None where these samples do not define it.
"""
