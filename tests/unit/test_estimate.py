"""What a run will take, reckoned from parts of its data: against times that the test sets itself."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from spurbench import estimate as estimating
from spurbench.cli import main
from spurbench.config import RunPaths
from spurbench.engine import run_one
from spurbench.estimate import RunTime, _Clock, _Part, estimate, measure
from spurbench.registry import load_registry
from spurbench.sweep import Planned, SweepFile, plan

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
TIMED = f"""
import sys
import spurbench.estimate
sys.path.insert(0, {str(TOYS.parent)!r})
from toys import DATASETS, Noisy

class Timed(Noisy):
    def training_step(self, model, batch, progress):
        spurbench.estimate.time.now += 0.5 * len(batch.index)
        return super().training_step(model, batch, progress)

METHODS = {{"timed": Timed}}
"""
SETTINGS = {"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"}


def runs_of(folder: Path, *methods: str, seeds: str = "0", plugin: Path = TOYS, **train: Any) -> list[Planned]:
    edition = folder / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True, exist_ok=True)
    edition.write_text("first")
    recipe = {"epochs": 8, "batch_size": 4, "num_threads": 1, **train}
    file = {"datasets": ["toys"], "methods": list(methods), "seeds": seeds, "train": recipe, "set": SETTINGS}
    paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
    return plan(SweepFile.model_validate(file), paths, (plugin,))


def clock(share: float, *, epoch: float, around: float, test: float, epochs: int = 2) -> _Clock:
    """As if one phase had been trained."""
    trained = around + epochs * epoch
    ends = {0: [around + (number + 1) * epoch for number in range(epochs)]}
    warm = trained + 5 * test
    return _Clock(
        share=share, started=0, trained=trained, warm=warm, tested=warm + 2 * test, epochs=ends, rules=4, candidates=2
    )


def test_what_grows_with_the_data_is_carried_on_to_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_part(run: Planned, part: _Part, *rest: Any) -> _Clock:
        return clock(part.share, epoch=1 + 10 * part.share, around=2 + 3 * part.share, test=1 + 4 * part.share)

    monkeypatch.setattr(estimating, "_train_part", train_part)
    (run,) = runs_of(tmp_path, "noisy")
    found = measure(run, device="cpu", plugins=(TOYS,))
    assert found.phases == pytest.approx((8 * 11,))
    assert found.rest == pytest.approx(5 + (1 + 3 * 0.45) * 5)


class OnlySteps:
    """A time that goes on in training steps alone."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_all_images_of_all_epochs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "timed.py"
    plugin.write_text(TIMED)
    monkeypatch.setattr(estimating, "time", OnlySteps())
    (run,) = runs_of(tmp_path, "timed", plugin=plugin)
    found = measure(run, device="cpu", plugins=(plugin,))
    assert found.phases == pytest.approx((8 * 64 * 0.5,)), "8 epochs of 64 images"
    assert found.rest == 0
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "cache").exists()


def test_a_real_clock_gives_a_time_of_the_right_order(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "noisy", epochs=3, batch_size=16)
    found = measure(run, device="cpu", plugins=(TOYS,)).total
    started = time.perf_counter()
    run_one(run.config, run.paths, device="cpu", plugins=(TOYS,))
    taken = time.perf_counter() - started
    assert taken / 5 < found < 5 * taken, "the machine may be busy now and idle then"


def test_of_a_shared_training_the_first_run_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "measure", lambda run, **how: RunTime(phases=(10.0, 2.0), rest=1.0))
    runs = runs_of(tmp_path, "erm", "refit", "noisy", seeds="0-1")
    told: list[str] = []
    assert estimate(runs, device="cpu", plugins=(TOYS,), tell=told.append) == [13, 3, 13, 13, 3, 13]
    assert sum(text.startswith("measuring") for text in told) == 3, "seeds are not measured again"


def test_a_part_has_every_group_in_proportion(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "erm")
    whole = load_registry("datasets", (TOYS,)).get("toys").value.open(run.paths.data_root)
    for share in (0.01, 0.25, 1.0):
        part, full = _Part(whole, share).split("train"), whole.split("train")
        assert part.group is not None
        counts, all_counts = torch.bincount(part.group), torch.bincount(full.group)
        assert counts.tolist() == [max(1, round(share * int(number))) for number in all_counts]
        for index in range(len(part)):
            sample = part[index]
            assert (sample.index, sample.y, sample.group) == (index, int(part.y[index]), int(part.group[index]))
    assert len(part) == len(full)
    assert torch.equal(part[5].image, full[5].image)


def test_the_plan_tells_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimating, "measure", lambda run, **how: RunTime(phases=(100.0,), rest=20.0))
    file = tmp_path / "s.yaml"
    file.write_text("datasets: [minibirds100]\nmethods: [erm, cad]\nseeds: 0-1\n")
    command = ["sweep", str(file), "--results", str(tmp_path / "results"), "--dry-run", "--estimate"]
    assert main([*command, "--json"]) == 0
    told = capsys.readouterr()
    assert [run["estimated_seconds"] for run in json.loads(told.out)["runs"]] == [120.0] * 4
    assert "2 settings to train briefly here, for 4 runs to come; each takes from seconds to a minute" in told.err
    assert json.loads(told.out)["seconds_left"] == 480.0
    assert main([*command, "--jobs", "2"]) == 0
    told = capsys.readouterr()
    assert "time: about 4 minutes left with 2 at a time (each setting was measured here, alone)" in told.err
    assert [line.split()[-5:] for line in told.out.splitlines() if "CAD" in line and "minutes" in line] == [
        ["2", "2", "minutes", "4", "minutes"]
    ]
    assert main([*command[:-2], "--estimate"]) == 2
    assert "--estimate goes with --dry-run" in capsys.readouterr().err
