"""Camelyon17, CelebA, FMoW and iWildCam as the package ``wilds`` 2.0 reads them: ``wilds_fmow`` and so on.

For who wants numbers on exactly what that package serves (extra ``wilds``): labels, splits, groups and pixels are its
own, read below the data root and never downloaded. Names of classes and groups, official metrics and CelebA's middle
square are those of ``fmow`` and its likes. What the package does not tell is missing: the row of a fault, images that
are not there (until they are decoded), Camelyon17's boxes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.datasets import camelyon17, celeba, fmow, iwildcam
from spurbench.errors import DataError, DataMissing, install_line, require_split
from spurbench.image_dataset import find_folder, warn_about_counts
from spurbench.types import Sample

__all__ = ["DATASETS"]


class WildsSplit:
    """One split; satisfies ``spurbench.dataset.SplitData``."""

    def __init__(self, subset: Any, group: Tensor | None) -> None:
        self.y: Tensor = subset.y_array
        self.group = None if group is None else group[subset.indices]
        self._subset = subset

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Sample:
        """Decode one sample; raises ``DataError`` for an image that is damaged or not there."""
        index = range(len(self))[index]
        try:
            image, y, _ = self._subset[index]
        except Exception as error:  # damaged bytes raise nearly anything in PIL
            raise DataError(f"wilds cannot read sample {index} of a split: {error}") from error
        return Sample(image=image, y=int(y), group=None if self.group is None else int(self.group[index]), index=index)


@dataclass(frozen=True)
class WildsDataset:
    """A dataset that ``wilds`` has opened."""

    info: DatasetInfo
    folder: Path
    splits: dict[str, WildsSplit]

    def split(self, name: str) -> WildsSplit:
        """The split called ``name``; raises ``ConfigError`` for an unknown name."""
        require_split(name, self.splits)
        return self.splits[name]

    def fingerprint(self) -> str:
        """Hash of labels, groups, and the names and sizes of all files in the set's folder."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            group = None if split.group is None else split.group.tolist()
            digest.update(repr((name, split.y.tolist(), group)).encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(self.folder)} {path.stat().st_size}\n".encode())
        return digest.hexdigest()


def open_wilds(
    info: DatasetInfo,
    folder: str,
    attribute_of: Callable[[Any], Tensor] | None,
    pixels_of: Callable[[Any], Tensor],
    root: Path | None,
) -> WildsDataset:
    """Open a set below a data root, or in the root itself.

    Raises:
        DataMissing: no root was given, or the set or the package is not there.
        DataError: anything that the package raises.
    """
    found = find_folder(info, root, (folder,), holds=lambda f: any(f.glob("RELEASE_v*.txt")), expected="RELEASE_v*.txt")
    try:
        from wilds import get_dataset
    except ImportError as error:
        raise DataMissing(f"{info.name} needs the package wilds: {install_line('wilds')}") from error
    try:
        theirs = get_dataset(folder.partition("_")[0], root_dir=str(found.parent), download=False)
        group = None if attribute_of is None else theirs.y_array * len(info.attributes or ()) + attribute_of(theirs)
        splits = {n: WildsSplit(theirs.get_subset(n, transform=pixels_of), group) for n in info.splits}
    except Exception as error:
        raise DataError(f"wilds cannot read {found}: {type(error).__name__}: {error}") from error
    opened = WildsDataset(info, found, splits)
    warn_about_counts(opened, found)
    return opened


def _pixels(image: Any) -> Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _middle_square(image: Any) -> Tensor:
    square: Tensor = center_crop(_pixels(image), [min(image.size)])
    return square


def _first_field(theirs: Any) -> Tensor:
    field: Tensor = theirs.metadata_array[:, 0]
    return field


def _region(theirs: Any) -> Tensor:
    """``wilds`` numbers regions as they occur."""
    names = theirs.metadata_map["region"]
    ours = [fmow.REGIONS.index(name) if name in fmow.REGIONS else fmow.OTHER for name in names]
    return torch.tensor(ours)[_first_field(theirs)]


def _spec(
    of: Any, attribute_of: Callable[[Any], Tensor] | None, pixels_of: Callable[[Any], Tensor] = _pixels
) -> DatasetSpec:
    source = "WILDS' own download (python -m wilds.download_datasets), a folder with a file RELEASE_v*.txt"
    info = replace(of.INFO, name=f"wilds_{of.INFO.name}", has_boxes=False, archives=(), source=source)
    return DatasetSpec(info=info, open=partial(open_wilds, info, of.FOLDERS[0], attribute_of, pixels_of))


_SPECS = (
    _spec(camelyon17, _first_field),
    _spec(celeba, _first_field, _middle_square),
    _spec(fmow, _region),
    _spec(iwildcam, None),
)
DATASETS = {spec.info.name: spec for spec in _SPECS}
