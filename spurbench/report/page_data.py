"""What the report page shows, from run records: settings, their table lines under every rule, numbers for the plots."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spurbench.dotted import dotted
from spurbench.leaderboard import aggregate
from spurbench.metrics.stats import mean_sd

__all__ = ["Settings", "clip", "page_data", "settings_of", "short"]

_RULES = ("val_wga", "val_worst_class", "val_accuracy", "last", "oracle_test_wga")
"""Order of the rules on the page; others come after."""
_PLOTTED = ("worst_group_accuracy", "accuracy", "group_mean_accuracy", "epg", "mask_density")
_ERASED = ("outside", "inside", "outside_control")
_LONGEST = 120
"""Characters of one string from data that the page carries."""
_COLUMNS = (
    ("method", "text", "short name; options are added where two settings share it"),
    ("WGA", "number", "accuracy of the worst group, percent: mean ± s.d. over seeds"),
    ("accuracy", "number", "share of all test images that are right, percent: mean ± s.d. over seeds"),
    ("EPG", "number", "Energy Pointing Game: percent of the map on the object; behind it the map's source"),
    ("seeds", "number", "runs in the mean"),
    ("rule", "text", "that chose the epoch; 'last' where the method defines its final model itself"),
    ("dataset", "text", "name with variant"),
    ("backbone", "text", "timm name"),
    ("base rate", "number", "EPG of a uniform map, percent"),
    ("density", "number", "active part of the merged mask, percent"),
    ("erased", "number", "percent of predictions that stay: outside / inside / outside another image's mask erased"),
    ("group mean", "number", "mean accuracy of the groups, percent: mean ± s.d. over seeds"),
    ("GMACs", "number", "multiply-adds of one image, in brackets over the plain backbone; sorted by the latter"),
    ("params M", "number", "parameters in millions, in brackets over the plain backbone; sorted by the latter"),
    ("access", "text", "labels and groups that the method declared to use beyond training labels"),
)
"""Of the table: title, kind, meaning."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Runs that differ in nothing but their seed, together."""

    groups: list[list[dict[str, Any]]]
    """Rows of one setting: all its seeds, rules and splits."""
    unusable: list[str]
    """Ids of runs whose rows lack what a table needs."""


def settings_of(rows: Iterable[dict[str, Any]]) -> Settings:
    """Sort rows into settings, in an order that does not depend on that of the rows."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    unusable: list[str] = []
    for row in rows:
        try:
            config = json.loads(row["config_json"])
            del config["seed"]
            key = (*(str(row[name]) for name in ("dataset", "backbone", "label")), str(row.get("dataset_fingerprint")))
            groups.setdefault((*key, json.dumps(config, sort_keys=True)), []).append(row)
        except (KeyError, TypeError, ValueError):
            unusable.append(str(row.get("run_id")))
    return Settings([groups[key] for key in sorted(groups)], sorted(set(unusable)))


def page_data(settings: Settings, curves: Mapping[str, Any]) -> dict[str, Any]:
    """The page's document: plain JSON without NaN, its strings clipped, numbers short.

    Args:
        curves: training curves by run id, as ``curves_of`` makes them; runs without are left out of those plots.
    """
    rules = _ordered({row["selection"] for group in settings.groups for row in group})
    described: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {rule: [] for rule in rules}
    unusable = set(settings.unusable)
    for group in settings.groups:
        try:
            entries = {rule: aggregate(group, rule) for rule in rules}
            lines = {rule: _line(len(described), found[0], group) for rule, found in entries.items() if found}
            first = next(found[0] for found in entries.values() if found)
        except StopIteration:  # no row of the test split
            continue
        except (AttributeError, KeyError, TypeError, ValueError):  # a column of another kind than the schema says
            unusable |= {str(row.get("run_id")) for row in group}
            continue
        described.append(_describe(first, group, curves))
        for rule, line in lines.items():
            tables[rule].append(line)
    _name(described)
    for lines_of_rule in tables.values():
        for line in lines_of_rule:
            setting = described[line["setting"]]
            line["cells"] = [setting["name"], *line["cells"]]
            line["cells"][6:8] = [setting["data"], setting["net"]]
        lines_of_rule.sort(
            key=lambda line: (*line["cells"][6:8], -(line["values"]["worst_group_accuracy"][0] or 0), line["cells"][0])
        )
    for setting in described:
        del setting["config"], setting["identity"]
    document = {
        "columns": [dict(zip(("title", "kind", "meaning"), column, strict=True)) for column in _COLUMNS],
        "rules": [clip(rule) for rule in rules if tables[rule]],
        "settings": described,
        "tables": {clip(rule): lines for rule, lines in tables.items() if lines},
        "runs": sum(setting["runs"] for setting in described),
        "unusable": [clip(run) for run in sorted(unusable)],
    }
    return document


def clip(value: Any) -> str:
    """A string from data, short enough for a page; what was cut still tells two apart."""
    text = str(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}…{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def short(value: float | None, digits: int = 6) -> float | None:
    """A number for plots with so many digits; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _ordered(rules: set[str]) -> list[str]:
    return sorted(rules, key=lambda rule: (_RULES.index(rule) if rule in _RULES else len(_RULES), rule))


def _describe(entry: Mapping[str, Any], group: Sequence[dict[str, Any]], curves: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting is, whichever rule chose its epochs."""
    config = json.loads(group[0]["config_json"])
    options = dict(entry["options"])
    stages, tau = group[0].get("num_stages"), options.get("tau", group[0].get("tau"))
    runs = {row["run_id"]: row["seed"] for row in group}
    beside = {key: value for key, value in options.items() if key not in ("num_stages", "tau")}
    identity = [entry[name] for name in ("dataset_version", "dataset_fingerprint", "weights", "method")]
    return {
        "label": clip(entry["label"]),
        "data": clip(entry["dataset"]),
        "net": clip(entry["backbone"]),
        "identity": [clip(value) for value in identity],
        # Names of options as the leaderboard prints them, then the rest of the configuration.
        "config": options
        | dotted("input", config.get("input") or {})
        | dotted("evaluation", config.get("evaluation") or {})
        | {"version": (config.get("method") or {}).get("version")},
        "access": clip(entry["access"]),
        "gmacs": short(entry["gmacs"]),
        "overhead": short(_difference(entry, "gmacs")),
        "params": entry["params"],
        "source": None if entry["epg_source"] is None else clip(entry["epg_source"]),
        "stages": stages,
        "tau": None if tau is None else short(tau) if isinstance(tau, int | float) else clip(tau),
        "family": clip(json.dumps([entry["dataset"], entry["backbone"], *identity, beside], sort_keys=True)),
        "runs": len(runs),
        "curves": [curves[run] | {"seed": seed} for run, seed in sorted(runs.items(), key=_by_seed) if run in curves],
    }


def _by_seed(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _line(number: int, entry: Mapping[str, Any], group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One table line: texts of the cells, what they sort by, and the numbers of the plots."""
    rows = [row for row in group if row["selection"] == entry["selection"] and row["split"] == "test"]
    density, base = entry["mask_density_mean"], entry["epg_base_rate_mean"]
    erased = [(entry[f"erasure_{part}_mean"], entry[f"erasure_{part}_sd"]) for part in _ERASED]
    cells = [
        _spread(entry, "worst_group_accuracy"),
        _spread(entry, "accuracy"),
        f"{_spread(entry, 'epg')} {clip(entry['epg_source'] or '')}".strip(),
        str(entry["n_seeds"]),
        clip(entry["selection"]),
        "",
        "",
        _percent(base),
        _percent(density),
        "-" if erased[0][0] is None else " / ".join(_percent(mean, 0) for mean, _ in erased),
        _spread(entry, "group_mean_accuracy"),
        _cost(entry, "gmacs", 1, 3),
        _cost(entry, "params", 1e6, 2),
        clip(entry["access"]),
    ]
    means = [entry[f"{name}_mean"] for name in ("worst_group_accuracy", "accuracy", "epg")]
    keys = [None, *means, entry["n_seeds"], None, None, None, base, density, erased[0][0]]
    keys += [entry["group_mean_accuracy_mean"], _difference(entry, "gmacs"), _difference(entry, "params"), None]
    return {
        "setting": number,
        "cells": cells,
        "keys": [None if key is None else short(key) for key in keys],
        "values": {name: _pair((entry[f"{name}_mean"], entry[f"{name}_sd"])) for name in _PLOTTED},
        "groups": _groups(rows),
        "stages": _stages(rows),
        "erased": None if erased[0][0] is None else [_pair(pair) for pair in erased],
    }


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy per group; a group without test images has none."""
    values: dict[int, list[float]] = {}
    facts: dict[int, tuple[str, int]] = {}
    for row in rows:
        for group in row.get("groups") or ():
            if group["n"]:
                values.setdefault(group["group"], []).append(group["correct"] / group["n"])
                facts[group["group"]] = (clip(group["name"]), group["n"])
    return [
        {"name": facts[number][0], "n": facts[number][1], "accuracy": _pair(mean_sd(values[number]))}
        for number in sorted(values)
    ]


def _stages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Density and EPG of every stage's mask, the deepest first."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        for stage in row.get("stage_masks") or ():
            found.setdefault(stage["stage"], []).append(stage)
    return [
        {
            name: _pair(mean_sd([stage[column] for stage in found[number] if stage.get(column) is not None]))
            for name, column in (("density", "density"), ("epg", "epg_mask"))
        }
        for number in sorted(found)
    ]


def _name(settings: Sequence[dict[str, Any]]) -> None:
    """Names that tell settings apart: options where labels are equal, version, data and weights where they differ."""
    for kind, parts in (("data", (0, 1)), ("net", (2,))):
        for part in parts:
            variants: dict[str, set[str]] = {}
            for setting in settings:
                variants.setdefault(setting[kind], set()).add(setting["identity"][part])
            for setting in settings:
                if len(variants[setting[kind]]) > 1:
                    setting.setdefault(f"{kind}_more", []).append(setting["identity"][part][:15])
        for setting in settings:
            setting[kind] = " ".join([setting[kind], *setting.pop(f"{kind}_more", ())])
    twins: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for setting in settings:
        twins.setdefault((setting["label"], setting["data"], setting["net"]), []).append(setting)
    for alike in twins.values():
        keys = sorted({key for setting in alike for key in setting["config"]})
        differing = [key for key in keys if len({repr(setting["config"].get(key)) for setting in alike}) > 1]
        for setting in alike:
            extra = ", ".join(f"{key}={setting['config'].get(key)}" for key in differing)
            setting["name"] = clip(f"{setting['label']} {extra}".strip())


def _pair(pair: Sequence[float | None]) -> list[float | None]:
    return [short(value) for value in pair]


def _difference(entry: Mapping[str, Any], name: str) -> float | None:
    """Of the method to its plain backbone."""
    whole, plain = entry[name], entry[f"{name}_backbone"]
    return None if whole is None or plain is None else whole - plain


def _percent(value: float | None, digits: int = 1) -> str:
    """As the leaderboard prints it; a test compares the two."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _spread(entry: Mapping[str, Any], name: str) -> str:
    mean, deviation = entry[f"{name}_mean"], entry[f"{name}_sd"]
    return _percent(mean) + (f" ± {_percent(deviation)}" if deviation is not None else "")


def _cost(entry: Mapping[str, Any], name: str, unit: float, digits: int) -> str:
    more = _difference(entry, name)
    if entry[name] is None:
        return "-"
    return f"{entry[name] / unit:.{digits}f}" + ("" if more is None else f" ({more / unit:+.{digits}f})")
