"""Training curves of finished runs, from the table of epochs that each leaves behind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spurbench.report.page_data import short
from spurbench.text import clip

__all__ = ["curves_of"]

_SERIES = ("val_wga", "val_accuracy", "val_worst_class", "train_loss")
_MOST_GROUPS = 20
_MOST = 150
"""Points of one curve on the page; of longer trainings every so many epochs are left out, never the last."""


def curves_of(folder: Path) -> dict[str, Any] | None:
    """Values per epoch through all phases of a run; None where there is no readable table.

    Returns:
        ``{epochs, phases, series, density, by_group}``: numbers of the epochs from 1 and names of their phases; by name
        the values, null where a phase does not measure them; the mask density of every stage, deepest first; and the
        same per stage and group, empty where runs did not record it or there are too many groups to draw.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(folder / "epochs.parquet").to_pylist()
    except (OSError, pa.ArrowException):
        return None
    try:
        return _curves(rows)
    except (KeyError, TypeError, ValueError):
        return None


def _curves(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    step = -(-len(rows) // _MOST) or 1
    kept = sorted({*range(0, len(rows), step), *range(max(0, len(rows) - 1), len(rows))})
    series = {name: [short(rows[i].get(name), 4) for i in kept] for name in _SERIES}
    density = [rows[i].get("val_density") or [] for i in kept]
    by_group = [rows[i].get("val_density_by_group") or [] for i in kept]
    groups = max((len(stage) for stages in by_group for stage in stages), default=0)
    return {
        "epochs": [i + 1 for i in kept],
        "phases": [clip(rows[i]["phase"]) for i in kept],
        "series": {name: values for name, values in series.items() if any(value is not None for value in values)},
        "density": _transposed(density),
        "by_group": []
        if groups > _MOST_GROUPS
        else [
            _transposed([stages[s] if s < len(stages) else [] for stages in by_group])
            for s in range(max(map(len, by_group), default=0))
        ],
    }


def _transposed(values: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """From one list per epoch to one over epochs; null where an epoch's is shorter."""
    return [
        [short(epoch[i], 4) if i < len(epoch) else None for epoch in values]
        for i in range(max(map(len, values), default=0))
    ]
