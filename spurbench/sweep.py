"""A grid file to run configurations, checked completely before anything starts."""

import contextlib
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from spurbench.config import RunConfig, RunPaths, explain_validation
from spurbench.dotted import dotted
from spurbench.engine.run import finished_record, has_failed
from spurbench.errors import ConfigError, did_you_mean
from spurbench.io import read_json
from spurbench.lease import owner_of
from spurbench.resolve import RunRequest, make_method, resolve_run
from spurbench.schema import SCHEMA_VERSION

__all__ = [
    "Extra",
    "MethodGrid",
    "Planned",
    "RandomDraws",
    "Range",
    "RunState",
    "SweepFile",
    "count",
    "draws_of",
    "load_sweep",
    "name_of",
    "options_of",
    "plan",
    "seconds_of",
    "settings_of",
]


Seed = Annotated[int, Field(ge=0, strict=True)]


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
        choices = [len(source) if isinstance(source, list) else math.inf for source in self.__pydantic_extra__.values()]
        if self.draws > math.prod(choices):
            raise ValueError(f"{self.draws} draws, but the values give only {math.prod(choices)} settings; use a grid")
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
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Options, each with the values to try, such as ``tau: [0.25, 0.35]`` or ``train.optimizer.lr: [...]``."""
    random: RandomDraws | None = None
    """Draws to try beside the first setting: give every method of a table equally many."""
    set: dict[str, Any] = {}
    """Options that stay."""
    train: dict[str, Any] = {}
    """Recipe options of this method, over those that all runs share."""


class Extra(_Strict):
    """Runs beside the grid."""

    method: MethodGrid
    datasets: list[str] = Field(min_length=1)
    seeds: list[Seed] | None = None
    """The sweep's if not given."""
    backbones: list[str | None] = Field(default=[None], min_length=1)

    @field_validator("method", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return _named(value)

    @field_validator("seeds", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        return _seeds(value)


class SweepFile(_Strict):
    """Everything that is crossed."""

    datasets: list[str] = Field(min_length=1)
    methods: list[MethodGrid] = Field(min_length=1)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    """A list, or a range such as ``0-5`` (both ends included)."""
    backbones: list[str | None] = Field(default=[None], min_length=1)
    """The dataset's preset decides if not given."""
    preset: str | None = None
    train: dict[str, Any] = {}
    """Recipe options that all runs share."""
    set: dict[str, Any] = {}
    """Any further dotted options, such as ``evaluation.oracle: true``."""
    include: list[Extra] = []
    """Runs beside the grid."""
    exclude: list[dict[str, Any]] = []
    """Runs of the grid to leave out: what a run must be, as a value or a list of values for ``dataset``, ``backbone``,
    ``method``, ``seed``, or any dotted option such as ``method.tau``."""

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return [_with_options(name, options) for name, options in value.items()]
        return [_named(item) for item in value] if isinstance(value, list) else value

    @field_validator("seeds", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        return _seeds(value)


RunState = Literal["done", "stale", "running", "failed", "stopped", "waiting"]
"""``stale``: finished under another schema; ``stopped``: begun, and nobody works on it; ``waiting``: not begun, or left
until another run has done the training that both have in common."""


class Planned(_Strict):
    """One run of a sweep."""

    config: RunConfig
    paths: RunPaths
    label: str = ""
    """What tables call the method with its options; empty where nobody needs it."""

    @cached_property
    def run_id(self) -> str:
        """The configuration's hash."""
        return self.config.run_id()

    @property
    def folder(self) -> Path:
        """All that there is of the run."""
        return self.paths.run(self.run_id)

    @property
    def finished(self) -> bool:
        """Whether its record is there."""
        return self.state in ("done", "stale")

    def seconds(self) -> float | None:
        """From start to end of a finished run that needed one attempt; None for others."""
        record = finished_record(self.folder)
        return None if record is None else seconds_of(record)

    @property
    def state(self) -> RunState:
        """Where the run stands, as any machine that sees the folder can tell."""
        return self.look()[0]

    def look(self) -> tuple[RunState, dict[str, Any] | None]:
        """Where the run stands, and its record if it is finished; the record is read once."""
        record = finished_record(self.folder)
        if record is not None:
            return "done" if record.get("schema_version") == SCHEMA_VERSION else "stale", record
        if not self.folder.is_dir():
            return "waiting", None
        if owner_of(self.folder) is not None:
            return "running", None
        if has_failed(self.folder):
            return "failed", None
        return "stopped" if self.waits_for() is None else "waiting", None

    def failure(self) -> str | None:
        """The first line of what ended a failed run; None if its record does not say."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
            return str(read_json(self.folder / "result.json")["error"]).strip().splitlines()[0]
        return None

    def waits_for(self) -> Path | None:
        """The folder of the shared training for which the run was left; None if its last attempt ended otherwise."""
        try:
            key = read_json(self.folder / "config.json").get("waits_for")
        except (OSError, ValueError, AttributeError):
            return None
        return self.paths.results / "phases" / key if isinstance(key, str) else None


def name_of(run: Planned) -> str:
    """A run in a line of text."""
    return f"{run.label or run.config.method.name} on {run.config.dataset.name}, seed {run.config.seed}"


def count(number: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {what}{'s' * (number != 1)}"


def seconds_of(record: Mapping[str, Any]) -> float | None:
    """From start to end of a finished run that needed one attempt; None for others."""
    machine = record["machine"]
    if machine.get("attempts") != 1:
        return None
    start, end = (datetime.fromisoformat(machine[key]) for key in ("started_at", "finished_at"))
    return (end - start).total_seconds()


class _PlainKeys(yaml.SafeLoader):
    """Of two equal keys YAML's own loader drops the first without a word, and its runs with it.

    It also takes ``no:`` and ``1:`` for keys that are no text, which no option is.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                value = self.construct_object(key, deep=True)
                raise ConfigError(
                    f"line {key.start_mark.line + 1}: a key must be text, YAML reads this one as {value!r}; "
                    "write a name, in quotes if need be"
                )
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := [key for key in keys if isinstance(key, str) and keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"'{twice[0]}' is there twice; methods may be a list, which can hold a name twice",
                node.start_mark,
            )  # fmt: skip
        return super().construct_mapping(node, deep)


def load_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file.

    Raises:
        ConfigError: not there, not YAML, unknown keys, empty lists.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _PlainKeys)
    except FileNotFoundError as error:
        raise ConfigError(f"no sweep file at {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold datasets: and methods:; cluster/README.md shows the form")
    try:
        return SweepFile(**tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_validation(error, '', SweepFile.model_fields)}") from error


def plan(sweep: SweepFile, paths: RunPaths, plugins: tuple[Path, ...] = ()) -> list[Planned]:
    """All runs in a fixed order, seeds outermost so that a table fills evenly; equal runs appear once.

    Raises:
        ConfigError: any run that could not be resolved; nothing has started then.
    """
    planned: dict[str, Planned] = {}
    idle = list(range(len(sweep.exclude)))
    # Resolved once for all seeds: that is most of the work in a large grid.
    grid = [
        (dataset, run)
        for dataset, backbone, method in itertools.product(sweep.datasets, sweep.backbones, sweep.methods)
        for run in _resolved(sweep, method, dataset, backbone, paths, plugins)
    ]
    for seed in sweep.seeds:
        for dataset, base in grid:
            run = _with_seed(base, seed)
            excluded_by = [n for n, pattern in enumerate(sweep.exclude) if _matches(run.config, dataset, pattern)]
            idle = [n for n in idle if n not in excluded_by]
            if not excluded_by:
                planned.setdefault(run.run_id, run)
    for extra in sweep.include:
        seeds = sweep.seeds if extra.seeds is None else extra.seeds
        more = [
            run
            for dataset, backbone in itertools.product(extra.datasets, extra.backbones)
            for run in _resolved(sweep, extra.method, dataset, backbone, paths, plugins)
        ]
        for seed, base in itertools.product(seeds, more):
            run = _with_seed(base, seed)
            planned.setdefault(run.run_id, run)
    if idle:
        raise _matches_nothing(sweep.exclude[idle[0]], [(run.config, dataset) for dataset, run in grid], sweep.seeds)
    if not planned:
        raise ConfigError("the sweep has no runs: everything is excluded")
    return list(planned.values())


def _resolved(
    sweep: SweepFile,
    method: MethodGrid,
    dataset: str,
    backbone: str | None,
    paths: RunPaths,
    plugins: tuple[Path, ...],
) -> Iterator[Planned]:
    """One method's settings as runs of seed 0."""
    for options in options_of(method):
        request = RunRequest(
            method=method.name,
            dataset=dataset,
            preset=sweep.preset,
            backbone=backbone,
            overrides={**dotted("train", sweep.train), **sweep.set, **dotted("train", method.train), **options},
            plugins=plugins,
        )
        config, run_paths = resolve_run(request, paths)
        yield Planned(config=config, paths=run_paths, label=make_method(config, plugins).label)


def _with_seed(run: Planned, seed: int) -> Planned:
    """The same run with another seed, which the sweep file's own checks have seen."""
    config = run.config.model_copy(update={"seed": seed})
    return Planned.model_construct(config=config, paths=run.paths, label=run.label)


def _matches(config: RunConfig, dataset: str, pattern: Mapping[str, Any]) -> bool:
    """Whether a run is what the pattern says in all its parts.

    Args:
        dataset: as the file names it; a folder's own name is a hash.
    """
    facts = _facts(config, dataset)
    return all(any(value in facts.get(key, []) for value in _values(wanted)) for key, wanted in pattern.items())


def _facts(config: RunConfig, dataset: str) -> dict[str, list[Any]]:
    """What a pattern may say of a run, by key."""
    return {
        "dataset": [config.dataset.name, dataset],
        "backbone": [config.backbone.name],
        "method": [config.method.name],
        "seed": [config.seed],
        **{key: [value] for key, value in settings_of(config).items()},
    }


def _values(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _matches_nothing(
    pattern: Mapping[str, Any], grid: Iterable[tuple[RunConfig, str]], seeds: list[int]
) -> ConfigError:
    """Which key or value of a pattern no run has, and what there is."""
    there: dict[str, list[Any]] = {}
    for config, dataset in grid:
        for key, values in _facts(config, dataset).items():
            there.setdefault(key, []).extend(value for value in values if value not in there.get(key, []))
    there["seed"] = seeds
    start = f"exclude: {dict(pattern)} matches no run of the grid: "
    for key, wanted in pattern.items():
        if key not in there:
            return ConfigError(
                f"{start}unknown key '{key}'{did_you_mean(key, there)} available: {', '.join(_MATCHED)}, and options "
                "of the runs with a dot, such as train.epochs or method.tau"
            )
        if not any(value in there[key] for value in _values(wanted)):
            names = [str(value) for value in there[key]]
            hint = did_you_mean(str(_values(wanted)[0]), names) if _values(wanted) else ";"
            return ConfigError(f"{start}no run has this {key}{hint} there are: {', '.join(names)}")
    return ConfigError(f"{start}each part is that of some run, but no run has all of them")


_MATCHED = ("dataset", "backbone", "method", "seed")
"""Keys of ``exclude`` that are no options."""


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All options of a run by dotted key, as a user names them: ``method.tau``, ``train.epochs``."""
    document = config.model_dump(mode="json", exclude={"seed"})
    document["method"] = document["method"]["config"]
    return {key: value for name, part in document.items() for key, value in dotted(name, part).items()}


def options_of(method: MethodGrid) -> Iterator[dict[str, Any]]:
    """Every combination of the grid with the fixed options, and with each random draw, as dotted keys."""
    draws = [{}, *(method.random.settings() if method.random else ())]
    for values in itertools.product(*method.grid.values()):
        for drawn in draws:
            chosen = {**method.set, **dict(zip(method.grid, values, strict=True)), **drawn}
            yield {key if "." in key else f"method.{key}": value for key, value in chosen.items()}


def draws_of(sweep: SweepFile) -> dict[str, int]:
    """Random settings that each method tries beside the fixed ones, by its name."""
    draws: Counter[str] = Counter()
    for method in (*sweep.methods, *(extra.method for extra in sweep.include)):
        draws[method.name] += 0 if method.random is None else method.random.draws
    return dict(draws)


def _draw(source: Range | list[Any], rng: random.Random) -> Any:
    if isinstance(source, list):
        return rng.choice(source)
    if not source.log:
        return float(f"{rng.uniform(source.low, source.high):.3g}")
    return float(f"{math.exp(rng.uniform(math.log(source.low), math.log(source.high))):.3g}")


def _named(value: Any) -> Any:
    """An entry of a list of methods: a name, ``{name: ...}``, or one name with its options, ``aim: {tau: [...]}``."""
    if isinstance(value, dict) and len(value) == 1 and not value.keys() & MethodGrid.model_fields.keys():
        ((name, options),) = value.items()
        if options is None or isinstance(options, dict):
            return _with_options(name, options)
    return {"name": value} if isinstance(value, str) else value


def _with_options(name: Any, options: Any) -> Any:
    """``aim: {num_stages: [1, 2], fusion: literal}`` as an entry: lists are values to try, other options stay."""
    if not isinstance(options, dict):
        options = {} if options is None else {"grid": options}  # what is neither is refused as a grid
    entry = {key: value for key, value in options.items() if key in MethodGrid.model_fields and key != "name"}
    own = {key: value for key, value in options.items() if key not in entry}
    grid = {key: value for key, value in own.items() if isinstance(value, list)}
    fixed = {key: value for key, value in own.items() if key not in grid}
    for key, more in (("grid", grid), ("set", fixed)):
        if more and isinstance(entry.get(key, {}), dict):
            entry[key] = {**entry.get(key, {}), **more}
    return {"name": name, **entry}


def _seeds(value: Any) -> Any:
    """``0-5`` as the numbers it stands for."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", value)):
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"a range goes upwards, as in {last}-{first}")
        return list(range(first, last + 1))
    if isinstance(value, str):
        raise ValueError("must be a number, a list of numbers, or a range such as 0-5")
    return [value] if isinstance(value, int) else value
