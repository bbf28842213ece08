"""What every dataset must do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from spurbench.dataset import Dataset, DatasetSpec, SplitData
from spurbench.testing.requirements import broken, require

__all__ = ["DATASET_CHECKS", "OpenedTwice", "check_dataset"]


def check_dataset(spec: DatasetSpec, root: Path | None = None, *, samples: int = 8) -> list[str]:
    """Open a dataset and run every check on every split; returns the names of the checks that passed.

    Args:
        root: the data root, for datasets that are read from files.
        samples: how many samples of each split are looked at; the search for equal images looks at eight times as many.

    Raises:
        AssertionError: a requirement that does not hold, by name.
        DataMissing: nothing is there.
        DataError: what is there is malformed.
    """
    opened = OpenedTwice(spec, spec.open(root), spec.open(root), samples)
    for check in DATASET_CHECKS:
        try:
            check(opened)
        except Exception as error:
            raise broken(spec.info.name, check, error) from error
    return [check.__name__.lstrip("_") for check in DATASET_CHECKS]


@dataclass(frozen=True, slots=True)
class OpenedTwice:
    """A dataset under test, opened twice, since what is stable must survive that."""

    spec: DatasetSpec
    dataset: Dataset
    again: Dataset
    samples: int

    def splits(self) -> Iterator[tuple[str, SplitData, SplitData]]:
        """Every split with its name and its twin."""
        for name in self.dataset.info.splits:
            yield name, self.dataset.split(name), self.again.split(name)


def _declaration_holds(opened: OpenedTwice) -> None:
    """What is opened has the declared name, version, classes, attributes and splits, among them train, val and test."""
    info, declared = opened.dataset.info, opened.spec.info
    missing = {"train", "val", "test"} - set(info.splits)
    require(not missing, f"splits lack {sorted(missing)}")
    require(len(info.classes) >= 2, f"{len(info.classes)} classes")
    if declared.classes:  # otherwise the names are read from the data
        differ = [
            field.name
            for field in fields(declared)
            if field.name not in ("has_boxes", "has_masks")  # what lies beside the images may vary
            and getattr(declared, field.name) != getattr(info, field.name)
        ]
        require(not differ, f"{', '.join(differ)}: declared and opened differ")


def _columns_agree(opened: OpenedTwice) -> None:
    """Columns y and group agree with the samples, and indices are dense, stable positions."""
    for name, split, again in opened.splits():
        require(len(split) == len(split.y) > 0, f"{name}: {len(split)} samples, {len(split.y)} labels")
        has_attributes = opened.dataset.info.attributes is not None
        require((split.group is not None) == has_attributes, f"{name}: group column and attributes differ")
        require(torch.equal(split.y, again.y), f"{name}: y differs between two openings")
        for i in _positions(split, opened.samples):
            sample = split[i]
            require(sample.index == i, f"{name}[{i}] has index {sample.index}")
            require(sample.y == int(split.y[i]), f"{name}[{i}] has y {sample.y}, the column {int(split.y[i])}")
            group = None if split.group is None else int(split.group[i])
            require(sample.group == group, f"{name}[{i}] has group {sample.group}, the column {group}")
        try:
            split[len(split)]
        except IndexError:
            continue
        raise AssertionError(f"{name}[{len(split)}] is beyond the end and does not raise IndexError")


def _labels_in_range(opened: OpenedTwice) -> None:
    """Labels and groups are int64 in their declared ranges, and group is y * num_attributes + attribute."""
    info = opened.dataset.info
    for name, split, _ in opened.splits():
        _require_range(split.y, len(info.classes), f"{name}: y")
        if split.group is not None and info.attributes is not None:
            _require_range(split.group, info.num_groups, f"{name}: group")
            require(torch.equal(split.group // len(info.attributes), split.y), f"{name}: group does not contain y")


def _images_are_stable(opened: OpenedTwice) -> None:
    """Images are uint8 [3, H, W], and equal whenever they are read."""
    for name, split, again in opened.splits():
        for i in _positions(split, opened.samples):
            image = split[i].image
            require(
                image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3,
                f"{name}[{i}] is {image.dtype} {tuple(image.shape)}",
            )
            require(torch.equal(image, split[i].image), f"{name}[{i}] differs from call to call")
            require(torch.equal(image, again[i].image), f"{name}[{i}] differs between two openings")


def _regions_fit(opened: OpenedTwice) -> None:
    """Masks are bool [H, W] of the image's size, boxes float [n, 4] inside it, both as far as declared."""
    info = opened.dataset.info
    # A split has a mask for every image or for none.
    masked = {name: split[0].mask is not None for name, split, _ in opened.splits()}
    require(any(masked.values()) == info.has_masks, "mask and has_masks differ")
    for name, split, _ in opened.splits():
        for i in _positions(split, opened.samples):
            sample = split[i]
            height, width = sample.image.shape[1:]
            require((sample.mask is not None) == masked[name], f"{name}[{i}]: a mask for some images, none for others")
            require((sample.boxes is not None) <= info.has_boxes, f"{name}[{i}]: boxes without has_boxes")
            if sample.mask is not None:
                require(
                    sample.mask.dtype == torch.bool and sample.mask.shape == (height, width),
                    f"{name}[{i}]: mask is {sample.mask.dtype} {tuple(sample.mask.shape)}",
                )
            if sample.boxes is not None:
                boxes = sample.boxes
                is_table = boxes.ndim == 2 and boxes.shape[1] == 4 and boxes.is_floating_point()
                require(is_table, f"{name}[{i}]: boxes are {boxes.dtype} {tuple(boxes.shape)}")
                x0, y0, x1, y1 = boxes.unbind(1)
                inside = (x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height)
                require(inside.all(), f"{name}[{i}]: a box leaves the image: {boxes.tolist()}")
                require(((x0 < x1) & (y0 < y1)).all(), f"{name}[{i}]: a box is empty: {boxes.tolist()}")


def _splits_disjoint(opened: OpenedTwice) -> None:
    """No image of train or val stands in another split (looked at a part of each)."""
    # A test split may be part of another one: so does a set name a number published for some of its test images.
    seen: dict[bytes, str] = {}
    for name, split, _ in opened.splits():
        for i in _positions(split, 8 * opened.samples):
            other = seen.setdefault(split[i].image.numpy().tobytes(), name)
            require(other == name or not {other, name} & {"train", "val"}, f"{name}[{i}] is in {other} too")


def _fingerprint_is_stable(opened: OpenedTwice) -> None:
    """The fingerprint is a hash that is equal for equal data."""
    ours, theirs = opened.dataset.fingerprint(), opened.again.fingerprint()
    require(isinstance(ours, str) and len(ours) >= 16, f"it is {ours!r}")
    require(ours == theirs, "it differs between two openings")


DATASET_CHECKS: tuple[Callable[[OpenedTwice], None], ...] = (
    _declaration_holds,
    _columns_agree,
    _labels_in_range,
    _images_are_stable,
    _regions_fit,
    _splits_disjoint,
    _fingerprint_is_stable,
)


def _positions(split: SplitData, samples: int) -> Sequence[int]:
    """Evenly spaced positions, the first among them."""
    return range(0, len(split), max(1, len(split) // samples))


def _require_range(column: Tensor, end: int, what: str) -> None:
    require(column.dtype == torch.int64 and column.ndim == 1, f"{what} is {column.dtype} {tuple(column.shape)}")
    low, high = int(column.min()), int(column.max())
    require(low >= 0 and high < end, f"{what} has values {low}..{high}, expected 0..{end - 1}")
