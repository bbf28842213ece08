"""What a dataset has to offer: a declaration, splits of samples, and a fingerprint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from spurbench.types import Sample

__all__ = ["Dataset", "DatasetInfo", "DatasetSpec", "SplitData", "content_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """The declaration of a dataset, readable without opening any file."""

    name: str
    version: str
    """Raised when images, labels or splits change: old numbers then stay apart."""
    classes: tuple[str, ...]
    attributes: tuple[str, ...] | None
    """Values of the spurious attribute; None when there is none (then "worst group" is the worst class)."""
    splits: tuple[str, ...] = ("train", "val", "test")
    preset: str = "convnext"
    """Name of the preset that ``run`` uses unless told otherwise."""
    description: str = ""
    license: str = ""
    citation: str = ""
    source: str = ""
    """Where to get the data; shown when it is missing."""
    has_boxes: bool = False
    has_masks: bool = False
    expected_counts: dict[str, tuple[int, ...]] | None = None
    """Published samples per group and split; a difference warns."""

    @property
    def num_groups(self) -> int:
        """Classes times attributes, whether or not a group has samples."""
        return len(self.classes) * len(self.attributes or ("",))

    @property
    def group_names(self) -> tuple[str, ...]:
        """``"landbird/water"`` for group index ``y * num_attributes + attribute``; class names without attributes."""
        if self.attributes is None:
            return self.classes
        return tuple(f"{c}/{a}" for c in self.classes for a in self.attributes)


class SplitData(Protocol):
    """One split: samples by position, and label columns that need no decoding."""

    @property
    def y(self) -> Tensor:
        """int64 [n]."""

    @property
    def group(self) -> Tensor | None:
        """int64 [n]; None when the dataset has no attribute."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample. Safe to call from several threads.

        Raises:
            DataError: a damaged file, named together with its row.
        """


class Dataset(Protocol):
    """An opened dataset."""

    @property
    def info(self) -> DatasetInfo:
        """The declaration, completed by what was found on disk."""

    def split(self, name: str) -> SplitData:
        """The split called ``name``, one of ``info.splits``."""

    def fingerprint(self) -> str:
        """Hash of file list, sizes, labels and splits: equal fingerprints mean equal data."""


def content_key(dataset: Dataset, split: str) -> str:
    """Says which images a split holds: the key under which its decoded frames are cached."""
    return f"{dataset.info.name}-{dataset.info.version}-{dataset.fingerprint()}-{split}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """A dataset that can be opened: what the registry holds under a name."""

    info: DatasetInfo
    open: Callable[[Path | None], Dataset]
    """Open below a data root (``--data-root``); checks structure only.

    Raises ``DataMissing`` when nothing is there and ``DataError`` when what is there is malformed.
    """
    write: Callable[[Path], None] | None = None
    """Write it to an empty folder in the official layout of the set it stands for; None if it cannot be generated."""
