"""Any timm model as a trunk: its stages as NCHW maps, and what its own classifier would read."""

import copy
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spurbench.config import BackboneConfig
from spurbench.errors import ConfigError, DataError, DataMissing, did_you_mean
from spurbench.io import hash_file

__all__ = ["Backbone", "build_backbone", "check_backbone", "describe_backbone", "require_weights", "resolve_weights"]

_RETRIES_NOTE = "run `spurbench prefetch {name}` where there is a network, or choose --weights none or --weights FILE"


class Backbone(nn.Module):
    """A timm trunk without classifier; nothing in it is written per architecture.

    Attributes:
        channels: channels of each stage, shallow to deep.
        reductions: input pixels per feature position of each stage.
        num_features: length of the vector that the model's own classifier reads.
        mean, std: input normalization that the weights expect.
    """

    def __init__(self, trunk: nn.Module, name: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.name = name
        info = list(trunk.feature_info)  # type: ignore[arg-type]
        self.channels: tuple[int, ...] = tuple(int(entry["num_chs"]) for entry in info)
        self.reductions: tuple[int, ...] = tuple(int(entry["reduction"]) for entry in info)
        self.last_map = nn.Identity()
        """Sees the map [B, C, h, w] that is pooled for the classifier: the place for GradCAM."""
        self._channels_last = str(getattr(trunk, "output_fmt", "NCHW")) == "NHWC"
        pretrained = trunk.pretrained_cfg
        self.mean: tuple[float, ...] = tuple(pretrained["mean"])  # type: ignore[index]
        self.std: tuple[float, ...] = tuple(pretrained["std"])  # type: ignore[index]
        self.num_features: int = int(trunk.head_hidden_size)  # type: ignore[arg-type]

    @property
    def num_stages(self) -> int:
        """How many feature stages the trunk has."""
        return len(self.channels)

    def stages(self, images: Tensor, count: int) -> list[Tensor]:
        """Outputs of the ``count`` deepest stages, shallow to deep, each [B, C_l, h_l, w_l].

        The last one carries no final norm: it is the raw stage output, as in timm's ``features_only``.
        """
        indices = list(range(self.num_stages - count, self.num_stages))
        maps: list[Tensor] = self.trunk.forward_intermediates(  # type: ignore[operator]
            images, indices=indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """[B, num_features]: what the model's own classifier reads."""
        features = self.trunk.forward_features(images)  # type: ignore[operator]
        if self._channels_last:  # Swin and its kin
            features = self.last_map(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            features = self.last_map(features)
        return self.trunk.forward_head(features, pre_logits=True)  # type: ignore[operator, no-any-return]

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
        return f"sha256:{hash_file(path)}", path
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
        return f"sha256:{hash_file(Path(config.file))}", Path(config.file)
    return f"tag:{config.tag}", None


def require_weights(config: BackboneConfig) -> None:
    """Check that weights named by a tag are on this disk.

    Raises:
        DataMissing: with the command that fetches them.
    """
    if config.weights.startswith("tag:"):
        _local_file(f"{config.name}.{config.weights.removeprefix('tag:')}")


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
    overlay = {"file": str(_local_file(name))} if tagged else None
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


def _load_file(backbone: Backbone, path: Path) -> None:
    """Load a checkpoint of the same model; its classifier is not needed and is left out."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
    except Exception as error:  # any reader error means the same to a user: not a weights file
        raise ConfigError(f"cannot read weights from {path}: {error}") from error
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


def _local_file(name: str) -> Path:
    """Weights in timm's local store, or one message instead of a download that hangs on a compute node."""
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
