"""Small images in the files of MNIST and CIFAR-10, as torchvision keeps them."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spurbench.data.plain_pickle import load_plain_pickle
from spurbench.errors import DataError

__all__ = ["CIFAR_TEST", "CIFAR_TRAIN", "MNIST_TEST", "MNIST_TRAIN", "LabelledImages", "read_cifar10", "read_mnist"]

MNIST_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
MNIST_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_TEST = ("test_batch",)
CIFAR_SIDE = 32
NUM_CLASSES = 10

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images and their classes, in the order of the files."""

    images: Bytes
    """[n, H, W], or [n, H, W, 3] in RGB."""
    labels: npt.NDArray[np.int64]
    """[n], 0 to 9."""


def read_mnist(folder: Path, names: tuple[str, str]) -> LabelledImages:
    """The digits in the files of ``MNIST_TRAIN`` or ``MNIST_TEST``, packed (``.gz``) or not.

    Raises:
        DataError: a file is missing, damaged or cut off.
        OSError: the system cannot read a file.
    """
    images, labels = (_read_idx(folder, name, dimensions) for name, dimensions in zip(names, (3, 1), strict=True))
    return _labelled(images, labels.astype(np.int64), folder / names[1])


def read_cifar10(folder: Path, names: Sequence[str]) -> LabelledImages:
    """The images in the batches ``CIFAR_TRAIN`` or ``CIFAR_TEST`` of CIFAR-10's Python version.

    Raises:
        DataError: a batch is missing or damaged, or holds more than plain data.
        OSError: the system cannot read a file.
    """
    batches = [_read_batch(folder / name) for name in names]
    return LabelledImages(
        np.concatenate([batch.images for batch in batches]), np.concatenate([batch.labels for batch in batches])
    )


def _read_idx(folder: Path, name: str, dimensions: int) -> Bytes:
    """An array of bytes: two zeros, the type 8, the number of dimensions, their sizes (four bytes, big end first)."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder / name} is missing, and {name}.gz too")
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked: {error}; is the file damaged or cut off?") from error
    start = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < start:
        raise DataError(f"{path} is no idx file of bytes in {dimensions} dimensions; is the file damaged?")
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=dimensions, offset=4))
    if len(data) - start != int(np.prod(shape)):
        raise DataError(f"{path} holds {len(data) - start:,} bytes for the shape {shape}; is the file cut off?")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)


def _read_batch(path: Path) -> LabelledImages:
    if not path.is_file():
        raise DataError(f"{path} is missing; was everything unpacked?")
    content = load_plain_pickle(path)
    pixels = content.get("data") if isinstance(content, dict) else None
    labels = content.get("labels") if isinstance(content, dict) else None
    size = 3 * CIFAR_SIDE * CIFAR_SIDE
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != size
        or not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
    ):
        raise DataError(f"{path} is no batch of CIFAR-10; expected data, uint8 [n, {size}], and a list of labels")
    images = pixels.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
    return _labelled(images, np.array(labels, dtype=np.int64), path)


def _labelled(images: Bytes, labels: npt.NDArray[np.int64], path: Path) -> LabelledImages:
    if len(images) != len(labels):
        raise DataError(f"{path} has {len(labels):,} labels for {len(images):,} images")
    if len(labels) and (labels.min() < 0 or labels.max() >= NUM_CLASSES):
        raise DataError(f"{path} has labels {labels.min()} to {labels.max()}, expected 0 to {NUM_CLASSES - 1}")
    return LabelledImages(images, labels)
