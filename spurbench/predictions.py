"""What finished runs said about every test image, put beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["ImageValues", "Unusable", "align", "read_values"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Unusable(Exception):
    """Predictions that are absent or damaged; the message says which, in a few words."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageValues:
    """One number for each test image of a run, in rising order of ``index``."""

    index: Integers
    """Of the image in its split, each once."""
    group: Integers
    value: Floats
    """1 where the prediction is right, or an image's EPG; NaN where an image has none."""


def read_values(run: Path, epoch: int, column: str | None = None) -> ImageValues:
    """Values of a run's folder at one epoch: correctness, or another column of ``predictions.parquet``.

    Raises:
        Unusable: no such file, epoch or column, or a file that cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run / "predictions.parquet"
    if not path.is_file():
        raise Unusable("no predictions.parquet")
    wanted = ["epoch", "index", "group", *(("y", "predicted") if column is None else (column,))]
    try:
        table = pq.read_table(path, columns=wanted)
        if missing := set(wanted) - set(table.column_names):
            raise Unusable(f"predictions without {', '.join(sorted(missing))}")
        table = table.filter(pa.compute.equal(table["epoch"], epoch))
        columns = {name: table[name].to_numpy() for name in wanted}
        order = np.argsort(columns["index"], kind="stable")
        value = (columns["y"] == columns["predicted"]) if column is None else columns[column]
        values = ImageValues(
            columns["index"][order].astype(np.int64),
            columns["group"][order].astype(np.int64),
            np.asarray(value, dtype=np.float64)[order],
        )
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise Unusable("a damaged predictions.parquet") from error
    if not len(values.index):
        raise Unusable(f"no predictions of epoch {epoch + 1}")
    if (values.index[1:] == values.index[:-1]).any():
        raise Unusable("test images that are there twice")
    return values


def align(runs: Sequence[ImageValues]) -> tuple[Integers, Floats, int]:
    """Groups [N] and values [runs, N] of the images that all runs have a value for, and how many others there are.

    Raises:
        Unusable: runs that put one image into different groups, or have none in common.
    """
    valid = [run.index[~np.isnan(run.value)] for run in runs]
    common = reduce(lambda left, right: np.intersect1d(left, right, assume_unique=True), valid)
    everything = reduce(np.union1d, (run.index for run in runs))
    places = [np.searchsorted(run.index, common) for run in runs]
    groups = [run.group[place] for run, place in zip(runs, places, strict=True)]
    if any(not np.array_equal(groups[0], group) for group in groups):
        raise Unusable("test images whose groups differ between runs")
    if not len(common):
        raise Unusable("no test image in common")
    values = np.stack([run.value[place] for run, place in zip(runs, places, strict=True)])
    return groups[0], values, len(everything) - len(common)
