"""What a run is measured with: speeds once for all seeds, and the weights that each rule chose."""

from pathlib import Path
from typing import Any

import pytest
import torch

from spurbench.checkpoint import load_tensors
from spurbench.config import OptimizerConfig, RunConfig, RunPaths
from spurbench.engine import evaluation, phases, results, run_one
from spurbench.engine.evaluation import Scorer
from spurbench.engine.restore import weights_file
from spurbench.engine.selection import best_epochs
from spurbench.engine.training import _advice
from spurbench.resolve import RunRequest, resolve_run

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"


def config_of(folder: Path, method: str, *, seed: int = 0, **changes: Any) -> tuple[RunConfig, RunPaths]:
    edition = folder / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True, exist_ok=True)
    edition.write_text("first")
    paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
    overrides = {"train.epochs": 3, "train.batch_size": 32, "input.resize": 32, "input.image_size": 32, **changes}
    request = RunRequest(method=method, dataset="toys", weights="none", overrides=overrides, plugins=(TOYS,), seed=seed)
    return resolve_run(request, paths)


def run(folder: Path, method: str, **changes: Any) -> dict[str, Any]:
    config, paths = config_of(folder, method, **changes)
    record = run_one(config, paths, device="cpu", plugins=(TOYS,))
    assert record is not None
    return record


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Speeds in the order in which they were measured: 1, 2, ... images per second."""
    taken: list[float] = []

    def throughput(fn: Any, images: torch.Tensor, *, seconds: float) -> float:
        fn(images)
        taken.append(len(taken) + 1.0)
        return taken[-1]

    monkeypatch.setattr(results, "throughput", throughput)
    monkeypatch.setattr(results, "_measured", {})
    return taken


def test_runs_that_differ_in_their_seed_share_a_measurement_of_speed(tmp_path: Path, measured: list[float]) -> None:
    speeds = [run(tmp_path, "noisy", seed=seed)["machine"] for seed in (0, 1)]
    assert [(machine["images_per_second"], machine["images_per_second_backbone"]) for machine in speeds] == [(1, 2)] * 2
    assert run(tmp_path, "last_only")["machine"]["images_per_second"] == 3, "another method is measured"
    larger = run(tmp_path, "noisy", **{"evaluation.batch_size": 8})["machine"]
    assert (larger["images_per_second"], larger["images_per_second_backbone"]) == (4, 5), "so is another batch"


def test_a_setting_is_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_probed", set())
    probed: list[int] = []
    predict = Scorer.predict

    def counted(self: Scorer, model: Any, images: torch.Tensor) -> Any:
        probed.extend([len(images)] * (len(images) == 1))
        return predict(self, model, images)

    monkeypatch.setattr(Scorer, "predict", counted)
    for seed in (0, 1):
        run(tmp_path, "noisy", seed=seed)
    assert probed == [1]
    run(tmp_path, "last_only")
    assert probed == [1, 1]


@pytest.mark.parametrize("method", ["noisy", "chain", "refit", "erm"])
def test_every_rule_is_measured_on_the_weights_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also where the model is not read again, because training has just left it with them."""
    seen: list[dict[str, torch.Tensor]] = []
    measure = Scorer.measure

    def watched(self: Scorer, model: Any, *rest: Any) -> Any:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return measure(self, model, *rest)

    def chosen(rows: Any, rules: Any) -> dict[str, tuple[int, float | None]]:
        return {
            rule: (0, 1.0) if rule == "val_accuracy" else choice for rule, choice in best_epochs(rows, rules).items()
        }

    monkeypatch.setattr(Scorer, "measure", watched)
    monkeypatch.setattr(phases, "best_epochs", chosen)
    monkeypatch.setattr(phases.Trainer, "tidy", lambda self: None)
    config, paths = config_of(tmp_path, method)
    record = run_one(config, paths, device="cpu", plugins=(TOYS,))
    assert record is not None
    epochs = list(dict.fromkeys(row["selected_epoch"] for row in record["rows"]))
    assert (0 in epochs and 2 in epochs) or epochs == [-1], "chain and refit end in a phase without epochs"
    assert len(seen) == len(epochs)
    position = max(int(path.name[5]) for path in (paths.run(config.run_id()) / "weights").glob("*.pt"))
    for epoch, model in zip(epochs, seen, strict=True):
        state = load_tensors(weights_file(paths.run(config.run_id()), position, epoch))
        assert state is not None
        assert all(torch.equal(state[name], value) for name, value in model.items())


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (
            {"lr": 5e-5},
            "with spurbench run: --set train.optimizer.lr=5e-06; in a sweep file: train: {optimizer: {lr: 5e-06}}",
        ),
        (
            {"lr": 5e-5, "head_lr": 1e-2},
            "--set train.optimizer.head_lr=0.001; in a sweep file: train: {optimizer: {head_lr: 0.001}}",
        ),
        ({"lr": 1e6}, "--set train.optimizer.lr=0.001; in"),
        ({"lr": 1e-9}, "its learning rate, 1e-09, is low already: look at the data and at the method's options"),
    ],
)
def test_advice_after_a_loss_that_is_not_finite(rates: dict[str, float], words: str) -> None:
    assert words in _advice(OptimizerConfig.model_validate(rates))
