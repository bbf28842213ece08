"""A finished run's model, from its kept weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from spurbench.backbone import Backbone, build_backbone
from spurbench.checkpoint import load_tensors
from spurbench.config import BackboneConfig, RunConfig
from spurbench.errors import DataMissing
from spurbench.io import read_json
from spurbench.method import BaseMethod, TaskInfo
from spurbench.resolve import make_method

__all__ = ["restore_model", "weights_file"]


def weights_file(folder: Path, position: int, epoch: int) -> Path:
    """Where a run keeps the weights after an epoch of a phase; a phase without epochs has epoch -1."""
    return folder / "weights" / f"phase{position}_epoch{max(0, epoch):04d}.pt"


def restore_model(
    config: RunConfig, folder: Path, epoch: int, device: torch.device, plugins: tuple[Path, ...] = ()
) -> tuple[BaseMethod[Any], nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Method, model in evaluation mode, and the input normalization.

    Args:
        epoch: of the last phase; -1 for a phase without epochs.

    Raises:
        DataMissing: the weights of that epoch were not kept.
    """
    method = make_method(config, plugins)
    task = TaskInfo(train=config.train, **read_json(folder / "task.json"))
    # Initial weights do not matter here, so they need not be on this machine.
    backbone: Backbone = build_backbone(BackboneConfig(name=config.backbone.name, weights="none"), None)
    model = method.build(backbone, task)
    position = len(method.phases(config.train)) - 1
    path = weights_file(folder, position, epoch)
    state = load_tensors(path)
    if state is None and not any(path.parent.glob("*.pt")):
        raise DataMissing(f"the weights of the run in {folder} are gone; make them again with spurbench run --force")
    if state is None:
        raise DataMissing(
            f"the weights of epoch {epoch + 1} are not kept in {folder}: runs keep those of the default rule "
            "and of the last epoch; choose --select last"
        )
    model.load_state_dict(state)
    # In the memory format of training: another one sums in another order.
    memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    return method, model.eval(), backbone.mean, backbone.std
