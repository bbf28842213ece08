"""Data and a model for last-layer methods: images of 4 x 4 pixels, and a trunk whose features are the pixels."""

from typing import Any

import torch
from torch import Tensor, nn

from spurbench.config import InputConfig
from spurbench.data.cache import Frames
from spurbench.data.view import LoaderSettings, make_view
from spurbench.method import Views
from spurbench.nn.classifier import Classifier
from spurbench.types import Access

SIDE, WIDTH = 4, 48


class Pixels(nn.Module):
    """A trunk whose features are the pixels."""

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def pooled(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Store:
    """Artifacts in memory, with the engine's seeding."""

    def __init__(self) -> None:
        self.made: dict[str, Tensor] = {}

    def once(self, name: str, make: Any) -> Tensor:
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def candidate(self, rule: str) -> dict[str, Tensor]:
        raise AssertionError(rule)


def images_of(y: Tensor, attribute: Tensor, seed: int) -> Tensor:
    """uint8 [n, 4, 4, 3]: some pixels follow the class, more of them and louder the attribute; the last is constant."""
    rng = torch.Generator().manual_seed(seed)
    images = 128 + 25 * torch.randn(len(y), WIDTH, generator=rng)
    images[:, :4] += 14 * y[:, None]
    images[:, 4:16] += 60 * attribute[:, None]
    images[:, -1] = 77
    return images.clamp(0, 255).byte().reshape(-1, SIDE, SIDE, 3)


def make_views(
    access: Access,
    train: tuple[int, ...] = (90, 10, 12, 88),
    val: tuple[int, ...] = (40, 30, 24, 50),
    mix: bool = False,
) -> Views:
    """Views with so many samples per group, two groups per class.

    Args:
        mix: every second sample is said to be of its class's other group.
    """
    settings = LoaderSettings(
        batch_size=32,
        input=InputConfig(resize=SIDE, image_size=SIDE, crop_scale=None, flip=False),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        channels_last=False,
        device=torch.device("cpu"),
        seed=0,
    )
    views = []
    for seed, (name, sizes) in enumerate((("train", train), ("val", val))):
        group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        group = group[torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))]
        y = group // 2
        frames = Frames(images=images_of(y, group % 2, seed), masks=None, boxes=None)
        told = torch.where(torch.arange(len(group)) % 2 == 0, group ^ 1, group) if mix else group
        views.append(make_view(name, frames, y, told, access, settings))
    return Views(*views)


def make_model(num_classes: int = 2) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Pixels(), num_classes)  # type: ignore[arg-type]
