"""Measuring a trained model: predictions joined with labels, groups and regions by sample index."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spurbench.attribution.gradcam import recorded
from spurbench.attribution.registry import ATTRIBUTIONS
from spurbench.config import AttributionName, InputConfig, RunConfig
from spurbench.data.cache import Frames, load_frames
from spurbench.data.memory import gather, send
from spurbench.data.ondemand import announce
from spurbench.data.transforms import evaluation_boxes, evaluation_images, evaluation_masks
from spurbench.dataset import Dataset, DatasetInfo, content_key
from spurbench.engine.observer import Observer
from spurbench.engine.stop import StopFlag
from spurbench.errors import ConfigError
from spurbench.method import BaseMethod
from spurbench.metrics.epg import EPGValues, Resize, boxes_to_region, epg
from spurbench.metrics.erasure import Erased, ErasureCounts, Fill, count_erasure, erasures
from spurbench.metrics.group import GroupCounts, group_counts
from spurbench.types import Prediction

__all__ = ["Measurement", "Scorer", "SplitArrays", "load_split", "object_regions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitArrays:
    """A split as the engine holds it, labels included."""

    name: str
    frames: Frames
    y: Tensor
    group: Tensor | None

    def groups_or_classes(self) -> Tensor:
        """int64 [n]: groups, or classes where the dataset has no attribute."""
        return self.y if self.group is None else self.group


def load_split(
    dataset: Dataset,
    name: str,
    *,
    resize: int,
    cache: Path | None,
    progress: Callable[[int, int], None] | None = None,
) -> SplitArrays:
    """A split of an opened dataset, its frames from the cache; see ``load_frames`` for arguments and errors."""
    split = dataset.split(name)
    frames = load_frames(
        split,
        key=content_key(dataset, name),
        resize=resize,
        folder=cache,
        has_boxes=dataset.info.has_boxes,
        progress=progress,
    )
    return SplitArrays(name=name, frames=frames, y=split.y, group=split.group)


def object_regions(frames: Frames, positions: Tensor, geometry: InputConfig, device: torch.device) -> dict[str, Tensor]:
    """Where the object is in evaluation geometry, bool [B, S, S], by what tells it: ``mask``, ``box``, or neither."""
    regions = {}
    if frames.masks is not None:
        regions["mask"] = evaluation_masks(gather(frames.masks, positions, device), geometry)
    if frames.boxes is not None:
        boxes = evaluation_boxes(gather(frames.boxes, positions, device), geometry)
        regions["box"] = boxes_to_region(boxes, geometry.image_size)
    return regions


@dataclass(slots=True, kw_only=True)
class Measurement:
    """One model on one split."""

    groups: GroupCounts
    classes: GroupCounts
    predicted: Tensor
    """int64 [n]."""
    confidence: Tensor
    """float32 [n], probability of the predicted class."""
    epg: dict[tuple[str, str], EPGValues] = field(default_factory=dict)
    """Per image, by (source, region): source is mask, an attribution's name or stage0 (deepest) and so on; region
    mask or box."""
    mask_density: float | None = None
    stage_density: tuple[float, ...] = ()
    erasure: tuple[ErasureCounts, ...] = ()
    """Every kind; empty for methods without a mask."""
    official: dict[str, float | None] = field(default_factory=dict)
    """What the dataset's publishers report, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """Measures models of one run; holds what all measurements share."""

    config: RunConfig
    method: BaseMethod[Any]
    info: DatasetInfo
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def batches(self, arrays: SplitArrays) -> Iterator[tuple[Tensor, Tensor]]:
        """(positions, images) over a whole split in order, in evaluation geometry."""
        rows = arrays.frames.images
        batches = torch.split(torch.arange(len(arrays.y)), self.config.evaluation.batch_size)
        for number, positions in enumerate(batches):
            for following in batches[number + 1 : number + 2]:
                announce(rows, following)
            frames = gather(rows, positions, self.device)
            images = evaluation_images(
                frames, self.config.input, self.mean, self.std, channels_last=self.config.train.channels_last
            )
            yield positions, images

    def predict(self, model: nn.Module, images: Tensor) -> Prediction:
        """The method's prediction in the run's precision."""
        with self.autocast():
            return self.method.evaluate(model, images)

    def autocast(self) -> torch.autocast:
        """The run's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")

    def probe(self, model: nn.Module, arrays: SplitArrays) -> None:
        """Refuse before training what could not be measured after it; runs that differ in their seed are asked once.

        Raises:
            ConfigError: the model takes no images of this size, or an attribution does not fit it.
        """
        has_regions = arrays.frames.masks is not None or arrays.frames.boxes is not None
        setting = (type(self.method), self.config.model_dump_json(exclude={"seed"}), self.device.type, has_regions)
        if setting in _probed:
            return
        model.eval()
        frames = arrays.frames.images[:1].to(self.device)
        images = evaluation_images(frames, self.config.input, self.mean, self.std)
        size = self.config.input.image_size
        try:
            with torch.inference_mode():
                self.predict(model, images)
        except ConfigError:  # says itself what is wrong
            raise
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"backbone {self.config.backbone.name} does not take images of {size} px: {error}; "
                "choose its size with --set input.image_size=N --set input.resize=N"
            ) from error
        for name in self.config.evaluation.attributions if has_regions else ():
            try:
                self._attribute(name, model, images, arrays.y[:1])
            except (ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"attribution {name} does not work with {self.config.method.name} on "
                    f"{self.config.backbone.name}: {error}; leave it out with --set "
                    f"evaluation.attributions=[{','.join(a for a in self.config.evaluation.attributions if a != name)}]"
                ) from error
        _probed.add(setting)

    @torch.inference_mode()
    def count(
        self, model: nn.Module, arrays: SplitArrays
    ) -> tuple[GroupCounts, GroupCounts, list[float], list[list[float | None]]]:
        """Correct predictions per group and per class, and the mean density of every stage's mask: of all, per group.

        What an epoch's end needs, and no more.
        """
        model.eval()
        correct: list[Tensor] = []
        density: list[Tensor] = []
        for positions, images in self.batches(arrays):
            prediction = self.predict(model, images)
            correct.append(prediction.logits.argmax(1) == send(arrays.y[positions], self.device))
            if prediction.stage_masks:
                density.append(torch.stack([mask.float().mean(dim=(1, 2)) for mask in prediction.stage_masks]))
        groups, classes = self._counts(torch.cat(correct).cpu(), arrays)
        if not density:
            return groups, classes, [], []
        density_SN = torch.cat(density, 1).cpu().double()
        sums_SG = density_SN.new_zeros(len(density_SN), self.info.num_groups)
        sums_SG.index_add_(1, arrays.groups_or_classes(), density_SN)
        by_group = [
            [total / n if n else None for total, n in zip(stage, groups.n.tolist(), strict=True)]
            for stage in sums_SG.tolist()
        ]
        return groups, classes, density_SN.mean(1).tolist(), by_group

    def measure(self, model: nn.Module, arrays: SplitArrays, observer: Observer, stop: StopFlag) -> Measurement:
        """Everything that a result row holds about a split. What is measured stays on the device up to the end, so that
        a batch does not wait for the one before.
        """
        model.eval()
        predicted: list[Tensor] = []
        confidence: list[Tensor] = []
        density: list[Tensor] = []
        stage_density: list[Tensor] = []
        energies = _Energies()
        erasure = _Erasure()
        for positions, images in self.batches(arrays):
            stop.check()
            regions = object_regions(arrays.frames, positions, self.config.input, self.device)
            names = self.config.evaluation.attributions if regions else ()
            prediction, maps = self._explained(model, images, arrays.y[positions], names)
            with torch.inference_mode():
                probability = prediction.logits.float().softmax(1)
            best = probability.max(1)
            predicted.append(best.indices)
            confidence.append(best.values)
            if prediction.mask is not None:
                energies.add("mask", prediction.mask, regions)
                density.append(prediction.mask.float().mean(dim=(1, 2)))
                if self.config.evaluation.erasure:
                    with torch.inference_mode():
                        erasure.add(lambda erased: self.predict(model, erased), images, prediction.mask)
            for level, mask in enumerate(prediction.stage_masks):
                energies.add(f"stage{level}", mask, regions)
            if prediction.stage_masks:
                stage_density.append(torch.stack([m.float().mean(dim=(1, 2)) for m in prediction.stage_masks], 1))
            for name in names:
                energies.add(name, maps[name], regions)
            observer.progress(f"measuring {arrays.name}", int(positions[-1]) + 1, len(arrays.y), {})
        guess = torch.cat(predicted).cpu()
        groups, classes = self._counts(guess == arrays.y, arrays)
        return Measurement(
            groups=groups,
            classes=classes,
            predicted=guess,
            confidence=torch.cat(confidence).cpu(),
            epg=energies.values(),
            mask_density=float(torch.cat(density).cpu().mean()) if density else None,
            stage_density=tuple(torch.cat(stage_density).cpu().mean(0).tolist()) if stage_density else (),
            erasure=erasure.counts(guess, arrays, self.info.num_groups),
            official={
                name: metric(arrays.y, guess, arrays.group) for name, metric in (self.info.official or {}).items()
            },
        )

    def _explained(
        self, model: nn.Module, images: Tensor, y: Tensor, names: Sequence[AttributionName]
    ) -> tuple[Prediction, dict[str, Tensor]]:
        """The prediction, and the maps that ``_attribute`` would make, by name.

        Class activation maps are of the pass that predicts and cost next to nothing; others make their own passes.
        """
        weighs = {name: weigh for name in names if (weigh := ATTRIBUTIONS[name].weigh)}
        maps: dict[str, Tensor] = {
            name: self._attribute(name, model, images, y) for name in names if name not in weighs
        }
        if not weighs:
            with torch.inference_mode():
                return self.predict(model, images), maps
        with recorded(model, self.method.cam_layer(model)) as seen:
            prediction = self.predict(model, images)
        maps |= zip(weighs, seen.maps(prediction.logits, send(y, self.device), *weighs.values()), strict=True)
        return prediction.detach(), maps

    def _attribute(self, name: AttributionName, model: nn.Module, images: Tensor, y: Tensor) -> Tensor:
        """Maps [B, h, w] of the true class's logit, as Model-Guidance (arXiv 2303.11932) explains it."""
        with self.autocast():
            return ATTRIBUTIONS[name].maps(
                model,
                self.method.cam_layer(model),
                lambda inputs: self.method.evaluate(model, inputs).logits,
                images,
                send(y, self.device),
            )

    def _counts(self, right: Tensor, arrays: SplitArrays) -> tuple[GroupCounts, GroupCounts]:
        return (
            group_counts(right, arrays.groups_or_classes(), self.info.num_groups),
            group_counts(right, arrays.y, len(self.info.classes)),
        )


_probed: set[tuple[type[BaseMethod[Any]], str, str, bool]] = set()
"""Settings that can be measured, in this process."""


class _Energies:
    """EPG of several attribution sources against mask and box regions, batch by batch."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[EPGValues]] = {}

    def add(self, source: str, maps_Bhw: Tensor, regions: Mapping[str, Tensor]) -> None:
        """Maps of one batch; masks are enlarged by nearest neighbour, attributions as they ask."""
        attribution = ATTRIBUTIONS.get(source)
        resize: Resize = "nearest" if attribution is None else attribution.resize
        for region, inside_BHW in regions.items():
            self._values.setdefault((source, region), []).append(epg(maps_Bhw, inside_BHW, resize))

    def values(self) -> dict[tuple[str, str], EPGValues]:
        """Per image, by (source, region)."""
        return {key: EPGValues.cat(batches) for key, batches in self._values.items()}


class _Erasure:
    """Predictions on erased images, batch by batch, in the split's order."""

    def __init__(self) -> None:
        self._guesses: dict[tuple[Erased, Fill], list[Tensor]] = {}
        self._previous: Tensor | None = None

    def add(self, predict: Callable[[Tensor], Prediction], images: Tensor, mask_Bhw: Tensor) -> None:
        """One batch; the control has the mask of the sample before, across batches, so their size plays no part."""
        before = mask_Bhw[:1] if self._previous is None else self._previous
        others_Bhw = torch.cat([before, mask_Bhw[:-1]])
        self._previous = mask_Bhw[-1:].clone()
        for erased, fill, changed in erasures(images, mask_Bhw, others_Bhw):
            guess = predict(changed).logits.argmax(1)
            self._guesses.setdefault((erased, fill), []).append(guess)

    def counts(self, whole: Tensor, arrays: SplitArrays, num_groups: int) -> tuple[ErasureCounts, ...]:
        """Of all samples; ``whole`` holds the predictions without erasure, int64 [n]."""
        groups = arrays.groups_or_classes()
        found = []
        for (erased, fill), batches in self._guesses.items():
            guess = torch.cat(batches).cpu()
            part = slice(1 if erased == "outside_control" else 0, None)  # the first sample had its own mask
            found.append(
                count_erasure(erased, fill, guess[part], whole[part], arrays.y[part], groups[part], num_groups)
            )
        return tuple(found)
