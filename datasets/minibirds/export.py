"""Writes a MiniBirds dataset as files, in the layout in which WaterBirds and CUB-200-2011 are distributed."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spurbench.datasets.minibirds.birds import SPECIES
from spurbench.datasets.minibirds.drawing import draw
from spurbench.datasets.minibirds.layout import Columns
from spurbench.drawing.files import require_new_folder, save_jpeg, save_mask

__all__ = ["CUB", "OFFICIAL_SPLITS", "write_waterbirds"]

CUB = "CUB_200_2011"
"""Folder of boxes and masks."""
OFFICIAL_SPLITS = ("train", "val", "test")
"""The splits that the official layout knows, by their number."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One image: its number and file, its columns, and where ``draw`` finds it."""

    number: int
    file: str
    y: int
    split: int
    place: int
    species: int
    index: int


def write_waterbirds(folder: Path, name: str, seed: int, columns: dict[str, Columns]) -> None:
    """Write ``<folder>/<name>/`` (images, metadata.csv) and ``<folder>/CUB_200_2011/`` (boxes, segmentations).

    ``columns`` has the three official splits. Image numbers follow species, as in CUB. Two calls write equal bytes
    wherever Pillow and its JPEG library are the same; masks and boxes are equal everywhere.

    Raises:
        ConfigError: ``folder`` is not empty.
    """
    require_new_folder(folder)
    images, cub = folder / name, folder / CUB
    masks = cub / "segmentations"
    for number, species in enumerate(SPECIES, start=1):
        for parent in (images, masks):
            (parent / _species_folder(number, species.name)).mkdir(parents=True)

    metadata, names, boxes = [], [], []
    for row in _rows(columns):
        drawing = draw(seed, OFFICIAL_SPLITS[row.split], row.index, row.species, row.place)
        save_jpeg(images / row.file, drawing.image)
        save_mask((masks / row.file).with_suffix(".png"), drawing.mask)
        x0, y0, x1, y1 = drawing.box
        scene = f"/{drawing.background[0]}/{drawing.background}/{row.number:08d}.jpg"
        metadata.append((row.number, row.file, row.y, row.split, row.place, scene))
        names.append(f"{row.number} {row.file}\n")
        boxes.append(f"{row.number} {x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}\n")

    with (images / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("img_id", "img_filename", "y", "split", "place", "place_filename"))
        table.writerows(metadata)
    (cub / "images.txt").write_text("".join(names), encoding="utf-8", newline="\n")
    (cub / "bounding_boxes.txt").write_text("".join(boxes), encoding="utf-8", newline="\n")


def _rows(columns: dict[str, Columns]) -> Iterator[_Row]:
    """All images by species, then split, then position; numbered from 1 over all and within each species."""
    cells = sorted(
        (species, split, index, place)
        for split, split_name in enumerate(OFFICIAL_SPLITS)
        for index, (species, place) in enumerate(
            zip(columns[split_name].species, columns[split_name].place, strict=True)
        )
    )
    seen: Counter[int] = Counter()
    for number, (species, split, index, place) in enumerate(cells, start=1):
        seen[species] += 1
        name = SPECIES[species].name
        yield _Row(
            number=number,
            file=f"{_species_folder(species + 1, name)}/{name}_{seen[species]:04d}_{number}.jpg",
            y=int(SPECIES[species].waterbird),
            split=split,
            place=place,
            species=species,
            index=index,
        )


def _species_folder(number: int, name: str) -> str:
    return f"{number:03d}.{name}"
