"""A dataset of eight images and a method that trains nothing, for ``sweep_overhead.py``."""

from collections.abc import Sequence
from pathlib import Path

import torch

from spurbench.config import TrainConfig
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.method import BaseMethod, MethodConfig, Phase
from spurbench.types import Sample


class Split:
    """Grey squares."""

    y = torch.arange(8) % 2
    group = torch.arange(8) % 4

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Sample:
        """One of them."""
        image = torch.full((3, 32, 32), 100, dtype=torch.uint8)
        return Sample(image=image, y=int(self.y[index]), group=int(self.group[index]), index=index)


class Squares:
    """The same eight images for every split."""

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info

    def split(self, name: str) -> Split:
        """Any."""
        return Split()

    def fingerprint(self) -> str:
        """They never change."""
        return "squares"


INFO = DatasetInfo(name="no_op", version="1", classes=("a", "b"), attributes=("x", "y"), preset=str(Path(__file__).with_name("no_op.yaml")))  # fmt: skip  # noqa: E501
DATASETS = {"no_op": DatasetSpec(info=INFO, open=lambda root: Squares(INFO))}


class NoOp(BaseMethod[MethodConfig]):
    """A phase without epochs: the model is measured as it was made."""

    only_last = True

    def phases(self, train: TrainConfig) -> Sequence[Phase]:
        """One that trains nothing."""
        return (Phase(name="nothing", epochs=0, optimizer=train.optimizer),)


METHODS = {"no_op": NoOp}
