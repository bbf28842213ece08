"""Names to methods, datasets and transforms of these: files in the two folders, entry points, and --plugin files.

Nothing needs to be edited to add one. A plugin that fails to import is reported and does not break the rest.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from spurbench.errors import ConfigError, did_you_mean

__all__ = ["Broken", "Entry", "Registry", "load_registry", "normalize"]

Kind = Literal["methods", "datasets", "transforms"]
_MANY = 30
"""Names from which on a wrong one is not answered with all of them."""

_EXPORTS: dict[Kind, tuple[str, str]] = {
    "methods": ("METHOD", "METHODS"),
    "datasets": ("DATASET", "DATASETS"),
    "transforms": ("TRANSFORM", "TRANSFORMS"),
}
_PACKAGES: dict[Kind, str] = {"methods": "methods", "datasets": "datasets", "transforms": "datasets"}
"""Where each kind is looked for in spurbench: transforms of datasets stand beside the datasets."""
_NEEDED: dict[Kind, tuple[str, ...]] = {
    "methods": ("version", "Config", "access", "build"),
    "datasets": ("info", "open"),
    "transforms": ("name", "declare", "change"),
}
_WANTED: dict[Kind, str] = {
    "methods": "a subclass of BaseMethod",
    "datasets": "a DatasetSpec",
    "transforms": "a DatasetTransform",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered object."""

    name: str
    value: Any
    """A method class, a ``DatasetSpec`` or a ``DatasetTransform``."""
    origin: str
    """Module or file it came from."""
    source: str | None = None
    """``sha256:...`` of a plugin file's content, part of a run's identity."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A module that could not be imported."""

    origin: str
    error: str


@dataclass(slots=True)
class Registry:
    """Everything of one kind."""

    kind: Kind
    entries: dict[str, Entry] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Register; a name that is taken is refused, naming both origins."""
        other = self.entries.get(entry.name)
        if other is not None:
            raise ConfigError(
                f"{self.kind.removesuffix('s')} '{entry.name}' is defined twice: {other.origin} and {entry.origin}; "
                "rename one of them"
            )
        self.entries[entry.name] = entry

    def get(self, name: str) -> Entry:
        """The entry called ``name``; ``-`` and ``_`` are interchangeable.

        Raises:
            ConfigError: unknown name, with the closest ones and, unless they are many, all names.
        """
        key = normalize(name)
        if key in self.entries:
            return self.entries[key]
        known, see = sorted(self.entries), f"spurbench list {self.kind}"
        if len(known) > _MANY:
            choice = f"{did_you_mean(key, known, most=3)} all {len(known)} names: {see}"
        else:
            choice = f"{did_you_mean(key, known)} available: {', '.join(known)} (see: {see})"
        lines = [f"unknown {self.kind.removesuffix('s')} '{name}'{choice}"]
        lines += [f"note: {broken.origin} could not be loaded: {broken.error}" for broken in self.broken]
        raise ConfigError("\n".join(lines))


def normalize(name: str) -> str:
    """The spelling under which names are registered."""
    return name.strip().lower().replace("-", "_")


def load_registry(kind: Kind, plugins: tuple[Path, ...] = ()) -> Registry:
    """Everything registered, plus what the given plugin files export.

    Raises:
        ConfigError: a plugin file that cannot be loaded or exports nothing, or a name defined twice.
    """
    installed = _installed(kind)
    registry = Registry(kind, dict(installed.entries), list(installed.broken))
    for path in plugins:
        module, source = _load_file(path.resolve())
        try:
            entries = _exports(module, kind, str(path), path.stem, source)
        except TypeError as error:
            raise ConfigError(f"plugin {path}: {error}") from error
        for entry in entries:
            registry.add(entry)
    return registry


@cache
def _installed(kind: Kind) -> Registry:
    registry = Registry(kind)
    package = importlib.import_module(f"spurbench.{_PACKAGES[kind]}")
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        _try(registry, f"spurbench.{_PACKAGES[kind]}.{info.name}")
    for point in sorted(entry_points(group=f"spurbench.{kind}"), key=lambda point: point.name):
        try:
            entry = Entry(normalize(point.name), _checked(kind, point.name, point.load()), point.value)
        except Exception as error:  # a stranger's module may fail in any way
            registry.broken.append(Broken(point.value, f"{type(error).__name__}: {error}"))
            continue
        registry.add(entry)
    return registry


def _try(registry: Registry, module_name: str) -> None:
    try:
        module = importlib.import_module(module_name)
        entries = _exports(module, registry.kind, module_name, module_name.rpartition(".")[2], None)
    except Exception as error:  # one broken file must not take the others with it
        registry.broken.append(Broken(module_name, f"{type(error).__name__}: {error}"))
        return
    for entry in entries:
        registry.add(entry)


def _exports(module: ModuleType, kind: Kind, origin: str, stem: str, source: str | None) -> list[Entry]:
    """``METHOD`` under the file's name ``stem``, or every item of ``METHODS``; likewise for datasets."""
    single, several = _EXPORTS[kind]
    table = getattr(module, several, {})
    if not isinstance(table, Mapping):
        raise TypeError(f"{several} must be a dict of names, not {type(table).__name__}")
    found: dict[str, Any] = dict(table)
    if hasattr(module, single):
        found[stem] = getattr(module, single)
    return [Entry(normalize(name), _checked(kind, name, value), origin, source) for name, value in found.items()]


def _checked(kind: Kind, name: str, value: Any) -> Any:
    """Refuse what cannot be of the kind, by what every command reads of it."""
    needed = _NEEDED[kind]
    if not all(hasattr(value, attribute) for attribute in needed) or isinstance(value, type) != (kind == "methods"):
        raise TypeError(f"'{name}' must be {_WANTED[kind]}, not {value!r}")
    return value


@cache
def _load_file(path: Path) -> tuple[ModuleType, str]:
    """Import a plugin file once per process, under a name that contains its content's hash."""
    if not path.is_file():
        raise ConfigError(f"no plugin file at {path}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"spurbench_plugin_{normalize(path.stem)}_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # shown as one line; --debug shows the cause
        del sys.modules[name]
        raise ConfigError(f"plugin {path} failed to load: {type(error).__name__}: {error}") from error
    if not any(hasattr(module, export) for exports in _EXPORTS.values() for export in exports):
        raise ConfigError(f"plugin {path} exports nothing: define METHOD, METHODS, DATASET, DATASETS or TRANSFORM")
    return module, f"sha256:{digest}"
