"""Small image folders in the layouts that WaterBirds is published in, with the quirks of the real files."""

import csv
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Before anything imports torch: on tiny tensors a team of threads costs more than it saves, and on a busy machine its
# waiting costs minutes. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor

# The same examples in every CI run: a new one belongs to whoever looks for it, not to whoever submits that day.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

DIALECTS = {
    "official": ("img_id", "img_filename", "y", "split", "place", "place_filename"),
    "other": ("id", "filename", "split", "y", "a"),
}
SPECIES = {
    0: ("001.Black_footed_Albatross", "Black_Footed_Albatross"),  # The case differs between folder and file.
    1: ("002.Laysan Albatross", "Laysan_Albatross"),  # A space in the folder's name.
}
Pixels = npt.NDArray[np.uint8]
FULL: dict[str, tuple[int, ...]] = {"train": (3, 2, 2, 3), "val": (2, 2, 2, 2), "test": (2, 3, 2, 2)}
"""Images per split and group 2y + place."""


@dataclass
class Layout:
    """A written layout: the folders and the rows, for a test to look at and to damage."""

    root: Path
    folder: Path
    table: Path
    rows: list[dict[str, object]]

    def image(self, row: int) -> Path:
        return self.folder / str(self.rows[row]["img_filename"])

    def mask_key(self, row: int) -> Path:
        return Path(str(self.rows[row]["img_filename"])).with_suffix(".png")

    def size(self, row: int) -> tuple[int, int]:
        return size_of(row)

    def levels(self, row: int) -> Pixels:
        return mask_levels(row)

    def box(self, row: int) -> tuple[float, float, float, float]:
        return box_of(row)

    def write_table(self, columns: Sequence[str] = DIALECTS["official"]) -> None:
        write_table(self.table, self.rows, columns)

    def change(self, row: int, **values: object) -> None:
        self.rows[row] |= values
        self.write_table()

    def rows_of(self, split: int) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row["split"] == split]


def write_table(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    """Write rows in a dialect: the names of the two dialects stand for the same values."""
    same = {"id": "img_id", "filename": "img_filename", "a": "place"}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name, row.get(same.get(name, ""), "")) for name in columns] for row in rows)


def make_rows(counts: dict[str, tuple[int, ...]]) -> list[dict[str, object]]:
    """Rows with the splits mixed, as in CUB order, ids from 1."""
    cells = [
        (split, group)
        for split, name in enumerate(("train", "val", "test"))
        for group, count in enumerate(counts[name])
        for _ in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(cells))
    rows: list[dict[str, object]] = []
    for number, (split, group) in enumerate((cells[i] for i in order), start=1):
        y, place = divmod(group, 2)
        folder, stem = SPECIES[y]
        rows.append(
            {
                "img_id": number,
                "img_filename": f"{folder}/{stem}_{number:04}_{number + 17}.jpg",
                "y": y,
                "split": split,
                "place": place,
                "place_filename": f"/b/bamboo_forest/{number:08}.jpg",
            }
        )
    return rows


def size_of(index: int) -> tuple[int, int]:
    """Width and height; no two equal and neither square, so that a swap shows."""
    return 32 + index % 13, 48 + index % 11


def write_images(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Textured images; the first is grey, the second CMYK, and a stray duplicate lies beside the first."""
    rng = np.random.default_rng(1)
    for index, row in enumerate(rows):
        width, height = size_of(index)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        path = folder / str(row["img_filename"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if index == 0:
            image.save(path.with_name(f"{path.stem}_rgb.jpg"))
        image.convert({0: "L", 1: "CMYK"}.get(index, "RGB")).save(path)


def write_masks(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Masks with a white object and a soft edge; one each as palette, LA and RGBA, as in re-releases."""
    for index, row in enumerate(rows):
        path = (folder / str(row["img_filename"])).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = Image.fromarray(mask_levels(index))
        mask.convert({1: "P", 2: "LA", 3: "RGBA"}.get(index, "L")).save(path)


def mask_levels(index: int) -> Pixels:
    """uint8 [H, W]: an object of 255, above it a row of 128, below it a row of 127."""
    width, height = size_of(index)
    levels = np.zeros((height, width), dtype=np.uint8)
    levels[10:30, 5:20] = 255
    levels[9, 5:20], levels[30, 5:20] = 128, 127
    return levels


def box_of(index: int) -> tuple[float, float, float, float]:
    """X, y, width, height, as CUB writes them."""
    return 1.5 + index % 4, 2.0, 20.5, 30.0


def write_boxes(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """CUB's two text files; neither is in the order of the rows, and ids are unrelated to img_id."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {index: 1000 - 7 * index for index in range(len(rows))}
    names = [f"{ids[index]} {row['img_filename']}\n" for index, row in enumerate(rows)]
    boxes = [f"{ids[index]} {' '.join(map(str, box_of(index)))}\n" for index in range(len(rows))]
    (folder / "images.txt").write_text("".join(reversed(names)))
    (folder / "bounding_boxes.txt").write_text("".join(boxes[5:] + boxes[:5]))


@pytest.fixture
def waterbirds_root(tmp_path: Path) -> Callable[..., Layout]:
    """A function that writes a layout below ``tmp_path / "data"`` and describes it.

    ``folder``: the image folder below the root. ``table``: the table, relative to the image folder. ``masks`` and
    ``boxes``: folders below the root for segmentations and for CUB's text files, or None for none.
    """

    def make(
        folder: str = "waterbird_complete95_forest2water2",
        *,
        table: str = "metadata.csv",
        dialect: str = "official",
        counts: dict[str, tuple[int, ...]] = FULL,
        masks: str | None = None,
        boxes: str | None = None,
    ) -> Layout:
        root = tmp_path / "data"
        image_folder = root / folder
        rows = make_rows(counts)
        write_images(image_folder, rows)
        layout = Layout(root, image_folder, Path(os.path.normpath(image_folder / table)), rows)
        layout.write_table(DIALECTS[dialect])
        if masks is not None:
            write_masks(root / masks, rows)
        if boxes is not None:
            write_boxes(root / boxes, rows)
        return layout

    return make


@pytest.fixture
def torch_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one function that WILDS takes from a package that it does not declare."""

    def scatter(src: Tensor, index: Tensor, dim_size: int, dim: int = -1, reduce: str = "sum") -> Tensor:
        assert reduce == "mean"
        sums = torch.zeros(dim_size, dtype=src.dtype).index_add(dim, index, src)
        return sums / torch.zeros(dim_size).index_add(dim, index, torch.ones(len(index))).clamp(min=1)

    module = types.ModuleType("torch_scatter")
    module.scatter = scatter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_scatter", module)
