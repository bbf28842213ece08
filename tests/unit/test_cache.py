"""The decoded image cache: content, one build for all processes, and what happens when things go wrong."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spurbench.data import cache, decoding
from spurbench.data.cache import Frames, load_frames
from spurbench.errors import DataError
from spurbench.types import Sample

REPOSITORY = Path(__file__).parents[2]


class FakeSplit:
    """Random images of various sizes; counts how often each is decoded."""

    def __init__(self, number=40, *, masks=True, boxes=True, seed=0):
        rng = np.random.default_rng(seed)
        self.decoded = []
        self._lock = threading.Lock()
        self.samples = []
        for index in range(number):
            height, width = rng.integers(20, 60, 2).tolist()
            count = index % 3
            self.samples.append(
                Sample(
                    image=torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)),
                    y=0,
                    group=None,
                    index=index,
                    mask=torch.from_numpy(rng.random((height, width)) < 0.5) if masks else None,
                    boxes=torch.from_numpy(rng.random((count, 4), dtype=np.float32) * 20) if boxes else None,
                )
            )

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        with self._lock:
            self.decoded.append(index)
        sample = self.samples[index]
        if isinstance(sample, Exception):
            raise sample
        return sample


def load(split, folder, *, key="birds/1/abc/train", resize=32, **options) -> Frames:
    return load_frames(split, key=key, resize=resize, folder=folder, **options)


def names(folder):
    """Everything in the cache folder but lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def assert_equal(a: Frames, b: Frames):
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.masks, b.masks)
    assert torch.equal(a.boxes.nan_to_num(-1), b.boxes.nan_to_num(-1))


# ---------------------------------------------------------------------------------------------------------- content


def test_content_is_what_torchvision_makes_of_the_pil_image(tmp_path):
    from torchvision.transforms import InterpolationMode, Resize

    split = FakeSplit()
    frames = load(split, tmp_path)
    assert frames.images.shape == (40, 32, 32, 3)
    assert frames.images.dtype == frames.masks.dtype == torch.uint8
    for index, sample in enumerate(split.samples):
        image = Resize((32, 32))(Image.fromarray(sample.image.permute(1, 2, 0).numpy()))
        mask = Resize((32, 32), InterpolationMode.NEAREST)(Image.fromarray(sample.mask.numpy()))
        np.testing.assert_array_equal(frames.images[index].numpy(), np.asarray(image))
        np.testing.assert_array_equal(frames.masks[index].bool().numpy(), np.asarray(mask))
    assert frames.masks.max() == 1


def test_boxes_are_scaled_and_padded(tmp_path):
    split = FakeSplit()
    boxes = load(split, tmp_path).boxes
    assert boxes.shape == (40, 2, 4)
    assert boxes.dtype == torch.float32
    for index, sample in enumerate(split.samples):
        _, height, width = sample.image.shape
        count = len(sample.boxes)
        expected = sample.boxes.double() * 32 / torch.tensor([width, height, width, height])
        torch.testing.assert_close(boxes[index, :count], expected.float(), rtol=0, atol=0)
        assert boxes[index, count:].isnan().all()


def test_images_of_the_right_size_are_stored_unchanged(tmp_path):
    split = FakeSplit(5, masks=False, boxes=False)
    split.samples = [replace(s, image=torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)) for s in split.samples]
    frames = load(split, tmp_path)
    assert torch.equal(frames.images.permute(0, 3, 1, 2), torch.stack([s.image for s in split.samples]))
    assert frames.masks is None
    assert frames.boxes is None


def test_boxes_of_some_samples_only(tmp_path):
    split = FakeSplit(3)
    split.samples[1] = replace(split.samples[1], boxes=None)
    boxes = load(split, tmp_path).boxes
    assert boxes[1].isnan().all()
    assert not boxes[2].isnan().any()


@pytest.mark.parametrize("number", [0, 1, decoding.CHUNK, decoding.CHUNK + 1])
def test_any_number_of_samples(tmp_path, number):
    split = FakeSplit(number, masks=False)
    for _ in range(2):
        assert load(split, tmp_path).images.shape == (number, 32, 32, 3)


def test_number_of_threads_does_not_matter(tmp_path):
    split = FakeSplit(100)
    assert_equal(load(split, tmp_path / "a", threads=1), load(split, tmp_path / "b", threads=7))


# -------------------------------------------------------------------------------------------------------- built once


def test_built_once(tmp_path):
    split = FakeSplit()
    first = load(split, tmp_path)
    assert sorted(split.decoded) == list(range(40))
    assert_equal(first, load(split, tmp_path))
    assert len(split.decoded) == 40


def test_other_keys_and_sizes_are_other_caches(tmp_path):
    split = FakeSplit(5)
    load(split, tmp_path)
    load(split, tmp_path, key="birds/1/abc/val")
    load(split, tmp_path, resize=16)
    load(split, tmp_path, key="birds 1 abc train")  # equal once made readable
    assert len(split.decoded) == 20
    assert len(names(tmp_path)) == 4


def test_cache_version_is_part_of_the_identity(tmp_path, monkeypatch):
    split = FakeSplit(5)
    load(split, tmp_path)
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    load(split, tmp_path)
    assert len(split.decoded) == 10


def test_pages_are_those_of_the_file(tmp_path):
    frames = load(FakeSplit(5), tmp_path)
    (path,) = tmp_path.glob("*/images.u8")
    with path.open("r+b") as stream:
        stream.write(bytes([frames.images[0, 0, 0, 0] ^ 255]))
        stream.flush()
        assert frames.images[0, 0, 0, 0] == path.read_bytes()[0]


def test_progress(tmp_path):
    calls = []
    load(FakeSplit(), tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(16, 40), (32, 40), (40, 40)]


def test_number_of_torch_threads_is_left_as_it_was(tmp_path):
    before = torch.get_num_threads()
    load(FakeSplit(5), tmp_path)
    assert torch.get_num_threads() == before


WORKER = """
import os, sys, time, torch
from pathlib import Path
from spurbench.data import cache
from spurbench.data.cache import load_frames
from spurbench.types import Sample

folder, log, delay = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
cache.SAVE_BYTES = int(sys.argv[4])

class Slow:
    def __len__(self):
        return 60

    def __getitem__(self, index):
        with open(log, "ab", buffering=0) as stream:
            stream.write(b".")
        time.sleep(delay)
        return Sample(image=torch.full((3, 8, 8), index, dtype=torch.uint8), y=0, group=None, index=index)

print("ready", flush=True)
sys.stdin.readline()
frames = load_frames(Slow(), key="slow", resize=8, folder=folder, threads=1)
assert frames.images[:, 0, 0, 0].tolist() == list(range(60))
"""


def start_worker(folder, log, delay, save_bytes=cache.SAVE_BYTES):
    """A process that has imported everything and waits for a line before it loads the cache."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", WORKER, str(folder), str(log), str(delay), str(save_bytes)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert worker.stdout.readline() == b"ready\n"
    return worker


def go(worker):
    worker.stdin.write(b"\n")
    worker.stdin.flush()


def finish(worker):
    worker.communicate(timeout=60)
    return worker.returncode


def test_processes_that_start_together_build_once(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    workers = [start_worker(folder, log, 0.005) for _ in range(2)]
    for worker in workers:
        go(worker)
    assert [finish(worker) for worker in workers] == [0, 0]
    assert log.stat().st_size == 60


def test_a_killed_builder_is_cleaned_up_after(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    worker = start_worker(folder, log, 0.02)
    go(worker)
    while not log.exists() or log.stat().st_size < 20:
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    assert finish(worker) == -signal.SIGKILL
    (leftover,) = names(folder)
    assert leftover.endswith(".unfinished")
    again = start_worker(folder, log, 0)
    go(again)
    assert finish(again) == 0
    (complete,) = names(folder)
    assert not complete.startswith(".")


def test_without_locks_the_loser_discards_its_build(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_acquire", lambda stream: False)
    first, second = FakeSplit(), FakeSplit()

    def overtake(done, total):
        if done == total:
            load(second, tmp_path)

    assert_equal(load(first, tmp_path, progress=overtake), load(FakeSplit(), tmp_path))
    assert len(first.decoded) == len(second.decoded) == 40
    assert len(names(tmp_path)) == 1


# ----------------------------------------------------------------------------------------------------------- damage


def truncate(folder):
    with (folder / "images.u8").open("r+b") as stream:
        stream.truncate(100)


def lengthen(folder):
    with (folder / "masks.u8").open("ab") as stream:
        stream.write(b"x")


def change_meta(**changes):
    def damage(folder):
        path = folder / "meta.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGES = {
    "truncated": truncate,
    "too long": lengthen,
    "no boxes": lambda folder: (folder / "boxes.f32").unlink(),
    "no meta": lambda folder: (folder / "meta.json").unlink(),
    "cut meta": lambda folder: (folder / "meta.json").write_text('{"key": '),
    "binary meta": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe\x00"),
    "meta is a list": lambda folder: (folder / "meta.json").write_text("[]"),
    "other key": change_meta(key="other"),
    "other number": change_meta(number=3),
    "no shapes": change_meta(shapes=None),
    "wrong shapes": change_meta(shapes={"images": [1, 1, 1, 3], "masks": None, "boxes": None}),
    "a file": replace_by_file,
}


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_rebuilt(tmp_path, monkeypatch, damage, locks):
    if not locks:
        monkeypatch.setattr(cache, "_acquire", lambda stream: False)
    split = FakeSplit()
    before = load(split, tmp_path)
    expected = Frames(before.images.clone(), before.masks.clone(), before.boxes)
    (name,) = names(tmp_path)
    damage(tmp_path / name)
    assert_equal(load(split, tmp_path), expected)
    assert len(split.decoded) == 80
    assert names(tmp_path) == [name]


# ----------------------------------------------------------------------------------------------------------- errors


def test_the_first_damaged_image_is_reported_unchanged(tmp_path):
    split = FakeSplit()
    error = DataError("row 17: bird.jpg is cut off")
    split.samples[17], split.samples[39] = error, DataError("row 39")
    with pytest.raises(DataError) as caught:
        load(split, tmp_path)
    assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("missing", [slice(3, 4), slice(16, 32), slice(0, 16)])
def test_masks_of_some_samples_only(tmp_path, missing):
    split = FakeSplit()
    split.samples[missing] = [replace(sample, mask=None) for sample in split.samples[missing]]
    with pytest.raises(DataError, match="some samples have a mask and others have none"):
        load(split, tmp_path)
    assert names(tmp_path) == []


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_noticed_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 40 * 32 * 32 * 3 - 1))
    split = FakeSplit()
    with pytest.raises(DataError, match=r"needs 122,880 bytes \(0.1 MiB\): only 0.1 MiB are free") as caught:
        load(split, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "$SPURBENCH_CACHE" in str(caught.value)
    assert split.decoded == []


def test_space_for_masks_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 40 * 32 * 32 * 4 - 1))
    with pytest.raises(DataError, match="needs 163,840 bytes"):
        load(FakeSplit(), tmp_path)
    load(FakeSplit(masks=False), tmp_path)


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device; set \$SPURBENCH_CACHE"):
        load(FakeSplit(), tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write the image cache to .*file/cache.*\$SPURBENCH_CACHE"):
        load(FakeSplit(), tmp_path / "file" / "cache")


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("boxes", [True, False])
def test_an_interrupted_build_goes_on(tmp_path, monkeypatch, masks, boxes):
    monkeypatch.setattr(cache, "SAVE_BYTES", 1)
    expected = load(FakeSplit(100, masks=masks, boxes=boxes), tmp_path / "whole")

    def interrupt(done, total):
        if done >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(FakeSplit(100, masks=masks, boxes=boxes), tmp_path / "parts", progress=interrupt)
    again = FakeSplit(100, masks=masks, boxes=boxes)
    shown = []
    frames = load(again, tmp_path / "parts", progress=lambda done, total: shown.append(done))
    assert min(again.decoded) == 48
    assert shown[0] > 48
    assert torch.equal(frames.images, expected.images)
    assert (frames.masks is None) == (not masks)
    if masks:
        assert torch.equal(frames.masks, expected.masks)
    if boxes:
        assert torch.equal(frames.boxes.nan_to_num(-1), expected.boxes.nan_to_num(-1))
    assert [name for name in names(tmp_path / "parts") if name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["other Pillow", "half a note", "no images", "short images"])
def test_what_an_interrupted_build_left_is_not_trusted(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(cache, "SAVE_BYTES", 1)

    def interrupt(done, total):
        if done >= 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(FakeSplit(100), tmp_path, progress=interrupt)
    (unfinished,) = tmp_path.glob(".*.unfinished")
    note = unfinished / "done.json"
    if damage == "other Pillow":
        note.write_text(note.read_text().replace(cache.PIL.__version__, "0.1"))
    elif damage == "half a note":
        note.write_text(note.read_text()[:40])
    elif damage == "no images":
        (unfinished / "images.u8").unlink()
    else:
        os.truncate(unfinished / "images.u8", 1000)
    again = FakeSplit(100)
    frames = load(again, tmp_path)
    assert min(again.decoded) == 0
    assert torch.equal(frames.images, load(FakeSplit(100), tmp_path / "whole").images)


def test_a_killed_build_goes_on_where_it_was(tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    worker = start_worker(folder, log, 0.02, save_bytes=1)
    go(worker)
    while not list(folder.glob(".*/done.json")):
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    assert finish(worker) == -signal.SIGKILL
    before = log.stat().st_size
    again = start_worker(folder, log, 0, save_bytes=1)
    go(again)
    assert finish(again) == 0
    assert log.stat().st_size - before < 60  # not all of them were decoded again
