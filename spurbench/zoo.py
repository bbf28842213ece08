"""The small backbones that are shipped with spurbench, registered with timm: a residual network and a ViT.

After ``import spurbench.zoo``, ``timm.create_model("minibirds_resnet", pretrained=True)`` and ``features_only=True``
work as for any other timm model. The weights come from files in this package; nothing is downloaded.
"""

from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

__all__ = ["WEIGHTS", "minibirds_resnet", "minibirds_vit"]

_ASSETS = Path(__file__).parent / "assets"
WEIGHTS = {name: _ASSETS / f"{name}.safetensors" for name in ("minibirds_resnet", "minibirds_vit")}
"""The file of each model, made by ``assets/make_minibirds_backbones.py``; its metadata has the held-out accuracy."""

_STAGES = (
    ByoBlockCfg(type="basic", d=1, c=16, s=1),
    ByoBlockCfg(type="basic", d=1, c=32, s=2),
    ByoBlockCfg(type="basic", d=3, c=64, s=2),
    ByoBlockCfg(type="basic", d=2, c=128, s=1),
)
_NET = ByoModelCfg(
    blocks=_STAGES,
    stem_type="3x3",
    stem_chs=16,
    stem_pool="",
)

_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 8, "num_heads": 4, "mlp_ratio": 2}

_SPECIES = {
    "num_classes": 24,
    "input_size": (3, 64, 64),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "license": "mit",
}

# timm's ``register_model`` looks for this name.
default_cfgs = generate_default_cfgs(
    {
        "minibirds_resnet.species": {
            **_SPECIES,
            "file": str(WEIGHTS["minibirds_resnet"]),
            "pool_size": (8, 8),
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        },
        "minibirds_vit.species": {
            **_SPECIES,
            "file": str(WEIGHTS["minibirds_vit"]),
            "pool_size": None,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
)


@register_model
def minibirds_resnet(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """A residual network for 64-px images: four stages of 16, 32, 64, 128 channels at strides 2, 4, 8, 8."""
    return build_model_with_cfg(
        _net_with_every_stage,
        "minibirds_resnet",
        pretrained,
        model_cfg=_NET,
        feature_cfg={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
        **kwargs,
    )


def _net_with_every_stage(**kwargs: Any) -> ByobNet:
    """A ByobNet that offers the output of each stage as a feature map.

    By itself ByobNet offers a stage only where the next one has a stride; the third stage here would be left out.
    """
    net = ByobNet(**kwargs)
    strides = (2, 4, 8, 8)
    net.feature_info = [
        {"num_chs": block.c, "reduction": stride, "module": f"stages.{stage}", "stage": stage + 1}
        for stage, (block, stride) in enumerate(zip(_STAGES, strides, strict=True))
    ]
    net.stage_ends = [info["stage"] for info in net.feature_info]
    return net


@register_model
def minibirds_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A plain ViT for 64-px images: a class token and 8 x 8 patches of 8 px, eight blocks of 128 channels.

    Its classifier reads the class token, as in the original ViT: what the token gathered from the whole image.
    """
    return build_model_with_cfg(
        VisionTransformer,
        "minibirds_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", (1, 3, 5, 7)), "feature_cls": "getter"},
        **{**_VIT, **kwargs},
    )
