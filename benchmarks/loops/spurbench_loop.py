"""spurbench's own loop: a round is one epoch of ERM, validation left out.

Modes: ``default`` as ``spurbench run`` does it (frame cache, bf16, channels_last); ``matched`` as the peers do (PIL
decodes every image in every epoch, float32, NCHW).
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs as a script, as the peers' loops do

import torch

from loops.turns import arguments, take_turns
from spurbench.backbone import build_backbone
from spurbench.config import RunPaths
from spurbench.data.view import LoaderSettings, make_view
from spurbench.engine import Silent
from spurbench.engine.device import choose_device, synchronize
from spurbench.engine.evaluation import load_split
from spurbench.engine.run import open_dataset
from spurbench.engine.stop import StopFlag
from spurbench.engine.training import Meter, PhaseState, make_optimizer, train_phase
from spurbench.method import TaskInfo
from spurbench.resolve import RunRequest, make_method, resolve_run
from spurbench.types import Access

FLAGS: dict[str, dict[str, Any]] = {
    "default": {"train.precision": "bf16", "train.channels_last": True},
    "matched": {"train.precision": "float32", "train.channels_last": False},
}


def main() -> None:
    """Train as told."""
    options = arguments()
    torch.set_num_threads(options.threads)
    config, paths = resolve_run(
        RunRequest(
            method="erm",
            dataset=options.data,
            preset="convnext",
            backbone=options.backbone,
            weights="none",
            overrides={
                "input.image_size": options.image_size,
                "input.resize": round(options.image_size * 256 / 224),
                "train.batch_size": options.batch_size,
                "train.optimizer": {"name": "sgd", "lr": 1e-3, "weight_decay": 1e-4, "schedule": "constant"},
                "train.num_threads": options.threads,
                **FLAGS[options.mode],
            },
        ),
        RunPaths(cache=Path(options.scratch) if options.mode == "default" else None),
    )
    device = choose_device("auto")
    method, dataset = make_method(config), open_dataset(config, paths, ())
    arrays = load_split(dataset, "train", resize=config.input.resize, cache=paths.cache)
    backbone = build_backbone(config.backbone, None)
    task = TaskInfo(
        num_classes=2, num_groups=4, num_train=len(arrays.y), class_counts=arrays.y.bincount().tolist(),
        image_size=config.input.image_size, train=config.train,
    )  # fmt: skip
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = method.build(backbone, task).to(device, memory_format=layout)
    settings = LoaderSettings(
        batch_size=config.train.batch_size, input=config.input, mean=backbone.mean, std=backbone.std,
        channels_last=config.train.channels_last, device=device, seed=0,
    )  # fmt: skip
    view = make_view("train", arrays.frames, arrays.y, arrays.group, Access.NONE, settings)
    [phase] = method.phases(config.train)
    state = PhaseState(model=model, optimizer=make_optimizer(phase.optimizer, model), meter=Meter(device))

    def train_round() -> int:
        train_phase(
            config, method, replace(phase, epochs=state.epoch + 1, augment=False), 0, view, state,
            save=lambda state: None, end_epoch=lambda state, row: None, observer=Silent(), stop=StopFlag(),
        )  # fmt: skip
        synchronize(device)
        return len(view)

    take_turns(train_round)


if __name__ == "__main__":
    main()
