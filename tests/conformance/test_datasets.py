"""Every dataset that needs no download conforms, layouts of files do, and each requirement can be broken."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.errors import DataMissing
from spurbench.registry import load_registry
from spurbench.testing import DATASET_CHECKS, check_dataset
from spurbench.types import Sample

SPECS: dict[str, DatasetSpec] = {name: entry.value for name, entry in load_registry("datasets").entries.items()}


@pytest.mark.parametrize("name", sorted(name for name in SPECS if name.startswith("mini")))
def test_procedural_datasets_conform(name: str) -> None:
    assert len(check_dataset(SPECS[name])) == len(DATASET_CHECKS)


@pytest.mark.parametrize("masks", [None, "segmentations"])
@pytest.mark.parametrize("boxes", [None, "CUB_200_2011"])
def test_files_of_waterbirds_conform(waterbirds_root: Callable[..., Any], masks: str | None, boxes: str | None) -> None:
    layout = waterbirds_root(masks=masks, boxes=boxes)
    assert len(check_dataset(SPECS["waterbirds95"], layout.root)) == len(DATASET_CHECKS)


@pytest.mark.parametrize("dialect", ["official", "other"])
def test_own_folders_conform(waterbirds_root: Callable[..., Any], dialect: str) -> None:
    layout = waterbirds_root("my_birds", dialect=dialect)
    check_dataset(SPECS["folder"], layout.folder)


def test_missing_data_is_said_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="waterbirds95 not found"):
        check_dataset(SPECS["waterbirds95"], tmp_path)


def test_damaged_images_are_found(waterbirds_root: Callable[..., Any]) -> None:
    layout = waterbirds_root()
    for row in range(len(layout.rows)):
        layout.image(row).write_bytes(b"no image")
    with pytest.raises(AssertionError, match=r"waterbirds95: .*\n?.*DataError"):
        check_dataset(SPECS["waterbirds95"], layout.root)


# --- a good toy, and toys that are bad in one way each ---


class Toy:
    """One split, in memory."""

    def __init__(self, name: str, n: int) -> None:
        self.name = name
        g = torch.Generator().manual_seed(n)
        self.images = torch.randint(0, 256, (n, 3, 10, 14), generator=g, dtype=torch.uint8)
        self.y = torch.arange(n) % 3
        self.group: Tensor | None = 2 * self.y + torch.arange(n) // 3 % 2

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(i)
        mask = torch.zeros(10, 14, dtype=torch.bool)
        mask[2:8, 3:9] = True
        return Sample(
            image=self.images[i],
            y=int(self.y[i]),
            group=None if self.group is None else int(self.group[i]),
            index=i,
            boxes=torch.tensor([[3.0, 2.0, 9.0, 8.0]]),
            mask=mask,
        )


INFO = DatasetInfo(
    name="toy",
    version="1",
    classes=("a", "b", "c"),
    attributes=("x", "y"),
    preset="minibirds",
    has_boxes=True,
    has_masks=True,
)
SIZES = {"train": 20, "val": 13, "test": 11}


class ToyDataset:
    info = INFO
    openings = 0

    def __init__(self) -> None:
        type(self).openings += 1
        self.opening = type(self).openings

    def split(self, name: str) -> Any:
        return Toy(name, SIZES[name])

    def fingerprint(self) -> str:
        return "0123456789abcdef"


def spec_of(dataset: Callable[[], Any], info: DatasetInfo = INFO) -> DatasetSpec:
    return DatasetSpec(info=info, open=lambda root: dataset())


def changed(change: Callable[[Toy, Sample], Sample]) -> type[ToyDataset]:
    """Every sample changed in one way."""

    class Split(Toy):
        def __getitem__(self, i: int) -> Sample:
            return change(self, super().__getitem__(i))

    class Dataset(ToyDataset):
        def split(self, name: str) -> Toy:
            return Split(name, SIZES[name])

    return Dataset


def reshaped(change: Callable[[Toy, ToyDataset], None], info: DatasetInfo = INFO) -> type[ToyDataset]:
    """Every split changed in one way."""

    class Dataset(ToyDataset):
        def split(self, name: str) -> Toy:
            split = Toy(name, SIZES[name])
            change(split, self)
            return split

    Dataset.info = info
    return Dataset


def setting(**values: Callable[[Toy], Any]) -> Callable[[Toy, ToyDataset], None]:
    def change(split: Toy, dataset: ToyDataset) -> None:
        for name, value in values.items():
            setattr(split, name, value(split))

    return change


class Endless(Toy):
    def __getitem__(self, i: int) -> Sample:
        return replace(super().__getitem__(i % len(self)), index=i)


class EndlessDataset(ToyDataset):
    def split(self, name: str) -> Toy:
        return Endless(name, SIZES[name])


class LeakyDataset(ToyDataset):
    """Test images that stand in train too, further back."""

    def split(self, name: str) -> Toy:
        split = Toy(name, SIZES[name])
        if name == "test":
            split.images[7] = Toy("train", SIZES["train"]).images[16]
        return split


class RestlessFingerprint(ToyDataset):
    def fingerprint(self) -> str:
        return f"{self.opening:016d}"


class ShortFingerprint(ToyDataset):
    def fingerprint(self) -> str:
        return "1"


def noisy(split: Toy, sample: Sample) -> Sample:
    return replace(sample, image=torch.randint(0, 256, sample.image.shape, dtype=torch.uint8))


def restless(split: Toy, dataset: ToyDataset) -> None:
    split.images = (split.images + dataset.opening).to(torch.uint8)


def shuffled(split: Toy, dataset: ToyDataset) -> None:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(dataset.opening))
    split.images, split.y = split.images[order], split.y[order]
    assert split.group is not None
    split.group = split.group[order]


def box(*corners: float) -> type[ToyDataset]:
    return changed(lambda split, sample: replace(sample, boxes=torch.tensor([corners])))


def channels_last(split: Toy, sample: Sample) -> Sample:
    return replace(sample, image=sample.image.movedim(0, 2))


def odd_masks(split: Toy, sample: Sample) -> Sample:
    return replace(sample, mask=None) if sample.index % 2 else sample


def small_mask(split: Toy, sample: Sample) -> Sample:
    return replace(sample, mask=torch.ones(5, 7, dtype=torch.bool))


NO_TEST = replace(INFO, splits=("train", "val"))

BAD: list[tuple[str, DatasetSpec, str, str]] = [
    ("no test split", spec_of(reshaped(setting(), NO_TEST)), "_declaration_holds", "lack"),
    ("other classes", spec_of(ToyDataset, replace(INFO, classes=("a", "b", "d"))), "_declaration_holds", "classes"),
    ("other version", spec_of(ToyDataset, replace(INFO, version="2")), "_declaration_holds", "version"),
    ("one class", spec_of(reshaped(setting(), replace(INFO, classes=("a",)))), "_declaration_holds", "1 classes"),
    ("short column", spec_of(reshaped(setting(y=lambda s: s.y[:-1]))), "_columns_agree", "20 samples, 19 labels"),
    ("no group", spec_of(reshaped(setting(group=lambda s: None))), "_columns_agree", "group column and attributes"),
    ("other index", spec_of(changed(lambda t, s: replace(s, index=s.index + 1))), "_columns_agree", "has index 1"),
    ("other y", spec_of(changed(lambda t, s: replace(s, y=(s.y + 1) % 3))), "_columns_agree", "has y 1, the column 0"),
    ("other group", spec_of(changed(lambda t, s: replace(s, group=None))), "_columns_agree", "has group None"),
    ("other order", spec_of(reshaped(shuffled)), "_columns_agree", "between two openings"),
    ("no end", spec_of(EndlessDataset), "_columns_agree", "does not raise IndexError"),
    ("y too large", spec_of(reshaped(setting(y=lambda s: s.y + 1))), "_labels_in_range", "values 1..3, expected 0..2"),
    ("y is float", spec_of(reshaped(setting(y=lambda s: s.y.double()))), "_labels_in_range", "torch.float64"),
    ("group too large", spec_of(reshaped(setting(group=lambda s: s.y + 4))), "_labels_in_range", "expected 0..5"),
    ("group without y", spec_of(reshaped(setting(group=lambda s: s.y))), "_labels_in_range", "does not contain y"),
    ("float image", spec_of(changed(lambda t, s: replace(s, image=s.image / 255))), "_images_are_stable", "float32"),
    ("channels last", spec_of(changed(channels_last)), "_images_are_stable", "(10, 14, 3)"),
    ("noise", spec_of(changed(noisy)), "_images_are_stable", "from call to call"),
    ("restless", spec_of(reshaped(restless)), "_images_are_stable", "between two openings"),
    ("no mask", spec_of(changed(lambda t, s: replace(s, mask=None))), "_regions_fit", "mask and has_masks"),
    ("some masks", spec_of(changed(odd_masks)), "_regions_fit", "a mask for some images"),
    ("secret mask", spec_of(reshaped(setting(), replace(INFO, has_masks=False))), "_regions_fit", "mask and has_masks"),
    ("secret box", spec_of(reshaped(setting(), replace(INFO, has_boxes=False))), "_regions_fit", "without has_boxes"),
    ("small mask", spec_of(changed(small_mask)), "_regions_fit", "(5, 7)"),
    ("grey mask", spec_of(changed(lambda t, s: replace(s, mask=torch.ones(10, 14)))), "_regions_fit", "float32"),
    ("box outside", spec_of(box(3.0, 2.0, 15.0, 8.0)), "_regions_fit", "leaves the image"),
    ("box before", spec_of(box(-1.0, 2.0, 9.0, 8.0)), "_regions_fit", "leaves the image"),
    ("empty box", spec_of(box(3.0, 2.0, 3.0, 8.0)), "_regions_fit", "is empty"),
    ("flat box", spec_of(changed(lambda t, s: replace(s, boxes=torch.zeros(4)))), "_regions_fit", "boxes are"),
    ("leak", spec_of(LeakyDataset), "_splits_disjoint", "test[7] is in train too"),
    ("restless fingerprint", spec_of(RestlessFingerprint), "_fingerprint_is_stable", "differs between two openings"),
    ("short fingerprint", spec_of(ShortFingerprint), "_fingerprint_is_stable", "it is '1'"),
]  # fmt: skip


def test_the_good_toy_conforms() -> None:
    assert len(check_dataset(spec_of(ToyDataset))) == len(DATASET_CHECKS)
    without = replace(INFO, attributes=None)
    plain = reshaped(setting(group=lambda split: None), without)
    check_dataset(spec_of(plain, without))


@pytest.mark.parametrize(("spec", "check", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_datasets_fail_what_they_break(spec: DatasetSpec, check: str, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_dataset(spec)
    requirement = next(c.__doc__ for c in DATASET_CHECKS if c.__name__ == check)
    assert requirement is not None
    assert str(caught.value).startswith(f"toy: {requirement}")
    assert message in str(caught.value)


def test_every_requirement_can_be_broken() -> None:
    assert {check for _, _, check, _ in BAD} == {check.__name__ for check in DATASET_CHECKS}
