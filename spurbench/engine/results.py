"""After training: every chosen epoch measured once on test, and the run's tables."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spurbench.backbone import build_backbone
from spurbench.config import BackboneConfig
from spurbench.costs import model_costs
from spurbench.engine.evaluation import Measurement
from spurbench.engine.phases import Trainer
from spurbench.engine.record import measured_row
from spurbench.io import atomic_write
from spurbench.metrics.cost import throughput
from spurbench.nn.classifier import Classifier

__all__ = ["evaluate_candidates"]

_MEASURE_SECONDS = 0.1
"""For each speed; of many short runs a longer time would be the largest part."""
_DEAD = 1e-3
"""Mask density below which people are told."""


def evaluate_candidates(trainer: Trainer) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, one per selection rule, and the measured machine columns. Writes the run's Parquet tables."""
    config, info = trainer.config, trainer.info
    arrays = trainer.splits["test"]
    train = trainer.splits["train"].groups_or_classes()
    train_counts = tuple(torch.bincount(train, minlength=info.num_groups).tolist())
    cost, plain_cost = model_costs(trainer.method, config.backbone.name, config.input.image_size, len(info.classes))
    rows: list[dict[str, Any]] = []
    measured: dict[int, Measurement] = {}
    found: dict[int, dict[str, float]] = {}
    for rule, candidate in trainer.candidates().items():
        if candidate.epoch not in measured:  # rules often agree: each epoch is measured once
            model = trainer.load_candidate(candidate)
            measured[candidate.epoch] = trainer.scorer.measure(model, arrays, trainer.observer, trainer.stop)
            if (density := measured[candidate.epoch].mask_density) is not None and density < _DEAD:
                trainer.observer.note(
                    f"note: the mask of epoch {candidate.epoch + 1} is empty on {arrays.name} "
                    f"(density {density:.4f}); EPG and erasure of it say nothing about where the model looks"
                )
            found[candidate.epoch] = dict(trainer.method.found_options(model))
            trainer.stop.check()
        row = measured_row(
            config,
            trainer.method,
            info,
            fingerprint=trainer.fingerprint,
            rule=rule,
            epoch=candidate.epoch,
            score=candidate.score,
            split=arrays.name,
            result=measured[candidate.epoch],
            train_counts=train_counts,
            cost=cost,
            plain_cost=plain_cost,
        )
        rows.append({**row, **trainer.validation(candidate), **found[candidate.epoch]})
    _write_table(trainer.folder / "epochs.parquet", trainer.rows)
    _write_table(trainer.folder / "predictions.parquet", _predictions(trainer, measured))
    _, images = next(trainer.scorer.batches(arrays))
    machine = {
        "images_per_second": _method_throughput(trainer, images),
        "images_per_second_backbone": _plain_throughput(trainer, images),
        "train_images_per_second": trainer.images / trainer.seconds if trainer.seconds else None,
        "train_seconds": trainer.seconds,
    }
    return rows, machine


def _predictions(trainer: Trainer, measured: dict[int, Measurement]) -> dict[str, Any]:
    """Per epoch and test sample: label, group, prediction, and EPG by source and region."""
    arrays = trainer.splits["test"]
    columns: dict[str, list[Any]] = {}
    for epoch, result in measured.items():
        part: dict[str, list[Any]] = {
            "epoch": [epoch] * len(arrays.y),
            "index": list(range(len(arrays.y))),
            "y": arrays.y.tolist(),
            "group": arrays.groups_or_classes().tolist(),
            "predicted": result.predicted.tolist(),
            "confidence": result.confidence.tolist(),
        }
        for (source, region), values in result.epg.items():
            pairs = zip(values.epg.tolist(), values.area.tolist(), strict=True)
            part[f"epg_{source}_{region}"] = [value if area > 0 else None for value, area in pairs]
        for name, column in part.items():
            columns.setdefault(name, []).extend(column)
    return columns


def _write_table(path: Path, columns: dict[str, Any] | list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(columns, list):  # phases may measure different things: absent is null
        names = dict.fromkeys(name for row in columns for name in row)
        columns = {name: [row.get(name) for row in columns] for name in names}
    table = pa.table(columns)
    with atomic_write(path) as stream:
        pq.write_table(table, stream)


def _method_throughput(trainer: Trainer, images: Tensor) -> float:
    """Images per second of the method's evaluation; measured once in a process for runs that differ in their seed."""
    key = (trainer.config.method.model_dump_json(), *_setting(trainer, images))
    if key not in _measured:
        trainer.model.eval()
        with trainer.scorer.autocast():
            _measured[key] = throughput(
                lambda x: trainer.method.evaluate(trainer.model, x), images, seconds=_MEASURE_SECONDS
            )
    return _measured[key]


def _plain_throughput(trainer: Trainer, images: Tensor) -> float:
    """Images per second of backbone and head alone, same batch size and precision; measured once in a process."""
    config, scorer = trainer.config, trainer.scorer
    key = _setting(trainer, images)
    if key not in _measured:
        backbone = build_backbone(BackboneConfig(name=config.backbone.name, weights="none"), None)
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        model = Classifier(backbone, len(trainer.info.classes)).to(scorer.device, memory_format=layout).eval()  # type: ignore[call-overload]
        with scorer.autocast():
            _measured[key] = throughput(model, images, seconds=_MEASURE_SECONDS)
    return _measured[key]


def _setting(trainer: Trainer, images: Tensor) -> tuple[Any, ...]:
    """All that the speed of a model depends on beside what it is."""
    config = trainer.config
    return (
        config.backbone.name,
        tuple(images.shape),
        len(trainer.info.classes),
        config.train.precision,
        config.train.channels_last,
        config.train.compile,
        str(trainer.scorer.device),
        torch.get_num_threads(),
    )


_measured: dict[tuple[Any, ...], float] = {}
"""Speeds of methods and plain backbones: weights and seeds do not change them, and small runs would do little else."""
