"""How close training runs to its upper bound: our input path beside a plain DataLoader and synthetic tensors.

The same model takes the same optimizer steps on batches from three sources, in turn, within one process:

    cache      the uint8 frame cache with batched augmentation, as `spurbench run` uses it
    loader     torch DataLoader with 2 workers, decoding JPEGs with PIL, torchvision transforms
    synthetic  tensors that are already there: the upper bound
    resident   on an accelerator: the cache's frames copied to the device once

    python benchmarks/input_path.py                  ResNet-18 at 224 px, about two minutes on 2 CPU cores
    python benchmarks/input_path.py --json           one document with `ratio_to_upper_bound`

The share of the time in which the loop waited for its next batch is printed beside. On an accelerator that is time of
the host, which runs ahead of the device.

Ratios are taken pair by pair within a repeat and their median is quoted, so a machine whose speed drifts does not
matter much; single images/s do. The DataLoader's workers are stopped between its turns: they would go on to decode
ahead while the next source is measured. Every turn begins with steps that are not timed, so that a device which works
behind the host has its queue filled.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from loops.sides import leave_on_sigterm
from machine import machine
from PIL import Image
from torch import Tensor, nn

from spurbench.backbone import build_backbone
from spurbench.config import BackboneConfig, InputConfig, OptimizerConfig
from spurbench.data.cache import load_frames
from spurbench.data.view import LoaderSettings, make_view
from spurbench.datasets.folder import DATASETS
from spurbench.engine.device import choose_device, synchronize
from spurbench.engine.training import make_optimizer
from spurbench.nn.classifier import Classifier
from spurbench.types import Access

Batches = Iterator[tuple[Tensor, Tensor]]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Measure and print."""
    options = parse()
    device = choose_device(options.device)
    leave_on_sigterm()
    with tempfile.TemporaryDirectory() as name:
        folder = write_jpegs(Path(name) / "birds", options.images)
        step = make_step(options, device)
        sources: dict[str, Callable[[], Batches]] = {
            "cache": lambda: cached(folder, Path(name) / "cache", options, device),
            "loader": lambda: decoding(folder, options, device),
            "synthetic": lambda: synthetic(options, device),
        }
        if device.type != "cpu":
            sources["resident"] = lambda: cached(folder, Path(name) / "cache", options, device, resident=True)
        opened = {source: make() for source, make in sources.items()}
        workers = start_workers(opened["loader"])
        rates: dict[str, list[float]] = {source: [] for source in sources}
        waits: dict[str, list[float]] = {source: [] for source in sources}
        try:
            for repeat in range(options.repeats + 1):
                for source, batches in opened.items():
                    with awake(workers) if source == "loader" else contextlib.nullcontext():
                        rate, wait = rate_and_wait(step, batches, options, device)
                    if repeat > 0:  # the first one warms up
                        rates[source].append(rate)
                        waits[source].append(wait)
                    print(
                        f"repeat {repeat}/{options.repeats} {source}: {rate:.1f} images/s, waiting {wait:.1%}",
                        file=sys.stderr,
                        flush=True,
                    )
        finally:
            for pid in workers:  # a stopped process cannot end
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        report(rates, waits, options, device)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=256, help="JPEGs of about 500 x 375 to write")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per source and repeat")
    parser.add_argument("--lead", type=int, default=1, help="steps before them that are not timed")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats, at least 5")
    parser.add_argument("--workers", type=int, default=2, help="of the plain DataLoader")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def write_jpegs(folder: Path, count: int) -> Path:
    """A folder in the WaterBirds layout with photograph-like JPEGs of CUB's usual size."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.clip(np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 12, (375, 500, 3)), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
        split = 0 if i >= 8 else 1 + i % 2
        lines.append(f"{i + 1},{i:05d}.jpg,{i % 2},{split},{i // 2 % 2},x.jpg")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_step(options: argparse.Namespace, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """One ERM step on a batch."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    backbone = build_backbone(BackboneConfig(name=options.backbone, weights="none"), None)
    model: nn.Module = Classifier(backbone, 2).to(device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = make_optimizer(OptimizerConfig(name="sgd", lr=1e-3), model)

    def step(images: Tensor, y: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            loss = F.cross_entropy(model(images).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def cached(
    folder: Path, cache: Path, options: argparse.Namespace, device: torch.device, *, resident: bool = False
) -> Batches:
    """Batches as the engine makes them."""
    geometry = InputConfig(resize=round(options.image_size * 256 / 224), image_size=options.image_size)
    dataset = DATASETS["folder"].open(folder)
    split = dataset.split("train")
    frames = load_frames(split, key=dataset.fingerprint(), resize=geometry.resize, folder=cache)
    if resident:
        frames = dataclasses.replace(frames, images=frames.images.to(device))
    settings = LoaderSettings(
        batch_size=options.batch_size,
        input=geometry,
        mean=MEAN,
        std=STD,
        channels_last=options.channels_last,
        device=device,
        seed=0,
    )
    view = make_view("train", frames, split.y, split.group, Access.NONE, settings)
    for epoch in itertools.count():
        for batch in view.at(position=0, epoch=epoch).loader(shuffle=True, augment=True):
            if len(batch.y) == options.batch_size:
                yield batch.images, batch.y


def decoding(folder: Path, options: argparse.Namespace, device: torch.device) -> Batches:
    """What most code of the field does: decode and augment every image in every epoch, in worker processes."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        JPEGs(folder, options.image_size),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
    )
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    while True:
        for images, y in loader:
            yield images.to(device, memory_format=layout, non_blocking=True), y.to(device, non_blocking=True)


class JPEGs(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The training images of the folder, through PIL and torchvision."""

    def __init__(self, folder: Path, size: int) -> None:
        from torchvision import transforms

        self.paths = sorted(folder.glob("*.jpg"))[8:]
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), index % 2


def synthetic(options: argparse.Namespace, device: torch.device) -> Batches:
    """One batch, again and again."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    size = options.image_size
    images = torch.randn(options.batch_size, 3, size, size, device=device).to(memory_format=layout)
    y = torch.arange(options.batch_size, device=device) % 2
    while True:
        yield images, y


def start_workers(batches: Batches) -> list[int]:
    """Process ids of the DataLoader's workers, which stand still from now on."""
    before = {process.pid for process in multiprocessing.active_children()}
    next(batches)
    workers = [process.pid for process in multiprocessing.active_children() if process.pid not in before]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    return workers


@contextlib.contextmanager
def awake(workers: list[int]) -> Iterator[None]:
    """Let the workers work for a while."""
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)


def rate_and_wait(
    step: Callable[[Tensor, Tensor], None], batches: Batches, options: argparse.Namespace, device: torch.device
) -> tuple[float, float]:
    """Images/s of fetching and training, and the share of the time spent in fetching.

    On an accelerator the clock starts and stops when the device has done a step, while the host goes on ahead of it.
    """
    fetching, count = 0.0, 0
    start = mark(device)
    for number in range(-options.lead, options.steps):
        if number == 0:
            start = mark(device)
        asked = time.perf_counter()
        images, y = next(batches)
        if number >= 0:
            fetching += time.perf_counter() - asked
            count += len(y)
        step(images, y)
    seconds = seconds_between(start, mark(device))
    return count / seconds, fetching / seconds


def mark(device: torch.device) -> "float | torch.cuda.Event":
    """A point in time; on CUDA it is when the device comes to it."""
    if device.type != "cuda":
        synchronize(device)
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    """Waits for the later one."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    end.synchronize()
    return start.elapsed_time(end) / 1000


def report(
    rates: dict[str, list[float]], waits: dict[str, list[float]], options: argparse.Namespace, device: torch.device
) -> None:
    """Medians, and ratios taken within each repeat."""

    def ratio(above: str, below: str) -> dict[str, float]:
        pairs = [a / b for a, b in zip(rates[above], rates[below], strict=True)]
        return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}

    bound, peer = ratio("cache", "synthetic"), ratio("cache", "loader")
    document = {
        "ratio_to_upper_bound": bound["median"],
        "ratio_to_upper_bound_range": [bound["min"], bound["max"]],
        "ratio_to_plain_loader": peer["median"],
        "ratio_to_plain_loader_range": [peer["min"], peer["max"]],
        "images_per_second": {source: statistics.median(values) for source, values in rates.items()},
        "all_images_per_second": rates,
        "share_of_time_waiting": {source: statistics.median(values) for source, values in waits.items()},
        "settings": vars(options),
        **machine(device),
        "threads": torch.get_num_threads(),
    }
    if "resident" in rates:
        resident = ratio("resident", "synthetic")
        document["resident_to_upper_bound"] = [resident[key] for key in ("median", "min", "max")]
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for source, values in rates.items():
        print(
            f"{source:10} {statistics.median(values):8.1f} images/s  (median of {len(values)}), "
            f"waiting for {statistics.median(waits[source]):.1%} of the time"
        )
    print(f"cache / synthetic  {bound['median']:.3f}  [{bound['min']:.3f}, {bound['max']:.3f}]")
    if "resident_to_upper_bound" in document:
        median, low, high = document["resident_to_upper_bound"]
        print(f"resident / synthetic  {median:.3f}  [{low:.3f}, {high:.3f}]")
    print(f"cache / loader     {peer['median']:.3f}  [{peer['min']:.3f}, {peer['max']:.3f}]")


if __name__ == "__main__":
    main()
