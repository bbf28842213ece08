"""What a report's page cannot show as it shows the rest, in sentences."""

from collections.abc import Iterable, Sequence

from spurbench.fold import Conflict, Folded
from spurbench.text import clip

__all__ = ["problems"]

_NAMED = 50
"""Of one kind so many are named, the others counted."""


def problems(folded: Folded, rules: Sequence[str]) -> list[str]:
    """Damaged records, conflicts, failed runs, columns left out, and runs that lack a rule."""
    conflicts = map(_conflict, folded.conflicts)
    damaged = (f"left out, damaged: {clip(place)}: {clip(reason)}" for place, reason in folded.damaged.items())
    failed = (f"left out, failed: run {clip(run)}" for run in folded.failed)
    lacking = (
        f"not under rule {clip(rule)}: {count} run{'s' if count > 1 else ''} of {clip(label)} on {clip(dataset)}, "
        f"which have {clip(rules_there)}"
        for rule in rules
        for (label, dataset, rules_there), count in folded.lacking(rule).items()
    )
    return [
        *_some(conflicts, "conflicts"),
        *_some(damaged, "damaged records"),
        *_some(failed, "failed runs"),
        *_some(map(clip, folded.notes), "notes"),
        *_some(lacking, "cases of runs without a rule"),
    ]


def _conflict(one: Conflict) -> str:
    values = ", ".join(f"{clip(value)} in {clip(source)}" for source, value in one.values)
    return (
        f"conflict: run {clip(one.run)} ({clip(one.selection)}) is there {len(one.values)} times with different "
        f"numbers: {one.column} {values}; the last one counts"
    )


def _some(sentences: Iterable[str], what: str) -> list[str]:
    sentences = list(sentences)
    more = len(sentences) - _NAMED
    return [*sentences[:_NAMED], *([f"and {more} more {what}"] if more > 0 else [])]
