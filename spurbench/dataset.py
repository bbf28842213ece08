"""What a dataset has to offer: a declaration, splits of samples, and a fingerprint."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from spurbench.registry import load_registry
from spurbench.types import OfficialMetric, Sample

__all__ = [
    "UNCHANGED",
    "Archive",
    "ChangedSplit",
    "Dataset",
    "DatasetInfo",
    "DatasetSpec",
    "DatasetTransform",
    "Fault",
    "SplitData",
    "TransformedDataset",
    "content_key",
    "find_dataset",
    "transformed",
    "with_transforms",
]

UNCHANGED = ("train", "val")
"""Splits that transforms leave alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A file that a dataset is published in, as far as its publishers or several independent sources tell."""

    filename: str
    url: str = ""
    """A stable public address of the file itself; empty when it can only be fetched by hand, see the set's source."""
    size: int | None = None
    """Bytes."""
    md5: str | None = None
    sha256: str | None = None
    into: str = "."
    """Folder below the data root in which it has to be unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that ``data check`` found."""

    severity: Literal["error", "warning"]
    """A broken fact that was verified, or a difference to one that was not."""
    where: str
    """File and row, as exactly as known."""
    problem: str


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
    """Samples per split as published or recomputed: per group (per class without attributes), or one total.

    A difference warns when a run opens the set, and fails ``data check``."""
    likely_counts: dict[str, tuple[int, ...]] | None = None
    """The same from papers alone, not checked again: a difference only warns in ``data check``."""
    archives: tuple[Archive, ...] = ()
    """What ``data prepare`` unpacks."""
    official: dict[str, OfficialMetric] | None = None
    """What the set's publishers report and no column of a result row holds, by the name that it has in rows."""

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
    if isinstance(dataset, TransformedDataset) and split in UNCHANGED:
        return content_key(dataset.base, split)
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
    writes: tuple[str, ...] = ()
    """The files and folders that ``write`` puts there: where one of them is already, nothing is drawn."""
    check: Callable[[Dataset], Iterable[Fault]] | None = None
    """Further faults that only this set can have, such as labels that differ from its reference table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetTransform:
    """A change of the images that a trained network is tested on, written behind a name: ``waterbirds100+peripheral``.

    Training and validation stay as they are, so that a run on the changed set and an evaluation of a run on the plain
    one measure the same.
    """

    name: str
    version: str
    description: str
    declare: Callable[[DatasetInfo], DatasetInfo]
    """What a dataset becomes; name and version are taken care of. Raises ``ConfigError`` where it cannot be applied."""
    change: Callable[[SplitData, DatasetInfo], SplitData]
    """The changed split of a dataset with this (plain) declaration."""


class ChangedSplit:
    """A split whose samples are changed one by one, while number, labels and groups stay."""

    def __init__(self, plain: SplitData, change: Callable[[Sample], Sample]) -> None:
        self._plain, self._change = plain, change

    @property
    def y(self) -> Tensor:
        """int64 [n]."""
        return self._plain.y

    @property
    def group(self) -> Tensor | None:
        """int64 [n]; None without attributes."""
        return self._plain.group

    def __len__(self) -> int:
        return len(self._plain)

    def __getitem__(self, index: int) -> Sample:
        """Decode and change one sample; raises what the plain split raises."""
        return self._change(self._plain[index])


@dataclass(frozen=True, slots=True)
class TransformedDataset:
    """A dataset whose splits for testing are changed."""

    info: DatasetInfo
    base: Dataset
    transform: DatasetTransform

    def split(self, name: str) -> SplitData:
        """The split called ``name``, changed unless it is ``train`` or ``val``."""
        plain = self.base.split(name)
        return plain if name in UNCHANGED else self.transform.change(plain, self.base.info)

    def fingerprint(self) -> str:
        """Hash of the plain dataset's fingerprint and of the transform."""
        content = f"{self.base.fingerprint()}+{self.transform.name} {self.transform.version}"
        return hashlib.sha256(content.encode()).hexdigest()


def transformed(spec: DatasetSpec, transform: DatasetTransform) -> DatasetSpec:
    """The dataset ``spec`` with a transform.

    Raises:
        ConfigError: the transform cannot be applied to this dataset.
    """
    return DatasetSpec(
        info=_declare(spec.info, transform),
        open=partial(_open_transformed, spec, transform),
        check=None if spec.check is None else partial(_check_plain, spec.check),
    )


def find_dataset(name: str, plugins: tuple[Path, ...] = ()) -> DatasetSpec:
    """The registered dataset called ``name``, with the transforms that follow it: ``"cub200+peripheral"``.

    Raises:
        ConfigError: an unknown dataset or transform, or one that cannot be applied.
    """
    base, *changes = name.split("+")
    spec: DatasetSpec = load_registry("datasets", plugins).get(base).value
    return with_transforms(spec, changes, plugins)


def with_transforms(spec: DatasetSpec, names: list[str], plugins: tuple[Path, ...] = ()) -> DatasetSpec:
    """``spec`` with the registered transforms called ``names``, in this order; see ``find_dataset``."""
    for name in names:
        spec = transformed(spec, load_registry("transforms", plugins).get(name).value)
    return spec


def _declare(info: DatasetInfo, transform: DatasetTransform) -> DatasetInfo:
    return replace(
        transform.declare(info),
        name=f"{info.name}+{transform.name}",
        version=f"{info.version}+{transform.version}",
    )


def _check_plain(check: Callable[[Dataset], Iterable[Fault]], dataset: Dataset) -> Iterable[Fault]:
    """Files and labels are those of the plain dataset, and so is what is published of them."""
    assert isinstance(dataset, TransformedDataset)
    return check(dataset.base)


def _open_transformed(spec: DatasetSpec, transform: DatasetTransform, root: Path | None) -> Dataset:
    base = spec.open(root)
    return TransformedDataset(_declare(base.info, transform), base, transform)
