"""Rules that name one epoch of a phase, and the weights they keep.

    val_wga           highest worst-group accuracy on validation (uses validation groups)
    val_worst_class   highest worst-class accuracy on validation (no groups)
    val_accuracy      highest accuracy on validation (no groups)
    last              the last epoch
    oracle_test_wga   highest worst-group accuracy on test: an upper bound, not a result

No rule has seen the test split, except the oracle, which exists only for runs that asked for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from spurbench.dataset import DatasetInfo

__all__ = ["best_epochs", "default_rule", "rules_for"]


def rules_for(info: DatasetInfo, *, oracle: bool, only_last: bool) -> tuple[str, ...]:
    """Rules that a run can offer: groups need an attribute, methods that fit on validation have only the end."""
    if only_last:
        return ("last",)
    grouped = info.attributes is not None
    rules: tuple[str, ...] = ("val_wga",) if grouped else ()
    rules += ("val_worst_class", "val_accuracy", "last")
    return rules + (("oracle_test_wga",) if oracle else ())


def default_rule(rules: Sequence[str]) -> str:
    """The first rule: ``val_wga`` where there are groups."""
    return rules[0]


def best_epochs(epochs: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> dict[str, tuple[int, float | None]]:
    """For each rule the chosen epoch and its score; ties go to the later epoch. Empty before any epoch is eligible.

    Args:
        epochs: rows of one phase in order, each with ``epoch`` and the rules' scores under their names, and
            ``eligible`` where the phase's ``select_from`` decides.
    """
    chosen: dict[str, tuple[int, float | None]] = {}
    epochs = [row for row in epochs if row.get("eligible", True)]
    if not epochs:
        return chosen
    for rule in rules:
        if rule == "last":
            chosen[rule] = (int(epochs[-1]["epoch"]), None)
            continue
        scored = [(row[rule], row["epoch"]) for row in epochs if row[rule] is not None]
        if scored:
            score, epoch = max(scored)
            chosen[rule] = (int(epoch), float(score))
    return chosen
