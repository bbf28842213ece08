"""Pictures of a run's failures in its worst group, and of what it looked at."""

import base64
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spurbench.config import RunPaths
from spurbench.engine.run import finished_record
from spurbench.errors import DataMissing
from spurbench.report.gallery import draw, explain
from spurbench.text import clip

__all__ = ["failure_sheet"]


def failure_sheet(
    folder: Path,
    paths: RunPaths,
    *,
    count: int,
    device: torch.device,
    plugins: tuple[Path, ...] = (),
) -> dict[str, str] | None:
    """The worst group's images that a run gets wrong with most confidence, under its first rule; None if none is.

    Returns:
        ``{title, alt, png, dataset, backbone}``: a caption, what the picture shows in words, the picture as a data URI,
        and the names by which the page is filtered.

    Raises:
        SpurbenchError: weights, predictions or data are not here.
    """
    record = finished_record(folder)
    if record is None:
        raise DataMissing(f"run {folder.name} is not finished")
    row = record["rows"][0]
    wrong = _failures(folder, row, count)
    if not wrong:
        return None
    explained = explain(
        folder, paths, count=count, rule=None, attribution=None, device=device, plugins=plugins, images=wrong
    )
    with tempfile.TemporaryDirectory() as scratch:
        sheet = Path(scratch) / "sheet.png"
        draw([explained], sheet)
        png = base64.b64encode(sheet.read_bytes()).decode()
    maps, stages = " and ".join(explained.items[0].maps), len(explained.items[0].stages)
    each = f"; the same for the mask of each of its {stages} stages, the deepest first" if stages > 1 else ""
    predicted = ", ".join(item.predicted for item in explained.items)
    title = f"{clip(explained.label)} on {clip(explained.dataset)}: failures in {clip(row['worst_group'])}"
    alt = (
        f"{len(explained.items)} test images of the group {clip(row['worst_group'])} that {clip(explained.label)} "
        f"gets wrong, the most confident first. Rows from the top: the image; its object, where it is known; the image "
        f"with all outside the {clip(maps)} darkened{each}. Predicted: {clip(predicted)}."
    )
    place = {"dataset": clip(row["dataset"]), "backbone": clip(row["backbone"])}
    return {"title": title, "alt": alt, "png": f"data:image/png;base64,{png}", **place}


def _failures(folder: Path, row: Mapping[str, Any], count: int) -> list[int]:
    """Positions in the test split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = [group for group in row["groups"] if group["n"]]
    worst = min(groups, key=lambda group: group["correct"] / group["n"])["group"]
    columns = ["epoch", "index", "y", "group", "predicted", "confidence"]
    try:
        table = pq.read_table(folder / "predictions.parquet", columns=columns).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise DataMissing(f"the predictions of run {folder.name} are not here or not readable") from error
    epoch = row["selected_epoch"]
    if epoch is not None:
        table = table[table["epoch"] == epoch]
    wrong = table[(table["group"] == worst) & (table["predicted"] != table["y"])]
    ordered = wrong.sort_values(["confidence", "index"], ascending=[False, True])
    return [int(i) for i in ordered["index"].head(count)]
