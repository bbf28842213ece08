"""What fixtures of published layouts are written with."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spurbench.dataset import Dataset
from spurbench.errors import DataError, DataMissing


def write_image(path: Path, seed: int, size: tuple[int, int] = (36, 44), mode: str = "RGB") -> None:
    """Noise of its own per seed; ``size`` is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def pixels_of(path: Path) -> Tensor:
    """uint8 [3, H, W]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> None:
    """With the keys of the first row as the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def replace_text(path: Path, old: str, new: str) -> None:
    """Damage one place of a file."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def damage_at_random(path: Path, open_set: Callable[[], object], rounds: int = 60) -> int:
    """How often a set refuses to open with a few bytes of a file changed, left out or cut off.

    Anything but opening or one of the errors that are messages is raised.
    """
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(rounds):
        damaged = bytearray(content)
        for position in rng.integers(0, len(damaged), int(rng.integers(1, 4))).tolist():
            damaged[position : position + int(rng.integers(0, 3))] = rng.bytes(int(rng.integers(0, 3)))
        path.write_bytes(bytes(damaged[: len(damaged) if rng.random() < 0.8 else int(rng.integers(len(damaged)))]))
        try:
            open_set()
        except (DataError, DataMissing):
            refused += 1
    path.write_bytes(content)
    return refused


def groups_of(dataset: Dataset, split: str) -> list[str]:
    """The name of every sample's group."""
    part = dataset.split(split)
    column = part.y if part.group is None else part.group
    return [dataset.info.group_names[group] for group in column.tolist()]


def guesses(y: Tensor, num_classes: int, seed: int = 0) -> Tensor:
    """Predictions of which about two thirds are right, int64 [n]."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(num_classes, y.shape, generator=generator)
    return torch.where(torch.rand(y.shape, generator=generator) < 0.5, y, other)
