"""Published numbers beside measured ones: where both exist, how far they are apart; where not, why not."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from spurbench.errors import ConfigError

__all__ = ["Against", "Reported", "compare_with_reported", "load_reported", "shipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """One number as its source prints it."""

    method: str
    variant: str
    dataset: str
    backbone: str
    pretraining: str
    metric: str
    value: float
    """As printed: percent, for most metrics."""
    std: float | None
    seeds: int | None
    selection: str
    average: str
    """Which average it is, where the source says so."""
    source: str
    evidence: str
    note: str
    counterpart: tuple[str, str, str, str] | None
    """(label, dataset, backbone, column) in this project's tables; None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Measured rows with their published counterparts."""

    pairs: list[tuple[Mapping[str, Any], Reported]]
    """(line of an aggregated table, published number)."""
    unmatched: Counter[str]
    """Published numbers without a measured one, by reason."""


def shipped() -> Path:
    """The table that comes with spurbench."""
    return Path(str(files("spurbench") / "reference" / "reported.csv"))


def load_reported(path: Path) -> list[Reported]:
    """Read a table such as ``results/reference/reported.csv``.

    Raises:
        ConfigError: not there, or a line that cannot be read, by its number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read published numbers from {path}: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(_reported(line))
        except (KeyError, ValueError, TypeError) as error:
            problem = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(
                f"{path}, line {number}: {problem}; results/reference/README.md tells the form"
            ) from error
    return rows


def _reported(line: Mapping[str, str]) -> Reported:
    parts = tuple(line[f"measured_{part}"] for part in ("label", "dataset", "backbone", "column"))
    value = float(line["value"])
    if not math.isfinite(value):
        raise ValueError(f"value {line['value']} is no number")
    return Reported(
        method=line["method"],
        variant=line["variant"],
        dataset=f"{line['dataset']} {line['dataset_variant']}".strip(),
        backbone=line["backbone"],
        pretraining=line["pretraining"],
        metric=line["metric"],
        value=value,
        std=float(line["std"]) if line["std"] else None,
        seeds=int(line["seeds"]) if line["seeds"] else None,
        selection=line["selection"],
        average=line["average_definition"],
        source=line["source"],
        evidence=line["evidence"],
        note=line["note"],
        counterpart=parts if all(parts) else None,  # type: ignore[arg-type]
    )


def compare_with_reported(table: Sequence[Mapping[str, Any]], reported: Iterable[Reported]) -> Against:
    """Pair lines of an aggregated leaderboard with published numbers of the same label, dataset and backbone.

    That is all they have in common for certain: recipe, selection and pretraining may differ, and are shown.
    """
    pairs: list[tuple[Mapping[str, Any], Reported]] = []
    unmatched: Counter[str] = Counter()
    datasets = {line["dataset"] for line in table}
    backbones = {(line["dataset"], line["backbone"]) for line in table}
    for row in reported:
        if row.counterpart is None:
            unmatched["their setting, data or metric has no counterpart in this project"] += 1
            continue
        label, dataset, backbone, column = row.counterpart
        found = [
            line
            for line in table
            if (line["label"], line["dataset"], line["backbone"]) == (label, dataset, backbone)
            and line.get(f"{column}_mean") is not None
        ]
        if found:
            pairs += [(line, row) for line in found]
        elif dataset not in datasets:
            unmatched[f"nothing was measured on {dataset}"] += 1
        elif (dataset, backbone) not in backbones:
            unmatched[f"nothing was measured on {dataset} with {backbone}"] += 1
        else:
            unmatched[f"{label} was not measured on {dataset} with {backbone}, or has no {column}"] += 1
    return Against(pairs=pairs, unmatched=unmatched)
