"""A grid file to run configurations, checked completely before anything starts."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spurbench.config import RunConfig, RunPaths, explain_validation
from spurbench.engine.run import finished_record
from spurbench.errors import ConfigError
from spurbench.resolve import RunRequest, resolve_run

__all__ = ["MethodGrid", "Planned", "SweepFile", "load_sweep", "plan"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodGrid(_Strict):
    """A method with values to cross and values to fix."""

    name: str
    """Name or bracket notation."""
    grid: dict[str, list[Any]] = {}
    """Options of the method, each with the values to try."""
    set: dict[str, Any] = {}
    """Options that stay."""


class SweepFile(_Strict):
    """Everything that is crossed."""

    datasets: list[str] = Field(min_length=1)
    methods: list[MethodGrid] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    """A list, or a range such as ``0-5`` (both ends included)."""
    backbones: list[str | None] = [None]
    """The dataset's preset decides if not given."""
    preset: str | None = None
    train: dict[str, Any] = {}
    """Recipe options that all runs share."""
    set: dict[str, Any] = {}
    """Any further dotted options, such as ``evaluation.oracle: true``."""

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return (
            [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        )

    @field_validator("seeds", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", value)):
            return list(range(int(match[1]), int(match[2]) + 1))
        return [value] if isinstance(value, int) else value


class Planned(_Strict):
    """One run of a sweep."""

    config: RunConfig
    paths: RunPaths

    @property
    def finished(self) -> bool:
        """Whether its record is there."""
        return finished_record(self.paths.run(self.config.run_id())) is not None


def load_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file.

    Raises:
        ConfigError: not there, not YAML, unknown keys, empty lists.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no sweep file at {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold datasets:, methods: and seeds:")
    try:
        return SweepFile(**tree)
    except ValidationError as error:
        known = {**SweepFile.model_fields, **MethodGrid.model_fields}
        raise explain_validation(error, "", known) from error


def plan(sweep: SweepFile, paths: RunPaths, plugins: tuple[Path, ...] = ()) -> list[Planned]:
    """All runs in a fixed order, seeds outermost so that a table fills evenly; equal runs appear once.

    Raises:
        ConfigError: any run that could not be resolved; nothing has started then.
    """
    planned: dict[str, Planned] = {}
    for seed, dataset, backbone in itertools.product(sweep.seeds, sweep.datasets, sweep.backbones):
        for method in sweep.methods:
            for options in _options(method):
                request = RunRequest(
                    method=method.name,
                    dataset=dataset,
                    seed=seed,
                    preset=sweep.preset,
                    backbone=backbone,
                    overrides={**_dotted("train", sweep.train), **sweep.set, **options},
                    plugins=plugins,
                )
                config, run_paths = resolve_run(request, paths)
                planned.setdefault(config.run_id(), Planned(config=config, paths=run_paths))
    return list(planned.values())


def _options(method: MethodGrid) -> Iterator[dict[str, Any]]:
    """Every combination of the grid with the fixed options, as dotted keys."""
    for values in itertools.product(*method.grid.values()):
        chosen = {**method.set, **dict(zip(method.grid, values, strict=True))}
        yield {f"method.{key}": value for key, value in chosen.items()}


def _dotted(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options as dotted keys, so that a partial section does not replace the preset's."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}"
        flat |= _dotted(path, value) if isinstance(value, dict) else {path: value}
    return flat
