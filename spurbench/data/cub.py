"""CUB-200-2011 as its text files describe it: the birds, their species and their split.

WaterBirds and TravelingBirds are made of these images and share their names, masks and boxes. Images are listed by
``images.txt`` and never by looking into folders, which hold eight stray ``*_rgb.jpg`` copies of grey originals.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from spurbench.data.csv_columns import TextRow, good_rows, require_new
from spurbench.data.image_files import CUB_FOLDER, cub_lines
from spurbench.data.image_table import Row, Table
from spurbench.data.row_faults import BadRow
from spurbench.errors import DataError

__all__ = ["CubImage", "Species", "cub_table", "find_cub", "is_cub", "read_cub", "species_table"]

NUM_SPECIES = 200
_TABLE = Path(__file__).with_name("cub200_species.tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Species:
    """One of the 200 species, from the table that comes with spurbench."""

    number: int
    """1 to 200, as in CUB's files."""
    folder: str
    """``"001.Black_footed_Albatross"``."""
    waterbird: bool
    """WaterBirds' published label. Three landbirds count as waterbirds: 'tern' is a part of eas-tern and wes-tern."""
    really_waterbird: bool
    num_train: int
    """Images in the official training split, of which WaterBirds takes its validation split too."""
    num_test: int

    @property
    def name(self) -> str:
        """The folder without its number."""
        return self.folder.partition(".")[2]

    @property
    def y(self) -> int:
        """Class index, from 0."""
        return self.number - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CubImage:
    """One bird."""

    id: int
    line: int
    """In ``images.txt``, from 1."""
    name: str
    """Path below ``images/``: ``"001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"``."""
    y: int
    """Species from 0, by ``image_class_labels.txt``."""
    is_training: bool

    @property
    def species(self) -> str:
        """The folder's name."""
        return self.name.partition("/")[0]


@cache
def species_table() -> tuple[Species, ...]:
    """All species, by number."""
    with _TABLE.open(encoding="utf-8", newline="") as stream:
        return tuple(
            Species(
                number=int(row["class_id"]),
                folder=row["folder"],
                waterbird=row["y_official"] == "1",
                really_waterbird=row["y_corrected"] == "1",
                num_train=int(row["n_train_official"]),
                num_test=int(row["n_test_official"]),
            )
            for row in csv.DictReader(stream, delimiter="\t")
        )


def is_cub(folder: Path) -> bool:
    """Whether the folder has CUB's list of images and their split."""
    return (folder / "images.txt").is_file() and (folder / "train_test_split.txt").is_file()


def find_cub(places: Sequence[Path]) -> Path | None:
    """The first of ``places``, or of the ``CUB_200_2011`` folders in them, that holds CUB's text files."""
    candidates = (folder for place in places for folder in (place, place / CUB_FOLDER))
    return next((folder for folder in candidates if is_cub(folder)), None)


def read_cub(folder: Path) -> tuple[CubImage, ...]:
    """All images in the order of ``images.txt``; no image is looked at.

    Raises:
        DataError: a text file is missing or malformed, or knows nothing of an image that ``images.txt`` lists.
    """
    images = folder / "images.txt"
    labels = _read_values(folder / "image_class_labels.txt", NUMBERS, f"a class from 1 to {NUM_SPECIES}")
    training = _read_values(folder / "train_test_split.txt", {"0": 0, "1": 1}, "1 (training) or 0 (test)")
    lines = dict[str, int]()

    def bird(row: TextRow) -> CubImage | None:
        key, name = row.cells
        require_new(lines, name, row.line)
        for values in (labels, training):
            if key not in values.of:
                raise BadRow(f"{values.path.name} has no line for id {key}, {name}")
        if not key.isdecimal() or name.startswith("/") or ".." in name.split("/") or "/" not in name:
            raise BadRow(f"'{key} {name}' is not an id and a path such as 001.Species/1.jpg")
        label, part = labels.of[key], training.of[key]
        if label is None or part is None:
            return None
        return CubImage(id=int(key), line=row.line, name=name, y=label - 1, is_training=bool(part))

    birds = tuple(one for one in good_rows(_rows(images), bird) if one is not None)
    if not birds:
        raise DataError(f"{images} is empty; unpack CUB_200_2011.tgz again")
    return birds


def cub_table(folder: Path, birds: Sequence[CubImage], split_of: Callable[[CubImage], str]) -> Table:
    """The birds as a table of images, in the splits that ``split_of`` says."""
    path = folder / "images.txt"
    rows = tuple(
        Row(line=bird.line, filename=bird.name, split=split_of(bird), y=bird.y, attribute=None) for bird in birds
    )
    return Table(path=path, columns=frozenset(), rows=rows)


NUMBERS = {str(number): number for number in range(1, NUM_SPECIES + 1)}


@dataclass(frozen=True, slots=True)
class _Values:
    """What one of the text files says of the images."""

    path: Path
    of: dict[str, int | None]
    """By id; None where the line was told to be bad."""


def _read_values(path: Path, allowed: Mapping[str, int], expected: str) -> _Values:
    of: dict[str, int | None] = {}

    def value(row: TextRow) -> tuple[str, int]:
        key, text = row.cells
        of[key] = None
        if text not in allowed:
            raise BadRow(f"'{text}' is not {expected}")
        return key, allowed[text]

    for key, number in good_rows(_rows(path), value):
        of[key] = number
    return _Values(path, of)


def _rows(path: Path) -> Iterator[TextRow]:
    """Id and value of every line."""
    if not path.is_file():
        raise DataError(f"{path} is missing; it is a part of CUB_200_2011.tgz: unpack that again")
    return (TextRow(path, line, number, [key, rest]) for number, (line, key, rest) in enumerate(cub_lines(path)))
