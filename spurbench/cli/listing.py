"""``spurbench list``: what there is."""

import argparse
import sys
from typing import Any

from spurbench.cli.common import plugins_of, print_json
from spurbench.cli.render import print_table

_COSTS_ON = "convnext_tiny"
"""Backbone of the overheads that are listed."""


_DROP = ("origin", "license", "brackets", "overhead_params", "boxes", "masks", "version")


def execute(options: argparse.Namespace) -> int:
    """Collect, filter, print."""
    collect = {
        "methods": _methods,
        "datasets": _datasets,
        "transforms": _transforms,
        "backbones": _backbones,
        "presets": _presets,
    }[options.what]
    items = [item for item in collect(options) if options.filter.lower() in item["name"]]
    if options.json:
        print_json(items)
    elif items:
        header = list(items[0])
        lines = [[_text(item[key]) for key in header] for item in items]
        print_table(options.what, header, lines, drop=_DROP)
    else:
        print(f"no {options.what} with '{options.filter}' in the name", file=sys.stderr)
    return 0


def _methods(options: argparse.Namespace) -> list[dict[str, Any]]:
    from spurbench.config import TrainConfig
    from spurbench.costs import model_costs
    from spurbench.method import BaseMethod
    from spurbench.registry import load_registry

    registry = load_registry("methods", plugins_of(options))
    _tell_broken(registry.broken)
    print(f"overheads at 224 px over {_COSTS_ON} with 1000 classes (others: spurbench cost) ...", file=sys.stderr)
    items = []
    for name, entry in sorted(registry.entries.items()):
        if options.filter.lower() not in name:
            continue
        method = entry.value(entry.value.Config())
        extra = {"gmacs": 0.0, "params": 0}
        if type(method).build is not BaseMethod.build:  # maybe another model than backbone and head
            ours, plain = model_costs(method, _COSTS_ON, 224, 1000)
            extra = {"gmacs": ours.gmacs - plain.gmacs, "params": ours.params - plain.params}
        items.append(
            {
                "name": name,
                "paper": entry.value.paper,
                "access": entry.value.access.names(),
                "phases": [f"{phase.name} ({phase.epochs})" for phase in method.phases(TrainConfig())],
                "overhead_gmacs": round(extra["gmacs"], 3),
                "overhead_params": extra["params"],
                "brackets": list(entry.value.Config.positional),
                "origin": entry.origin,
            }
        )
    return items


def _datasets(options: argparse.Namespace) -> list[dict[str, Any]]:
    from spurbench.registry import load_registry

    registry = load_registry("datasets", plugins_of(options))
    _tell_broken(registry.broken)
    return [
        {
            "name": name,
            "version": entry.value.info.version,
            "classes": len(entry.value.info.classes),
            "groups": entry.value.info.num_groups,
            "masks": entry.value.info.has_masks,
            "boxes": entry.value.info.has_boxes,
            "preset": entry.value.info.preset,
            "license": entry.value.info.license,
            "origin": entry.origin,
        }
        for name, entry in sorted(registry.entries.items())
    ]


def _transforms(options: argparse.Namespace) -> list[dict[str, Any]]:
    from spurbench.registry import load_registry

    registry = load_registry("transforms", plugins_of(options))
    return [
        {
            "name": name,
            "version": entry.value.version,
            "description": entry.value.description,
            "origin": entry.origin,
        }
        for name, entry in sorted(registry.entries.items())
    ]


def _backbones(options: argparse.Namespace) -> list[dict[str, Any]]:
    import timm

    import spurbench.zoo  # noqa: F401

    return [{"name": name, "default_weights": _tag(name)} for name in timm.list_models()]


def _tag(name: str) -> str:
    import timm

    config = timm.get_pretrained_cfg(name)
    return "none" if config is None or not config.has_weights else (config.tag or "default")


def _presets(options: argparse.Namespace) -> list[dict[str, Any]]:
    from spurbench.resolve import load_preset, preset_names

    presets = [(name, load_preset(name)) for name in preset_names()]
    return [
        {
            "name": name,
            "backbone": tree["backbone"]["name"],
            "image_size": tree["input"]["image_size"],
            "epochs": tree["train"]["epochs"],
            "lr": tree["train"]["optimizer"]["lr"],
        }
        for name, tree in presets
    ]


def _tell_broken(broken: list[Any]) -> None:
    for module in broken:
        print(f"note: {module.origin} could not be loaded: {module.error}", file=sys.stderr)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
