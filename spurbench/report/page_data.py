"""What the report page shows: settings, their table lines under every rule, published ones, numbers for the plots."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from spurbench.dotted import dotted
from spurbench.report.tables import Table
from spurbench.reported import Reported
from spurbench.text import clip

__all__ = ["page_data", "short"]

_PLOTTED = ("worst_group_accuracy", "accuracy", "group_mean_accuracy", "epg", "mask_density")
_ERASED = ("outside", "inside", "outside_control")
_DOUBTS = 3
"""Of what is wrong with intervals so many are named, the others counted."""
_COLUMNS = (
    ("method", "text", "short name; options are added where two settings share it"),
    ("WGA", "number", "accuracy of the worst group, percent: mean ± s.d. over seeds"),
    ("WGA 95 %", "number", "95 % interval of the mean WGA, percent; over what is said below the table"),
    ("accuracy", "number", "share of all test images that are right, percent: mean ± s.d. over seeds"),
    ("EPG", "number", "Energy Pointing Game: percent of the map on the object; behind it the map's source"),
    ("seeds", "number", "runs in the mean"),
    ("draws", "number", "settings that this one was chosen from on validation data"),
    ("rule", "text", "that chose the epoch; 'last' where the method defines its final model itself"),
    ("dataset", "text", "name with variant"),
    ("backbone", "text", "timm name"),
    ("base rate", "number", "EPG of a uniform map, percent"),
    ("density", "number", "active part of the merged mask, percent"),
    ("erased", "number", "percent of predictions that stay: outside / inside / outside another image's mask erased"),
    ("group mean", "number", "mean accuracy of the groups, percent: mean ± s.d. over seeds"),
    ("GMACs", "number", "multiply-adds of one image, in brackets over the plain backbone; sorted by the latter"),
    ("params M", "number", "parameters in millions, in brackets over the plain backbone; sorted by the latter"),
    ("img/s", "number", "images per second in evaluation, in brackets times the plain backbone's on one machine"),
    ("access", "text", "labels and groups that the method declared to use beyond training labels"),
    ("pretraining", "text", "initial weights; of published rows as their source names them"),
    ("average", "text", "which average a published accuracy is, where its source says so"),
    ("source", "text", "measured here, or where it was published, how well that is known, and what to mind"),
)
"""Of the table: title, kind, meaning."""
_TITLES = [title for title, _, _ in _COLUMNS]
_PUBLISHED = {
    "worst_group_accuracy": "WGA",
    "accuracy": "accuracy",
    "epg": "EPG",
    "group_mean_accuracy": "group mean",
    "adjusted_accuracy": None,
}
"""Columns of this project that published numbers have, and where they stand; the last beside its definition."""


def page_data(
    tables: Mapping[str, Table], curves: Mapping[str, Any], published: Sequence[Reported] = ()
) -> dict[str, Any]:
    """The page's document: plain JSON without NaN, its strings clipped, numbers short.

    Args:
        tables: as ``tables_of`` makes them.
        curves: training curves by run id, as ``curves_of`` makes them; runs without are left out of those plots.
        published: those on datasets of the tables stand beside them; the others are counted.
    """
    lines_of: dict[str, list[dict[str, Any]]] = {}
    for table in tables.values():
        for line in table:
            lines_of.setdefault(line["setting"], []).append(line)
    ordered = sorted(lines_of.values(), key=lambda lines: _place(lines[0]))
    numbers = {lines[0]["setting"]: number for number, lines in enumerate(ordered)}
    described = [_describe(lines, curves) for lines in ordered]
    _name(described)
    sets: dict[tuple[Any, ...], int] = {}
    pages: dict[str, list[dict[str, Any]]] = {}
    for rule, table in tables.items():
        pages[clip(rule)] = lines = [
            _line(numbers[line["setting"]], described[numbers[line["setting"]]], line, sets) for line in table
        ]
        lines.sort(key=lambda line: _rank(line, described[line["setting"]]))
    beside, elsewhere = _beside(published, described)
    for setting in described:
        del setting["config"], setting["identity"]
    return {
        "columns": [dict(zip(("title", "kind", "meaning"), column, strict=True)) for column in _COLUMNS],
        "rules": list(pages),
        "settings": [*described, *(setting for setting, _ in beside)],
        "tables": pages,
        "group_sets": [
            dict(zip(("numbers", "names", "n"), (list(part) for part in zip(*key, strict=True)), strict=True))
            for key in sets
        ],
        "published": [{"setting": len(described) + place, **line} for place, (_, line) in enumerate(beside)],
        "published_elsewhere": elsewhere,
        "runs": sum(setting["runs"] for setting in described),
        "intervals": _intervals([line for table in tables.values() for line in table]),
    }


def _intervals(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the intervals are over and what is wrong with some, in sentences."""
    told = [line for line in lines if line["worst_group_accuracy_low"] is not None]
    over = {line["interval_over"] for line in told}
    if not told:
        kind = "none, as no setting here has several seeds that differ."
    elif over == {"seeds"}:
        kind = "Student's t over seeds, for these test images."
    else:
        but = "; in rows whose question mark says so, seeds alone (Student's t)" if "seeds" in over else ""
        kind = f"seeds and test images are both samples, by bootstrap{but}."
    doubts = list(dict.fromkeys(line["interval_note"] for line in told if line["interval_note"]))
    more = [f"and {len(doubts) - _DOUBTS} more"] if len(doubts) > _DOUBTS else []
    marks = "; ".join([*map(clip, doubts[:_DOUBTS]), *more])
    return [f"WGA 95 %: {kind}", *([f"Question marks: {marks}."] if marks else [])]


def short(value: float | None, digits: int = 6) -> float | None:
    """A number for plots with so many digits; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def _place(line: Mapping[str, Any]) -> tuple[str, ...]:
    """An order of settings that does not depend on that of the rows."""
    return (*(str(line[name]) for name in ("dataset", "backbone", "label", "dataset_fingerprint")), line["setting"])


def _rank(line: Mapping[str, Any], setting: Mapping[str, Any]) -> tuple[Any, ...]:
    wga = line["values"]["worst_group_accuracy"][0]
    return setting["data"], setting["net"], line["apart"] is not None, -(wga or 0), setting["name"]


def _describe(lines: Sequence[Mapping[str, Any]], curves: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting is, whichever rule chose its epochs."""
    first = lines[0]
    config = json.loads(first["config_json"])
    options = dict(first["options"])
    tau = options.get("tau", first["tau"])
    runs = {run: seed for line in lines for run, seed in zip(line["run_ids"], line["seeds"], strict=True)}
    beside = {key: value for key, value in options.items() if key not in ("num_stages", "tau")}
    identity = [first[name] for name in ("dataset_version", "dataset_fingerprint", "weights", "method")]
    return {
        "label": clip(first["label"] or first["method"]),
        "data": clip(first["dataset"]),
        "dataset": clip(first["dataset"]),
        "net": clip(first["backbone"]),
        "backbone": clip(first["backbone"]),
        "identity": [clip(value) for value in identity],
        # Names of options as the leaderboard prints them, then the rest of the configuration.
        "config": options
        | first["recipe"]
        | dotted("evaluation", config.get("evaluation") or {})
        | {"version": first["method_version"]},
        "gmacs": short(first["gmacs"]),
        "overhead": short(_difference(first, "gmacs")),
        "source": None if first["epg_source"] is None else clip(first["epg_source"]),
        "stages": first["num_stages"],
        "tau": None if tau is None else short(tau) if isinstance(tau, int | float) else clip(tau),
        "family": hashlib.sha256(
            json.dumps(
                [first["dataset"], first["backbone"], *identity, first["recipe"], beside], sort_keys=True
            ).encode()
        ).hexdigest()[:16],
        "runs": len(runs),
        "curves": [curves[run] | {"seed": seed} for run, seed in sorted(runs.items(), key=_by_seed) if run in curves],
    }


def _by_seed(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]


def _line(
    number: int, setting: Mapping[str, Any], entry: Mapping[str, Any], sets: dict[tuple[Any, ...], int]
) -> dict[str, Any]:
    """One table line: texts of the cells, what they sort by, and the numbers of the plots."""
    erased = [(entry[f"erasure_{part}_mean"], entry[f"erasure_{part}_sd"]) for part in _ERASED]
    ends = [entry[f"worst_group_accuracy_{end}"] for end in ("low", "high")]
    doubt = None if ends[0] is None or not entry["interval_note"] else clip(entry["interval_note"])
    cells = {
        "method": setting["name"],
        "WGA": _spread(entry, "worst_group_accuracy"),
        "WGA 95 %": "-" if ends[0] is None else f"[{_percent(ends[0])}, {_percent(ends[1])}]{'?' if doubt else ''}",
        "accuracy": _spread(entry, "accuracy"),
        "EPG": f"{_spread(entry, 'epg')} {clip(entry['epg_source'] or '')}".strip(),
        "seeds": str(entry["n_seeds"]),
        "draws": "1",
        "rule": clip(entry["selection"]),
        "dataset": setting["data"],
        "backbone": setting["net"],
        "base rate": _percent(entry["epg_base_rate_mean"]),
        "density": _percent(entry["mask_density_mean"]),
        "erased": "-" if erased[0][0] is None else " / ".join(_percent(mean, 0) for mean, _ in erased),
        "group mean": _spread(entry, "group_mean_accuracy"),
        "GMACs": _cost(entry, "gmacs", 1, 3),
        "params M": _cost(entry, "params", 1e6, 2),
        "img/s": _speed(entry),
        "access": clip(entry["access"]),
        "pretraining": clip(entry["weights"]),
        "average": "-",
        "source": "measured",
    }
    keys = {
        "WGA": entry["worst_group_accuracy_mean"],
        "WGA 95 %": ends[0],
        "accuracy": entry["accuracy_mean"],
        "EPG": entry["epg_mean"],
        "seeds": entry["n_seeds"],
        "draws": 1,
        "base rate": entry["epg_base_rate_mean"],
        "density": entry["mask_density_mean"],
        "erased": erased[0][0],
        "group mean": entry["group_mean_accuracy_mean"],
        "GMACs": _difference(entry, "gmacs"),
        "params M": _difference(entry, "params"),
        "img/s": entry["images_per_second_mean"],
    }
    groups = entry["by_group"]
    kind = tuple((group["group"], clip(group["name"]), group["n"]) for group in groups)
    return {
        "setting": number,
        "cells": [cells[title] for title in _TITLES],
        "keys": [short(keys.get(title)) for title in _TITLES],
        "values": {name: _pair((entry[f"{name}_mean"], entry[f"{name}_sd"])) for name in _PLOTTED},
        "interval": _pair(ends),
        "doubt": doubt,
        "groups": {
            "set": sets.setdefault(kind, len(sets)),
            "accuracy": [[short(value, 4) for value in group["accuracy"]] for group in groups],
        }
        if groups
        else None,
        "stages": [{name: _pair(pair) for name, pair in stage.items()} for stage in entry["stages"]],
        "erased": None if erased[0][0] is None else [_pair(pair) for pair in erased],
        "apart": None if entry["apart"] is None else clip(entry["apart"]),
        "best": entry["best"],
    }


def _beside(
    published: Iterable[Reported], described: Sequence[Mapping[str, Any]]
) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], int]:
    """A setting and a line per publication of a method on a measured dataset; and how many numbers have no place."""
    measured = {setting["dataset"] for setting in described}
    found: dict[tuple[Any, ...], list[Reported]] = {}
    elsewhere = 0
    for row in published:
        _, dataset, backbone, column = row.counterpart or ("", "", "", "")
        if dataset not in measured or column not in _PUBLISHED:
            elsewhere += 1
            continue
        key = (dataset, backbone, row.method, row.variant, row.pretraining, row.selection, row.source, row.evidence)
        turn = next(
            n for n in count() if column not in {r.counterpart[3] for r in found.get((*key, n), ()) if r.counterpart}
        )  # a second number of one column, such as another trial's, is a line of its own
        found.setdefault((*key, turn), []).append(row)
    return [_published(key[0], key[1], rows, described) for key, rows in sorted(found.items())], elsewhere


def _published(
    dataset: str, backbone: str, rows: Sequence[Reported], described: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    first = rows[0]
    variant = first.variant if first.variant.startswith(first.method) else f"{first.method} {first.variant}".strip()
    seeds = sorted({row.seeds for row in rows if row.seeds})
    averages = {row.average: None for row in rows if row.average}
    notes = {row.note: None for row in rows if row.note}
    cells = dict.fromkeys(_TITLES, "-") | {
        "method": clip(f"{variant} (published)"),
        "seeds": ", ".join(map(str, seeds)) or "not stated",
        "rule": clip(first.selection or "not stated"),
        "dataset": dataset,
        "backbone": backbone,
        "pretraining": clip(first.pretraining or "not stated"),
        "source": "; ".join([first.source, first.evidence, *notes]),
    }
    keys: dict[str, float] = {"seeds": seeds[0]} if len(seeds) == 1 else {}
    for row in rows:
        text = f"{row.value:.1f}" + ("" if row.std is None else f" ± {row.std:.1f}")
        title = _PUBLISHED[row.counterpart[3]] if row.counterpart else None
        if title is None:
            averages = {f"{text}: {row.average}": None} | {name: None for name in averages if name != row.average}
        else:
            cells[title], keys[title] = text, row.value / 100
    cells["average"] = "; ".join(averages) or ("not stated" if cells["accuracy"] != "-" else "-")
    same = [setting for setting in described if setting["dataset"] == dataset]
    setting = {
        "name": cells["method"],
        "data": dataset,
        "net": backbone,
        "among": sorted(
            {setting["data"] for setting in same}
            | {setting["net"] for setting in same if setting["backbone"] == backbone}
        ),
        **dict.fromkeys(("overhead", "stages", "tau", "source")),
        "curves": [],
        "runs": 0,
    }
    line = {
        "cells": [cells[title] for title in _TITLES],
        "keys": [short(keys.get(title)) for title in _TITLES],
        "values": {name: [None, None] for name in _PLOTTED},
        **dict.fromkeys(("groups", "erased", "apart", "best")),
        "stages": [],
        "published": True,
    }
    return setting, line


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
        differing = [key for key in keys if len({repr(setting["config"].get(key, _ABSENT)) for setting in alike}) > 1]
        for setting in alike:
            extra = ", ".join(f"{key}={setting['config'].get(key, _ABSENT)}" for key in differing)
            setting["name"] = clip(f"{setting['label']} {extra}".strip())


_ABSENT = "(absent)"


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


def _speed(entry: Mapping[str, Any]) -> str:
    speed, ratio = entry["images_per_second_mean"], entry["images_per_second_ratio_mean"]
    if speed is None:
        return "-"
    return f"{speed:.0f}" + ("" if ratio is None else f" ({ratio:.2f}x)")
