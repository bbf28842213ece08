"""The leaderboard's lines under every rule, with what only the page shows: which are not ranked, groups, stages."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spurbench.fold import Folded
from spurbench.intervals import Over, with_intervals
from spurbench.leaderboard import NEEDED, best_draws, lines_of
from spurbench.metrics.stats import mean_sd
from spurbench.ranking import rankable

__all__ = ["Table", "tables_of"]

Table = list[dict[str, Any]]

_RULES = ("val_wga", "val_worst_class", "val_accuracy", "last", "oracle_test_wga")
"""Order of the rules on the page; others come after."""
_COLUMNS = (*NEEDED, "stage_masks", "num_stages", "tau")


def tables_of(folded: Folded, over: Over = "seeds", folders: Sequence[Path] = ()) -> dict[str, Table]:
    """By rule, every setting as the leaderboard has it, with 95 % intervals.

    Added to its lines: ``apart``, why it is not ranked with the others, or None; ``best``, None for a draw that
    validation did not choose, else ``draws`` that it was chosen from and the same ``apart`` among chosen ones;
    ``by_group``, ``stages``, ``num_stages``, ``tau`` and ``config_json``.

    Args:
        over: what the intervals are over, and ``folders`` where predictions lie, as ``with_intervals`` takes them.
    """
    tables = {}
    for rule in sorted(folded.rules, key=lambda rule: (_RULES.index(rule) if rule in _RULES else len(_RULES), rule)):
        rows = list(folded.rows(rule, columns=_COLUMNS))
        if table := _judged(with_intervals(lines_of(rows), over, folders), rule):
            rows_of = {row["run_id"]: row for row in rows}
            tables[rule] = [line | _details([rows_of[run] for run in line["run_ids"]]) for line in table]
    return tables


def _judged(table: Table, rule: str) -> Table:
    """Settings of another recipe are no draws of one method, and compete neither here nor there."""
    ranked, left = rankable(table)
    chosen = {line["setting"]: line["n_draws"] for line in best_draws(ranked, rule)}
    _, left_of_chosen = rankable(best_draws(ranked, rule))
    apart = {one.setting: one.reason for one in left}
    apart_chosen = {one.setting: one.reason for one in left_of_chosen}
    return [
        {
            **line,
            "apart": apart.get(line["setting"]),
            "best": {"draws": chosen[line["setting"]], "apart": apart_chosen.get(line["setting"])}
            if line["setting"] in chosen
            else None,
        }
        for line in table
    ]


def _details(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    return {
        **{name: first[name] for name in ("num_stages", "tau", "config_json")},
        "by_group": _groups(rows),
        "stages": _stages(rows),
    }


def _groups(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy per group over seeds; a group without test images has none."""
    values: dict[int, list[float]] = {}
    facts: dict[int, tuple[str, int]] = {}
    for row in rows:
        for group in row["groups"] or ():
            number, n, correct = group.get("group"), group.get("n"), group.get("correct")
            if isinstance(number, int) and isinstance(n, int) and n > 0 and isinstance(correct, int):
                values.setdefault(number, []).append(correct / n)
                facts[number] = (str(group.get("name")), n)
    return [
        {"group": number, "name": facts[number][0], "n": facts[number][1], "accuracy": mean_sd(values[number])}
        for number in sorted(values)
    ]


def _stages(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Density and EPG of every stage's mask over seeds, the deepest first."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        for stage in row["stage_masks"] or ():
            if isinstance(stage.get("stage"), int):
                found.setdefault(stage["stage"], []).append(stage)
    return [
        {
            name: mean_sd([stage[column] for stage in found[number] if isinstance(stage.get(column), int | float)])
            for name, column in (("density", "density"), ("epg", "epg_mask"))
        }
        for number in sorted(found)
    ]
