"""``spurbench prefetch``: pretrained weights into timm's own store."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import cache_folder, plugins_of
from spurbench.config import RunPaths


def execute(options: argparse.Namespace) -> int:
    """Let timm fetch each model's weights once."""
    import timm

    from spurbench.backbone import check_backbone
    from spurbench.errors import DataMissing

    names = list(dict.fromkeys(name for given in options.backbones for name in _names(given, options)))
    for name in names:
        check_backbone(name.partition(".")[0])
    for name in names:
        print(f"fetching weights of {name} ...", file=sys.stderr)
        try:
            timm.create_model(name, pretrained=True)
        except Exception as error:  # timm, its hub client and the network fail in many ways
            raise DataMissing(
                f"cannot fetch the weights of {name}: {type(error).__name__}: {error}\n"
                "run this where there is a network, or use --weights FILE"
            ) from error
        print(f"{name}: on disk")
    return 0


def _names(given: str, options: argparse.Namespace) -> list[str]:
    """The models whose weights a sweep file needs from timm, or the model that was named."""
    if not given.endswith((".yaml", ".yml")):
        return [given]
    from spurbench.sweep import load_sweep, plan

    paths = RunPaths(cache=cache_folder())
    backbones = {run.config.backbone for run in plan(load_sweep(Path(given)), paths, plugins_of(options))}
    names = sorted(f"{b.name}.{b.weights.removeprefix('tag:')}" for b in backbones if b.weights.startswith("tag:"))
    if not names:
        print(f"{given}: needs no weights from elsewhere", file=sys.stderr)
    return names
