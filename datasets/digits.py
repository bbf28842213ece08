"""Digits with a colour or above a photograph, put together from MNIST and CIFAR-10 when they are opened.

The files are those that torchvision downloads, packed or not: ``MNIST/raw/*-ubyte[.gz]``, ``cifar-10-batches-py/``.

``colored_mnist`` is that of IRM: the label is "0 to 4" or not, with a quarter of the labels flipped, and the colour
tells the flipped label with an error of 20 % and 10 % in the two halves of training and of **90 %** in test. Images are
14 x 14, every second pixel of MNIST's. The first 50,000 of MNIST's training images are for training, the last 10,000
for test, as published; the draws, unseeded there, are seeded here. A fifth of both halves is val, whose colours are as
in training. Colour cannot beat 75 % on labels that are right in 75 %, so neither can any method; a method that only
reads the colour has about 10 % on test.

``colored_mnist_subpopbench`` is SubpopBench's, pixel by pixel (its draws are seeded): the label is "5 to 9" or not,
images are 28 x 28, all splits (30,000, 10,000 and 20,000 of MNIST's training images) have a quarter of the labels
flipped and colours that err in 20 %.

Both have no mask: shape and colour lie on the same pixels, so that no region tells one from the other.

``dominoes`` stacks a digit, 0 or 1, above an automobile or truck of CIFAR-10: images are 64 x 32, and the label is the
vehicle. In training and val the digit agrees with it always (as published, MNIST-CIFAR of Shah et al.) or, in
``dominoes95``, in exactly 95 %; in test it is independent. Digits are drawn with a fixed seed; a fifth of every
training group is val. Test needs 1,000 zeros and MNIST has 980, so that 20 stand in two test images. Mask and box are
the half with the vehicle, rows 32 to 63.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from spurbench.data.array_files import (
    CIFAR_TEST,
    CIFAR_TRAIN,
    MNIST_TEST,
    MNIST_TRAIN,
    LabelledImages,
    read_cifar10,
    read_mnist,
)
from spurbench.data.array_set import ArraySet, ArraySplit
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_table import Box
from spurbench.dataset import Archive, DatasetInfo, DatasetSpec
from spurbench.errors import DataError
from spurbench.image_dataset import find_folder, warn_about_counts

__all__ = ["DATASETS", "ArrayDataset", "open_dominoes", "open_irm", "open_subpopbench"]

SEED = 0
"""Of the draws that are ours. ``RandomState`` draws the same in every version of numpy."""
LABEL_NOISE = 0.25
IRM_COLOR_NOISE = (0.2, 0.1)
IRM_TEST_COLOR_NOISE = 0.9
SUBPOPBENCH_SEED = 666
SUBPOPBENCH_COLOR_NOISE = 0.2
VEHICLES = (1, 9)
"""CIFAR-10's labels of automobiles and trucks."""
CORE = (0.0, 32.0, 32.0, 64.0)
"""Where the vehicle is in an image of ``dominoes``, xyxy."""

Bytes = npt.NDArray[np.uint8]
Bits = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist"
_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_MNIST = tuple(
    Archive(filename=name, url=f"{_MNIST_URL}/{name}", md5=md5, into="MNIST/raw") for name, md5 in _MNIST_MD5.items()
)
_CIFAR = Archive(
    filename="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
)
_MNIST_SOURCE = f"{_MNIST_URL}/, four files, to MNIST/raw/ (torchvision's MNIST downloads them there)"
_MNIST_LICENSE = "MNIST: CC BY-SA 3.0"

IRM_INFO = DatasetInfo(
    name="colored_mnist",
    version="1",
    classes=("5 to 9", "0 to 4"),
    attributes=("red", "green"),
    description="MNIST in two colours that tell the (noisy) label in 85 % of training, and its opposite in 90 % of "
    "test; IRM's construction, 14 px",
    license=_MNIST_LICENSE,
    citation="Arjovsky, Bottou, Gulrajani, Lopez-Paz: Invariant Risk Minimization, 2019, arXiv 1907.02893",
    source=_MNIST_SOURCE,
    expected_counts={"train": (40_000,), "val": (10_000,), "test": (10_000,)},
    archives=_MNIST[:2],
)

SUBPOPBENCH_INFO = DatasetInfo(
    name="colored_mnist_subpopbench",
    version="1",
    classes=("0 to 4", "5 to 9"),
    attributes=("red", "green"),
    description="MNIST in two colours that tell the (noisy) label in 80 % of every split; SubpopBench's construction, "
    "28 px",
    license=_MNIST_LICENSE,
    citation="Yang, Zhang, Katabi, Ghassemi: Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023, arXiv "
    "2302.12254; after Arjovsky et al., arXiv 1907.02893",
    source=_MNIST_SOURCE,
    expected_counts={"train": (30_000,), "val": (10_000,), "test": (20_000,)},
    archives=_MNIST[:2],
)


def _dominoes_info(name: str, percent: int, counts: tuple[tuple[int, ...], tuple[int, ...]]) -> DatasetInfo:
    return DatasetInfo(
        name=name,
        version="1",
        classes=("automobile", "truck"),
        attributes=("zero", "one"),
        description=f"A digit above a vehicle of CIFAR-10, which it tells in {percent} % of training and val and not "
        "in test; the core is the lower half",
        license=f"{_MNIST_LICENSE}; CIFAR-10: none stated",
        citation="Shah, Tamuly, Raghunathan, Jain, Netrapalli: The Pitfalls of Simplicity Bias in Neural Networks, "
        "NeurIPS 2020, arXiv 2006.07710",
        source=f"{_MNIST_SOURCE}, and {_CIFAR.url}, unpacked to cifar-10-batches-py/",
        has_boxes=True,
        has_masks=True,
        expected_counts={"train": counts[0], "val": counts[1], "test": (500,) * 4},
        archives=(*_MNIST, _CIFAR),
    )


DOMINOES_INFO = _dominoes_info("dominoes", 100, ((4000, 0, 0, 4000), (1000, 0, 0, 1000)))
DOMINOES_95_INFO = _dominoes_info("dominoes95", 95, ((3800, 200, 200, 3800), (950, 50, 50, 950)))


@dataclass(frozen=True, slots=True)
class ArrayDataset:
    """An opened set whose images are in memory."""

    info: DatasetInfo
    arrays: ArraySet

    def split(self, name: str) -> ArraySplit:
        """The split called ``name``; raises ``ConfigError`` for an unknown name."""
        return self.arrays.split(name)

    def fingerprint(self) -> str:
        """Hash of pixels, labels and splits, in order."""
        return self.arrays.fingerprint


@system_errors_as_data_errors()
def open_irm(root: Path | None) -> ArrayDataset:
    """Put IRM's coloured digits together from MNIST below a data root.

    Raises:
        DataMissing: no root was given, or MNIST is not there.
        DataError: damaged files, or too few digits.
    """
    folder = _mnist_folder(IRM_INFO, root)
    mnist = read_mnist(folder, MNIST_TRAIN)
    random = np.random.RandomState(SEED)
    train_end = len(mnist.labels) * 5 // 6
    shuffled = random.permutation(train_end)
    noise = np.where(np.arange(train_end) % 2 == 0, *IRM_COLOR_NOISE)
    val_start = train_end * 4 // 5
    parts = {
        "train": (shuffled[:val_start], noise[:val_start]),
        "val": (shuffled[val_start:], noise[val_start:]),
        "test": (np.arange(train_end, len(mnist.labels)), np.array(IRM_TEST_COLOR_NOISE)),
    }
    splits = {}
    for name, (chosen, color_noise) in parts.items():
        y = (mnist.labels[chosen] < 5) ^ (random.random_sample(len(chosen)) < LABEL_NOISE)
        green = y ^ (random.random_sample(len(chosen)) < color_noise)
        splits[name] = _split(_colored(mnist.images[chosen, ::2, ::2], green), y, green)
    return _dataset(IRM_INFO, splits, folder)


@system_errors_as_data_errors()
def open_subpopbench(root: Path | None) -> ArrayDataset:
    """Put SubpopBench's coloured digits together from MNIST below a data root.

    Raises:
        DataMissing: no root was given, or MNIST is not there.
        DataError: damaged files, or too few digits.
    """
    folder = _mnist_folder(SUBPOPBENCH_INFO, root)
    mnist = read_mnist(folder, MNIST_TRAIN)
    number = len(mnist.labels)
    parts = {
        "train": slice(0, number // 2),
        "val": slice(number // 2, number * 2 // 3),
        "test": slice(number * 2 // 3, number),
    }
    splits = {}
    for name, chosen in parts.items():
        random = np.random.default_rng(SUBPOPBENCH_SEED)  # anew for every split, as published
        digits = mnist.labels[chosen]
        y = (digits >= 5) ^ (random.random(len(digits)) < LABEL_NOISE)
        green = y ^ (random.random(len(digits)) < SUBPOPBENCH_COLOR_NOISE)
        splits[name] = _split(_colored(mnist.images[chosen], green), y, green)
    return _dataset(SUBPOPBENCH_INFO, splits, folder)


@system_errors_as_data_errors()
def open_dominoes(info: DatasetInfo, percent: int, root: Path | None) -> ArrayDataset:
    """Stack digits above vehicles, from MNIST and CIFAR-10 below a data root.

    Args:
        percent: how many training images of each class have the digit of their class.

    Raises:
        DataMissing: no root was given, or MNIST or CIFAR-10 is not there.
        DataError: damaged files, or too few images.
    """
    mnist = _mnist_folder(info, root)
    cifar = find_folder(
        info,
        root,
        ("cifar-10-batches-py", "CIFAR10/cifar-10-batches-py"),
        holds=lambda folder: (folder / CIFAR_TRAIN[0]).is_file(),
        expected=f"{CIFAR_TRAIN[0]} and so on",
    )
    random = np.random.RandomState(SEED)
    splits = _stacked(
        read_cifar10(cifar, CIFAR_TRAIN), read_mnist(mnist, MNIST_TRAIN), percent, random, {"val": 0.2, "train": 1.0}
    )
    splits |= _stacked(read_cifar10(cifar, CIFAR_TEST), read_mnist(mnist, MNIST_TEST), 50, random, {"test": 1.0})
    return _dataset(info, splits, cifar.parent)


DATASETS = {
    IRM_INFO.name: DatasetSpec(info=IRM_INFO, open=open_irm),
    SUBPOPBENCH_INFO.name: DatasetSpec(info=SUBPOPBENCH_INFO, open=open_subpopbench),
    DOMINOES_INFO.name: DatasetSpec(info=DOMINOES_INFO, open=partial(open_dominoes, DOMINOES_INFO, 100)),
    DOMINOES_95_INFO.name: DatasetSpec(info=DOMINOES_95_INFO, open=partial(open_dominoes, DOMINOES_95_INFO, 95)),
}


def _mnist_folder(info: DatasetInfo, root: Path | None) -> Path:
    name = MNIST_TRAIN[0]
    return find_folder(
        info,
        root,
        ("MNIST/raw", "cmnist/MNIST/raw"),
        holds=lambda folder: (folder / name).is_file() or (folder / f"{name}.gz").is_file(),
        expected=f"{name} or {name}.gz",
    )


def _colored(grey: Bytes, green: Bits) -> Bytes:
    """Grey images [n, H, W] in the red or the green channel of [n, H, W, 3]."""
    images = np.zeros((*grey.shape, 3), dtype=np.uint8)
    images[..., 0] = np.where(green[:, None, None], 0, grey)
    images[..., 1] = np.where(green[:, None, None], grey, 0)
    return images


def _stacked(
    vehicles: LabelledImages,
    digits: LabelledImages,
    percent: int,
    random: np.random.RandomState,
    shares: Mapping[str, float],
) -> dict[str, ArraySplit]:
    """Splits with every automobile and truck below a digit; groups have exact counts and are divided alike.

    Args:
        percent: how many vehicles of each class have the digit of their class.
        shares: splits, and up to which share of a group each of them reaches.
    """
    cells: dict[str, list[tuple[Integers, Integers, int, int]]] = {name: [] for name in shares}
    pools = [_shuffled(digits, digit, random) for digit in (0, 1)]
    used = [0, 0]
    for y, label in enumerate(VEHICLES):
        chosen = _shuffled(vehicles, label, random)
        aligned = round(percent / 100 * len(chosen))
        for digit, members in ((y, chosen[:aligned]), (1 - y, chosen[aligned:])):
            pool = pools[digit]
            if len(members) and not len(pool):
                raise DataError(f"MNIST has no {digit}; were all files replaced?")
            dealt = np.resize(np.roll(pool, -used[digit]), len(members))  # begins anew when all were used
            used[digit] += len(members)
            start = 0
            for name, share in shares.items():
                end = int(share * len(members) + 1e-9)
                cells[name].append((members[start:end], dealt[start:end], y, digit))
                start = end
    return {name: _domino_split(vehicles.images, digits.images, parts) for name, parts in cells.items()}


def _shuffled(source: LabelledImages, label: int, random: np.random.RandomState) -> Integers:
    """Positions of the images with this label."""
    positions: Integers = random.permutation(np.flatnonzero(source.labels == label)).astype(np.int64)
    return positions


def _domino_split(vehicles: Bytes, digits: Bytes, parts: list[tuple[Integers, Integers, int, int]]) -> ArraySplit:
    lower = np.concatenate([members for members, _, _, _ in parts])
    upper = np.concatenate([dealt for _, dealt, _, _ in parts])
    y = np.concatenate([np.full(len(members), label) for members, _, label, _ in parts])
    digit = np.concatenate([np.full(len(members), value) for members, _, _, value in parts])
    images = np.zeros((len(lower), 64, 32, 3), dtype=np.uint8)
    images[:, 2:30, 2:30] = digits[upper][..., None]
    images[:, 32:] = vehicles[lower]
    return _split(images, y, digit, CORE)


def _split(
    images: Bytes,
    y: Integers | Bits,
    attribute: Integers | Bits,
    region: Box | None = None,
) -> ArraySplit:
    labels = torch.from_numpy(y.astype(np.int64))
    return ArraySplit(
        images=images, y=labels, group=2 * labels + torch.from_numpy(attribute.astype(np.int64)), region=region
    )


def _dataset(info: DatasetInfo, splits: dict[str, ArraySplit], folder: Path) -> ArrayDataset:
    empty = [name for name in info.splits if not len(splits[name])]
    if empty:
        raise DataError(f"{info.name}: no images for {', '.join(empty)}; are the files those of the whole set?")
    opened = ArrayDataset(info, ArraySet(splits))
    warn_about_counts(opened, folder)
    return opened
