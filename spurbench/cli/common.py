"""From parsed flags to library calls, shared by the commands."""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spurbench.errors import ConfigError

if TYPE_CHECKING:
    from spurbench.config import InputConfig, RunPaths
    from spurbench.resolve import RunRequest

__all__ = [
    "cache_folder",
    "data_root_of",
    "geometry_of",
    "overrides_of",
    "paths_of",
    "plugins_of",
    "print_json",
    "request_of",
]


def paths_of(options: argparse.Namespace) -> "RunPaths":
    """Where things lie, from flags and environment."""
    from spurbench.config import RunPaths

    no_cache = getattr(options, "no_cache", False)
    if no_cache:
        print("no cache: images are decoded by threads whenever they are needed", file=sys.stderr)
    return RunPaths(
        results=Path(options.results_root).expanduser(),
        data_root=data_root_of(options),
        cache=None if no_cache else cache_folder(),
    )


def data_root_of(options: argparse.Namespace) -> Path | None:
    """Where datasets lie."""
    return None if options.data_root is None else Path(options.data_root).expanduser()


def geometry_of(preset: str, resize: int | None) -> "InputConfig":
    """Geometry of a preset, stored with another side if one is given."""
    from spurbench.config import InputConfig
    from spurbench.resolve import load_preset

    geometry = InputConfig(**load_preset(preset).get("input", {}))
    if resize is None:
        return geometry
    return InputConfig(resize=resize, image_size=min(resize, geometry.image_size))


def cache_folder() -> Path:
    """``$SPURBENCH_CACHE``, or the user's cache folder."""
    base = os.environ.get("SPURBENCH_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spurbench"


def plugins_of(options: argparse.Namespace) -> tuple[Path, ...]:
    """Plugin files."""
    return tuple(Path(name).expanduser() for name in options.plugin)


def request_of(options: argparse.Namespace) -> "RunRequest":
    """The run that the flags describe."""
    from spurbench.resolve import RunRequest  # brings torch, which commands that only read do without

    overrides: dict[str, Any] = {}
    short = {"epochs": "train.epochs", "batch_size": "train.batch_size", "lr": "train.optimizer.lr"}
    overrides |= {key: getattr(options, flag) for flag, key in short.items() if getattr(options, flag) is not None}
    if options.oracle:
        overrides["evaluation.oracle"] = True
    return RunRequest(
        method=options.method,
        dataset=options.dataset,
        seed=options.seed,
        preset=options.preset,
        backbone=options.backbone,
        weights=options.weights,
        overrides=overrides | overrides_of(options.set),
        plugins=plugins_of(options),
    )


def overrides_of(pairs: Iterable[str]) -> dict[str, Any]:
    """``["method.tau=0.35"]`` to ``{"method.tau": 0.35}``; values are YAML."""
    import yaml

    overrides = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: expected KEY=VALUE, for example --set method.tau=0.35")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: the value is not valid YAML") from error
        overrides[key.strip().replace("-", "_")] = _number(value)
    return overrides


def _number(value: Any) -> Any:
    """YAML reads 1e-4 as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def print_json(document: Any) -> None:
    """One document on stdout."""
    print(json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False))
