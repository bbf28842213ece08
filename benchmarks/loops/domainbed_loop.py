"""DomainBed's loop from a checkout: a round is one pass of its ``update`` over one training environment.

Steps, loaders and model are those of ``domainbed/scripts/train.py``; what reads pretrained weights is told to leave
them out, and its fixed 224 px become the size that all sides have.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from loops.turns import arguments, take_turns


def main() -> None:
    """Train as told."""
    options = arguments()
    sys.path.insert(0, options.peer)
    import csv

    import torch
    import torchvision
    from torchvision import transforms

    torch.set_num_threads(options.threads)
    torch.backends.cudnn.deterministic = True  # as its script
    size = options.image_size
    for name in ("resnet18", "resnet50"):
        plain = getattr(torchvision.models, name)
        setattr(torchvision.models, name, lambda pretrained, plain=plain: plain(weights=None))
    from domainbed import algorithms, hparams_registry
    from domainbed.lib.fast_data_loader import InfiniteDataLoader

    tree = Path(options.scratch) / "tree"
    with (Path(options.data) / "metadata.csv").open() as lines:
        for row in csv.DictReader(lines):
            if row["split"] == "0":
                link = tree / row["y"] / row["img_filename"].replace("/", "_")
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to((Path(options.data) / row["img_filename"]).resolve())
    transform = transforms.Compose(
        [
            transforms.Resize((size, size)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    environment = torchvision.datasets.ImageFolder(str(tree), transform=transform)
    hparams = hparams_registry.default_hparams("ERM", "PACS")
    hparams |= {
        "resnet18": options.backbone == "resnet18",
        "resnet50_augmix": False,
        "batch_size": options.batch_size,
        "data_augmentation": False,
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    algorithm = algorithms.get_algorithm_class("ERM")((3, 224, 224), 2, 1, hparams).to(device)
    loader = InfiniteDataLoader(
        dataset=environment,
        weights=None,
        batch_size=options.batch_size,
        num_workers=options.workers if options.mode == "matched" else 8,
    )
    batches = zip(loader, strict=False)
    steps = -(-len(environment) // options.batch_size)

    def train_round() -> int:
        for _ in range(steps):
            [(x, y)] = next(batches)
            algorithm.update([(x.to(device), y.to(device))], None)
        return steps * options.batch_size

    take_turns(train_round)


if __name__ == "__main__":
    main()
