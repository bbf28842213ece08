"""Finished runs, to be used elsewhere: the model that a run left, and all that is needed to predict with it."""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spurbench.checkpoint import save_tensors
from spurbench.config import InputConfig, RunConfig, RunPaths
from spurbench.data.decoding import squash_image
from spurbench.data.transforms import evaluation_images
from spurbench.engine.device import choose_device
from spurbench.engine.restore import restore_model, weights_file
from spurbench.engine.run import finished_record
from spurbench.engine.selection import default_rule
from spurbench.errors import ConfigError, DataMissing
from spurbench.io import atomic_write, read_json
from spurbench.method import BaseMethod
from spurbench.types import Prediction

__all__ = ["SavedRun", "find_run", "load_run"]

_FORMATS = (".safetensors", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """A finished run with the weights that one of its rules chose."""

    folder: Path
    config: RunConfig
    record: Mapping[str, Any]
    """``result.json``."""
    row: Mapping[str, Any]
    """The record's row of the rule whose weights these are."""
    method: BaseMethod[Any]
    model: nn.Module
    """In evaluation mode."""
    mean: tuple[float, ...]
    """Per channel, of pixels in 0..1, as ``std``: what the weights expect."""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    """Names of the model's outputs, in order."""
    device: torch.device
    plugins: tuple[Path, ...]
    data_found: Mapping[str, Path | None]
    """Where the run found its data: ``data_root`` and ``dataset_path``."""

    @property
    def rule(self) -> str:
        """The selection rule that chose the weights."""
        return str(self.row["selection"])

    @property
    def input(self) -> InputConfig:
        """From stored image to model input: images are squashed to ``resize``, the centre of ``image_size`` is cut."""
        return self.config.input

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """The model's input as in evaluation: squashed, cut, normalized; float32 [B, 3, S, S] on the run's device.

        Args:
            images: PIL images, or uint8 tensors [3, H, W], of any sizes.
        """
        frames = np.stack([squash_image(_pixels(image), self.input.resize) for image in images])
        batch = torch.from_numpy(frames).to(self.device)
        layout = self.config.train.channels_last
        return evaluation_images(batch, self.input, self.mean, self.std, channels_last=layout)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Prediction:
        """Logits [B, C], and the mask of methods that have one, in the run's precision.

        Args:
            images: float32 [B, 3, S, S], as from ``prepare``.
        """
        reduced = self.config.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            return self.method.evaluate(self.model, images.to(self.device))

    def export(self, path: Path | str) -> Path:
        """Write the plain weights, for code that does not know spurbench.

        Names are those of ``model.state_dict()``. The trunk's begin with ``backbone.trunk.``; without that they load
        into ``timm.create_model(run.config.backbone.name, num_classes=0)``.

        Args:
            path: ``.safetensors`` (with run id, label and class names as metadata), or ``.pt``/``.pth`` for a file that
                ``torch.load(path, weights_only=True)`` reads.

        Raises:
            ConfigError: another suffix.
        """
        path = Path(path).expanduser()
        if path.suffix not in _FORMATS:
            raise ConfigError(f"cannot export to {path}: the name must end in {', '.join(_FORMATS)}")
        state = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            about = {"run_id": self.config.run_id(), "label": str(self.row["label"]), "rule": self.rule}
            about["classes"] = json.dumps(self.classes)
            # Copied, because the format has no tensors that share memory.
            content = save({name: value.clone() for name, value in state.items()}, about)
            with atomic_write(path) as stream:
                stream.write(content)
        else:
            save_tensors(path, state)
        return path

    def with_data(self, paths: RunPaths) -> RunPaths:
        """``paths``, completed by where the run found its own data."""
        named = {"data_root": paths.data_root, "dataset_path": paths.dataset_path}
        return paths.model_copy(update={name: path or self.data_found[name] for name, path in named.items()})

    def kept_rules(self) -> tuple[str, ...]:
        """Rules whose weights are still there, in the record's order."""
        position = len(self.method.phases(self.config.train)) - 1
        return tuple(
            row["selection"]
            for row in self.record["rows"]
            if weights_file(self.folder, position, row["selected_epoch"]).is_file()
        )


def load_run(
    run: str | Path,
    *,
    results: str | Path | None = None,
    rule: str | None = None,
    device: str | torch.device = "cpu",
    plugins: Sequence[str | Path] = (),
) -> SavedRun:
    """The model of a finished run, ready to predict; its training data need not be here.

    .. code-block:: python

        import spurbench
        from PIL import Image

        run = spurbench.load_run("3f2a")                       # the first digits of a run's id, or its folder
        batch = run.prepare([Image.open("bird.jpg")])          # float32 [1, 3, S, S]
        logits = run.predict(batch).logits
        print(run.classes[int(logits.argmax())])
        run.export("bird.safetensors")

    Args:
        run: a run's id, the first digits of it, or the run's folder.
        results: where runs lie; ``$SPURBENCH_RESULTS`` or ``results`` if not given.
        rule: whose weights, such as ``val_wga`` or ``last``; by default the run's first rule. A run keeps the weights
            of its first rule and of the last epoch.
        device: ``cpu``, ``cuda``, ``auto`` and so on.
        plugins: further files, or the new place of one that the run was started with.

    Raises:
        DataMissing: no such run, an unfinished one, or weights that are gone.
        ConfigError: a rule that the run does not offer, or a device that is not here.
    """
    results = Path(results or os.environ.get("SPURBENCH_RESULTS", "results")).expanduser()
    folder = find_run(results, str(run))
    record = finished_record(folder)
    if record is None:
        raise DataMissing(f"run {folder.name} is not finished; finish it first with the command that began it")
    begun = read_json(folder / "config.json")
    try:
        config = RunConfig(**begun["config"])
    except ValueError as error:  # options that were renamed since
        raise DataMissing(
            f"run {folder.name} was made by another version of spurbench; run it again to use its model"
        ) from error
    rules = [row["selection"] for row in record["rows"]]
    rule = rule or default_rule(rules)
    if rule not in rules:
        raise ConfigError(f"run {folder.name} offers the rules {', '.join(rules)}, not {rule}")
    row = record["rows"][rules.index(rule)]
    device = choose_device(device) if isinstance(device, str) else device
    files = _all_plugins([Path(plugin) for plugin in plugins], [Path(plugin) for plugin in begun.get("plugins", ())])
    method, model, mean, std = restore_model(config, folder, row["selected_epoch"], device, files)
    found = {name: value and Path(value) for name, value in begun.get("paths", {}).items()}
    return SavedRun(
        folder=folder,
        config=config,
        record=record,
        row=row,
        method=method,
        model=model,
        mean=mean,
        std=std,
        classes=_class_names(row["groups"], read_json(folder / "task.json")["num_classes"]),
        device=device,
        plugins=files,
        data_found={name: found.get(name) for name in ("data_root", "dataset_path")},
    )


def find_run(results: Path, name: str) -> Path:
    """The folder of a run, by its id, the first digits of it, or its own path.

    Raises:
        DataMissing: a name that fits no run or several.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    found = sorted(folder for folder in (results / "runs").glob(f"{name}*") if folder.is_dir())
    if len(found) == 1:
        return found[0]
    reason = f"{len(found)} runs begin so: {', '.join(f.name for f in found)}" if found else "none begins so"
    raise DataMissing(f"no run '{name}' below {results}/runs ({reason}); see: spurbench leaderboard --format json")


def _all_plugins(given: Sequence[Path], begun: Sequence[Path]) -> tuple[Path, ...]:
    """With those that the run was started with, unless one of the same name was given in their place."""
    names = {path.name for path in given}
    return (*given, *(path for path in begun if path.name not in names))


def _class_names(groups: Sequence[Mapping[str, Any]], num_classes: int) -> tuple[str, ...]:
    """From names of groups, ``landbird/water``, in the order of ``y * num_attributes + attribute``.

    They are in the record, while the dataset may be on another machine.
    """
    names = [str(group["name"]) for group in groups]
    step = len(names) // num_classes
    if step == 1:  # without attributes groups are the classes
        return tuple(names)
    return tuple(_shared_start(names[first : first + step]).rpartition("/")[0] for first in range(0, len(names), step))


def _shared_start(texts: Sequence[str]) -> str:
    """With the first letters of attributes that begin alike, which the last slash cuts off."""
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(left for left, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _pixels(image: Any) -> Tensor:
    """uint8 [3, H, W]."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ConfigError(f"images must be uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
        return image.cpu()
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
