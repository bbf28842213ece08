"""group_DRO's loop from a checkout: a round is its ``run_epoch`` on the training split, with ERM's loss.

It knows neither ResNet-18 nor other sizes than 224 px nor a CPU: the first two become an entry of its own table, and
on a machine without CUDA ``.cuda()`` leaves a tensor where it is. ``pytorch_transformers``, which serves BERT, is left
out.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

from loops.turns import arguments, take_turns


def main() -> None:
    """Train as told."""
    options = arguments()
    sys.path.insert(0, options.peer)
    import torch
    import torchvision

    torch.set_num_threads(options.threads)
    torch.backends.cudnn.deterministic = True  # as its script
    if not torch.cuda.is_available():
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self: self  # type: ignore[assignment, method-assign]
    bert = ModuleType("pytorch_transformers")
    bert.AdamW = bert.WarmupLinearSchedule = None  # type: ignore[attr-defined]
    sys.modules["pytorch_transformers"] = bert
    from models import model_attributes

    size = (options.image_size, options.image_size)
    model_attributes[options.backbone] = {"feature_type": "image", "target_resolution": size, "flatten": False}
    from data.data import prepare_data
    from loss import LossComputer
    from train import run_epoch
    from utils import CSVBatchLogger

    scratch = Path(options.scratch)
    staged = scratch / "data" / "waterbird_complete95_forest2water2"
    if not staged.exists():
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.symlink_to(Path(options.data).resolve())
    args = SimpleNamespace(
        root_dir=str(scratch),
        dataset="CUB",
        shift_type="confounder",
        target_name="waterbird_complete95",
        confounder_names=["forest2water2"],
        model=options.backbone,
        augment_data=False,
        fraction=1.0,
        weight_decay=5e-5,
    )
    train_data, _, _ = prepare_data(args, train=True)
    loader = train_data.get_loader(
        train=True,
        reweight_groups=False,
        batch_size=options.batch_size,
        num_workers=options.workers if options.mode == "matched" else 4,
        pin_memory=True,
    )
    model = getattr(torchvision.models, options.backbone)(weights=None)
    model.fc = torch.nn.Linear(model.fc.in_features, train_data.n_classes)
    model = model.cuda()
    losses = LossComputer(torch.nn.CrossEntropyLoss(reduction="none"), is_robust=False, dataset=train_data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=args.weight_decay)
    logger = SimpleNamespace(write=lambda text: None, flush=lambda: None)
    table = CSVBatchLogger(str(scratch / "train.csv"), train_data.n_groups)

    def train_round() -> int:
        run_epoch(0, model, optimizer, loader, losses, logger, table, args, is_training=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return len(train_data)

    take_turns(train_round)


if __name__ == "__main__":
    main()
