"""On a CUDA device: every method runs, no step waits for the device, numbers agree with those of the CPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from spurbench.attribution.registry import ATTRIBUTIONS
from spurbench.backbone import build_backbone
from spurbench.config import BackboneConfig, InputConfig, RunConfig, RunPaths
from spurbench.data.transforms import apply_crops, apply_crops_to_masks, draw_crops
from spurbench.engine import run_one
from spurbench.engine import training as engine_training
from spurbench.engine.device import choose_device
from spurbench.engine.evaluation import Scorer, SplitArrays
from spurbench.errors import SpurbenchError
from spurbench.method import BaseMethod, Progress
from spurbench.nn.classifier import Classifier
from spurbench.registry import load_registry
from spurbench.resolve import RunRequest, resolve_run
from spurbench.rng import generator
from spurbench.types import Batch, StepOutput

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run `pytest tests/gpu` on one"),
]
TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
RECIPE = {
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.optimizer.lr": 1e-4,
    "train.optimizer.head_lr": 1e-3,
    "input.resize": 32,
    "input.image_size": 32,
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
        (folder / "data" / "toys").mkdir(parents=True, exist_ok=True)
        (folder / "data" / "toys" / "edition").write_text("first")

    def config(self, method: str, **overrides: Any) -> RunConfig:
        changes = {**RECIPE, **{key.replace("__", "."): value for key, value in overrides.items()}}
        request = RunRequest(method=method, dataset="toys", overrides=changes, plugins=(TOYS,))
        config, self.paths = resolve_run(request, self.paths)
        return config

    def run(self, config: RunConfig, device: str, **more: Any) -> dict[str, Any]:
        record = run_one(config, self.paths, device=device, plugins=(TOYS,), **more)
        assert record is not None
        return record


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def strict_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """From the first step of an epoch to its last one, whatever waits for the device raises an error."""
    monkeypatch.setattr(engine_training, "_SHOW_SECONDS", 1e9)
    monkeypatch.setattr(engine_training, "_LOOK_EVERY", 10**9)
    watched: list[int] = []
    originals = {entry.value: entry.value.training_step for entry in load_registry("methods").entries.values()}

    def watch(cls: type[BaseMethod[Any]]) -> None:
        original = originals[cls]

        def training_step(self: Any, model: Any, batch: Batch, progress: Progress) -> StepOutput:
            last = progress.step == progress.num_steps - 1
            if progress.step > 0 or progress.epoch > 0:  # the very first step sends constants to the device
                torch.cuda.set_sync_debug_mode("default" if last else "error")
                watched.append(progress.step)
            return original(self, model, batch, progress)

        monkeypatch.setattr(cls, "training_step", training_step)

    for cls in originals:
        watch(cls)
    yield watched
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", sorted(load_registry("methods").entries))
def test_every_method_runs_and_no_step_waits_for_the_device(name: str, bench: Bench, strict_steps: list[int]) -> None:
    # Small batches: SUBG's smallest group leaves a few images.
    record = bench.run(bench.config(name, train__precision="bf16", train__batch_size=4), "cuda")
    assert record["machine"]["device"] == "cuda"
    assert record["machine"]["device_name"] == torch.cuda.get_device_name()
    assert record["machine"]["peak_memory_bytes"] > 0
    assert len(strict_steps) >= 3
    assert all(row["worst_group_accuracy"] is not None for row in record["rows"])


def test_a_waiting_step_is_noticed(bench: Bench, strict_steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cls = load_registry("methods").get("erm").value
    watched = cls.training_step

    def impatient(self: Any, model: Any, batch: Batch, progress: Progress) -> StepOutput:
        out: StepOutput = watched(self, model, batch, progress)
        float(out.loss.detach())
        return out

    monkeypatch.setattr(cls, "training_step", impatient)
    with pytest.raises(SpurbenchError, match="synchroniz"):
        bench.run(bench.config("erm"), "cuda")


@pytest.mark.parametrize("method", ["erm", "aim[1,50%]"])
def test_an_evaluation_does_not_wait_for_the_device_between_batches(
    method: str, bench: Bench, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: torch.cuda.set_sync_debug_mode("default"))  # whatever happens
    original, watched = Scorer.batches, []

    def strict(self: Scorer, arrays: SplitArrays) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        try:
            for number, batch in enumerate(original(self, arrays)):
                yield batch
                if number == 0:  # the first one sends constants to the device
                    torch.cuda.set_sync_debug_mode("error")
                watched.append(number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Scorer, "batches", strict)
    assert bench.run(bench.config(method, evaluation__batch_size=8), "cuda")["status"] == "finished"
    assert max(watched) > 0


@pytest.mark.parametrize("method", ["erm", "groupdro"])
def test_float32_training_agrees_with_the_cpu(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    losses = {}
    for device in ("cpu", "cuda"):
        other = Bench(tmp_path / device)
        config = other.config(method, train__epochs=1)
        other.run(config, device)
        (row,) = pq.read_table(other.paths.run(config.run_id()) / "epochs.parquet").to_pylist()
        losses[device] = row["train_loss"]
    # Not AIM and the like: their masks are drawn on the device, from another generator.
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(bench: Bench, tmp_path: Path) -> None:
    config = bench.config("aim[1,50%]", train__epochs=3)
    whole = bench.run(config, "cuda")
    other = Bench(tmp_path / "other")
    assert other.config("aim[1,50%]", train__epochs=3) == config
    script = (
        "import os, sys, signal\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\n"
        "from test_cuda import Bench\nfrom spurbench.methods.aim import AIM\n"
        "step = AIM.training_step\n"
        "def killed(self, model, batch, progress):\n"
        "    if (progress.epoch, progress.step) == (1, 2): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(self, model, batch, progress)\n"
        "AIM.training_step = killed\n"
        "bench = Bench(Path(sys.argv[2]))\n"
        "bench.run(bench.config('aim[1,50%]', train__epochs=3), 'cuda')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "other")],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode != 0
    assert "Interrupted" in done.stderr, done.stderr
    folder = other.paths.run(config.run_id())
    assert (folder / "checkpoint").exists()
    assert not (folder / "result.json").exists()
    resumed = other.run(config, "cuda")
    for one, two in zip(whole["rows"], resumed["rows"], strict=True):
        assert one["selection"] == two["selection"]
        assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.1)


def test_augmentation_agrees_with_the_cpu() -> None:
    # Smooth: at the edges of a crop the two paths look at different neighbours (see apply_crops).
    rows = torch.linspace(0, 3, 80)
    waves = torch.sin(rows[:, None] + rows[None] * torch.arange(1, 4).view(-1, 1, 1)).permute(1, 2, 0)
    frames = (127 + 120 * waves * torch.linspace(0.5, 1, 6).view(-1, 1, 1, 1)).round().byte()
    masks = (frames[..., 0] > 100).byte()
    config = InputConfig(resize=80, image_size=64, crop_scale=(0.3, 0.5), flip=True)
    crops = draw_crops(6, config, generator(0, "crops"))
    here = apply_crops(frames, crops, config, MEAN, STD, channels_last=True)
    there = apply_crops(frames.cuda(), crops, config, MEAN, STD, channels_last=True)
    assert there.device.type == "cuda"
    # One level of 255 is 0.0175 in these units.
    assert (here - there.cpu()).abs().max() < 4 * 0.0175
    masks_here = apply_crops_to_masks(masks, crops, config)
    masks_there = apply_crops_to_masks(masks.cuda(), crops, config).cpu()
    assert (masks_here != masks_there).float().mean() < 0.005


@pytest.mark.parametrize("name", sorted(ATTRIBUTIONS))
def test_attributions_agree_with_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    backbone = build_backbone(BackboneConfig(name="minibirds_resnet", weights="default"), None)
    model = Classifier(backbone, 2).eval()
    images = torch.randn(4, 3, 64, 64, generator=generator(0, "images"))
    method = load_registry("methods").get("erm").value(load_registry("methods").get("erm").value.Config())
    maps = {}
    for device in ("cpu", "cuda"):
        model.to(device)
        layer = method.cam_layer(model)
        maps[device] = ATTRIBUTIONS[name].maps(model, layer, model, images.to(device), None).cpu()
    torch.testing.assert_close(maps["cuda"], maps["cpu"], rtol=1e-2, atol=1e-3 * float(maps["cpu"].max()))


def test_too_little_memory_is_a_failed_run_and_says_what_to_do(bench: Bench) -> None:
    torch.cuda.empty_cache()
    config = bench.config("erm")
    try:
        torch.cuda.set_per_process_memory_fraction(1e-5)
        with pytest.raises(SpurbenchError, match=r"out of device memory; try a smaller --set train\.batch_size"):
            bench.run(config, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert bench.run(config, "cuda")["status"] == "finished"


def test_a_gpu_without_a_number_is_the_current_one() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", torch.cuda.current_device())


def test_two_workers_share_a_gpu(tmp_path: Path) -> None:
    Bench(tmp_path)
    (tmp_path / "sweep.yaml").write_text(
        "datasets: [toys]\nmethods: [erm, mixup, lff]\nseeds: 0-1\n"
        "train: {epochs: 1, batch_size: 16}\nset: {input.resize: 32, input.image_size: 32}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from spurbench.cli import main; sys.exit(main(sys.argv[1:]))", "sweep",
         str(tmp_path / "sweep.yaml"), "--plugin", str(TOYS), "--results", str(tmp_path / "results"),
         "--data-root", str(tmp_path / "data"), "--device", "cuda", "--jobs", "2"],
        capture_output=True, text=True, env={**os.environ, "SPURBENCH_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "results" / "runs").glob("*/result.json"))) == 6
