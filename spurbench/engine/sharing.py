"""A phase that several runs have in common is trained once: one ERM serves MaskTune, DFR and SELF of the same recipe.

The key is a hash of all that the outcome is a function of: the weights at the start, the samples and their weights,
the phase, the recipe, the data, the seed and its position among the phases. Nothing in it names a method, and a key
exists only where the steps are plain ERM's, so equal keys mean equal bits. What a phase left lies beside the runs, in
``phases/<key>/``; it may be deleted at any time.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spurbench.checkpoint import load_tensors, save_tensors
from spurbench.config import RunConfig
from spurbench.data.view import View
from spurbench.method import BaseMethod, Phase

__all__ = ["Outcome", "PhaseHeld", "has_plain_steps", "link_file", "load_outcome", "phase_key", "publish_outcome"]

_PLAIN = ("build", "training_step", "evaluate", "head", "state_dict")
"""Members that decide what a phase computes; a method that overrides one trains its own."""


class PhaseHeld(Exception):
    """Another process is training an equal phase, and this run need not wait for it; its argument is the key."""


def has_plain_steps(method: BaseMethod[Any]) -> bool:
    """Whether what a method's phases compute is plain ERM on the samples they are given."""
    return all(getattr(type(method), name) is getattr(BaseMethod, name) for name in _PLAIN)


def phase_key(
    config: RunConfig,
    method: BaseMethod[Any],
    phase: Phase,
    position: int,
    view: View,
    model: nn.Module,
    *,
    fingerprint: str,
    device: torch.device,
) -> str | None:
    """The identity of what a phase will leave; None where it cannot be shared.

    Args:
        model: with the weights that the phase starts from.
    """
    data = view.digest()
    own = config.evaluation.oracle or phase.init == "continue_with_optimizer" or not phase.epochs
    if not has_plain_steps(method) or data is None or own:
        return None
    described = {key: value for key, value in dataclasses.asdict(phase).items() if key != "name"}
    described["optimizer"] = phase.optimizer.model_dump(mode="json")
    identity = {
        "version": BaseMethod.version,
        "torch": torch.__version__,
        "phase": described,
        "position": position,
        "view": data,
        "weights": _hash_state(model.state_dict()),
        "fingerprint": fingerprint,
        "device": device.type,
        **config.model_dump(mode="json", include={"dataset", "backbone", "input", "train", "seed"}),
        "evaluation": config.evaluation.batch_size,
    }
    # What the recipe says of epochs and optimizer counts as far as the phase took it over.
    identity["train"] = {key: value for key, value in identity["train"].items() if key not in ("epochs", "optimizer")}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a phase left."""

    model: Mapping[str, Any]
    """Weights at its end."""
    optimizer: dict[str, Any]
    rows: list[dict[str, Any]]
    """One per epoch."""
    seconds: float
    images: int
    weights: Mapping[int, Path]
    """Files of the epochs that selection rules chose."""


def load_outcome(folder: Path) -> Outcome | None:
    """What a run published here; None if nothing is there or a part of it is missing."""
    saved = load_tensors(folder / "outcome.pt")
    if saved is None:
        return None
    weights = {int(epoch): folder / f"epoch{epoch:04d}.pt" for epoch in saved["epochs"]}
    if not all(path.is_file() for path in weights.values()):
        return None
    return Outcome(
        model=saved["model"],
        optimizer=saved["optimizer"],
        rows=json.loads(saved["rows"]),
        seconds=saved["seconds"],
        images=saved["images"],
        weights=weights,
    )


def publish_outcome(folder: Path, outcome: Outcome) -> None:
    """Offer a phase to other runs; the files of chosen epochs are linked, not copied, where the disk can do that."""
    for epoch, path in outcome.weights.items():
        link_file(path, folder / f"epoch{epoch:04d}.pt")
    state = {
        "model": dict(outcome.model),
        "optimizer": outcome.optimizer,
        "rows": json.dumps(outcome.rows),
        "seconds": outcome.seconds,
        "images": outcome.images,
        "epochs": sorted(outcome.weights),
    }
    save_tensors(folder / "outcome.pt", state)


def link_file(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise
            shutil.copyfile(source, target)


def _hash_state(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
