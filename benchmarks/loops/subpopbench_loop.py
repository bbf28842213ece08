"""SubpopBench's loop from a checkout: a round is an epoch's worth of its ``update``, as its ``train.py`` calls it.

Its fixed 224 px become the size that all sides have, and ``AdamW``, which ``transformers`` no longer has, is torch's.
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

    torch.set_num_threads(options.threads)
    torch.backends.cudnn.deterministic = True  # as its script
    torch.multiprocessing.set_sharing_strategy("file_system")
    from subpopbench import hparams_registry
    from subpopbench.dataset import datasets
    from subpopbench.dataset.fast_dataloader import InfiniteDataLoader
    from subpopbench.models import networks  # noqa: F401  transformers replaces its module while this is imported
    from torchvision import transforms

    sys.modules["transformers"].AdamW = torch.optim.AdamW  # type: ignore[attr-defined]
    from subpopbench.learning import algorithms

    size = options.image_size
    staged = Path(options.scratch) / "waterbirds"
    staged.mkdir(parents=True, exist_ok=True)
    if not (staged / "waterbird_complete95_forest2water2").exists():
        (staged / "waterbird_complete95_forest2water2").symlink_to(Path(options.data).resolve())
    with (
        (Path(options.data) / "metadata.csv").open() as lines,
        (staged / "metadata_waterbirds.csv").open("w") as table,
    ):
        table.write("id,filename,split,y,a\n")
        for row in csv.DictReader(lines):
            table.write(f"{row['img_id']},{row['img_filename']},{row['split']},{row['y']},{row['place']}\n")
    hparams = hparams_registry.default_hparams("ERM", "Waterbirds")
    hparams |= {
        "pretrained": False,
        "resnet18": options.backbone == "resnet18",
        "batch_size": options.batch_size,
        "image_arch": "resnet_sup_in1k",
        "text_arch": "bert-base-uncased",
        "steps": 10_000,
    }
    train = datasets.Waterbirds(options.scratch, "tr", hparams, train_attr="no")
    train.transform_ = transforms.Compose(
        [
            transforms.Resize((round(size * 256 / 224),) * 2),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    algorithm = algorithms.get_algorithm_class("ERM")(
        train.data_type, (3, 224, 224), train.num_labels, train.num_attributes, len(train), hparams,
        grp_sizes=train.group_sizes,
    )  # fmt: skip
    algorithm.to(device)
    loader = InfiniteDataLoader(
        dataset=train,
        weights=None,
        batch_size=options.batch_size,
        num_workers=options.workers if options.mode == "matched" else train.N_WORKERS,
    )
    batches = iter(loader)
    steps = -(-len(train) // options.batch_size)
    done = 0

    def train_round() -> int:
        nonlocal done
        for _ in range(steps):
            i, x, y, a = next(batches)
            algorithm.train()
            algorithm.update((i, x.to(device), y.to(device), a.to(device)), done)
            done += 1
        return steps * options.batch_size

    take_turns(train_round)


if __name__ == "__main__":
    main()
