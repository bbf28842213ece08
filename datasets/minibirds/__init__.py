"""MiniBirds: small procedural birds on land and on water, after WaterBirds.

24 species, half of them landbirds and half waterbirds, stand on backgrounds of land (bamboo, broadleaf forest) or
water (ocean, lake). In ``minibirds95`` 95 % of the training images show a bird where its class lives, in
``minibirds100`` all of them, in ``minibirds50`` half. Images are 64 x 64 pixels, drawn when asked for; masks and boxes
are exact. Nothing is downloaded, and every pixel is the same on every machine.

Splits
    ``train``: 2,000 images, classes of equal size.
    ``val`` and ``test``: 1,000 images each with groups of equal size, **as in WaterBirds**. So accuracy on ``val`` is
    partly aware of groups: choosing by it is choosing with some knowledge of the shift, even if no group label is
    read. Both are the same images in all three datasets.
    ``id_val``: 500 images with the correlation of ``train``. Rules that must not look at groups choose on this split.
    Counts per group are exact (475 of the 500 ``id_val`` images of ``minibirds95`` are aligned: 237 + 238).
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.datasets.minibirds.birds import SPECIES
from spurbench.datasets.minibirds.drawing import CONSTANTS, VERSION, Drawing, draw
from spurbench.datasets.minibirds.export import CUB, OFFICIAL_SPLITS, write_waterbirds
from spurbench.datasets.minibirds.layout import SIZES, Columns, group_counts, pretext_columns, split_columns
from spurbench.drawing.sets import SEED, DrawnSplit
from spurbench.errors import require_split

__all__ = ["DATASETS", "MiniBirds", "MiniBirdsSplit", "pretext_split"]

_FOLDERS: Final = {
    100: "waterbird_1.0_forest2water2",
    95: "waterbird_complete95_forest2water2",
    50: "waterbird_complete50_forest2water2",
}
"""Training correlation in percent, and what WaterBirds of that correlation calls its folder."""


class MiniBirdsSplit(DrawnSplit[Drawing]):
    """A split with the species and place of its birds."""

    def __init__(self, seed: int, name: str, columns: Columns, *, y: Tensor, group: Tensor | None) -> None:
        super().__init__(name, partial(_draw, seed, name, columns), y=y, group=group)
        self.columns = columns


class MiniBirds:
    """The dataset in which ``percent`` of the training images show a bird where its class lives."""

    def __init__(self, percent: int, seed: int = SEED) -> None:
        self.info = _info(percent)
        self._percent, self._seed = percent, seed

    def split(self, name: str) -> MiniBirdsSplit:
        """The split called ``name``; raises ``ConfigError`` for an unknown name."""
        require_split(name, SIZES)
        columns = split_columns(self._seed, name, self._percent)
        y = torch.tensor(columns.y)
        return MiniBirdsSplit(self._seed, name, columns, y=y, group=2 * y + torch.tensor(columns.place))

    def fingerprint(self) -> str:
        """Hash of name, version, columns and what shapes the images; nothing is drawn."""
        columns = [(name, split_columns(self._seed, name, self._percent)) for name in self.info.splits]
        content = repr((self.info.name, VERSION, self._seed, CONSTANTS, columns))
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``train``, ``val`` and ``test`` below an empty folder, as WaterBirds is laid out; see ``export``."""
        columns = {name: split_columns(self._seed, name, self._percent) for name in OFFICIAL_SPLITS}
        write_waterbirds(folder, _FOLDERS[self._percent], self._seed, columns)


def pretext_split(name: str, size: int, seed: int = SEED) -> MiniBirdsSplit:
    """Images for making a backbone: y is the species (0..23), places are random and mostly neither land nor water.

    Different names, like ``"train"`` and ``"held_out"``, give different images, and none is in a dataset's split.
    """
    split = f"pretext-{name}"
    columns = pretext_columns(seed, split, size)
    return MiniBirdsSplit(seed, split, columns, y=torch.tensor(columns.species), group=None)


def _info(percent: int) -> DatasetInfo:
    return DatasetInfo(
        name=f"minibirds{percent}",
        version=VERSION,
        classes=("landbird", "waterbird"),
        attributes=("land", "water"),
        splits=tuple(SIZES),
        preset="minibirds",
        description=f"{len(SPECIES)} species of procedural birds, 64 px; {percent} % of the training birds are at the "
        "place of their class. val and test are group-balanced as in WaterBirds, id_val is like train.",
        license="MIT",
        citation="Drawn by spurbench, after WaterBirds (Sagawa et al., 2020, arXiv:1911.08731)",
        source="drawn on the fly; nothing to download",
        has_boxes=True,
        has_masks=True,
        expected_counts={name: group_counts(name, percent) for name in SIZES},
    )


def _draw(seed: int, split: str, columns: Columns, index: int) -> Drawing:
    return draw(seed, split, index, columns.species[index], columns.place[index])


def _open(percent: int, _root: Path | None) -> MiniBirds:
    return MiniBirds(percent)


def _write(percent: int, folder: Path) -> None:
    MiniBirds(percent).write(folder)


DATASETS: dict[str, DatasetSpec] = {
    f"minibirds{percent}": DatasetSpec(
        info=_info(percent),
        open=partial(_open, percent),
        write=partial(_write, percent),
        writes=(name, CUB),
    )
    for percent, name in _FOLDERS.items()
}
