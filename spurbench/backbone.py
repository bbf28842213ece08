"""Any timm model as a trunk: its stages as NCHW maps, and what its own classifier would read."""

import copy
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.config import BackboneConfig
from spurbench.errors import ConfigError, DataError, DataMissing, did_you_mean
from spurbench.io import hash_file

__all__ = [
    "Backbone",
    "build_backbone",
    "check_backbone",
    "describe_backbone",
    "local_weights",
    "read_weights",
    "require_weights",
    "resolve_weights",
]

_RETRIES_NOTE = "run `spurbench prefetch {name}` where there is a network, or choose --weights none or --weights FILE"

NUM_QUARTERS = 4
"""Stages of a trunk that has one stride: as many as the hierarchical ones have."""


class Backbone(nn.Module):
    """A timm trunk without classifier; nothing in it is written per architecture.

    Two forms of trunk are told apart by what they offer:

    * maps of several strides, channels first or last (CNNs, Swin): each of timm's feature maps is a stage;
    * one stride throughout (plain ViT): timm lists every block, and four stages are read at the quarters of the depth.
      Each is the grid of patch tokens after the trunk's final norm. Class and register tokens are left out: they
      carry what they gathered from the whole image, whatever a mask over patches says.

    Attributes:
        channels: channels of each stage, shallow to deep.
        reductions: input pixels per feature position of each stage.
        num_features: length of the vector that the model's own classifier reads.
        image_size: the only side in pixels that the trunk takes, or None.
        mean, std: input normalization that the weights expect.
    """

    def __init__(self, trunk: nn.Module, name: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.name = name
        info: list[dict[str, Any]] = list(trunk.feature_info)  # type: ignore[arg-type]
        self._one_stride = len(info) > 1 and len({entry["reduction"] for entry in info}) == 1
        self._entries = _quarters(len(info)) if self._one_stride else list(range(len(info)))
        self.channels: tuple[int, ...] = tuple(int(info[entry]["num_chs"]) for entry in self._entries)
        self.reductions: tuple[int, ...] = tuple(int(info[entry]["reduction"]) for entry in self._entries)
        self.last_map = nn.Identity()
        """Sees a map [B, C, h, w] on its way to the classifier: the place for GradCAM.

        Where the trunk ends in a map, it is that map, after a final norm if there is one. In a ViT it is the grid of
        patch tokens that enter the last attention (``blocks[-1].norm1``): a class token reads no patch after it.
        """
        self._channels_last = str(getattr(trunk, "output_fmt", "NCHW")) == "NHWC"
        self._awaited_grid: tuple[int, int] | None = None
        if (norm := _last_norm_before_mixing(trunk)) is not None and not self._channels_last:
            norm.register_forward_hook(self._see_tokens)
        pretrained: Any = trunk.pretrained_cfg
        self.image_size: int | None = int(pretrained["input_size"][-1]) if _is_fixed_size(trunk) else None
        self.mean: tuple[float, ...] = tuple(pretrained["mean"])
        self.std: tuple[float, ...] = tuple(pretrained["std"])
        self.num_features: int = int(trunk.head_hidden_size)  # type: ignore[arg-type]

    @property
    def num_stages(self) -> int:
        """How many feature stages the trunk has."""
        return len(self.channels)

    def stages(self, images: Tensor, count: int) -> list[Tensor]:
        """Outputs of the ``count`` deepest stages, shallow to deep, each [B, C_l, h_l, w_l].

        Raw stage outputs, without the final norm, as in timm's ``features_only``; except where the trunk has one
        stride: there each goes through the final norm, because the scale of a residual stream grows with depth.

        Raises:
            ConfigError: images of a size that the trunk does not take.
        """
        self.require_image_size(images.shape[-1])
        maps: list[Tensor] = self.trunk.forward_intermediates(  # type: ignore[operator]
            images, indices=self._entries[-count:], norm=False, output_fmt="NCHW", intermediates_only=True
        )
        if self._one_stride and (norm := _final_norm(self.trunk)) is not None:
            maps = [norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for stage in maps]
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """[B, num_features]: what the model's own classifier reads.

        Raises:
            ConfigError: images of a size that the trunk does not take, or a trunk whose features are no map.
        """
        height, width = images.shape[-2:]
        self.require_image_size(width)
        self._awaited_grid = height // self.reductions[-1], width // self.reductions[-1]
        features = self.trunk.forward_features(images)  # type: ignore[operator]
        if self._awaited_grid is not None:  # not seen inside the trunk
            features = self._see_output(features)
        return self.trunk.forward_head(features, pre_logits=True)  # type: ignore[operator, no-any-return]

    def _see_tokens(self, module: nn.Module, args: Any, tokens_BNC: Tensor) -> Tensor | None:
        """Hook: send the patch tokens through ``last_map`` as a map, past the tokens that precede them."""
        if self._awaited_grid is None or tokens_BNC.ndim != 3:
            return None
        height, width = self._awaited_grid
        num_others = tokens_BNC.shape[1] - height * width
        if num_others < 0:
            return None
        self._awaited_grid = None
        others, patches = tokens_BNC[:, :num_others], tokens_BNC[:, num_others:]
        map_BChw = self.last_map(patches.transpose(1, 2).reshape(len(patches), -1, height, width))
        return torch.cat([others, map_BChw.flatten(2).transpose(1, 2)], dim=1)

    def _see_output(self, features: Any) -> Tensor:
        """Send the trunk's output through ``last_map``, whatever its layout."""
        self._awaited_grid = None
        shape = tuple(features.shape[1:]) if isinstance(features, Tensor) else ()
        if len(shape) == 3:
            if self._channels_last:
                return self.last_map(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
            return self.last_map(features)  # type: ignore[no-any-return]
        side = math.isqrt(shape[0]) if len(shape) == 2 else 0
        if side < 2 or side**2 != shape[0]:
            raise ConfigError(
                f"backbone {self.name} ends in features {shape or 'of several shapes'}, which are no map that GradCAM "
                "could explain; choose a convolutional network, Swin or a ViT"
            )
        map_BChw = self.last_map(features.transpose(1, 2).reshape(len(features), -1, side, side))
        return map_BChw.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def compile_trunk(self) -> None:
        """Send both passes through ``torch.compile``; weights and names stay as they are."""
        self.stages = torch.compile(self.stages)  # type: ignore[method-assign]
        self.pooled = torch.compile(self.pooled)  # type: ignore[method-assign]

    def copy(self) -> "Backbone":
        """An independent trunk with the same weights."""
        return copy.deepcopy(self)

    def require_stages(self, count: int) -> None:
        """Refuse an impossible number of stages before anything is trained."""
        if not 1 <= count <= self.num_stages:
            raise ConfigError(
                f"num_stages {count} is impossible with backbone {self.name}: it has {self.num_stages} stages "
                f"(channels {', '.join(map(str, self.channels))}); choose 1 to {self.num_stages}"
            )

    def require_image_size(self, size: int) -> None:
        """Refuse images of a size that the trunk does not take; ``size`` is their side in pixels."""
        if self.image_size not in (None, size):
            raise ConfigError(
                f"backbone {self.name} takes {self.image_size} px images only (its positions or windows are made for "
                f"that size), got {size}; set input.image_size={self.image_size} and input.resize to at least that"
            )
        if self._one_stride and size % self.reductions[-1]:
            raise ConfigError(
                f"backbone {self.name} cuts images into patches of {self.reductions[-1]} px; input.image_size {size} "
                "is no multiple of it"
            )


def _quarters(depth: int) -> list[int]:
    """The blocks that end the four quarters of a trunk's depth; each block of a trunk with fewer."""
    return sorted({math.ceil(quarter * depth / NUM_QUARTERS) - 1 for quarter in range(1, NUM_QUARTERS + 1)})


def _final_norm(trunk: nn.Module) -> nn.Module | None:
    """The norm of the last tokens; timm calls it ``fc_norm`` where it follows average pooling."""
    for name in ("norm", "fc_norm"):
        norm = getattr(trunk, name, None)
        if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
            return norm
    return None


def _last_norm_before_mixing(trunk: nn.Module) -> nn.Module | None:
    """The first norm of a ViT's last block, or None in other trunks."""
    blocks = getattr(trunk, "blocks", None)
    if not hasattr(trunk, "num_prefix_tokens") or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return None
    norms = (getattr(blocks[-1], name, None) for name in ("norm1", "in_norm"))
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


def _is_fixed_size(trunk: nn.Module) -> bool:
    pretrained: Any = trunk.pretrained_cfg
    fixed = getattr(getattr(trunk, "patch_embed", None), "strict_img_size", pretrained.get("fixed_input_size", False))
    return bool(fixed) and not getattr(trunk, "dynamic_img_size", False)


def check_backbone(name: str) -> None:
    """Refuse a name that timm does not know, offering the closest."""
    import timm

    import spurbench.zoo  # noqa: F401  registers the shipped backbone

    if not timm.is_model(name):
        close = did_you_mean(name, timm.list_models())
        raise ConfigError(f"unknown backbone '{name}'{close} any timm model will do (see: spurbench list backbones)")


def resolve_weights(name: str, weights: str) -> tuple[str, Path | None]:
    """Turn what a user writes into an identity, and the file it stands for.

    Args:
        name: a timm model name.
        weights: ``none``, ``default``, a timm tag, or the path of a file.

    Returns:
        ``("none", None)``, ``("tag:...", None)`` for weights that timm finds itself, or ``("sha256:...", path)``.
    """
    import timm

    import spurbench.zoo  # noqa: F401

    check_backbone(name)
    if weights == "none" or weights.startswith("sha256:"):
        return weights, None
    path = Path(weights).expanduser()
    if path.suffix or path.is_file():
        if not path.is_file():
            raise DataMissing(f"no weights file at {path}")
        return _identity(path), path
    tag = "" if weights == "default" else weights.removeprefix("tag:")
    known = [model.partition(".")[2] for model in timm.list_pretrained(f"{name}.*")] if tag else []
    if tag and tag not in known:
        raise ConfigError(
            f"unknown weights '{weights}' for {name}{did_you_mean(weights, known)} "
            f"available: none, default, {', '.join(known)}, or a file"
        )
    config = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    if config is None or not config.has_weights:
        raise ConfigError(f"timm has no pretrained weights for {name}; use --weights none or --weights FILE")
    if config.file:  # weights that lie in a package: their content is their identity
        return _identity(Path(config.file)), Path(config.file)
    return f"tag:{config.tag}", None


def _identity(path: Path) -> str:
    """``sha256:...`` of a file; read once in a process as long as the file is as it was."""
    stat = path.stat()
    return _hashed(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(path: Path, *state: int) -> str:
    return f"sha256:{hash_file(path)}"


def require_weights(config: BackboneConfig) -> None:
    """Check that weights named by a tag are on this disk.

    Raises:
        DataMissing: with the command that fetches them.
    """
    if config.weights.startswith("tag:"):
        local_weights(f"{config.name}.{config.weights.removeprefix('tag:')}")


@cache
def describe_backbone(name: str) -> Backbone:
    """The trunk without values (on the meta device), to ask about its stages."""
    with torch.device("meta"):
        return build_backbone(BackboneConfig(name=name, weights="none"), None)


def build_backbone(config: BackboneConfig, weights_path: Path | None) -> Backbone:
    """Create the trunk of ``config``, reading weights from ``weights_path`` or timm's local store.

    Raises:
        DataMissing: weights that are not on this disk.
        ConfigError: a model without stages, or weights of another model.
    """
    import timm

    import spurbench.zoo  # noqa: F401

    check_backbone(config.name)
    tagged = config.weights.startswith("tag:")
    name = f"{config.name}.{config.weights.removeprefix('tag:')}" if tagged else config.name
    # The file itself: asked for a name, timm would look for a newer one in the network even if it is on this disk.
    overlay = {"file": str(local_weights(name))} if tagged else None
    trunk = timm.create_model(name, pretrained=tagged, pretrained_cfg_overlay=overlay, num_classes=0)
    if not hasattr(trunk, "forward_intermediates") or not isinstance(getattr(trunk, "feature_info", None), list):
        raise ConfigError(
            f"backbone {config.name} does not expose its stages; choose one of timm's features_only models"
        )
    backbone = Backbone(trunk, config.name)
    if config.weights.startswith("sha256:"):
        if weights_path is None:
            raise DataMissing(f"the weights {config.weights[:19]}... of {config.name} need their file: --weights FILE")
        if not weights_path.is_file():
            raise DataMissing(f"no weights file at {weights_path}")
        if f"sha256:{hash_file(weights_path)}" != config.weights:
            raise DataError(f"{weights_path} has changed: it is no longer {config.weights[:19]}...")
        _load_file(backbone, weights_path)
    return backbone


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, safetensors or torch's, also one that a trainer has put under ``state_dict``.

    Raises:
        ConfigError: no such content.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except Exception as error:  # any reader error means the same to a user: not a weights file
        problem = f"{type(error).__name__} {str(error).partition(chr(10))[0]}"
        raise ConfigError(f"cannot read weights from {path}, is it a state dict? ({problem})") from error
    found: dict[str, Tensor] = state
    return found


def _load_file(backbone: Backbone, path: Path) -> None:
    """Load a checkpoint of the same model; its classifier is not needed and is left out."""
    state = read_weights(path)
    missing, _ = backbone.trunk.load_state_dict(_matching(backbone.trunk, state, path), strict=False)
    if missing:
        raise ConfigError(
            f"{path} does not hold weights of {backbone.name}: {len(missing)} tensors are missing, first '{missing[0]}'"
        )


def _matching(trunk: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    own = trunk.state_dict()
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise ConfigError(f"{path}: '{key}' has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}")
    return state


def local_weights(name: str) -> Path:
    """The file in timm's local store, of a model with its tag.

    Raises:
        DataMissing: it is not there; one message instead of a download that hangs on a compute node.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    assert config is not None
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        named = config.hf_hub_filename
        for file in (named,) if named else ("model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(config.hf_hub_id, file)
            if isinstance(found, str):
                return Path(found)
    elif isinstance(config.url, str):
        path = Path(torch.hub.get_dir()) / "checkpoints" / config.url.rsplit("/", 1)[-1]
        if path.is_file():
            return path
    model = name.partition(".")[0]
    raise DataMissing(
        f"the weights of {name} are not on this disk; {_RETRIES_NOTE.format(name=model)} "
        "(`--dataset minibirds100` needs no download)"
    )
