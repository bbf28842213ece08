"""What AIM and EPG cost on top of ERM and of plain evaluation, side by side in one process.

Training: one step of ERM and of AIM on 1 to 3 stages, on the same synthetic batch, so that no input path plays a part.
Evaluation: the same images through

    plain            predictions only, as at the end of an epoch
    mask EPG         predictions and EPG of AIM's own masks, as in a result row
    GradCAM EPG      predictions, GradCAM of the true class and its EPG
    pytorch-grad-cam the same maps and EPG, with that library's GradCAM (if it is installed); it knows no bf16, so this
                     pair is in float32

    python benchmarks/overheads.py                   ConvNeXt-T at 224 px
    python benchmarks/overheads.py --backbone minibirds_resnet --image-size 64 --json

Ratios are taken within a repeat; the median and the range over repeats are printed.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import nn

from spurbench.backbone import build_backbone
from spurbench.config import RunConfig, RunPaths
from spurbench.data.cache import Frames
from spurbench.dataset import DatasetInfo
from spurbench.engine.device import choose_device, synchronize
from spurbench.engine.evaluation import Scorer, SplitArrays
from spurbench.engine.observer import Silent
from spurbench.engine.stop import StopFlag
from spurbench.engine.training import Meter, make_optimizer
from spurbench.method import BaseMethod, Progress, TaskInfo
from spurbench.metrics.epg import epg
from spurbench.resolve import RunRequest, make_method, resolve_run
from spurbench.types import Batch

METHODS = ("erm", "aim[1,35%]", "aim[2,35%]", "aim[3,35%]")
INFO = DatasetInfo(name="synthetic", version="1", classes=("a", "b"), attributes=("x", "y"), has_masks=True)
CLASSES = len(INFO.classes)


def main() -> None:
    """Measure and print."""
    options = parse()
    device = choose_device(options.device)
    sides = {name: Side.make(name, options, device) for name in METHODS}
    jobs: dict[str, Callable[[], None]] = {f"step {name}": side.step for name, side in sides.items()}
    jobs |= evaluations(sides["erm"], sides["aim[2,35%]"], options, device)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(options.repeats + 1):
        for name, job in jobs.items():
            taken = timed(job, options.steps if name.startswith("step") else 1, device)
            if repeat > 0:  # the first one warms up
                seconds[name].append(taken)
            print(f"repeat {repeat}/{options.repeats} {name}: {1000 * taken:.1f} ms", file=sys.stderr, flush=True)
    report(seconds, options, device)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="convnext_tiny")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=512, help="images of the evaluations")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps per repeat")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats, at least 3")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


@dataclasses.dataclass(slots=True)
class Side:
    """One method with a model in training."""

    config: RunConfig
    method: BaseMethod[Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    meter: Meter
    device: torch.device
    steps: int = 0

    @classmethod
    def make(cls, name: str, options: argparse.Namespace, device: torch.device) -> "Side":
        """Untrained weights: they cost what trained ones cost."""
        overrides = {
            "input.resize": options.image_size,
            "input.image_size": options.image_size,
            "input.crop_scale": None,
            "train.precision": options.precision,
            "train.channels_last": True,
            "evaluation.batch_size": options.batch_size,
            "evaluation.erasure": False,
        }
        request = RunRequest(
            method=name, dataset="minibirds100", backbone=options.backbone, weights="none", overrides=overrides
        )
        paths = RunPaths(results=Path("results"), cache=Path("cache"))
        config, _ = resolve_run(request, paths)
        method = make_method(config, ())
        size, number = options.image_size, options.batch_size
        task = TaskInfo(
            num_classes=CLASSES,
            num_groups=4,
            num_train=1000,
            class_counts=(500, 500),
            image_size=size,
            train=config.train,
        )
        torch.manual_seed(0)
        model = method.build(build_backbone(config.backbone, None), task)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(number, 3, size, size, device=device).to(memory_format=torch.channels_last)
        index = torch.arange(number, device=device)
        batch = Batch(images=images, y=index % CLASSES, index=index, weight=torch.ones(number, device=device))
        optimizer = make_optimizer(config.train.optimizer, model)
        return cls(config, method, model, optimizer, batch, Meter(device), device)

    def step(self) -> None:
        """As the engine's loop makes it."""
        self.model.train()
        progress = Progress(
            phase="train",
            epoch=0,
            num_epochs=10,
            step=self.steps,
            num_steps=1000,
            seed=0,
            position=0,
            device=self.device,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            out = self.method.training_step(self.model, self.batch, progress)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.meter.add(out.loss, dict(out.scalars), self.steps)
        self.steps += 1

    def scorer(self, *attributions: str, float32: bool = False) -> Scorer:
        """Measures this model with EPG of these attributions besides its own masks."""
        evaluation = self.config.evaluation.model_copy(update={"attributions": attributions})
        precision = "float32" if float32 else self.config.train.precision
        train = self.config.train.model_copy(update={"precision": precision})
        config = self.config.model_copy(update={"evaluation": evaluation, "train": train})
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        return Scorer(config=config, method=self.method, info=INFO, mean=mean, std=std, device=self.device)


def evaluations(
    erm: Side, aim: Side, options: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], None]]:
    """One pass over the same images in several ways."""
    number, size = options.images, options.image_size
    masks = torch.zeros(number, size, size, dtype=torch.uint8)
    masks[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    frames = Frames(images=torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8), masks=masks, boxes=None)
    y = torch.arange(number) % CLASSES
    arrays = SplitArrays(name="test", frames=frames, y=y, group=torch.arange(number) % 4)
    stop = StopFlag()

    def measured(side: Side, scorer: Scorer) -> Callable[[], None]:
        return lambda: void(scorer.measure(side.model, arrays, Silent(), stop))

    jobs = {
        "plain AIM[2]": lambda: void(aim.scorer().count(aim.model, arrays)),
        "mask EPG AIM[2]": measured(aim, aim.scorer()),
        "plain ERM": lambda: void(erm.scorer().count(erm.model, arrays)),
        "GradCAM EPG ERM": measured(erm, erm.scorer("gradcam")),
    }
    peer = pytorch_grad_cam(erm, arrays, device)
    if peer is None:
        return jobs
    ours = measured(erm, erm.scorer("gradcam", float32=True))
    return {**jobs, "GradCAM EPG ERM float32": ours, "pytorch-grad-cam EPG ERM float32": peer}


def pytorch_grad_cam(side: Side, arrays: SplitArrays, device: torch.device) -> Callable[[], None] | None:
    """GradCAM by pytorch-grad-cam with its own defaults, EPG on its maps by ours; predictions come from its pass."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        return None
    assert arrays.frames.masks is not None
    masks = arrays.frames.masks.bool()
    layer = side.method.cam_layer(side.model)
    scorer = side.scorer(float32=True)

    def job() -> None:
        side.model.eval()
        with GradCAM(model=side.model, target_layers=[layer]) as cam:
            for positions, images in scorer.batches(arrays):
                targets = [ClassifierOutputTarget(int(label)) for label in arrays.y[positions]]
                maps = torch.from_numpy(cam(input_tensor=images, targets=targets))
                epg(maps.to(device), masks[positions].to(device), "bilinear").epg.cpu()
                cam.outputs.argmax(1).cpu()

    return job


def void(_: Any) -> None:
    """Drop a result."""


def timed(job: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds per call, waiting for the device at both ends only."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        job()
    synchronize(device)
    return (time.perf_counter() - started) / times


def report(seconds: dict[str, list[float]], options: argparse.Namespace, device: torch.device) -> None:
    """Medians of the ratios within each repeat."""
    pairs = [(f"step {name}", "step erm") for name in METHODS[1:]]
    pairs += [("mask EPG AIM[2]", "plain AIM[2]"), ("GradCAM EPG ERM", "plain ERM")]
    if "pytorch-grad-cam EPG ERM float32" in seconds:
        pairs.append(("pytorch-grad-cam EPG ERM float32", "GradCAM EPG ERM float32"))
    ratios = {}
    for above, below in pairs:
        values = [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]
        ratios[f"{above} / {below}"] = [statistics.median(values), min(values), max(values)]
    document = {
        "ratios_median_min_max": ratios,
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in seconds.items()},
        "seconds": seconds,
        "settings": vars(options),
        **machine(device),
        "threads": torch.get_num_threads(),
    }
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for name, values in seconds.items():
        print(f"{name:34} {1000 * statistics.median(values):9.1f} ms")
    for name, (median, low, high) in ratios.items():
        print(f"{name:62} {median:.3f}  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
