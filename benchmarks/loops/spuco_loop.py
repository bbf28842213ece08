"""SpuCo's loop (package ``spuco``): a round is one epoch of its ``Trainer``, as ``spuco.robust_train.ERM`` sets it up.

Its four worker processes are fixed in its code; ``--mode matched`` gives the loader as many as the others have.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from loops.turns import arguments, take_turns


def main() -> None:
    """Train as told."""
    options = arguments()
    import torch
    from spuco.datasets import WILDSDatasetWrapper
    from spuco.models import model_factory
    from spuco.robust_train import ERM
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from wilds import get_dataset

    torch.set_num_threads(options.threads)
    root = Path(options.scratch)
    root.mkdir(parents=True, exist_ok=True)
    staged = root / "waterbirds_v1.0"  # where wilds looks
    if not staged.exists():
        staged.symlink_to(Path(options.data).resolve())
    release = Path(options.data) / "RELEASE_v1.0.txt"
    release.touch()
    size = options.image_size
    transform = transforms.Compose(
        [
            transforms.Resize((round(size * 256 / 224),) * 2),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    dataset = get_dataset("waterbirds", root_dir=str(root), download=False)
    train = WILDSDatasetWrapper(dataset.get_subset("train", transform=transform), "background")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_factory(options.backbone, (3, size, size), train.num_classes, pretrained=False).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=1e-4, momentum=0.9)
    erm = ERM(
        model=model, trainset=train, batch_size=options.batch_size, optimizer=optimizer, num_epochs=1, device=device
    )
    if options.mode == "matched":
        erm.trainer.trainloader = DataLoader(
            train, batch_size=options.batch_size, shuffle=True, num_workers=options.workers, pin_memory=True
        )

    def train_round() -> int:
        erm.trainer.train_epoch(0)
        return len(train)

    take_turns(train_round)


if __name__ == "__main__":
    main()
