"""What a method costs over its backbone, without data or weights."""

from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spurbench.backbone import check_backbone, describe_backbone
from spurbench.config import TrainConfig
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod, TaskInfo
from spurbench.metrics.cost import Cost, cost
from spurbench.nn.classifier import Classifier
from spurbench.registry import load_registry
from spurbench.resolve import method_options, parse_method, positional_fields

__all__ = ["method_costs", "model_costs"]


def method_costs(
    method: str,
    backbone: str,
    *,
    image_size: int | None = None,
    num_classes: int = 1000,
    overrides: Mapping[str, Any] | None = None,
    plugins: tuple[Path, ...] = (),
) -> tuple[Cost, Cost, int]:
    """Cost of a method by name, of the plain backbone with head, and the image size they hold for.

    Args:
        image_size: side in pixels; the backbone's own if not set.
        overrides: dotted method options.
    """
    import timm

    check_backbone(backbone)
    name, values = parse_method(method)
    entry = load_registry("methods", plugins).get(name)
    options = {**positional_fields(entry, values), **(overrides or {})}
    if foreign := [key for key in options if not key.startswith("method.")]:
        raise ConfigError(f"cost takes options of the method only, such as method.width=96, got {foreign[0]}")
    config = method_options(entry.value, {key.removeprefix("method."): value for key, value in options.items()})
    if image_size is None:
        pretrained = timm.get_pretrained_cfg(backbone)
        image_size = 224 if pretrained is None else int(pretrained.input_size[-1])
    ours, plain = model_costs(entry.value(config), backbone, image_size, num_classes)
    return ours, plain, image_size


def model_costs(method: BaseMethod[Any], backbone: str, image_size: int, num_classes: int) -> tuple[Cost, Cost]:
    """Cost of the method's model and of backbone with head, same resolution.

    Args:
        method: is not touched; building a model may change its state, so a fresh one does that.
    """
    options = method.config.model_dump_json()
    return _model_costs(type(method), options, backbone, image_size, num_classes)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _model_costs(
    cls: type[BaseMethod[Any]], options: str, backbone: str, image_size: int, num_classes: int
) -> tuple[Cost, Cost]:
    """The same for all seeds, which come one after another in a sweep."""
    method = cls(cls.Config.model_validate_json(options))
    task = TaskInfo(
        num_classes=num_classes,
        num_groups=num_classes,
        num_train=1,
        class_counts=(1,) * num_classes,
        image_size=image_size,
        train=TrainConfig(),
    )

    with torch.device("meta"):
        ours = method.build(describe_backbone(backbone).copy(), task)
    plain = _plain_costs(backbone, image_size, num_classes)
    if type(ours) is Classifier:
        return plain, plain
    return cost(ours, _forward, image_size), plain


@cache
def _plain_costs(backbone: str, image_size: int, num_classes: int) -> Cost:
    with torch.device("meta"):
        plain = Classifier(describe_backbone(backbone).copy(), num_classes)
    return cost(plain, _forward, image_size)


def _forward(model: nn.Module, images: Any) -> Any:
    return model(images)
