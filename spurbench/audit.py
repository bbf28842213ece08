"""What a trained classifier decides by: groups, attribution and erasure of the object, without any training.

Nothing is known of the classifier but its logits, so the object comes from the dataset's own masks (or boxes). Two
pictures are made of every image, with the background erased and with the object erased, and predicted again. A
classifier that decides by the object keeps its prediction in the first and loses it in the second. What this cannot
tell: the outline of what was erased stays visible, and a filled image is none that the classifier was trained on. That
is why there are two fills, and a control that keeps the place of another image's object.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from spurbench.classifiers import TrainedClassifier
from spurbench.config import (
    AttributionName,
    BackboneConfig,
    DatasetRef,
    EvaluationConfig,
    InputConfig,
    MethodRef,
    RunConfig,
    RunPaths,
    TrainConfig,
)
from spurbench.dataset import Dataset
from spurbench.engine.evaluation import Scorer, SplitArrays, object_regions
from spurbench.engine.observer import Observer, Silent
from spurbench.engine.provenance import this_machine
from spurbench.engine.record import metric_columns
from spurbench.engine.stop import StopFlag
from spurbench.errors import ConfigError, DataMissing, did_you_mean
from spurbench.evaluate import open_by_name, split_of
from spurbench.io import read_json
from spurbench.method import BaseMethod, MethodConfig
from spurbench.metrics.erasure import FILLS, Erased, ErasureCounts, Fill, count_erasure, erasures
from spurbench.metrics.stats import t_interval
from spurbench.types import Prediction

__all__ = ["audit", "read_classes"]

_NEED_A_MAP = ("gradcam", "xgradcam")
"""Attributions that explain a layer."""
_OF_MASKS = ("mask_density", "stage_masks", "erasure")
"""Columns that only methods with a mask of their own fill."""


def audit(
    classifier: TrainedClassifier,
    dataset: str,
    paths: RunPaths,
    *,
    split: str = "test",
    classes: Mapping[str, Sequence[int]] | None = None,
    attributions: Sequence[AttributionName] = ("gradcam",),
    image_size: int | None = None,
    resize: int | None = None,
    batch_size: int = 64,
    device: torch.device,
    plugins: tuple[Path, ...] = (),
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Measure a classifier on one split.

    Args:
        dataset: a name or path, with transforms if any.
        classes: the outputs that stand for each class of the dataset, see ``read_classes``; by default the outputs are
            the dataset's classes in order.
        image_size, resize: other than what the classifier was made for.

    Returns:
        ``{kind: "audit", model, dataset, metrics, erasure, follows, findings, machine}``. ``metrics`` has the columns
        of a result row; ``erasure`` is null without masks and boxes; ``follows`` is ``object``, ``background`` or
        ``undecided``, as told by the fills; ``findings`` are sentences.

    Raises:
        ConfigError: classes that do not fit the outputs, or an attribution or image size that does not fit the model.
        DataMissing: no such data.
    """
    observer = observer or Silent()
    config = _config(classifier, image_size, resize, batch_size, attributions)
    opened = open_by_name(dataset, config, paths, plugins)
    if opened.info.has_masks or opened.info.has_boxes:
        _require_map(classifier, attributions)
    outputs = _outputs(classifier, opened, classes)
    arrays = split_of(opened, split, config.input.resize, paths.cache, observer)
    scorer = Scorer(
        config=config,
        method=_Audited(classifier, outputs),
        info=opened.info,
        mean=classifier.mean,
        std=classifier.std,
        device=device,
    )
    model = classifier.model.to(device)
    _probe(scorer, classifier, model, arrays)
    result = scorer.measure(model, arrays, observer, StopFlag())
    erased = _erase_objects(scorer, model, arrays, result.predicted, observer)
    train = opened.split("train")
    groups = train.y if train.group is None else train.group
    counts = tuple(torch.bincount(groups, minlength=opened.info.num_groups).tolist())
    metrics = metric_columns(opened.info, result, counts)
    metrics = {name: value for name, value in metrics.items() if name not in _OF_MASKS}
    return {
        "kind": "audit",
        "model": {
            "name": classifier.name,
            "weights": classifier.weights,
            "num_outputs": classifier.num_outputs,
            "input": config.input.model_dump(mode="json", include={"image_size", "resize"}),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "classes": dict(zip(opened.info.classes, outputs, strict=True)),
        },
        "dataset": {
            "name": opened.info.name,
            "version": opened.info.version,
            "fingerprint": opened.fingerprint(),
            "split": split,
        },
        "metrics": metrics,
        **erased,
        "findings": _findings(metrics, erased),
        "machine": this_machine(device),
    }


def read_classes(path: Path) -> dict[str, list[int]]:
    """``{"landbird": [10, 11], "waterbird": [127]}``: which of a model's outputs stand for a class of the dataset.

    The logit of a class is the logsumexp of its outputs': the softmax over them is then the probability that the model
    gives to any of them, among all that are named.

    Raises:
        DataMissing: no such file.
        ConfigError: not of this form, or an output that is named twice.
    """
    if not path.is_file():
        raise DataMissing(f"no file at {path}")
    form = 'expected {"class": [output, ...], ...} with outputs counted from 0'
    try:
        document = read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}; {form}") from error
    if not isinstance(document, dict) or not document:
        raise ConfigError(f"{path}: {form}")
    seen: dict[int, str] = {}
    for name, outputs in document.items():
        if not isinstance(outputs, list) or not outputs or not all(type(output) is int for output in outputs):
            raise ConfigError(f"{path}: class '{name}' has {json.dumps(outputs)}; {form}")
        for output in outputs:
            if output in seen:
                raise ConfigError(
                    f"{path}: output {output} stands for '{seen[output]}' and for '{name}'; leave one out"
                )
            seen[output] = name
    return document


class _Audited(BaseMethod[MethodConfig]):
    """A finished classifier in the place of a method: it can be evaluated, nothing else."""

    def __init__(self, classifier: TrainedClassifier, outputs: Sequence[Sequence[int]]) -> None:
        super().__init__(MethodConfig())
        self._layer = classifier.cam_layer
        self._outputs = outputs
        self._plain = list(outputs) == [[output] for output in range(classifier.num_outputs)]

    def evaluate(self, model: nn.Module, images: Tensor) -> Prediction:
        logits_BO: Tensor = model(images)
        if self._plain:
            return Prediction(logits=logits_BO)
        classes = [logits_BO[:, list(outputs)].logsumexp(dim=1) for outputs in self._outputs]
        return Prediction(logits=torch.stack(classes, dim=1))

    def cam_layer(self, model: nn.Module) -> nn.Module:
        return model if self._layer is None else self._layer


def _config(
    classifier: TrainedClassifier,
    image_size: int | None,
    resize: int | None,
    batch_size: int,
    attributions: Sequence[AttributionName],
) -> RunConfig:
    """What the scorer reads of a run."""
    size = image_size or classifier.image_size
    # The share of the image that is cut out stays the same.
    frame = resize or round(size * classifier.resize / classifier.image_size)
    if size > frame:
        raise ConfigError(f"--image-size {size} is larger than --resize {frame}, of which it is cut; raise --resize")
    return RunConfig(
        method=MethodRef(name="audit", version=1),
        dataset=DatasetRef(name="none", version="none"),
        backbone=BackboneConfig(name=classifier.name, weights=classifier.weights),
        input=InputConfig(resize=frame, image_size=size, crop_scale=None, flip=False),
        train=TrainConfig(),
        evaluation=EvaluationConfig(batch_size=batch_size, attributions=tuple(attributions)),
    )


def _require_map(classifier: TrainedClassifier, attributions: Sequence[AttributionName]) -> None:
    lacking = [name for name in attributions if name in _NEED_A_MAP and classifier.cam_layer is None]
    if lacking:
        others = ", ".join(name for name in get_args(AttributionName) if name not in _NEED_A_MAP)
        raise ConfigError(
            f"{classifier.name} has no map before its classifier that {lacking[0]} could explain; "
            f"choose another --attribution: {others}"
        )


def _outputs(
    classifier: TrainedClassifier, opened: Dataset, classes: Mapping[str, Sequence[int]] | None
) -> list[list[int]]:
    """Per class of the dataset, the model's outputs that stand for it."""
    names, count = opened.info.classes, classifier.num_outputs
    if classes is None:
        if count != len(names):
            raise ConfigError(
                f"{classifier.name} has {count} outputs, {opened.info.name} has {len(names)} classes "
                f"({', '.join(names)}); tell which outputs stand for each class: --classes FILE with "
                f'{{"{names[0]}": [0, 1], ...}}'
            )
        return [[output] for output in range(count)]
    for name in classes:
        if name not in names:
            raise ConfigError(
                f"--classes names '{name}', which {opened.info.name} has not{did_you_mean(name, names)} "
                f"its classes are: {', '.join(names)}"
            )
    if missing := [name for name in names if name not in classes]:
        raise ConfigError(f"--classes names no outputs for {', '.join(missing)} of {opened.info.name}")
    for name, outputs in classes.items():
        if wrong := [output for output in outputs if not 0 <= output < count]:
            raise ConfigError(
                f"--classes: output {wrong[0]} of '{name}' does not exist; {classifier.name} has 0 to {count - 1}"
            )
    return [list(classes[name]) for name in names]


def _probe(scorer: Scorer, classifier: TrainedClassifier, model: nn.Module, arrays: SplitArrays) -> None:
    """Find on one image what would not work on any."""
    size = scorer.config.input.image_size
    _, images = next(scorer.batches(arrays))
    try:
        with torch.inference_mode():
            scorer.predict(model, images[:1])
    except ConfigError:
        raise
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{classifier.name} does not take images of {size} px: {error}; choose another --image-size"
        ) from error


@torch.inference_mode()
def _erase_objects(
    scorer: Scorer, model: nn.Module, arrays: SplitArrays, whole_N: Tensor, observer: Observer
) -> dict[str, Any]:
    """Predictions without the background and without the object, of all images that show one.

    Args:
        whole_N: predictions on whole images.
    """
    guesses: dict[tuple[Erased, Fill], list[Tensor]] = {}
    seen: list[Tensor] = []
    previous: Tensor | None = None
    kind = None
    for positions, images in scorer.batches(arrays):
        regions = object_regions(arrays.frames, positions, scorer.config.input, scorer.device)
        if not regions:
            break
        kind, region_BHW = next(iter(regions.items()))  # the exact one before the box
        shown_B = region_BHW.flatten(1).any(1)
        region_BHW, images = region_BHW[shown_B], images[shown_B]
        if not len(images):
            continue
        seen.append(positions[shown_B.cpu()])
        before = region_BHW[:1] if previous is None else previous
        others_BHW = torch.cat([before, region_BHW[:-1]])
        previous = region_BHW[-1:].clone()
        for erased, fill, changed in erasures(images, region_BHW, others_BHW):
            guess = scorer.predict(model, changed).logits.argmax(1).cpu()
            guesses.setdefault((erased, fill), []).append(guess)
        observer.progress("erasing objects", int(positions[-1]) + 1, len(arrays.y), {})
    if not seen:
        return {"object": None, "erasure": None, "follows": None}
    index = torch.cat(seen)
    joined = {key: torch.cat(batches) for key, batches in guesses.items()}
    counts = [_counted(erased, fill, guess, index, arrays, whole_N, scorer) for (erased, fill), guess in joined.items()]
    entries = [{**asdict(entry), "erased": _NAMES[entry.erased]} for entry in counts]
    return {"object": kind, "erasure": entries, "follows": _follows(joined, whole_N[index])}


_NAMES: Mapping[Erased, str] = {"outside": "background", "inside": "object", "outside_control": "control"}
"""What is gone from a picture; in the control, all but the place of another image's object."""


def _counted(
    erased: Erased, fill: Fill, guess: Tensor, index: Tensor, arrays: SplitArrays, whole_N: Tensor, scorer: Scorer
) -> ErasureCounts:
    part = slice(1 if erased == "outside_control" else 0, None)  # the first image had its own object
    chosen = index[part]
    groups = arrays.groups_or_classes()
    return count_erasure(
        erased, fill, guess[part], whole_N[chosen], arrays.y[chosen], groups[chosen], scorer.info.num_groups
    )


def _follows(guesses: Mapping[tuple[Erased, Fill], Tensor], whole: Tensor) -> str:
    """``object`` or ``background`` where one fill tells it and none the contrary, by paired tests at 5 % together.

    A blur may hide too little to change any prediction; that is no vote.
    """
    signs = set()
    for fill in FILLS:
        without_background = (guesses["outside", fill] == whole).int()
        without_object = (guesses["inside", fill] == whole).int()
        difference = t_interval((without_background - without_object).tolist())
        if difference.p < 0.05 / len(FILLS):
            signs.add("object" if difference.value > 0 else "background")
    return signs.pop() if len(signs) == 1 else "undecided"


def _findings(metrics: Mapping[str, Any], erased: Mapping[str, Any]) -> list[str]:
    """What the numbers say, and no more."""
    found = []
    if metrics["worst_group"] is not None:
        gap = metrics["group_mean_accuracy"] - metrics["worst_group_accuracy"]
        found.append(
            f"Worst group {metrics['worst_group']}: {_percent(metrics['worst_group_accuracy'])} right "
            f"({_percent(metrics['worst_group_low'])} to {_percent(metrics['worst_group_high'])}), "
            f"{100 * gap:.1f} points below the mean over groups."
        )
    if metrics.get("epg") is not None:
        found.append(
            f"{metrics['epg_source']}: {_percent(metrics['epg'])} of its energy is on the object "
            f"({metrics['epg_region']}); of an even map it would be {_percent(metrics['epg_base_rate'])}."
        )
    if erased["erasure"] is None:
        return [*found, "The dataset has no masks or boxes, so object and background cannot be told apart."]
    for fill in FILLS:
        kept = {entry["erased"]: entry for entry in erased["erasure"] if entry["fill"] == fill}
        parts = [
            f"{_percent(kept[name]['agree'] / kept[name]['n'])} of predictions stay without the {name} "
            f"({_percent(kept[name]['correct'] / kept[name]['n'])} right)"
            for name in ("background", "object")
        ]
        found.append(f"Filled with {_FILLED[fill]}: {', '.join(parts)}.")
    return [*found, _VERDICTS[erased["follows"]]]


_FILLED: Mapping[Fill, str] = {"mean": "the mean colour", "blur": "a blurred image"}
_VERDICTS = {
    "object": "It decides more by the object: more predictions change without the object than without the background.",
    "background": "It decides more by the background: more predictions change without it than without the object.",
    "undecided": "The two fills and this number of images do not tell whether it decides more by object or background.",
}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
