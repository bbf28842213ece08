"""Trained classifiers that were not made here: timm's and torchvision's, pretrained or from a file of weights."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.backbone import Backbone, check_backbone, local_weights, read_weights, resolve_weights
from spurbench.errors import ConfigError, DataMissing, did_you_mean
from spurbench.io import hash_file

__all__ = ["TrainedClassifier", "load_classifier"]

_TORCHVISION = "torchvision:"
_WRAPPERS = ("model", "model_state_dict", "net")
"""Names under which trainers put the state dict, beside ``state_dict``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedClassifier:
    """A model, and how images get into it."""

    name: str
    weights: str
    """``sha256:`` of the file, or timm's tag."""
    model: nn.Module
    """From images float32 [B, 3, S, S] to logits [B, C]; in evaluation mode."""
    cam_layer: nn.Module | None
    """The map [B, K, h, w] that the classifier reads; None where the model has none."""
    num_outputs: int
    """C."""
    image_size: int
    """S, as in training."""
    resize: int
    """Side of the image of which the centre of S pixels is cut."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_classifier(model: str, backbone: str | None) -> TrainedClassifier:
    """The classifier that a user names.

    Args:
        model: a file of weights (a state dict, as safetensors or by ``torch.save``), or the name of a pretrained
            model: timm's, with or without a tag, or ``torchvision:NAME``.
        backbone: what a file's weights belong to, a timm model or ``torchvision:NAME``; None for pretrained ones.

    Raises:
        ConfigError: a name that is not known or has no trained weights, or weights of another model.
        DataMissing: weights that are not on this disk.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if backbone is None:
            raise ConfigError(
                f"tell what the weights in {path} belong to: --backbone NAME, a timm model or torchvision:NAME"
            )
        built = _torchvision(backbone, path) if backbone.startswith(_TORCHVISION) else _timm_file(backbone, path)
    elif path.suffix in (".pt", ".pth", ".safetensors", ".bin", ".ckpt") or "/" in model:
        raise DataMissing(f"no weights file at {path}")
    elif backbone is not None:
        raise ConfigError(
            f"--backbone is for a file of weights, and {model} is none; audit the pretrained model without it"
        )
    else:
        built = _torchvision(model, None) if model.startswith(_TORCHVISION) else _timm_pretrained(model)
    built.model.eval().requires_grad_(False)
    return built


# ------------------------------------------------------------------------------------------------------------- timm


class _WithMap(nn.Module):
    """A timm model whose last map can be explained; its logits are the model's own."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.backbone.trunk.get_classifier()(self.backbone.pooled(images))  # type: ignore[operator]
        return logits


def _timm_pretrained(name: str) -> TrainedClassifier:
    import timm

    base, _, tag = name.partition(".")
    check_backbone(base)
    config = None if tag else timm.get_pretrained_cfg(base)
    if not tag and (config is None or not config.has_weights):
        raise ConfigError(
            f"timm has no trained weights for {base}, and an untrained classifier decides nothing; "
            f"audit a file of weights: spurbench audit FILE --backbone {base} --dataset NAME"
        )
    identity, path = resolve_weights(base, f"tag:{tag}" if tag else "default")
    if path is None:
        tag = identity.removeprefix("tag:")
        path = local_weights(f"{base}.{tag}")
    full = f"{base}.{tag}" if tag else base
    model = timm.create_model(full, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    if not model.num_classes:
        raise ConfigError(f"{full} was trained without classes: there is nothing to audit; choose a classifier")
    return _timm(full, identity, model)


def _timm_file(name: str, path: Path) -> TrainedClassifier:
    import timm

    check_backbone(name.partition(".")[0])
    state = _plain_state(path)
    with torch.device("meta"):
        made_for: Any = timm.create_model(name).pretrained_cfg
    head = made_for["classifier"] if isinstance(made_for["classifier"], str) else made_for["classifier"][0]
    model = timm.create_model(name, num_classes=_num_outputs(state, head, name, path))
    _load(model, state, name, path)
    return _timm(name, _identity(path), model)


def _timm(name: str, identity: str, model: nn.Module) -> TrainedClassifier:
    from timm.data.config import resolve_data_config

    data: dict[str, Any] = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    size = int(data["input_size"][-1])
    whole, layer = _with_map(model.eval(), name, size)
    return TrainedClassifier(
        name=name,
        weights=identity,
        model=whole,
        cam_layer=layer,
        num_outputs=int(model.num_classes),  # type: ignore[arg-type]
        image_size=size,
        resize=math.floor(size / data["crop_pct"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
    )


@torch.inference_mode()
def _with_map(model: nn.Module, name: str, size: int) -> tuple[nn.Module, nn.Module | None]:
    """The model with its last map in reach, if its logits are then still its own."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    try:
        whole = _WithMap(Backbone(model, name)).eval()
        same = torch.allclose(whole(images), model(images), rtol=1e-3, atol=1e-4)
    except (AttributeError, ConfigError, KeyError, RuntimeError, TypeError, ValueError):
        same = False  # a head of its own kind, or features that are no map
    return (whole, whole.backbone.last_map) if same else (model, None)


# ------------------------------------------------------------------------------------------------------ torchvision


def _torchvision(name: str, path: Path | None) -> TrainedClassifier:
    """Built from a file of weights, or from torchvision's default weights in torch's store."""
    from torchvision import models

    short = name.removeprefix(_TORCHVISION)
    known = models.list_models(module=models)
    if short not in known:
        raise ConfigError(f"unknown model '{name}'{did_you_mean(short, known)} any classifier of torchvision will do")
    default = models.get_model_weights(short).DEFAULT
    if path is None:
        path = Path(torch.hub.get_dir()) / "checkpoints" / default.url.rsplit("/", 1)[-1]
        if not path.is_file():
            raise DataMissing(f"the weights of {name} are not on this disk; fetch {default.url} to {path.parent}")
    state = _plain_state(path)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about random weights, which are not used
        shape = models.get_model(short, weights=None)
    if hasattr(shape, "transform_input"):
        raise ConfigError(
            f"{name} changes its input in a way that its weights do not tell; audit timm's {short} instead"
        )
    head = [part for part, module in shape.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    num_outputs = _num_outputs(state, head, name, path)
    model = models.get_model(short, weights=None, num_classes=num_outputs)
    _load(model, state, name, path)
    images = default.transforms()
    size = int(images.crop_size[0])
    return TrainedClassifier(
        name=name,
        weights=_identity(path),
        model=model,
        cam_layer=_last_map(model.eval(), size),
        num_outputs=num_outputs,
        image_size=size,
        resize=int(images.resize_size[0]),
        mean=tuple(images.mean),
        std=tuple(images.std),
    )


@torch.inference_mode()
def _last_map(model: nn.Module, size: int) -> nn.Module | None:
    """The part of a model that makes the last map of more than one position, if nothing mixes positions after it.

    Parts are looked at in the order in which they are done, so of several that give the same map it is the outermost.
    """
    done: list[tuple[nn.Module, bool]] = []

    def see(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            done.clear()  # a map before attention among tokens is not what the classifier reads
        elif isinstance(output, Tensor):
            done.append((module, output.ndim == 4 and min(output.shape[2:]) > 1))

    handles = [module.register_forward_hook(see) for module in model.modules()]
    try:
        model(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
    maps = [module for module, is_map in done if is_map]
    return maps[-1] if maps and sum(module is maps[-1] for module, _ in done) == 1 else None


# ------------------------------------------------------------------------------------------------------------ files


def _plain_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without what trainers wrap around it and put before its names.

    Raises:
        ConfigError: something else is in the file.
    """
    state: Any = read_weights(path)
    for wrapper in _WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path} holds no state dict; write one with torch.save(model.state_dict(), FILE)")
    for prefix in ("module.", "model."):  # of DataParallel, and of Lightning
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if any(name.startswith("backbone.trunk.") for name in state):
        raise ConfigError(
            f"{path} holds weights of a spurbench run; measure the run itself: spurbench eval RUN --dataset NAME"
        )
    return dict(state)


def _num_outputs(state: dict[str, Tensor], head: str, name: str, path: Path) -> int:
    weight = state.get(f"{head}.weight")
    if weight is None:
        raise ConfigError(f"{path} does not hold a classifier of {name}: it has no tensor '{head}.weight'")
    return int(weight.shape[0])


def _load(model: nn.Module, state: dict[str, Tensor], name: str, path: Path) -> None:
    """All of it or nothing: a classifier with a part left random would be audited as if it were the user's."""
    own = model.state_dict()
    problems = [f"'{key}' is missing" for key in own if key not in state]
    problems += [f"'{key}' belongs to no part of it" for key in state if key not in own]
    problems += [
        f"'{key}' has shape {list(value.shape)}, expected {list(own[key].shape)}"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{path} does not hold weights of {name}: {problems[0]}{more}; name another --backbone")
    model.load_state_dict(state)


def _identity(path: Path) -> str:
    return f"sha256:{hash_file(path)}"
