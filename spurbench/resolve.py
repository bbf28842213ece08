"""From what a user writes to a complete, validated run configuration."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from spurbench.backbone import describe_backbone, resolve_weights
from spurbench.config import (
    BackboneConfig,
    DatasetRef,
    EvaluationConfig,
    InputConfig,
    MethodRef,
    RunConfig,
    RunPaths,
    TrainConfig,
    explain_validation,
)
from spurbench.dataset import DatasetSpec, find_dataset, with_transforms
from spurbench.errors import ConfigError, did_you_mean
from spurbench.method import BaseMethod, MethodConfig
from spurbench.registry import Entry, load_registry

__all__ = [
    "RunRequest",
    "dataset_entry",
    "load_preset",
    "make_method",
    "method_options",
    "parse_method",
    "preset_names",
    "resolve_run",
]

_SECTIONS: dict[str, type[BaseModel]] = {
    "backbone": BackboneConfig,
    "input": InputConfig,
    "train": TrainConfig,
    "evaluation": EvaluationConfig,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run as a user asks for it: names and what differs from the preset."""

    method: str
    """A name or the bracket notation, ``aim[2,35%]``."""
    dataset: str
    """A name, or the path of a folder with a ``metadata.csv``."""
    seed: int = 0
    preset: str | None = None
    backbone: str | None = None
    weights: str | None = None
    overrides: Mapping[str, Any] = ()  # type: ignore[assignment]
    """Dotted keys such as ``method.tau`` or ``train.optimizer.lr``."""
    plugins: tuple[Path, ...] = ()


def resolve_run(request: RunRequest, paths: RunPaths) -> tuple[RunConfig, RunPaths]:
    """Preset of the dataset, then flags, then overrides; everything checked, nothing started.

    Returns:
        The configuration, and ``paths`` completed with files that were given by path.

    Raises:
        ConfigError: unknown names or keys, values out of range, a malformed notation.
        DataMissing: a folder or weights file that is not there.
    """
    spec, dataset_path = dataset_entry(request.dataset, request.plugins)
    tree = load_preset(request.preset or spec.info.preset)
    if "method" in tree:
        raise ConfigError(f"preset {request.preset or spec.info.preset} must not hold options of a method: --set them")
    tree["method"] = {}
    name, positional = parse_method(request.method)
    entry = load_registry("methods", request.plugins).get(name)
    if request.backbone is not None:
        # A backbone other than the preset's has other weights: the preset's choice does not carry over.
        tree["backbone"] = {"name": request.backbone, "weights": "default"}
    for key, value in {**dict(positional_fields(entry, positional)), **dict(request.overrides)}.items():
        _set(tree, key, value)
    if request.weights is not None:
        _set(tree, "backbone.weights", request.weights)
    parts = {section: _build(section, tree.pop(section, {}), model) for section, model in _SECTIONS.items()}
    options = tree.pop("method")
    if tree:
        section = next(iter(tree))
        raise ConfigError(
            f"unknown section '{section}'{did_you_mean(section, [*_SECTIONS, 'method'])} "
            f"available: method, {', '.join(_SECTIONS)}"
        )
    backbone = parts["backbone"]
    assert isinstance(backbone, BackboneConfig)
    identity, weights_path = resolve_weights(backbone.name, backbone.weights)
    parts["backbone"] = BackboneConfig(name=backbone.name, weights=identity)
    checked = method_options(entry.value, options)
    trunk = describe_backbone(backbone.name)
    entry.value(checked).check(trunk)
    recipe = parts["train"]
    assert isinstance(recipe, TrainConfig)
    entry.value(checked).phases(recipe)  # a recipe that the method cannot follow is refused here
    inputs = parts["input"]
    assert isinstance(inputs, InputConfig)
    trunk.require_image_size(inputs.image_size)
    method = MethodRef(
        name=entry.name,
        version=entry.value.version,
        source=entry.source,
        config=checked.model_dump(mode="json"),
    )
    info = spec.info
    try:
        config = RunConfig(
            method=method,
            dataset=DatasetRef(name=info.name, version=info.version),
            seed=request.seed,
            **parts,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        raise explain_validation(error, "") from error
    return config, paths.model_copy(update={"dataset_path": dataset_path, "weights_path": weights_path})


def make_method(config: RunConfig, plugins: tuple[Path, ...] = ()) -> BaseMethod[Any]:
    """The method object of a resolved run."""
    cls = load_registry("methods", plugins).get(config.method.name).value
    method: BaseMethod[Any] = cls(cls.Config(**config.method.config))
    return method


def method_options(cls: type[BaseMethod[Any]], values: Mapping[str, Any]) -> MethodConfig:
    """A method's options, checked.

    Raises:
        ConfigError: unknown names and impossible values, with what is allowed.
    """
    options = _build("method", dict(values), cls.Config)
    assert isinstance(options, MethodConfig)
    return options


def dataset_entry(name: str, plugins: tuple[Path, ...] = ()) -> tuple[DatasetSpec, Path | None]:
    """The dataset called ``name``, or the folder at that path with its own name and version.

    Either may be followed by transforms: ``waterbirds100+peripheral``, ``data/my_birds+peripheral``.
    """
    base = name
    changes: list[str] = []
    while "+" in base and not Path(base).expanduser().is_dir():
        base, _, change = base.rpartition("+")
        changes.insert(0, change)
    if not (base.startswith((".", "/", "~")) or "/" in base or "\\" in base or Path(base).is_dir()):
        return find_dataset(name, plugins), None
    path = Path(base).expanduser().resolve()
    opened = find_dataset("folder").open(path)  # it is named after its data, so it must be read
    return with_transforms(DatasetSpec(info=opened.info, open=lambda _: opened), changes, plugins), path


def parse_method(text: str) -> tuple[str, tuple[float | int | str, ...]]:
    """``"aim[2,35%]"`` to ``("aim", (2, 0.35))``."""
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\[([^\[\]]*)\])?\s*", text)
    if match is None:
        raise ConfigError(f"cannot read method '{text}'; expected a name such as erm, or aim[2,35%]")
    values = [] if match[2] is None else [part.strip() for part in match[2].split(",")]
    return match[1], tuple(_number(part, text) for part in values)


def positional_fields(entry: Entry, values: tuple[float | int | str, ...]) -> dict[str, Any]:
    """Bracket values under the field names that the method declares for them."""
    names = entry.value.Config.positional
    if len(values) > len(names):
        form = f"{entry.name}[{','.join(names)}]" if names else entry.name
        raise ConfigError(f"too many values in brackets for method '{entry.name}'; its form is {form}")
    return {f"method.{name}": value for name, value in zip(names, values, strict=False)}


@cache
def preset_names() -> tuple[str, ...]:
    """All shipped presets."""
    names = (item.name for item in files("spurbench.presets").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_preset(name: str) -> dict[str, Any]:
    """A preset as a fresh tree: a shipped one by name, or a YAML file by path."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no preset file at {path}")
        text = path.read_text(encoding="utf-8")
    elif name in preset_names():
        text = (files("spurbench.presets") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"unknown preset '{name}'{did_you_mean(name, preset_names())} available: {', '.join(preset_names())}, "
            "or the path of a .yaml file"
        )
    try:
        tree = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"preset {name} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"preset {name} must hold sections such as train: and input:")
    return deepcopy(tree)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """What YAML stands for, to be copied; a sweep asks for the same preset thousands of times."""
    return yaml.safe_load(text)


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted key, creating sections on the way; unknown keys are refused by the models later."""
    *sections, key = dotted.replace("-", "_").split(".")
    if not sections or not key:
        raise ConfigError(f"option '{dotted}' needs a section, for example method.tau or train.epochs")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"option '{dotted}': '{section}' is a value, not a section")
        node = child
    node[key] = value


def _build(section: str, values: Any, model: type[BaseModel]) -> BaseModel:
    if not isinstance(values, dict):
        raise ConfigError(f"section '{section}' must hold options, got {values!r}")
    try:
        return model(**values)
    except ValidationError as error:
        raise explain_validation(error, section, model.model_fields) from error
    except TypeError as error:
        raise ConfigError(f"section '{section}': {error}") from error


def _number(text: str, whole: str) -> float | int | str:
    try:
        if text.endswith("%"):
            return float(f"{text[:-1].strip()}e-2")  # the float nearest to the fraction, which / 100 often misses
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        if re.fullmatch(r"\w+", text):
            return text
        raise ConfigError(f"cannot read '{text}' in method '{whole}'; expected a number or a percentage") from None
