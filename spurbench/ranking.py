"""Which lines of a leaderboard may be ranked together, and whether the first is clearly the first."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spurbench.compare import ENOUGH_SEEDS
from spurbench.metrics.stats import holm, t_interval

__all__ = ["LeftOut", "clearly_best", "place", "rankable"]

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A line that is not ranked with the others."""

    label: str
    dataset: str
    runs: int
    reason: str
    setting: str
    """What tells lines of one label apart."""


def place(line: Line) -> tuple[str, ...]:
    """Lines of one place are ranked together: dataset and its version, backbone, initial weights."""
    return tuple(str(line[name]) for name in ("dataset", "dataset_version", "backbone", "weights"))


def rankable(table: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """The lines that can be ranked, and the others with the reason.

    Of a dataset's version only one fingerprint is kept, the one that most runs have; of a method at one place only the
    newest version; of a place the epochs and input geometry, and the number of draws that settings were chosen from,
    that most runs have. Ties go to what was finished last.
    """
    left: list[LeftOut] = []
    lines = list(table)
    for step in (_data, _identity, _version, _recipe, _budget):
        kept: list[dict[str, Any]] = []
        for line, reason in step(lines):
            if reason is None:
                kept.append(line)
            else:
                left.append(LeftOut(str(line["label"]), line["dataset"], line["n_seeds"], reason, line["setting"]))
        lines = kept
    return lines, left


def clearly_best(block: Sequence[Line], metric: str = "worst_group_accuracy") -> tuple[int | None, str]:
    """The line of a block whose mean is clearly above all others', or None; and why.

    Student's t on differences paired by seed, Holm's adjustment over all other lines, level 5 %. It speaks of new
    seeds on the same test images. Too few seeds in common with any line, or a line without the metric: None.
    """
    order = [number for number, line in enumerate(block) if line[f"{metric}_mean"] is not None]
    if len(order) < 2:
        return None, "nothing to compare with"
    order.sort(key=lambda number: -block[number][f"{metric}_mean"])
    best = _by_seed(block[order[0]], metric)
    p_values = []
    for number in order[1:]:
        other = _by_seed(block[number], metric)
        seeds = sorted(best.keys() & other.keys())
        if len(seeds) < ENOUGH_SEEDS:
            return None, (
                f"{block[order[0]]['label']} and {block[number]['label']} have {len(seeds)} seeds in common, "
                f"{ENOUGH_SEEDS} are needed"
            )
        p_values.append(t_interval([best[seed] - other[seed] for seed in seeds]).p)
    adjusted = holm(p_values)
    if max(adjusted) < 0.05:
        return order[0], f"{block[order[0]]['label']} is above all others (Holm-adjusted p < {_up(max(adjusted))})"
    nearest = block[order[1 + adjusted.index(max(adjusted))]]["label"]
    return None, f"{block[order[0]]['label']} is not clearly above {nearest} (Holm-adjusted p = {max(adjusted):.2f})"


def _up(p: float) -> float:
    return next(bound for bound in (0.001, 0.01, 0.05) if p < bound)


def _by_seed(line: Line, metric: str) -> dict[int, float]:
    values = line[f"{metric}_values"]
    return dict(zip(line["seeds"], values, strict=True)) if len(values) == len(line["seeds"]) else {}


Judged = list[tuple[dict[str, Any], str | None]]


def _data(lines: list[dict[str, Any]]) -> Judged:
    return _most_common(
        lines,
        lambda line: (line["dataset"], line["dataset_version"]),
        lambda line: line["dataset_fingerprint"],
        lambda other, usual: f"other data: fingerprint {str(other)[:8]} instead of {str(usual)[:8]}",
    )


def _identity(lines: list[dict[str, Any]]) -> Judged:
    return _newest(lines, lambda line: None, "identity_version", lambda line: "configurations")


def _version(lines: list[dict[str, Any]]) -> Judged:
    return _newest(lines, lambda line: (place(line), line["method"]), "method_version", lambda line: line["method"])


def _recipe(lines: list[dict[str, Any]]) -> Judged:
    def tell(other: Any, usual: Any) -> str:
        values, common = dict(other), dict(usual)
        names = sorted(name for name in {*values, *common} if values.get(name) != common.get(name))
        return "another recipe: " + ", ".join(f"{n}={values.get(n)} instead of {common.get(n)}" for n in names)

    return _most_common(
        lines, place, lambda line: tuple(sorted((name, str(value)) for name, value in line["recipe"].items())), tell
    )


def _budget(lines: list[dict[str, Any]]) -> Judged:
    return _most_common(
        lines,
        place,
        lambda line: line.get("n_draws", 1),
        lambda other, usual: f"another tuning budget: best of {other} draws instead of {usual}",
    )


def _newest(
    lines: list[dict[str, Any]],
    family: Callable[[Line], Hashable],
    column: str,
    name: Callable[[Line], str],
) -> Judged:
    newest: dict[Hashable, int] = {}
    families = [family(line) for line in lines]
    for line, key in zip(lines, families, strict=True):
        newest[key] = max(newest.get(key, 0), line[column] or 0)
    return [
        (
            line,
            None
            if (line[column] or 0) == newest[key]
            else f"version {line[column]} of {name(line)} instead of {newest[key]}",
        )
        for line, key in zip(lines, families, strict=True)
    ]


def _most_common(
    lines: list[dict[str, Any]],
    family: Callable[[Line], Hashable],
    kind: Callable[[Line], Any],
    tell: Callable[[Any, Any], str],
) -> Judged:
    runs: dict[Hashable, Counter[Any]] = {}
    latest: dict[tuple[Hashable, Any], str] = {}
    keys = [(family(line), kind(line)) for line in lines]
    for line, key in zip(lines, keys, strict=True):
        runs.setdefault(key[0], Counter())[key[1]] += line["n_seeds"]
        latest[key] = max(latest.get(key, ""), line["finished_at"])
    usual = {
        name: max(kinds, key=lambda one: (kinds[one], latest[name, one], str(one))) for name, kinds in runs.items()
    }
    return [
        (line, None if other == usual[key] else tell(other, usual[key]))
        for line, (key, other) in zip(lines, keys, strict=True)
    ]
