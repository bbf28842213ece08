"""Makes minibirds_resnet.safetensors and minibirds_vit.safetensors, the weights of the shipped backbones.

A backbone learns to tell the 24 species of MiniBirds apart, before random backgrounds that mostly are neither land
nor water. It never sees an image of a benchmark split, and it was made before any two methods were compared on it.

Run it with one thread, from the repository's root; it takes about ten minutes for the residual network, and 23
for the ViT:

    python spurbench/assets/make_minibirds_backbones.py minibirds_resnet

The same versions of Python packages on the same kind of processor give the same weights.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from spurbench import zoo
from spurbench.datasets.minibirds import DATASETS, MiniBirdsSplit, pretext_split
from spurbench.io import atomic_write
from spurbench.rng import generator, seed_for

SCRIPT_VERSION = "1"
HELD_OUT_IMAGES = 2000
BATCH_SIZE = 64
WEIGHT_DECAY = 0.05


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between the models."""

    epochs: int
    peak_learning_rate: float


RECIPES = {
    "minibirds_resnet": Recipe(epochs=8, peak_learning_rate=4e-3),
    "minibirds_vit": Recipe(epochs=10, peak_learning_rate=1e-3),
}


def main() -> None:
    """Train, measure, and write the weights."""
    args = _arguments()
    recipe = RECIPES[args.model]
    epochs = args.epochs or recipe.epochs
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed_for(args.seed, "init"))
    model = timm.create_model(args.model)

    images, species = _drawn(pretext_split("train", args.images, args.seed))
    _train(model, images, species, epochs=epochs, peak=recipe.peak_learning_rate, seed=args.seed)

    images, species = _drawn(pretext_split("held_out", HELD_OUT_IMAGES, args.seed))
    accuracy = _accuracy(model, images, species)
    print(f"held-out accuracy {accuracy:.4f} on {HELD_OUT_IMAGES} images", flush=True)

    metadata = {
        "model": args.model,
        "script_version": SCRIPT_VERSION,
        "dataset_version": DATASETS["minibirds100"].info.version,
        "images": str(args.images),
        "epochs": str(epochs),
        "seed": str(args.seed),
        "held_out_accuracy": f"{accuracy:.4f}",
        "license": "MIT",
    }
    with atomic_write(args.out or zoo.WEIGHTS[args.model]) as stream:
        stream.write(save(model.state_dict(), metadata=metadata))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a backbone that is shipped for MiniBirds.")
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--images", type=int, default=16000, help="training images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="(default: the model's)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file to write (default: the shipped one)")
    return parser.parse_args()


def _drawn(split: MiniBirdsSplit) -> tuple[Tensor, Tensor]:
    """All images of a split, uint8 [n, 3, 64, 64], and their species, int64 [n]."""
    return torch.stack([split[index].image for index in range(len(split))]), split.y


def _train(model: nn.Module, images: Tensor, species: Tensor, *, epochs: int, peak: float, seed: int) -> None:
    steps = len(images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=epochs * steps)
    model.train()
    for epoch in range(epochs):
        started, total = time.monotonic(), 0.0
        draws = generator(seed, "pretext", epoch)
        order = torch.randperm(len(images), generator=draws)
        for batch in order[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            flip = torch.rand(len(batch), 1, 1, 1, generator=draws) < 0.5
            inputs = _normalized(images[batch])
            loss = F.cross_entropy(model(torch.where(flip, inputs.flip(3), inputs)), species[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / steps:.4f}, {time.monotonic() - started:.0f} s", flush=True)


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, species: Tensor) -> float:
    model.eval()
    predicted = torch.cat([model(_normalized(some)).argmax(1) for some in torch.chunk(images, 8)])
    return float((predicted == species).double().mean())


def _normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (images.float() / 255 - mean) / std


if __name__ == "__main__":
    main()
