"""The readers through the package ``wilds``: they read what our own readers do, and what is missing or damaged is said.

The layouts are those of the tests of our own readers.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spurbench.datasets.wilds import DATASETS
from spurbench.datatools.inventory import take_stock
from spurbench.errors import DataError, DataMissing
from spurbench.registry import load_registry
from spurbench.testing import DATASET_CHECKS, check_dataset

FOLDERS = {
    "camelyon17": "camelyon17_v1.0",
    "celeba": "celebA_v1.0",
    "fmow": "fmow_v1.1",
    "iwildcam": "iwildcam_v2.0",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),  # Inside wilds.
    pytest.mark.filterwarnings("ignore:Minimum metadata value for CombinatorialGrouper:UserWarning"),
]


def mark(root: Path, name: str) -> Path:
    """The set's folder, which from now on claims to hold it."""
    folder = root / FOLDERS[name]
    folder.mkdir(exist_ok=True)
    (folder / f"RELEASE_{FOLDERS[name].rpartition('_')[2]}.txt").touch()
    return folder


def write(root: Path, name: str) -> Path:
    """The set's folder with its layout."""
    found = importlib.util.spec_from_file_location(f"layout_of_{name}", Path(__file__).with_name(f"test_{name}.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    writer: Callable[[Path], Path] = getattr(module, f"write_{name}")
    writer(root)
    return mark(root, name)


@pytest.mark.parametrize("name", FOLDERS)
def test_reads_what_our_reader_does(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    spec = DATASETS[f"wilds_{name}"]
    ours, theirs = load_registry("datasets").get(name).value.open(tmp_path), spec.open(tmp_path)
    for part in ("classes", "attributes", "splits"):
        assert getattr(ours.info, part) == getattr(theirs.info, part)
    assert not theirs.info.has_boxes
    for split in ours.info.splits:
        one, other = ours.split(split), theirs.split(split)
        assert torch.equal(one.y, other.y)
        assert (one.group is None) == (other.group is None)
        if one.group is not None and other.group is not None:
            assert torch.equal(one.group, other.group)
        for index in range(len(one)):
            assert torch.equal(one[index].image, other[index].image)
    assert len(check_dataset(spec, tmp_path)) == len(DATASET_CHECKS)


@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_is_downloaded_or_made(tmp_path: Path, name: str) -> None:
    for root in (None, tmp_path, tmp_path / "absent"):
        with pytest.raises(DataMissing, match=FOLDERS[name]):
            DATASETS[f"wilds_{name}"].open(root)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FOLDERS)
def test_what_the_package_raises_is_a_message(tmp_path: Path, name: str) -> None:
    folder = mark(tmp_path, name)
    with pytest.raises(DataError, match=f"wilds cannot read {folder}: FileNotFoundError: "):
        DATASETS[f"wilds_{name}"].open(tmp_path)


def test_another_release_is_not_replaced(tmp_path: Path) -> None:
    folder = mark(tmp_path, "fmow")
    (folder / "RELEASE_v1.1.txt").rename(folder / "RELEASE_v1.0.txt")
    with pytest.raises(DataError, match="FileNotFoundError: The fmow dataset could not be found"):
        DATASETS["wilds_fmow"].open(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["RELEASE_v1.0.txt"]


def test_a_damaged_image_is_told_when_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, "iwildcam")
    spec = DATASETS["wilds_iwildcam"]
    before = spec.open(tmp_path).fingerprint()
    for image in (folder / "train").iterdir():
        image.write_bytes(b"no image")
    dataset = spec.open(tmp_path)
    assert dataset.fingerprint() != before
    with pytest.raises(DataError, match="wilds cannot read sample 1 of a split: cannot identify image file"):
        dataset.split("test")[1]


def test_the_package_is_needed_to_open_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark(tmp_path, "fmow")
    monkeypatch.setitem(sys.modules, "wilds", None)
    with pytest.raises(DataMissing, match=r"wilds_fmow needs the package wilds: pip install .*\[wilds\]"):
        DATASETS["wilds_fmow"].open(tmp_path)
    assert len(list(take_stock(load_registry("datasets"), tmp_path, "wilds_"))) == len(DATASETS)
