"""``spurbench prefetch``: pretrained weights into timm's own store."""

import argparse
import sys
from pathlib import Path

from spurbench.cli.common import cache_folder, plugins_of
from spurbench.config import BackboneConfig, RunPaths

_ANSWER_SECONDS = 10.0
_ELSEWHERE = (
    "run this where there is a network; with the weights in a file, use spurbench run --weights FILE, or in a sweep "
    "file set: {backbone.weights: FILE}"
)


def execute(options: argparse.Namespace) -> int:
    """Let timm fetch each model's weights once."""
    import timm

    from spurbench.backbone import check_backbone
    from spurbench.errors import DataMissing

    names = list(dict.fromkeys(name for given in options.backbones for name in _names(given, options)))
    for name in names:
        check_backbone(name.partition(".")[0])
    for name in names:
        if _is_here(name):
            print(f"{name}: on disk")
            continue
        _require_hub(name)
        print(f"fetching weights of {name} ...", file=sys.stderr)
        try:
            timm.create_model(name, pretrained=True)
        except Exception as error:  # timm, its hub client and the network fail in many ways
            raise DataMissing(
                f"cannot fetch the weights of {name}: {type(error).__name__}: {error}\n{_ELSEWHERE}"
            ) from error
        print(f"{name}: on disk")
    return 0


def _is_here(name: str) -> bool:
    """Whether the weights lie in timm's store already; asked for them, its hub client would look for newer ones."""
    import timm

    from spurbench.backbone import require_weights
    from spurbench.errors import DataMissing

    config = timm.get_pretrained_cfg(name)
    if config is None or config.file or not config.has_weights:
        return False
    try:
        require_weights(BackboneConfig(name=name.partition(".")[0], weights=f"tag:{config.tag}"))
    except DataMissing:
        return False
    return True


def _require_hub(name: str) -> None:
    """Say at once what the hub client would say after half a minute of retries.

    Raises:
        DataMissing: the hub that holds the model's weights does not answer.
    """
    import timm

    from spurbench.errors import DataMissing

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_ANSWER_SECONDS)
    except Exception as error:  # of its client, and of whatever that is built on
        raise DataMissing(
            f"cannot fetch the weights of {name}: {constants.ENDPOINT} does not answer ({error})\n{_ELSEWHERE}"
        ) from error


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
