"""Transforms behind a dataset's name: test data change, training data and their cache do not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spurbench.config import RunPaths
from spurbench.dataset import Dataset, Fault, content_key, find_dataset, with_transforms
from spurbench.engine.run import open_dataset
from spurbench.errors import ConfigError
from spurbench.resolve import RunRequest, dataset_entry, resolve_run
from spurbench.testing import check_dataset

PLUGIN = """
from dataclasses import replace
from spurbench.dataset import DatasetTransform
from spurbench.errors import ConfigError


class Negative:
    def __init__(self, split):
        self.plain, self.y, self.group = split, split.y, split.group

    def __len__(self):
        return len(self.plain)

    def __getitem__(self, index):
        sample = self.plain[index]
        return replace(sample, image=255 - sample.image)


def declare(info):
    if not info.has_masks:
        raise ConfigError(f"negative needs masks, which {info.name} does not have")
    return replace(info, description="negatives")


TRANSFORM = DatasetTransform(
    name="negative", version="3", description="negatives", declare=declare, change=lambda split, info: Negative(split)
)
"""


@pytest.fixture
def plugins(tmp_path: Path) -> tuple[Path, ...]:
    path = tmp_path / "negative.py"
    path.write_text(PLUGIN)
    return (path,)


def test_only_splits_for_testing_change(plugins: tuple[Path, ...]) -> None:
    spec = find_dataset("minibirds100+negative", plugins)
    plain, changed = find_dataset("minibirds100").open(None), spec.open(None)
    assert (changed.info.name, changed.info.version) == ("minibirds100+negative", f"{plain.info.version}+3")
    for name in plain.info.splits:
        ours, theirs = changed.split(name), plain.split(name)
        assert torch.equal(ours.y, theirs.y)
        expected = theirs[3].image if name in ("train", "val") else 255 - theirs[3].image
        assert torch.equal(ours[3].image, expected)
    assert changed.fingerprint() != plain.fingerprint()
    check_dataset(spec)


def test_decoded_training_images_are_shared(plugins: tuple[Path, ...]) -> None:
    plain = find_dataset("minibirds100").open(None)
    changed = find_dataset("minibirds100+negative", plugins).open(None)
    twice = find_dataset("minibirds100+negative+negative", plugins).open(None)
    for name in ("train", "val"):
        assert content_key(changed, name) == content_key(twice, name) == content_key(plain, name)
    assert len({content_key(dataset, "test") for dataset in (plain, changed, twice)}) == 3


def test_what_is_published_of_the_plain_set_is_compared(plugins: tuple[Path, ...]) -> None:
    asked: list[str] = []

    def check(dataset: Dataset) -> Iterator[Fault]:
        asked.append(dataset.info.name)
        yield Fault(severity="error", where="a table", problem="is another")

    plain = replace(find_dataset("minibirds100"), check=check)
    for changes in (["negative"], ["negative", "negative"]):
        spec = with_transforms(plain, changes, plugins)
        assert spec.check is not None
        assert [fault.where for fault in spec.check(spec.open(None))] == ["a table"]
    assert asked == ["minibirds100"] * 2
    assert find_dataset("minibirds100+negative", plugins).check is None


def test_a_run_on_changed_data(plugins: tuple[Path, ...], tmp_path: Path) -> None:
    request = RunRequest(method="erm", dataset="minibirds100+Negative", plugins=plugins)
    config, paths = resolve_run(request, RunPaths(results=tmp_path, cache=tmp_path))
    assert config.dataset.name == "minibirds100+negative"
    assert open_dataset(config, paths, plugins).info.description == "negatives"


def test_folders_can_be_changed_too(
    plugins: tuple[Path, ...], waterbirds_root: Callable[..., Any], tmp_path: Path
) -> None:
    layout = waterbirds_root("my_birds", masks="segmentations")
    request = RunRequest(method="erm", dataset=f"{layout.folder}+negative", plugins=plugins)
    config, paths = resolve_run(request, RunPaths(results=tmp_path, cache=tmp_path))
    assert config.dataset.name.startswith("folder:")
    assert config.dataset.name.endswith("+negative")
    assert paths.dataset_path == layout.folder.resolve()
    assert open_dataset(config, paths, plugins).info.name == config.dataset.name


def test_a_folder_with_a_plus_in_its_name_is_a_folder(waterbirds_root: Callable[..., Any]) -> None:
    layout = waterbirds_root("birds+more")
    spec, path = dataset_entry(str(layout.folder))
    assert path == layout.folder.resolve()
    assert "+" not in spec.info.name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("minibirds100+negativ", "unknown transform 'negativ'; did you mean 'negative'"),
        ("minibirds100+", "unknown transform ''"),
        ("minibird100+negative", "unknown dataset 'minibird100'; did you mean 'minibirds100' or "),
        ("folder+negative", "negative needs masks, which folder does not have"),
    ],
)
def test_bad_names(plugins: tuple[Path, ...], name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("?", r"\?")):
        find_dataset(name, plugins)
