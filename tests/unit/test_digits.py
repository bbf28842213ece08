"""Coloured MNIST and dominoes: raw files against torchvision's readers, labels against the published construction."""

import gzip
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import groups_of
from torchvision.datasets import CIFAR10, MNIST

from spurbench.data.array_files import CIFAR_TEST, CIFAR_TRAIN, MNIST_TEST, MNIST_TRAIN, read_cifar10, read_mnist
from spurbench.data.plain_pickle import load_plain_pickle
from spurbench.datasets.digits import DATASETS
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.testing import DATASET_CHECKS, check_dataset

NUM_TRAIN, NUM_TEST = 600, 120
"""Of MNIST; the published sets cut 60,000 at 5/6, 1/2 and 2/3."""
PER_BATCH = 100
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.RandomState(5)
    numbers = {"train": NUM_TRAIN, "t10k": NUM_TEST}
    images = {name: random.randint(1, 256, (number, 28, 28)).astype(np.uint8) for name, number in numbers.items()}
    labels = {f"{name}-labels": (np.arange(len(part)) * 7 % 10).astype(np.uint8) for name, part in images.items()}
    return {**images, **labels}


@pytest.fixture
def root(tmp_path: Path, digits: dict[str, np.ndarray[Any, Any]]) -> Path:
    """MNIST's files packed, and CIFAR-10's batches."""
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for part in ("train", "t10k"):
        header = bytes((0, 0, 8, 3)) + np.array(digits[part].shape, ">u4").tobytes()
        write_packed(tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte.gz", header + digits[part].tobytes())
        labels = digits[f"{part}-labels"]
        header = bytes((0, 0, 8, 1)) + np.array(labels.shape, ">u4").tobytes()
        write_packed(tmp_path / f"MNIST/raw/{part}-labels-idx1-ubyte.gz", header + labels.tobytes())
    random = np.random.RandomState(6)
    (tmp_path / "cifar-10-batches-py").mkdir()
    for number, name in enumerate((*CIFAR_TRAIN, *CIFAR_TEST)):
        content = {
            "batch_label": name,
            "labels": (np.arange(number, number + PER_BATCH) % 10).tolist(),
            "data": random.randint(0, 256, (PER_BATCH, 3072)).astype(np.uint8),
            "filenames": [f"{i}.png" for i in range(PER_BATCH)],
        }
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {"label_names": ["airplane", "automobile", *"bcdefgh", "truck"]}
    (tmp_path / "cifar-10-batches-py/batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return tmp_path


def write_packed(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data, mtime=0))


def unpack(root: Path) -> None:
    """As torchvision leaves MNIST."""
    for path in (root / "MNIST/raw").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))


# The files


def test_mnist_as_torchvision_reads_it(root: Path) -> None:
    packed = {names: read_mnist(root / "MNIST/raw", names) for names in (MNIST_TRAIN, MNIST_TEST)}
    unpack(root)
    for path in (root / "MNIST/raw").glob("*.gz"):
        path.unlink()
    for train, names in ((True, MNIST_TRAIN), (False, MNIST_TEST)):
        theirs = MNIST(str(root), train=train)
        ours = read_mnist(root / "MNIST/raw", names)
        for read in (ours, packed[names]):
            assert np.array_equal(read.images, theirs.data.numpy())
            assert read.labels.tolist() == theirs.targets.tolist()


def test_cifar10_as_torchvision_reads_it(root: Path) -> None:
    unchecked = {  # without the published checksums
        "train_list": [[name, None] for name in CIFAR_TRAIN],
        "test_list": [[name, None] for name in CIFAR_TEST],
        "meta": {**CIFAR10.meta, "md5": None},
    }
    reader = type("Unchecked", (CIFAR10,), unchecked)
    for train, names in ((True, CIFAR_TRAIN), (False, CIFAR_TEST)):
        theirs = reader(str(root), train=train)
        ours = read_cifar10(root / "cifar-10-batches-py", names)
        assert np.array_equal(ours.images, theirs.data)
        assert ours.labels.tolist() == theirs.targets


def test_archives_are_torchvisions() -> None:
    archives = {archive.filename: archive for archive in DATASETS["dominoes"].info.archives}
    assert {name: archive.md5 for name, archive in archives.items()} == {
        **dict(MNIST.resources),
        CIFAR10.filename: CIFAR10.tgz_md5,
    }
    assert archives[CIFAR10.filename].url == CIFAR10.url
    for name, _ in MNIST.resources:
        assert archives[name].url in [f"{mirror}{name}" for mirror in MNIST.mirrors]
        assert archives[name].into == "MNIST/raw"


def test_pickles_of_python_2(tmp_path: Path) -> None:
    """Protocol 2 with byte strings, and an array whose bytes are one: what CIFAR-10's authors wrote."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x00\x7f\x80\xfftb"
    )
    (tmp_path / "batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x01K\x09eu.")
    content = load_plain_pickle(tmp_path / "batch")
    assert content["data"].tolist() == [[0, 127], [128, 255]]
    assert content["labels"] == [1, 9]


FORBIDDEN = ["os.system", "builtins.eval", "numpy.load", "numpy.core.multiarray.scalar", "codecs.decode"]


@pytest.mark.parametrize("function", FORBIDDEN)
def test_pickles_that_ask_for_more(tmp_path: Path, function: str) -> None:
    module, _, name = function.rpartition(".")
    (tmp_path / "bad").write_bytes(f"c{module}\n{name}\n(S'x'\ntR.".encode())
    with pytest.raises(
        DataError, match=rf"bad is not a pickle of plain data: it asks for {function}, which is refused"
    ):
        load_plain_pickle(tmp_path / "bad")


DAMAGE = [
    (lambda data: data[:-1], "is the file cut off"),
    (lambda data: data[:3], "is no idx file"),
    (lambda data: b"<!DOCTYPE html>" + data, "is no idx file"),
    (lambda data: bytes((0, 0, 9)) + data[3:], "is no idx file"),
    (lambda data: data[:3] + bytes((2,)) + data[4:], "is no idx file"),
    (lambda data: data[:7] + bytes((data[7] ^ 1,)) + data[8:], "bytes for the shape"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
@pytest.mark.parametrize("name", MNIST_TRAIN)
def test_damaged_idx_files(root: Path, name: str, damage: Any, message: str) -> None:
    path = root / f"MNIST/raw/{name}.gz"
    write_packed(path, damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(DataError, match=rf"{name}\.gz .*{message}"):
        DATASETS["colored_mnist"].open(root)


GZIP_DAMAGE = [
    lambda data: data[:-20],
    lambda data: b"<html>",
    lambda data: b"",
    lambda data: data[:30] + bytes(9) + data[39:],
]


@pytest.mark.parametrize("damage", GZIP_DAMAGE)
def test_damaged_gzip_files(root: Path, damage: Any) -> None:
    path = root / "MNIST/raw/train-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz"):
        DATASETS["colored_mnist_subpopbench"].open(root)


def test_labels_and_images_of_different_number(root: Path) -> None:
    folder = root / "MNIST/raw"
    (folder / "train-labels-idx1-ubyte.gz").write_bytes((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="has 120 labels for 600 images"):
        DATASETS["colored_mnist"].open(root)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": None},
        {"labels": [11] * PER_BATCH},
        {"labels": [-1] * PER_BATCH},
        {"labels": [1] * 3},
        {"labels": ["1"] * PER_BATCH},
        {"data": None},
        {"data": np.zeros((PER_BATCH, 3072))},
        {"data": np.zeros((PER_BATCH, 3071), np.uint8)},
    ],
)
def test_malformed_batches(root: Path, change: dict[str, Any]) -> None:
    path = root / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(pickle.dumps(load_plain_pickle(path) | change, protocol=2))
    with pytest.raises(DataError, match="data_batch_3"):
        DATASETS["dominoes"].open(root)


# Colours


def test_irm_s_construction(root: Path, digits: dict[str, np.ndarray[Any, Any]]) -> None:
    dataset = DATASETS["colored_mnist"].open(root)
    assert [len(dataset.split(name)) for name in SPLITS] == [400, 100, 100]
    small = digits["train"][:, ::2, ::2]
    origin = {image.tobytes(): number for number, image in enumerate(small)}
    seen = set()
    for name, start, end in (("train", 0, 500), ("val", 0, 500), ("test", 500, 600)):
        split = dataset.split(name)
        for i in range(len(split)):
            sample = split[i]
            assert sample.image.shape == (3, 14, 14)
            assert not sample.image[2].any()
            green = bool(sample.image[1].any())
            assert not sample.image[int(not green)].any()  # the other channel is empty
            assert sample.group == 2 * sample.y + green
            number = origin[sample.image[int(green)].numpy().tobytes()]
            assert start <= number < end
            seen.add(number)
    assert len(seen) == 600


def test_irm_s_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On 60,000 digits: 25 % of labels, 20 % and 10 % of colours in training and val, 90 % in test."""
    digits = write_many(tmp_path)
    dataset = DATASETS["colored_mnist"].open(tmp_path)
    assert not caplog.records
    assert [len(dataset.split(name)) for name in SPLITS] == [40_000, 10_000, 10_000]
    assert dataset.info.expected_counts == {name: (len(dataset.split(name)),) for name in SPLITS}
    for name, wrong in (("train", 0.15), ("val", 0.15), ("test", 0.9)):
        split = dataset.split(name)
        assert split.group is not None
        assert float((split.group % 2 != split.y).double().mean()) == pytest.approx(wrong, abs=0.012)
        numbers = [number_of(split, i) for i in range(0, len(split), 5)]
        flipped = [(digits[n] < 5) != bool(split.y[5 * k]) for k, n in enumerate(numbers)]
        assert float(np.mean(flipped)) == pytest.approx(0.25, abs=0.035)
    train = dataset.split("train")
    assert train.group is not None
    halves = [float((train.group[k::2] % 2 != train.y[k::2]).double().mean()) for k in (0, 1)]
    assert halves == pytest.approx([0.2, 0.1], abs=0.012)


def write_many(root: Path) -> np.ndarray[Any, Any]:
    """60,000 labels, and images that say their number in two pixels."""
    (root / "MNIST/raw").mkdir(parents=True)
    images = np.zeros((60_000, 4, 4), np.uint8)
    images[:, 0, 0], images[:, 0, 2], images[:, 2, 0] = np.arange(60_000) // 256, np.arange(60_000) % 256, 255
    labels = np.random.default_rng(1).integers(0, 10, 60_000).astype(np.uint8)
    header = bytes((0, 0, 8, 3)) + np.array(images.shape, ">u4").tobytes()
    (root / "MNIST/raw/train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = bytes((0, 0, 8, 1)) + np.array(labels.shape, ">u4").tobytes()
    (root / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return labels


def number_of(split: Any, i: int) -> int:
    high, low = split.images[i].max(axis=2)[0].tolist()
    return int(256 * high + low)


def test_subpopbench_pixel_by_pixel(root: Path, digits: dict[str, np.ndarray[Any, Any]]) -> None:
    """Its construction in its own operations: torch tensors, a generator seeded with 666 in every split."""
    dataset = DATASETS["colored_mnist_subpopbench"].open(root)
    images, labels = torch.from_numpy(digits["train"]), torch.from_numpy(digits["train-labels"])
    for name, part in (("train", slice(0, 300)), ("val", slice(300, 400)), ("test", slice(400, 600))):
        x, digit = images[part], labels[part]
        rng = np.random.default_rng(666)
        y = np.logical_xor((digit >= 5).numpy(), rng.random(len(x)) < 0.25).astype(int)
        color = np.logical_xor(y, rng.random(len(x)) < 0.2).astype(int)
        expected = torch.stack([x, x, torch.zeros_like(x)], dim=1)
        expected[torch.arange(len(x)), torch.from_numpy(1 - color)] = 0
        split = dataset.split(name)
        assert split.y.tolist() == y.tolist()
        assert split.group is not None
        assert split.group.tolist() == (2 * y + color).tolist()
        assert torch.equal(torch.stack([split[i].image for i in range(len(split))]), expected)


# Dominoes


@pytest.mark.parametrize(("name", "percent"), [("dominoes", 100), ("dominoes95", 95)])
def test_dominoes(root: Path, name: str, percent: int, digits: dict[str, np.ndarray[Any, Any]]) -> None:
    dataset = DATASETS[name].open(root)
    vehicles = {names: read_cifar10(root / "cifar-10-batches-py", names) for names in (CIFAR_TRAIN, CIFAR_TEST)}
    seen: dict[str, Counter[bytes]] = {}
    for split_name in SPLITS:
        part, names = ("t10k", CIFAR_TEST) if split_name == "test" else ("train", CIFAR_TRAIN)
        split = dataset.split(split_name)
        upper = labels_by_pixels(digits[part], digits[f"{part}-labels"])
        lower = labels_by_pixels(vehicles[names].images, vehicles[names].labels)
        for i in range(len(split)):
            sample = split[i]
            assert sample.image.shape == (3, 64, 32)
            digit = sample.image[:, 2:30, 2:30]
            assert torch.equal(digit[0], digit[1])
            assert torch.equal(digit[0], digit[2])
            frame = sample.image[:, :32].clone()
            frame[:, 2:30, 2:30] = 0
            assert not frame.any()
            core = sample.image[:, 32:].permute(1, 2, 0).contiguous().numpy().tobytes()
            assert {1: 0, 9: 1}[lower[core]] == sample.y
            assert sample.group == 2 * sample.y + upper[digit[0].contiguous().numpy().tobytes()]
            seen.setdefault(part, Counter())[core] += 1
            assert sample.boxes is not None
            assert sample.boxes.tolist() == [[0, 32, 32, 64]]
            assert sample.mask is not None
            assert sample.mask[32:].all()
            assert not sample.mask[:32].any()
    assert all(set(part.values()) == {1} for part in seen.values())  # every vehicle once
    assert len(dataset.split("train")) + len(dataset.split("val")) == 100
    assert len(dataset.split("test")) == 20
    aligned = Counter(groups_of(dataset, "train"))
    if percent == 100:
        assert aligned == {"automobile/zero": 40, "truck/one": 40}
    else:  # 95 % of 50 is 47.5, rounded to even 48; 20 % of 48 and of 2 are held out, rounded down
        assert aligned == {"automobile/zero": 39, "automobile/one": 2, "truck/zero": 2, "truck/one": 39}
    assert set(Counter(groups_of(dataset, "test")).values()) == {5}


def labels_by_pixels(images: Any, labels: Any) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


def test_dominoes_at_full_size_have_the_declared_counts() -> None:
    """Without images: labels as in CIFAR-10 (5,000 and 1,000 per class) and MNIST (5,923 zeros, 6,742 ones ...)."""
    from spurbench.data.array_files import LabelledImages
    from spurbench.datasets import digits as module

    def few_pixels(labels: list[tuple[int, int]], shape: tuple[int, ...]) -> LabelledImages:
        column = np.concatenate([np.full(number, label) for label, number in labels])
        return LabelledImages(np.broadcast_to(np.zeros(shape, np.uint8), (len(column), *shape)), column)

    cifar = [few_pixels([(1, number), (9, number), (3, 7)], (32, 32, 3)) for number in (5000, 1000)]
    mnist = [few_pixels(counts, (28, 28)) for counts in ([(0, 5923), (1, 6742)], [(0, 980), (1, 1135)])]
    for name, percent in (("dominoes", 100), ("dominoes95", 95)):
        random = np.random.RandomState(0)
        splits = module._stacked(cifar[0], mnist[0], percent, random, {"val": 0.2, "train": 1.0})
        splits |= module._stacked(cifar[1], mnist[1], 50, random, {"test": 1.0})
        counts = {key: tuple(split.group.bincount(minlength=4).tolist()) for key, split in splits.items()}  # type: ignore[union-attr]
        assert counts == DATASETS[name].info.expected_counts


# All of them


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_conforms(name: str, root: Path) -> None:
    assert len(check_dataset(DATASETS[name], root)) == len(DATASET_CHECKS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_packed_or_not_is_the_same(name: str, root: Path) -> None:
    packed = DATASETS[name].open(root).fingerprint()
    unpack(root)
    assert DATASETS[name].open(root).fingerprint() == packed


def test_the_draws_are_pinned(root: Path) -> None:
    """Of a fixture whose files never change: other images, labels or splits would be another version."""
    assert {name: spec.open(root).fingerprint()[:16] for name, spec in DATASETS.items()} == PINNED


PINNED = {
    "colored_mnist": "ba06aa380bbb6c01",
    "colored_mnist_subpopbench": "9e6c58c9c82aa2f5",
    "dominoes": "61f5d5b8b5b3e7df",
    "dominoes95": "33456feff0dd261e",
}


def test_files_of_less_than_the_whole_set_warn(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        DATASETS["colored_mnist"].open(root)
        DATASETS["dominoes"].open(root)
    assert "colored_mnist in" in caplog.text
    assert "test 5/5/5/5 (published 500/500/500/500)" in caplog.text


def test_unknown_split(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown split 'tests'; did you mean 'test'\? available: train, val, test"):
        DATASETS["colored_mnist"].open(root).split("tests")


def test_missing(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)colored_mnist not found .*MNIST/raw/.*ossci-datasets"):
        DATASETS["colored_mnist"].open(tmp_path / "MNIST")
    (root / "cifar-10-batches-py/data_batch_1").rename(root / "elsewhere")
    with pytest.raises(DataMissing, match=r"(?s)dominoes not found .*data_batch_1 and so on in cifar-10-batches-py/"):
        DATASETS["dominoes"].open(root)
    with pytest.raises(DataMissing, match=r"needs a data root"):
        DATASETS["dominoes95"].open(None)


def test_a_missing_batch_and_a_missing_label_file(root: Path) -> None:
    (root / "cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(DataError, match=r"data_batch_4 is missing"):
        DATASETS["dominoes"].open(root)
    (root / "MNIST/raw/train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is missing, and train-labels-idx1-ubyte\.gz too"):
        DATASETS["colored_mnist"].open(root)


def test_too_few_digits(root: Path) -> None:
    for name, dimensions in zip(MNIST_TRAIN, (3, 1), strict=True):
        shape = (1, 28, 28)[:dimensions]
        header = bytes((0, 0, 8, dimensions)) + np.array(shape, ">u4").tobytes()
        write_packed(root / f"MNIST/raw/{name}.gz", header + bytes(int(np.prod(shape))))
    for name in ("colored_mnist", "colored_mnist_subpopbench"):
        with pytest.raises(DataError, match=rf"{name}: no images for train"):
            DATASETS[name].open(root)
    with pytest.raises(DataError, match="MNIST has no 1"):
        DATASETS["dominoes"].open(root)
