"""Folders of finished runs as the engine leaves them, without training anything."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spurbench.schema import SCHEMA_VERSION

GROUPS = ("land/land", "land/water", "water/land", "water/water")


def write_run(
    results: Path,
    run_id: str,
    *,
    seed: int = 0,
    wga: float = 0.8,
    label: str = "ERM",
    dataset: str = "birds",
    backbone: str = "net",
    group_names: tuple[str, ...] = GROUPS,
    stages: int = 0,
    tau: float | str | None = None,
    overhead: float = 0.0,
    epochs: int = 3,
    **changes: Any,
) -> Path:
    """One run with the rules val_wga and last, of which last is ten points worse; returns its folder.

    Args:
        stages: of a method with masks; 0 is one without.
        changes: columns of its rows with other values.
    """
    method = label.partition("[")[0].lower()
    options: dict[str, Any] = {"num_stages": stages, "tau": tau} if stages else {}
    config = {
        "method": {"name": method, "version": 1, "config": options | changes.pop("options", {})},
        "dataset": {"name": dataset}, "backbone": {"name": backbone}, "train": {"epochs": epochs}, "seed": seed,
    }  # fmt: skip
    rows = []
    for rule, worst in (("val_wga", wga), ("last", wga - 0.1)):
        counts = [round(100 * worst) if g == 0 else 98 for g in range(len(group_names))]
        n = 100 * len(counts)
        row: dict[str, Any] = {
            "run_id": run_id, "schema_version": SCHEMA_VERSION, "status": "finished", "provenance": "measured",
            "method": method, "label": label, "config_json": json.dumps(config), "dataset": dataset,
            "dataset_version": "1", "dataset_fingerprint": "f", "backbone": backbone, "weights": "none",
            "seed": seed, "access": "none", "selection": rule, "selected_epoch": epochs - 1, "split": "test",
            "n": n, "n_correct": sum(counts), "accuracy": sum(counts) / n, "worst_group_accuracy": worst,
            "group_mean_accuracy": sum(counts) / n, "worst_group": group_names[0], "val_accuracy": 0.9,
            "val_wga": worst,
            "groups": [
                {"group": g, "name": name, "n": 100, "correct": counts[g]} for g, name in enumerate(group_names)
            ],
            "epg": 0.2 + 0.1 * stages, "epg_source": "mask" if stages else "gradcam", "epg_base_rate": 0.12,
            "num_stages": stages or None, "tau": tau if isinstance(tau, float) else None,
            "gmacs": 1.0 + overhead, "gmacs_backbone": 1.0, "params": 2_000_000, "params_backbone": 1_500_000,
        }  # fmt: skip
        if stages:
            shares = {"outside": 95, "inside": 50, "outside_control": 70}
            row |= {
                "mask_density": 0.25,
                "stage_masks": [{"stage": s, "density": 0.3 - 0.1 * s, "epg_mask": 0.4} for s in range(stages)],
                "erasure": [
                    {"erased": part, "fill": "mean", "n": 100, "agree": agree, "correct": agree}
                    for part, agree in shares.items()
                ],
            }
        rows.append(row | changes)
    folder = results / "runs" / run_id
    folder.mkdir(parents=True)
    record = {"run_id": run_id, "status": "finished", "rows": rows, "machine": {"device": "cpu"}}
    (folder / "result.json").write_text(json.dumps(record))
    table = [
        {
            "phase": "train", "epoch": e, "train_loss": 1 / (1 + e), "val_accuracy": 0.9, "val_wga": wga - 0.01 * e,
            "val_worst_class": 0.85, "val_density": [0.5 - 0.1 * e] * stages,
        }
        for e in range(epochs)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(table), folder / "epochs.parquet")
    return folder
