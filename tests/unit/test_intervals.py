"""Intervals of a leaderboard's lines: which samples they are over, and what they need."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from records import write_run

from spurbench.cli import main
from spurbench.fold import fold
from spurbench.intervals import with_intervals
from spurbench.leaderboard import lines_of

GROUP = np.repeat(np.arange(4), 100)


def lines(results: Path) -> list[dict[str, Any]]:
    return lines_of(fold([results]).rows("val_wga"))


def predicted_run(results: Path, name: str, right_N: np.ndarray[Any, Any], **changes: Any) -> None:
    """A run whose record and predictions agree."""
    shares = [float(right_N[group == GROUP].mean()) for group in range(4)]
    columns = {"n_correct": int(right_N.sum()), "accuracy": float(right_N.mean()), "worst_group_accuracy": min(shares)}
    folder = write_run(results, name, **columns, **changes)
    table = {
        "epoch": np.full(400, 2),
        "index": np.arange(400),
        "group": GROUP,
        "y": GROUP // 2,
        "predicted": np.where(right_N, GROUP // 2, 1 - GROUP // 2),
    }
    pq.write_table(pa.table(table), folder / "predictions.parquet")


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    for seed in range(5):
        predicted_run(tmp_path, f"r{seed}", (hard + 0.05 * rng.normal(size=400)) > 0.2, seed=seed)
    return tmp_path


def test_over_seeds_as_scipy_has_it(tmp_path: Path) -> None:
    values = [0.7, 0.8, 0.75, 0.72]
    for seed, value in enumerate(values):
        write_run(tmp_path, f"r{seed}", seed=seed, wga=value)
    (line,) = with_intervals(lines(tmp_path))
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert (line["worst_group_accuracy_low"], line["worst_group_accuracy_high"]) == pytest.approx(tuple(expected))
    assert (line["interval_over"], line["interval_note"]) == ("seeds", None)


def test_no_interval_of_one_seed_or_without_any_spread(tmp_path: Path) -> None:
    write_run(tmp_path, "a", label="A")
    for seed in range(3):
        write_run(tmp_path, f"b{seed}", seed=seed, label="B", wga=0.1)
    for line in with_intervals(lines(tmp_path)):
        assert (line["worst_group_accuracy_low"], line["worst_group_accuracy_high"]) == (None, None)


def test_ends_stay_within_what_an_accuracy_can_be(tmp_path: Path) -> None:
    for seed, value in enumerate((0.98, 0.6)):
        write_run(tmp_path, f"r{seed}", seed=seed, wga=value)
    (line,) = with_intervals(lines(tmp_path))
    assert (line["worst_group_accuracy_low"], line["worst_group_accuracy_high"]) == (0.0, 1.0)


def test_over_images_too_it_is_wider_where_seeds_agree(predicted: Path) -> None:
    (seeds,) = with_intervals(lines(predicted))
    (images,) = with_intervals(lines(predicted), "images", [predicted])
    assert (images["interval_over"], images["interval_note"]) == ("images", None)
    width = {key: line[f"{key}_high"] - line[f"{key}_low"] for line in (images,) for key in ("accuracy",)}
    assert width["accuracy"] > 2 * (seeds["accuracy_high"] - seeds["accuracy_low"])
    # 400 images of which 80 % are right, within groups: about 1.96 * sqrt(0.8 * 0.2 / 400) to both sides
    assert width["accuracy"] / 2 == pytest.approx(1.96 * (0.16 / 400) ** 0.5, rel=0.25)
    assert (
        images["worst_group_accuracy_low"] < images["worst_group_accuracy_mean"] < images["worst_group_accuracy_high"]
    )


def test_without_predictions_it_is_over_seeds_and_says_so(predicted: Path) -> None:
    (predicted / "runs" / "r3" / "predictions.parquet").unlink()
    (line,) = with_intervals(lines(predicted), "images", [predicted])
    assert (line["interval_over"], line["interval_note"]) == (
        "seeds",
        "not all runs have predictions here: over seeds alone",
    )
    assert line["accuracy_low"] == with_intervals(lines(predicted))[0]["accuracy_low"]


def test_predictions_of_another_record_are_not_used(predicted: Path) -> None:
    path = predicted / "runs" / "r3" / "predictions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(4, "predicted", table["y"]), path)  # all right
    (line,) = with_intervals(lines(predicted), "images", [predicted])
    assert "predictions of run r3 that are not those of its record" in line["interval_note"]


def test_few_seeds_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    for seed in range(2):
        predicted_run(tmp_path, f"r{seed}", rng.random(400) > 0.2, seed=seed)
    assert main(["leaderboard", str(tmp_path), "--intervals", "images"]) == 0
    said = capsys.readouterr().out
    assert "]?" in said
    assert "?: too narrow below 4 seeds" in said
    assert main(["leaderboard", str(tmp_path), "--intervals", "images", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"][0]["interval_note"] == "too narrow below 4 seeds"
