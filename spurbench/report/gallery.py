"""A contact sheet of what finished runs look at: images, their objects, and the maps of every run over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spurbench.config import AttributionName, RunPaths
from spurbench.data.cache import load_frames
from spurbench.data.transforms import evaluation_images, evaluation_masks
from spurbench.dataset import content_key
from spurbench.engine.run import finished_record, open_dataset
from spurbench.errors import ConfigError, DataMissing
from spurbench.io import atomic_write
from spurbench.saved import find_run, load_run

__all__ = ["Explained", "ExplainedRun", "draw", "explain", "find_runs"]

_TILE = 128
"""Side of one picture on the sheet, pixels."""
_LINE = 16
"""Height of a caption."""
_DIM = 0.25
"""Brightness of what a mask hides."""


@dataclass(frozen=True, slots=True)
class Explained:
    """One image and what the model made of it."""

    pixels: Tensor
    """uint8 [S, S, 3], the model's input before normalization."""
    maps: dict[str, Tensor]
    """float [S, S] in [0, 1] by source: the merged ``mask``, or an attribution scaled to its maximum."""
    stages: tuple[Tensor, ...]
    """Stage masks [S, S], deep to shallow; empty for methods without."""
    region: Tensor | None
    """bool [S, S], the object."""
    truth: str
    predicted: str
    group: str


@dataclass(frozen=True, slots=True)
class ExplainedRun:
    """A run's name in the picture, its data, and its images."""

    label: str
    dataset: str
    items: list[Explained]


def find_runs(results: Path, names: Sequence[str], dataset: str | None = None) -> list[Path]:
    """Folders of runs, by id, by the first digits of an id, or by path; every finished run if none is named.

    Args:
        dataset: only runs on this dataset, where none is named.

    Raises:
        DataMissing: a name that fits no run or several, or no finished run at all.
        ConfigError: runs on several datasets, which share no images.
    """
    if names:
        return [find_run(results, name) for name in names]
    records = [(path, finished_record(path)) for path in sorted((results / "runs").glob("*"))]
    datasets = {path: str(record["rows"][0]["dataset"]) for path, record in records if record is not None}
    found = [path for path, name in datasets.items() if dataset in (None, name)]
    if not found:
        where = f"on {dataset} " if dataset and datasets else ""
        raise DataMissing(
            f"there is no finished run {where}below {results}; make one with spurbench run, or see --results"
        )
    different = sorted({datasets[path] for path in found})
    if len(different) > 1:
        raise ConfigError(
            f"runs below {results} are on {', '.join(different)}, which share no images; "
            f"choose one, for example --dataset {different[0]}, or name runs by id"
        )
    return found


def explain(
    folder: Path,
    paths: RunPaths,
    *,
    count: int,
    rule: str | None,
    attribution: AttributionName | None,
    device: torch.device,
    plugins: tuple[Path, ...] = (),
    images: Sequence[int] | None = None,
) -> ExplainedRun:
    """``count`` test images, taken in turn from every group, with what a finished run looks at.

    That is the method's own mask, and an attribution of the predicted class.

    Args:
        attribution: None is GradCAM where it works; a run that has a mask does without otherwise.
        images: positions in the test split of the images to show instead.

    Raises:
        DataMissing: the run is not finished, or its weights or data are not here.
    """
    from spurbench.attribution.registry import ATTRIBUTIONS

    run = load_run(folder, rule=rule, device=device, plugins=plugins)
    config, method, model = run.config, run.method, run.model
    dataset = open_dataset(config, run.with_data(paths), run.plugins)
    info, split = dataset.info, dataset.split("test")
    frames = load_frames(
        split,
        key=content_key(dataset, "test"),
        resize=config.input.resize,
        folder=paths.cache,
    )
    labels = split.y if split.group is None else split.group
    index = _round_robin(labels, count) if images is None else torch.tensor(list(images))
    batch = evaluation_images(frames.images[index], config.input, run.mean, run.std).to(device)
    with torch.inference_mode():
        prediction = method.evaluate(model, batch)
    size = config.input.image_size
    maps: dict[str, Tensor] = {}
    if prediction.mask is not None:
        maps["mask"] = _resize(prediction.mask, size, "nearest")
    name = attribution or "gradcam"
    chosen = ATTRIBUTIONS[name]
    try:
        seen = chosen.maps(model, method.cam_layer(model), lambda x: method.evaluate(model, x).logits, batch, None)
    except (ValueError, RuntimeError) as error:
        if attribution is not None or not maps:
            raise ConfigError(
                f"attribution {name} does not work with run {folder.name}: {error}; choose another --attribution"
            ) from error
    else:
        maps[name] = _resize(seen / seen.amax(dim=(1, 2), keepdim=True).clamp(min=1e-9), size, chosen.resize)
    zeros, ones = (0.0,) * 3, (1 / 255,) * 3
    pixels = (evaluation_images(frames.images[index], config.input, zeros, ones)).permute(0, 2, 3, 1).round().byte()
    regions = None if frames.masks is None else evaluation_masks(frames.masks[index], config.input)
    stages = [_resize(mask, size, "nearest") for mask in prediction.stage_masks]
    items = [
        Explained(
            pixels=pixels[i],
            maps={source: values[i] for source, values in maps.items()},
            stages=tuple(masks[i] for masks in stages),
            region=None if regions is None else regions[i],
            truth=info.classes[int(split.y[index[i]])],
            predicted=info.classes[int(prediction.logits[i].argmax())],
            group=info.group_names[int(labels[index[i]])],
        )
        for i in range(len(index))
    ]
    return ExplainedRun(f"{run.row['label']} seed {config.seed}", f"{info.name} {info.version}", items)


def draw(runs: Sequence[ExplainedRun], path: Path) -> None:
    """Write a PNG: the images, their objects, then a row per run and map with everything outside it darkened.

    Below a mask that several stages were merged into stands one row for each of them, the deepest first. Wrong
    predictions are framed red.

    Raises:
        ConfigError: runs of different data, which share no images.
    """
    from PIL import Image, ImageDraw

    if len({run.dataset for run in runs}) > 1:
        raise ConfigError(f"these runs are about different data: {', '.join(sorted({run.dataset for run in runs}))}")
    first = runs[0].items
    rows: list[tuple[str, list[tuple[Tensor, str, bool]]]] = [
        ("input", [(item.pixels, item.group, True) for item in first])
    ]
    objects = [(_shade(item.pixels, item.region), "", True) for item in first if item.region is not None]
    if objects:
        rows.append(("object", objects))
    for run in runs:
        for source in run.items[0].maps:
            seen = [
                (_shade(item.pixels, item.maps[source]), item.predicted, item.predicted == item.truth)
                for item in run.items
            ]
            rows.append((f"{run.label}\n{source}", seen))
            stages = range(len(run.items[0].stages) if source == "mask" else 0)
            for stage in stages if len(stages) > 1 else ():
                shaded = [(_shade(item.pixels, item.stages[stage]), "", True) for item in run.items]
                rows.append((f"{run.label}\nmask of stage {stage}", shaded))
    label_width = 110
    sheet = Image.new("RGB", (label_width + len(first) * (_TILE + 4), len(rows) * (_TILE + _LINE + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for r, (name, tiles) in enumerate(rows):
        top = r * (_TILE + _LINE + 4)
        pen.text((4, top + _TILE // 2), name, fill="black")
        for c, (pixels, caption, right) in enumerate(tiles):
            left = label_width + c * (_TILE + 4)
            sheet.paste(Image.fromarray(pixels.numpy()).resize((_TILE, _TILE), Image.Resampling.NEAREST), (left, top))
            if not right:
                pen.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), outline="red", width=3)
            pen.text((left + 2, top + _TILE + 1), caption, fill="black" if right else "red")
    with atomic_write(path) as stream:
        sheet.save(stream, format="PNG")


def _round_robin(labels: Tensor, count: int) -> Tensor:
    """The first samples of every group in turn."""
    members = [torch.nonzero(labels == group)[:, 0].tolist() for group in range(int(labels.max()) + 1)]
    turns = [queue[turn] for turn in range(max(map(len, members))) for queue in members if turn < len(queue)]
    return torch.tensor(turns[:count])


def _shade(pixels: Tensor, seen: Tensor) -> Tensor:
    weight = _DIM + (1 - _DIM) * seen.float()[..., None]
    return (pixels.float() * weight).byte()


def _resize(maps_Bhw: Tensor, size: int, mode: str) -> Tensor:
    """[B, S, S], on the CPU."""
    align: dict[str, Any] = {} if mode == "nearest" else {"align_corners": False}
    return F.interpolate(maps_Bhw[:, None].float(), size=(size, size), mode=mode, **align)[:, 0].cpu()
