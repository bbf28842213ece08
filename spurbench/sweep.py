"""A grid file to run configurations, checked completely before anything starts."""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from spurbench.config import RunConfig, RunPaths, explain_validation
from spurbench.engine.run import finished_record
from spurbench.errors import ConfigError
from spurbench.resolve import RunRequest, resolve_run

__all__ = ["MethodGrid", "Planned", "RandomDraws", "Range", "SweepFile", "load_sweep", "options_of", "plan"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Range(_Strict):
    """A range to draw from."""

    low: float
    high: float
    log: bool = True
    """Whether the logarithm is uniform, as suits rates and weights that span decades."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 where log is true")
        return self


class RandomDraws(BaseModel):
    """Random settings beside the one that ``set`` gives: any further key is an option with what to draw from."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Range | list[Any]]

    draws: PositiveInt
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.__pydantic_extra__ or not all(self.__pydantic_extra__.values()):
            raise ValueError("random needs at least one option, each with values or {low, high} to draw from")
        return self

    def settings(self) -> Iterator[dict[str, Any]]:
        """``draws`` settings; the n-th does not depend on how many there are."""
        for number in range(self.draws):
            rng = random.Random(f"{self.seed} {number}")
            yield {option: _draw(source, rng) for option, source in sorted(self.__pydantic_extra__.items())}


class MethodGrid(_Strict):
    """A method with values to cross and values to fix; an option with a dot in it is not the method's own."""

    name: str
    """Name or bracket notation."""
    grid: dict[str, list[Any]] = {}
    """Options, each with the values to try, such as ``tau: [0.25, 0.35]`` or ``train.optimizer.lr: [...]``."""
    random: RandomDraws | None = None
    """Draws to try beside the first setting: give every method of a table equally many."""
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
            for options in options_of(method):
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


def options_of(method: MethodGrid) -> Iterator[dict[str, Any]]:
    """Every combination of the grid with the fixed options, and with each random draw, as dotted keys."""
    draws = [{}, *(method.random.settings() if method.random else ())]
    for values in itertools.product(*method.grid.values()):
        for drawn in draws:
            chosen = {**method.set, **dict(zip(method.grid, values, strict=True)), **drawn}
            yield {key if "." in key else f"method.{key}": value for key, value in chosen.items()}


def _draw(source: Range | list[Any], rng: random.Random) -> Any:
    if isinstance(source, list):
        return rng.choice(source)
    if not source.log:
        return float(f"{rng.uniform(source.low, source.high):.3g}")
    return float(f"{math.exp(rng.uniform(math.log(source.low), math.log(source.high))):.3g}")


def _dotted(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options as dotted keys, so that a partial section does not replace the preset's."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}"
        flat |= _dotted(path, value) if isinstance(value, dict) else {path: value}
    return flat
