"""CUB-200-2011 in small, as Caltech's archives unpack, with the quirks of the real files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SPECIES = {
    1: "001.Black_footed_Albatross",
    2: "002.Laysan_Albatross",
    14: "014.Indigo_Bunting",
    21: "021.Eastern_Towhee",  # A landbird that WaterBirds takes for a waterbird.
    66: "066.Western_Gull",
    200: "200.Common_Yellowthroat",
}
TRAIN, TEST = 5, 3
"""Images of each species."""


@dataclass(frozen=True)
class Bird:
    """One image as it was written."""

    id: int
    number: int
    """Of the species, from 1."""
    name: str
    training: bool
    box: tuple[float, float, float, float]
    """x, y, width, height."""
    levels: npt.NDArray[np.uint8]
    """The mask, uint8 [H, W]."""


@dataclass(frozen=True)
class CubLayout:
    """What was written."""

    root: Path
    folder: Path
    segmentations: Path
    birds: tuple[Bird, ...]

    def image(self, bird: Bird) -> Path:
        return self.folder / "images" / bird.name

    def mask(self, bird: Bird) -> Path:
        return (self.segmentations / bird.name).with_suffix(".png")


def write_cub(
    root: Path,
    *,
    segmentations: str = "segmentations",
    species: Mapping[int, str] = SPECIES,
    train: int = TRAIN,
    test: int = TEST,
) -> CubLayout:
    """Write ``root/CUB_200_2011/``, and masks in ``root/<segmentations>/``."""
    folder, masks = root / "CUB_200_2011", root / segmentations
    rng = np.random.default_rng(7)
    birds = []
    for number, name in species.items():
        for index in range(train + test):
            identity = 10 * len(birds) + 3  # Ids only link the files, they are no row numbers.
            stem = name.partition(".")[2].title()  # The case differs between folder and file, as in CUB.
            bird = Bird(
                id=identity,
                number=number,
                name=f"{name}/{stem}_{index:04}_{identity}.jpg",
                training=index % (train + test) < train,
                box=(2.0, 3.5, 20.0, 21.3),
                levels=_levels(40 + len(birds) % 7, 33 + len(birds) % 5),
            )
            birds.append(bird)
            _write(folder / "images" / bird.name, masks, bird, len(birds) - 1, rng)
    first = birds[0]
    with Image.open(folder / "images" / first.name) as image:  # In no list and without a mask.
        image.convert("RGB").save(folder / "images" / first.name.replace(".jpg", "_rgb.jpg"))
    _write_lists(folder, species, birds)
    (root / "attributes.txt").write_text("1 has_bill_shape::curved_(up_or_down)\n")
    return CubLayout(root, folder, masks, tuple(birds))


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _levels(height: int, width: int) -> npt.NDArray[np.uint8]:
    """An object of 255, above it a row of 128, below it one of 127, and levels in between beside it."""
    levels = np.zeros((height, width), dtype=np.uint8)
    levels[10:24, 5:20] = 255
    levels[9, 5:20], levels[24, 5:20] = 128, 127
    levels[10:24, 20:24] = (200, 130, 90, 20)
    return levels


def _write(path: Path, masks: Path, bird: Bird, index: int, rng: np.random.Generator) -> None:
    mask = (masks / bird.name).with_suffix(".png")
    for file in (path, mask):
        file.parent.mkdir(parents=True, exist_ok=True)
    height, width = bird.levels.shape
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    image.convert({0: "L", 1: "CMYK"}.get(index, "RGB")).save(path)
    Image.fromarray(bird.levels).convert({1: "LA", 2: "RGBA", 3: "P"}.get(index, "L")).save(mask)


def _write_lists(folder: Path, species: Mapping[int, str], birds: list[Bird]) -> None:
    lists: dict[str, list[str]] = {
        "images.txt": [f"{bird.id} {bird.name}" for bird in birds],
        "classes.txt": [f"{number} {name}" for number, name in species.items()],
        "image_class_labels.txt": [f"{bird.id} {bird.number}" for bird in reversed(birds)],
        "train_test_split.txt": [f"{bird.id} {int(bird.training)}" for bird in birds],
        "bounding_boxes.txt": [f"{bird.id} {' '.join(map(str, bird.box))}" for bird in birds],
    }
    for name, lines in lists.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
