"""From measurements to the flat rows of a run's record."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from spurbench.config import RunConfig
from spurbench.dataset import DatasetInfo
from spurbench.engine.evaluation import Measurement
from spurbench.method import BaseMethod
from spurbench.metrics.cost import Cost
from spurbench.metrics.group import accuracy, adjusted_accuracy, group_mean_accuracy, worst_group
from spurbench.metrics.stats import wilson
from spurbench.schema import SCHEMA_VERSION

__all__ = ["failed_record", "identity_columns", "measured_row", "metric_columns"]


def identity_columns(config: RunConfig, method: BaseMethod[Any] | None, status: str) -> dict[str, Any]:
    """Columns that every row of a run shares, also of a failed one."""
    options = config.method.config
    return {
        "run_id": config.run_id(),
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "provenance": "measured",
        "method": config.method.name,
        "label": config.method.name if method is None else method.label,
        "method_version": config.method.version,
        "num_stages": options.get("num_stages"),
        "tau": options.get("tau") if isinstance(options.get("tau"), float | int) else None,
        "config_json": config.canonical(),
        "dataset": config.dataset.name,
        "dataset_version": config.dataset.version,
        "backbone": config.backbone.name,
        "weights": config.backbone.weights,
        "seed": config.seed,
        "access": "none" if method is None else method.access.names(),
        "oracle": config.evaluation.oracle,
    }


def measured_row(
    config: RunConfig,
    method: BaseMethod[Any],
    info: DatasetInfo,
    *,
    fingerprint: str,
    rule: str,
    epoch: int,
    score: float | None,
    split: str,
    result: Measurement,
    train_counts: tuple[int, ...] | None,
    cost: Cost,
    plain_cost: Cost,
) -> dict[str, Any]:
    """The row of one selection rule.

    Args:
        train_counts: training samples per group, the weights of ``adjusted_accuracy``; None if they are not known.
        cost: of the method's model; ``plain_cost`` of backbone and head.
    """
    return {
        **identity_columns(config, method, "finished"),
        "dataset_fingerprint": fingerprint,
        "selection": rule,
        "selected_epoch": epoch,
        "selection_score": score,
        "split": split,
        **metric_columns(info, result, train_counts),
        "gmacs": cost.gmacs,
        "gmacs_backbone": plain_cost.gmacs,
        "params": cost.params,
        "params_backbone": plain_cost.params,
    }


def metric_columns(info: DatasetInfo, result: Measurement, train_counts: tuple[int, ...] | None) -> dict[str, Any]:
    """What one measurement says, as a row holds it; see ``measured_row``."""
    counts = result.groups
    worst = worst_group(counts)
    low_high: tuple[float, float] | None = None
    if worst is not None:
        low_high = wilson(int(counts.correct[worst[1]]), int(counts.n[worst[1]]))
    return {
        "n": int(counts.n.sum()),
        "n_correct": int(counts.correct.sum()),
        "accuracy": accuracy(counts),
        "group_mean_accuracy": group_mean_accuracy(counts),
        "adjusted_accuracy": None if train_counts is None else adjusted_accuracy(counts, train_counts),
        "worst_group_accuracy": None if worst is None else worst[0],
        "worst_group": None if worst is None else info.group_names[worst[1]],
        "worst_group_low": None if low_high is None else low_high[0],
        "worst_group_high": None if low_high is None else low_high[1],
        "groups": counts.to_rows(info.group_names),
        "official": [{"name": name, "value": value} for name, value in result.official.items()] or None,
        **_epg_columns(result),
        "mask_density": result.mask_density,
        "stage_masks": _stage_columns(result),
        "erasure": [asdict(counts) for counts in result.erasure] or None,
    }


def failed_record(config: RunConfig, error: str, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that stopped: one row with null metrics, so that a sweep has no silent hole."""
    row = {
        **identity_columns(config, None, "failed"),
        "error": error,
        "selection": "none",
        "split": "test",
        "n": 0,
        "n_correct": 0,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": config.run_id(),
        "status": "failed",
        "error": error,
        "config": config.model_dump(mode="json"),
        "rows": [row],
        "machine": dict(machine),
    }


def _epg_columns(result: Measurement) -> dict[str, Any]:
    """All sources and regions, and the headline: the method's own mask, else the first attribution of the run's
    options; the exact region before the box.
    """
    summed = {key: values.sums() for key, values in result.epg.items()}
    every = [
        {
            "source": source,
            "region": region,
            "epg": sums.epg,
            "epg_nonempty": sums.epg_nonempty,
            "n": sums.epg_n,
            "empty": sums.epg_empty,
            "no_region": sums.epg_no_region,
            "base_rate": sums.epg_base_rate,
        }
        for (source, region), sums in summed.items()
        if not source.startswith("stage")
    ]
    if not every:
        return {}
    # Sources are in order of measurement, and the first of equals is taken.
    head = min(every, key=lambda entry: (entry["source"] != "mask", entry["region"] != "mask"))
    return {
        "epg": head["epg"],
        "epg_source": head["source"],
        "epg_region": head["region"],
        "epg_n": head["n"],
        "epg_empty": head["empty"],
        "epg_no_region": head["no_region"],
        "epg_base_rate": head["base_rate"],
        "epg_all": every,
    }


def _stage_columns(result: Measurement) -> list[dict[str, Any]] | None:
    """Density and mask-object overlap of every stage's mask, deep to shallow; null without masks."""
    return [
        {"stage": level, "density": density}
        | {
            f"epg_{region}": values.sums().epg
            for (source, region), values in result.epg.items()
            if source == f"stage{level}"
        }
        for level, density in enumerate(result.stage_density)
    ] or None
