"""Frames without a cache: equal to the cache's, decoded ahead and not twice, errors unchanged."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spurbench.cli import main
from spurbench.data import ondemand
from spurbench.data.cache import load_frames
from spurbench.data.ondemand import DecodedRows, announce
from spurbench.errors import DataError
from spurbench.types import Sample

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"


class Split:
    """Random images of various sizes; counts how often each is decoded."""

    def __init__(self, number: int, *, masks: bool = True) -> None:
        rng = torch.Generator().manual_seed(number)
        self.decoded: list[int] = []
        self.lock = threading.Lock()
        self.samples: list[Sample | Exception] = []
        for index in range(number):
            height, width = torch.randint(20, 60, (2,), generator=rng).tolist()
            boxes = None if index % 3 == 0 else torch.tensor([[1.0, 2.0, 9.0, 8.0]] * (index % 3))
            self.samples.append(
                Sample(
                    image=torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8),
                    y=0,
                    group=None,
                    index=index,
                    mask=torch.rand(height, width, generator=rng) < 0.5 if masks else None,
                    boxes=boxes,
                )
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        with self.lock:
            self.decoded.append(index)
        sample = self.samples[index]
        if isinstance(sample, Exception):
            raise sample
        return sample


def rows(array: Any) -> DecodedRows:
    assert isinstance(array, DecodedRows)
    return array


@pytest.mark.parametrize("masks", [True, False])
def test_pixels_masks_and_boxes_are_those_of_the_cache(tmp_path: Path, masks: bool) -> None:
    stored = load_frames(Split(30, masks=masks), key="k", resize=24, folder=tmp_path)
    fresh = load_frames(Split(30, masks=masks), key="k", resize=24, folder=None)
    index = torch.tensor([7, 3, 3, 29, 0])
    assert isinstance(stored.images, Tensor)
    assert torch.equal(fresh.images[index], stored.images[index])
    assert torch.equal(fresh.images[:1], stored.images[:1])
    assert fresh.images.shape == stored.images.shape
    assert (fresh.masks is None) == (stored.masks is None) == (not masks)
    if fresh.masks is not None:
        assert isinstance(stored.masks, Tensor)
        assert torch.equal(fresh.masks[index], stored.masks[index])
        assert fresh.masks.shape == stored.masks.shape
    assert fresh.boxes is not None
    assert isinstance(stored.boxes, Tensor)
    boxes = fresh.boxes[index]
    assert torch.equal(boxes.nan_to_num(-1), stored.boxes[index][:, : boxes.shape[1]].nan_to_num(-1))


def test_nothing_is_decoded_before_it_is_asked_for_or_twice_in_a_row() -> None:
    split = Split(30)
    frames = load_frames(split, key="k", resize=24, folder=None)
    assert split.decoded == [0]  # to see whether there are masks
    index = torch.tensor([4, 5])
    announce(frames.images, index)
    frames.images[index]
    assert frames.masks is not None
    frames.masks[index]
    assert sorted(split.decoded) == [0, 4, 5]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondemand, "KEPT_BYTES", 5 * 4 * 24 * 24)
    frames = load_frames(Split(40), key="k", resize=24, folder=None)
    for start in range(0, 40, 4):
        frames.images[torch.arange(start, start + 4)]
    assert len(rows(frames.images).decoder._known) <= 5
    frames.images[torch.arange(40)]  # a batch larger than what may be kept
    frames.images[torch.arange(2)]
    assert len(rows(frames.images).decoder._known) <= 5


def test_what_was_announced_is_kept_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ondemand, "KEPT_BYTES", 5 * 4 * 24 * 24)
    split = Split(40)
    frames = load_frames(split, key="k", resize=24, folder=None)
    batches = list(torch.arange(40).split(8))
    for number, batch in enumerate(batches):
        for following in batches[number + 1 : number + 3]:
            announce(frames.images, following)
        frames.images[batch]
    assert sorted(split.decoded) == sorted([0, *range(40)])  # the first once more, to see whether there are masks


def test_without_declared_boxes_there_are_none() -> None:
    assert load_frames(Split(3), key="k", resize=24, folder=None, has_boxes=False).boxes is None


def test_a_damaged_image_is_reported_unchanged() -> None:
    split = Split(9)
    split.samples[5] = DataError("data/x.jpg (line 7) cannot be decoded")
    frames = load_frames(split, key="k", resize=24, folder=None)
    frames.images[torch.tensor([4])]
    announce(frames.images, torch.tensor([5]))  # raises nothing by itself
    with pytest.raises(DataError, match="line 7"):
        frames.images[torch.tensor([4, 5])]


def test_masks_of_some_samples_only() -> None:
    split, bare = Split(9), Split(9, masks=False)
    split.samples[6] = bare.samples[6]
    frames = load_frames(split, key="k", resize=24, folder=None)
    with pytest.raises(DataError, match="some samples have a mask and others have none"):
        frames.images[torch.tensor([6])]


def test_a_run_without_a_cache_has_equal_numbers_and_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/toys").mkdir(parents=True)
    (tmp_path / "data/toys/edition").write_text("first")
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    rows_of = {}
    for name, flags in {"fresh": ["--no-cache"], "stored": []}.items():
        command = ["run", "--method", "aim", "--dataset", "toys", "--plugin", str(TOYS), "--set", "train.epochs=1"]
        command += ["--set", "train.num_threads=1", "--data-root", str(tmp_path / "data")]
        command += ["--results", str(tmp_path / name), "--device", "cpu", "--json"]
        assert main([*command, *flags]) == 0
        out, err = capsys.readouterr()
        assert ("no cache" in err) == (name == "fresh")
        assert (tmp_path / "cache").exists() == (name == "stored")
        rows_of[name] = [
            {key: row[key] for key in ("test_correct", "epg", "mask_density") if key in row} or row["selection"]
            for row in json.loads(out)["rows"]
        ]
        predictions = next((tmp_path / name).glob("runs/*/predictions.parquet")).read_bytes()
        rows_of[name].append(predictions)
    assert rows_of["stored"] == rows_of["fresh"]
