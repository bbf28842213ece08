"""Comparisons of result sets and methods whose truth is known: pairing, signs, honesty, and the gate."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spurbench.cli import main
from spurbench.compare import ENOUGH_SEEDS, Comparison, Metric, compare, undecided, worse
from spurbench.errors import ConfigError, DataMissing
from spurbench.fold import fold
from spurbench.pairing import Side, pair_methods, pair_sets, read_side

GROUP = np.repeat(np.arange(4), 50)
ROOT = Path(__file__).parents[2]


def predictions_of(accuracies: tuple[float, ...], seed: int) -> np.ndarray:
    """Which of 200 images are right: about the given share of each group, the same hard ones for every seed."""
    hard = np.random.default_rng(0).random(len(GROUP))
    noise = 0.05 * np.random.default_rng(1 + seed).normal(size=len(GROUP))
    return hard + noise < np.asarray(accuracies)[GROUP]


def save_run(
    folder: Path,
    label: str = "ERM",
    *,
    seed: int,
    accuracies: tuple[float, ...] = (0.95, 0.8, 0.85, 0.95),
    method: str | None = None,
    options: dict[str, Any] | None = None,
    version: int = 1,
    epochs: int = 8,
    fingerprint: str = "f" * 64,
    commit: str = "a" * 40,
    backbone: str = "net",
    tables: bool = True,
    epg: dict[str, float] | None = None,
) -> str:
    """One finished run with its predictions at epoch 3 and, all wrong, at epoch 7."""
    method = method or label.split("[")[0].lower()
    config = {
        "identity_version": 1,
        "method": {"name": method, "version": version, "source": None, "config": options or {}},
        "dataset": {"name": "birds", "version": "1"},
        "backbone": {"name": backbone, "weights": "none"},
        "train": {"epochs": epochs, "optimizer": {"lr": 0.1}},
        "seed": seed,
    }
    text = json.dumps(config, sort_keys=True)
    run_id = hashlib.sha256((text + fingerprint).encode()).hexdigest()[:16]
    right = predictions_of(accuracies, seed)
    by_group = [float(right[g == GROUP].mean()) for g in range(4)]
    row = {
        "run_id": run_id, "schema_version": 2, "status": "finished", "provenance": "measured", "method": method,
        "label": label, "method_version": version, "config_json": text, "dataset": "birds", "dataset_version": "1",
        "dataset_fingerprint": fingerprint, "backbone": backbone, "weights": "none", "seed": seed, "access": "none",
        "split": "test", "n": len(right), "n_correct": int(right.sum()), "accuracy": float(right.mean()),
        "group_mean_accuracy": float(np.mean(by_group)), "worst_group_accuracy": min(by_group), "groups": [],
        "selection": "val_wga", "selected_epoch": 3,
    }  # fmt: skip
    if epg:
        head = next(iter(epg))
        row |= {"epg": epg[head], "epg_source": head, "epg_region": "mask"}
        row["epg_all"] = [{"source": name, "region": "mask", "epg": value} for name, value in epg.items()]
    last = {
        **row,
        "selection": "last",
        "selected_epoch": 7,
        "accuracy": 0.0,
        "n_correct": 0,
        "worst_group_accuracy": 0.0,
    }
    record = {
        "run_id": run_id, "status": "finished", "rows": [row, last],
        "machine": {"git_commit": commit, "git_dirty": False, "device_name": "cpu", "versions_json": '{"torch": "2"}'},
    }  # fmt: skip
    run = folder / "runs" / run_id
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(record))
    if tables:
        order = np.random.default_rng(seed).permutation(len(right))  # rows of a table are in no order to rely on
        columns: dict[str, Any] = {
            "epoch": [3] * len(right) + [7] * len(right),
            "index": [*order.tolist(), *range(len(right))],
            "y": [1] * (2 * len(right)),
            "group": [*GROUP[order].tolist(), *GROUP.tolist()],
            "predicted": [*right[order].astype(int).tolist(), *([0] * len(right))],
        }
        for name, value in (epg or {}).items():
            columns[f"epg_{name}_mask"] = [value] * (2 * len(right))
        pq.write_table(pa.table(columns), run / "predictions.parquet")
    return run_id


def save_runs(folder: Path, seeds: int = 5, **settings: Any) -> Path:
    for seed in range(seeds):
        save_run(folder, seed=seed, **settings)
    return folder


def side(title: str, sources: list[Path], select: str) -> Side:
    return read_side(title, fold(sources), sources, select)


def sets(a: Path, b: Path, metric: Metric = "worst_group_accuracy", select: str = "val_wga") -> list[Comparison]:
    pairs, _ = pair_sets(side("A", [a], select), side("B", [b], select))
    return compare(pairs, metric)[0]


def methods(folder: Path, a: str, b: str, metric: Metric = "worst_group_accuracy") -> list[Comparison]:
    pairs, _ = pair_methods(side(str(folder), [folder], "val_wga"), a, b)
    return compare(pairs, metric)[0]


def reasons(a: Path, b: Path) -> dict[tuple[str, str], int]:
    pairs, alone = pair_sets(side("A", [a], "val_wga"), side("B", [b], "val_wga"))
    return {(entry.side, entry.reason): len(entry.runs) for entry in [*alone, *compare(pairs, "accuracy")[1]]}


# --- what is paired ---


def test_a_known_difference_is_found(tmp_path: Path) -> None:
    save_runs(tmp_path, label="AIM[1,25%]", accuracies=(0.95, 0.95, 0.95, 0.95))
    save_runs(tmp_path, label="ERM", accuracies=(0.95, 0.6, 0.85, 0.95))
    (found,) = methods(tmp_path, "aim[1, 25%]", "erm")
    expected = [
        min(predictions_of((0.95,) * 4, seed)[g == GROUP].mean() for g in range(4))
        - predictions_of((0.95, 0.6, 0.85, 0.95), seed)[GROUP == 1].mean()
        for seed in range(5)
    ]
    assert found.difference == pytest.approx(np.mean(expected))
    assert found.difference > 0.25
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert 0.1 < found.low < found.difference < found.high < 0.6
    assert found.p < 0.01
    assert (found.a, found.b, found.seeds, found.num_images) == ("AIM[1,25%]", "ERM", [0, 1, 2, 3, 4], 200)


@pytest.mark.parametrize("metric", ["worst_group_accuracy", "accuracy", "group_mean_accuracy"])
def test_a_side_against_itself_is_exactly_zero(tmp_path: Path, metric: Metric) -> None:
    save_runs(tmp_path)
    (found,) = sets(tmp_path, tmp_path, metric)
    assert (found.difference, found.low, found.high, found.p, found.p_holm) == (0, 0, 0, 1, 1)
    assert found.config_diff == found.code_diff == {}
    assert found.notes == []


def test_swapping_sides_flips_signs(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b", accuracies=(0.9, 0.7, 0.85, 0.9))
    (one,), (other,) = sets(a, b), sets(b, a)
    assert one.low is not None
    assert one.high is not None
    assert one.difference > 0
    assert (other.difference, other.low, other.high) == pytest.approx((-one.difference, -one.high, -one.low))
    assert other.p == pytest.approx(one.p)
    assert (other.values_a, other.values_b) == (one.values_b, one.values_a)


def test_independent_of_the_order_of_files(tmp_path: Path) -> None:
    for tau in (0.25, 0.5):
        save_runs(tmp_path / "one", label=f"AIM[1,{tau:.0%}]", options={"tau": tau})
    save_runs(tmp_path / "one", accuracies=(0.9, 0.7, 0.8, 0.9))
    runs = sorted((tmp_path / "one" / "runs").iterdir())
    random.Random(0).shuffle(runs)
    for number, run in enumerate(runs):  # other folder names: another order on disk and when sorted
        shutil.copytree(run, tmp_path / "two" / "runs" / f"{number:03}")
        record = (tmp_path / "two" / "runs" / f"{number:03}" / "result.json").read_text()
        for old, name in ((old.name, f"{place:03}") for place, old in enumerate(runs)):
            record = record.replace(f'"run_id": "{old}"', f'"run_id": "{name}"')
        (tmp_path / "two" / "runs" / f"{number:03}" / "result.json").write_text(record)
    assert methods(tmp_path / "one", "aim", "erm") == methods(tmp_path / "two", "aim", "erm")


def test_other_data_is_not_paired_and_it_says_so(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a", fingerprint="1" * 64), save_runs(tmp_path / "b", fingerprint="2" * 64)
    assert sets(a, b) == []
    assert reasons(a, b) == {
        ("A", f"other data on the other side: birds has fingerprint {'1' * 12} here, {'2' * 12} there"): 5,
        ("B", f"other data on the other side: birds has fingerprint {'2' * 12} here, {'1' * 12} there"): 5,
    }
    save_runs(tmp_path / "c", label="AIM", fingerprint="1" * 64)
    save_runs(tmp_path / "c", label="ERM", fingerprint="2" * 64)
    assert methods(tmp_path / "c", "aim", "erm") == []


def test_seeds_and_settings_of_one_side_alone_are_counted(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a", seeds=6), save_runs(tmp_path / "b", seeds=4)
    save_runs(tmp_path / "a", seeds=2, label="JTT")
    (found,) = sets(a, b)
    assert found.seeds == [0, 1, 2, 3]
    assert reasons(a, b) == {
        ("A", "the other side lacks this seed"): 2,
        ("A", "no equal configuration on the other side"): 2,
    }


def test_other_backbones_are_not_paired(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a", backbone="small"), save_runs(tmp_path / "b", backbone="large")
    assert sets(a, b) == []


def test_two_commits_are_paired_without_regard_to_the_code_and_the_difference_is_told(tmp_path: Path) -> None:
    old = save_runs(tmp_path / "old", label="AIM", version=1, commit="1" * 40, options={"tau": 0.25})
    new = save_runs(tmp_path / "new", label="AIM", version=2, commit="2" * 40, options={"tau": 0.25})
    (found,) = sets(new, old)
    assert found.config_diff == {"method.version": (2, 1)}
    assert found.code_diff == {"git_commit": ("2" * 12, "1" * 12)}


def test_an_option_that_a_commit_added_does_not_stand_in_the_way(tmp_path: Path) -> None:
    old = save_runs(tmp_path / "old", label="AIM", options={"tau": 0.25})
    new = save_runs(tmp_path / "new", label="AIM", options={"tau": 0.25, "norm": "batch"}, epochs=9)
    (found,) = sets(new, old)
    assert found.config_diff == {"method.norm": ("batch", "(absent)"), "train.epochs": (9, 8)}
    save_runs(tmp_path / "new", label="AIM", options={"tau": 0.25, "norm": "layer"})
    assert sets(new, old) == []  # two of that label: which one was meant is not guessed


def test_of_two_versions_in_one_folder_the_newer_counts(tmp_path: Path) -> None:
    folder = save_runs(tmp_path / "a", version=1, accuracies=(0.2, 0.2, 0.2, 0.2))
    save_runs(folder, version=2)
    found = side("A", [folder], "val_wga")
    assert [row["method_version"] for row in found.settings[0].runs.values()] == [2] * 5
    assert found.notes == ["A: 5 runs of older method versions, or made again with --oracle, are left out"]


# --- names of methods ---


def test_methods_by_label_name_and_star(tmp_path: Path) -> None:
    for tau in (0.25, 0.5):
        save_runs(tmp_path, seeds=3, label=f"AIM[1,{tau:.0%}]", options={"tau": tau})
    save_runs(tmp_path, seeds=3, label="DFR-Tr", method="dfr_tr")
    assert [found.a for found in methods(tmp_path, "AIM[1,50%]", "dfr_tr")] == ["AIM[1,50%]"]
    assert [found.a for found in methods(tmp_path, "aim", "DFR-Tr")] == ["AIM[1,25%]", "AIM[1,50%]"]
    assert [found.a for found in methods(tmp_path, "*", "dfr-tr")] == ["AIM[1,25%]", "AIM[1,50%]"]
    assert [(found.a, found.b) for found in methods(tmp_path, "aim", "aim")] == [("AIM[1,25%]", "AIM[1,50%]")]
    with pytest.raises(
        ConfigError, match=r"did you mean 'AIM\[1,50%\]'\? there are AIM\[1,25%\], AIM\[1,50%\], DFR-Tr"
    ):
        methods(tmp_path, "aim[1,55%]", "dfr-tr")
    with pytest.raises(ConfigError, match="the same runs"):
        methods(tmp_path, "DFR-Tr", "dfr_tr")


def test_settings_that_share_a_label_are_told_apart(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        save_runs(tmp_path, seeds=3, label="AIM", options={"width": lr})
    save_runs(tmp_path, seeds=3)
    assert [found.a for found in methods(tmp_path, "aim", "erm")] == ["AIM method.width=0.1", "AIM method.width=0.2"]


# --- how sure it is ---


def test_few_seeds_get_no_p(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a", ENOUGH_SEEDS - 1), save_runs(tmp_path / "b", ENOUGH_SEEDS - 1)
    (found,) = sets(a, b)
    assert (found.p, found.p_holm, found.enough_seeds) == (None, None, False)
    one, other = save_runs(tmp_path / "c", 1), save_runs(tmp_path / "d", 1, accuracies=(0.5,) * 4)
    (found,) = sets(one, other)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.difference > 0.2


def test_enough_seeds_is_what_the_simulation_says() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())
    assert measured["least_seeds"]["crossed"] == ENOUGH_SEEDS
    for line in measured["bootstrap"]:
        for n, coverage in line["coverage"]["crossed"].items():
            assert int(n) < ENOUGH_SEEDS or 0.93 <= coverage <= 0.97, (line["name"], n)
    for line in measured["t_over_seeds"]:
        assert all(0.93 <= coverage <= 0.97 for n, coverage in line["coverage"].items() if int(n) > 2), line["name"]
    for line in measured["wilson"]:
        assert 0.93 <= line["lowest"] <= line["highest"] <= 0.97


def test_holm_counts_all_comparisons_of_the_call(tmp_path: Path) -> None:
    save_runs(tmp_path, label="A1", accuracies=(0.95,) * 4)
    save_runs(tmp_path, label="A2", accuracies=(0.95, 0.82, 0.85, 0.95))
    save_runs(tmp_path)
    found = methods(tmp_path, "*", "erm")
    assert [one.a for one in found] == ["A1", "A2"]
    small, large = sorted(one.p for one in found if one.p is not None)
    assert sorted(one.p_holm for one in found if one.p_holm is not None) == [2 * small, max(2 * small, large)]


def test_without_predictions_the_interval_is_over_seeds_and_says_so(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b", accuracies=(0.9, 0.7, 0.85, 0.9))
    fold([a]).write(tmp_path / "a.parquet")
    (whole,), (alone,) = sets(a, b), sets(tmp_path / "a.parquet", b)
    assert alone.difference == pytest.approx(whole.difference)
    assert alone.num_images is None
    assert "says nothing about other test images" in alone.notes[0]
    values = np.subtract(alone.values_a, alone.values_b)
    half = 2.7764451 * values.std(ddof=1) / np.sqrt(5)  # t of 4 degrees of freedom
    assert (alone.low, alone.high) == pytest.approx((values.mean() - half, values.mean() + half))


@pytest.mark.parametrize("damage", ["cut", "epoch", "other", "column"])
def test_predictions_that_are_not_the_records_are_not_used(tmp_path: Path, damage: str) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b", accuracies=(0.9, 0.7, 0.85, 0.9))
    path = next((a / "runs").iterdir()) / "predictions.parquet"
    table = pq.read_table(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "epoch":
        pq.write_table(table.filter(pa.compute.equal(table["epoch"], 7)), path)
    elif damage == "other":
        pq.write_table(table.set_column(4, "predicted", pa.array([0] * len(table))), path)
    else:
        pq.write_table(table.drop_columns(["y"]), path)
    (found,) = sets(a, b)
    assert found.num_images is None
    assert found.difference == pytest.approx(np.mean(found.values_a) - np.mean(found.values_b))
    assert len(found.notes) == 1


def test_images_of_one_side_alone_are_left_out_and_counted(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    for run in (a / "runs").iterdir():
        table = pq.read_table(run / "predictions.parquet")
        right = pa.compute.equal(table["y"], table["predicted"])
        # A wrong image less and a right one less in every run, as an older version of a split might have it.
        mean = pa.compute.mean(right.filter(pa.compute.equal(table["epoch"], 3))).as_py()
        keep = table.filter(pa.compute.greater_equal(table["index"], 0))
        assert mean == pytest.approx(json.loads((run / "result.json").read_text())["rows"][0]["accuracy"])
        indices = keep["index"].to_numpy().copy()
        indices[indices == 199] = 500
        pq.write_table(keep.set_column(1, "index", pa.array(indices)), run / "predictions.parquet")
    (found,) = sets(a, b)
    assert (found.num_images, found.images_left_out) == (199, 2)
    assert found.difference == 0


def test_epg_is_compared_between_equal_maps_only(tmp_path: Path) -> None:
    save_runs(tmp_path, label="AIM", epg={"mask": 0.9, "gradcam": 0.5})
    save_runs(tmp_path, epg={"gradcam": 0.2})
    save_runs(tmp_path, label="JTT")
    (found,) = methods(tmp_path, "aim", "erm", "epg")
    assert (found.epg_source, found.num_images) == ("gradcam/mask", 200)
    assert found.difference == pytest.approx(0.3)
    pairs, _ = pair_methods(side("R", [tmp_path], "val_wga"), "jtt", "erm")
    comparisons, unpaired = compare(pairs, "epg")
    assert comparisons == []
    assert {(entry.side, entry.reason, len(entry.runs)) for entry in unpaired} == {
        ("A", "no map's EPG is there on both sides", 5),
        ("B", "no map's EPG is there on both sides", 5),
    }


def test_the_rule_chooses_the_predictions(tmp_path: Path) -> None:
    save_runs(tmp_path / "a")
    save_runs(tmp_path / "b", accuracies=(0.9, 0.6, 0.9, 0.9))
    (chosen,), (last,) = (sets(tmp_path / "a", tmp_path / "b", select=rule) for rule in ("val_wga", "last"))
    assert chosen.difference > 0.1
    assert (last.difference, last.num_images) == (0, 200)  # all wrong at the last epoch
    with pytest.raises(DataMissing, match="the 5 runs there offer last, val_wga"):
        side("A", [tmp_path / "a"], "val_accuracy")


@pytest.mark.parametrize(
    "change",
    [
        {"config_json": "{"},
        {"config_json": None},
        {"seed": None},
        {"worst_group_accuracy": None},
    ],
)
def test_rows_that_cannot_be_paired_do_not_stop_the_others(tmp_path: Path, change: dict[str, Any]) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    path = next((a / "runs").iterdir()) / "result.json"
    record = json.loads(path.read_text())
    record["rows"][0] |= change
    record["machine"]["versions_json"] = "["
    path.write_text(json.dumps(record))
    (found,) = sets(a, b)
    assert len(found.seeds) == 4
    assert found.difference == 0  # the damaged run's last epoch did not stand in


def test_what_cannot_be_used_is_told_and_the_rest_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    first, second = sorted((a / "runs").iterdir())[:2]
    broken = json.loads((first / "result.json").read_text())
    broken["rows"][0]["worst_group_accuracy"] = float("nan")
    (first / "result.json").write_text(json.dumps(broken))
    failed = json.loads((second / "result.json").read_text()) | {"status": "failed"}
    (second / "result.json").write_text(json.dumps(failed))
    code, out, err = call(capsys, a, b, "--format", "json")
    assert code == 0
    assert len(json.loads(out)["comparisons"][0]["seeds"]) == 3
    assert f"skipped a damaged record: {first / 'result.json'}: worst_group_accuracy is nan" in err
    assert f"1 failed runs are not in the comparison: {second.name}" in err


def test_runs_that_are_there_twice_with_other_numbers_are_a_conflict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, copy = save_runs(tmp_path / "results", label="AIM"), save_runs(tmp_path / "copy")
    save_runs(results)
    run = next((copy / "runs").iterdir())
    changed = json.loads((run / "result.json").read_text())
    changed["rows"][0]["worst_group_accuracy"] = 0.125
    (run / "result.json").write_text(json.dumps(changed))
    code, _, err = call(capsys, results, copy, "--methods", "aim", "erm")
    assert code == 0
    assert f"conflict: run {run.name} (val_wga) is there 2 times with different numbers" in err
    assert "0.125 in" in err


def test_records_that_differ_from_their_predictions_are_told(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    for run in (b / "runs").iterdir():
        record = json.loads((run / "result.json").read_text())
        record["rows"][0]["worst_group_accuracy"] = 0.99
        (run / "result.json").write_text(json.dumps(record))
    (found,) = sets(a, b)
    assert found.difference < -0.1  # what the records say
    assert found.num_images is None
    assert "predictions that are not those of the records" in found.notes[0]


def test_a_run_with_an_oracle_row_is_paired_like_the_others(tmp_path: Path) -> None:
    a, b = save_runs(tmp_path / "a"), save_runs(tmp_path / "b")
    for run in (a / "runs").iterdir():
        record = json.loads((run / "result.json").read_text())
        for row in record["rows"]:
            oracle = {"evaluation": {"oracle": row["seed"] == 0}}
            row["config_json"] = json.dumps(json.loads(row["config_json"]) | oracle, sort_keys=True)
        (run / "result.json").write_text(json.dumps(record))
    (found,) = sets(a, b)
    assert found.seeds == [0, 1, 2, 3, 4]


# --- the gate ---


def gate(difference: float, high: float | None, seeds: int) -> Comparison:
    low = None if high is None else 2 * difference - high
    return Comparison(
        a="new", b="old", place={}, seeds=list(range(seeds)), values_a=[], values_b=[], difference=difference,
        low=low, high=high, p=None, enough_seeds=seeds >= ENOUGH_SEEDS, num_images=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("difference", "high", "seeds", "is_worse", "is_open"),
    [
        (-0.03, -0.01, 6, True, False),
        (-0.03, 0.01, 6, False, False),  # may be chance
        (-0.02, -0.01, 6, False, False),  # not more than 2 points
        (0.03, 0.04, 6, False, False),  # better
        (-0.03, -0.01, 2, False, True),
        (-0.03, None, 1, False, True),
        (-0.01, None, 1, False, False),
    ],
)
def test_what_counts_as_worse(difference: float, high: float | None, seeds: int, is_worse: bool, is_open: bool) -> None:
    found = gate(difference, high, seeds)
    assert (bool(worse([found], 2.0)), bool(undecided([found], 2.0))) == (is_worse, is_open)


# --- the command ---


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        code = main(["compare", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "internal error" not in err
    return code, out, err


def test_exit_codes_of_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = save_runs(tmp_path / "good"), save_runs(tmp_path / "bad", accuracies=(0.9, 0.5, 0.85, 0.9))
    assert call(capsys, good, bad, "--fail-if-worse", 2)[0] == 0
    code, _, err = call(capsys, bad, good, "--fail-if-worse", 2)
    assert code == 1
    assert "worse by more than 2 points: ERM on birds: -" in err
    assert call(capsys, bad, good, "--fail-if-worse", 50)[0] == 0
    assert call(capsys, bad, good)[0] == 0
    one = save_runs(tmp_path / "one", seeds=1, accuracies=(0.9, 0.5, 0.85, 0.9))
    code, out, err = call(capsys, one, good, "--fail-if-worse", 2)
    assert code == 2
    assert "not enough seeds to judge" in err
    assert "not enough seeds" in out


def test_json_is_one_document_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_runs(tmp_path, seeds=1, label="AIM", options={"tau": 0.25})
    save_runs(tmp_path, seeds=2)
    code, out, _ = call(capsys, "aim", "erm", "--results", tmp_path, "--format", "json")
    document = json.loads(out)
    assert code == 0
    (found,) = document["comparisons"]
    assert (found["seeds"], found["low"], found["p_holm"]) == ([0], None, None)
    assert found["config_diff"] == {"method.name": ["aim", "erm"], "method.tau": [0.25, "(absent)"]}
    (alone,) = document["unpaired"]
    assert (alone["side"], len(alone["runs"])) == ("B", 1)


def test_the_gate_stops_where_the_new_set_lacks_runs_of_the_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = save_runs(tmp_path / "old"), save_runs(tmp_path / "new")
    assert call(capsys, new, old, "--fail-if-worse", "2")[0] == 0
    save_runs(new, label="AIM")
    assert call(capsys, new, old, "--fail-if-worse", "2")[0] == 0  # what is new has nothing to be worse than
    save_runs(old, label="JTT")
    code, _, err = call(capsys, new, old, "--fail-if-worse", "2")
    assert code == 2
    assert "cannot be judged: 5 runs of B" in err


def test_table_and_markdown_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = save_runs(tmp_path / "new", commit="2" * 40, accuracies=(0.95,) * 4)
    old = save_runs(tmp_path / "old", commit="1" * 40)
    _, table, _ = call(capsys, new, old)
    _, markdown, _ = call(capsys, new, old, "--format", "markdown")
    (line,) = [line for line in markdown.splitlines() if line.startswith("| ERM")]
    for cell in line.strip("|").split("|"):
        assert cell.strip() in table
    assert f"git_commit: {'2' * 12} in A, {'1' * 12} in B" in table


def test_names_win_over_folders_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = save_runs(tmp_path / "results", label="AIM")
    save_runs(results)
    (tmp_path / "aim").mkdir()
    (tmp_path / "erm").mkdir()
    code, _, err = call(capsys, "aim", "erm")
    assert code == 2
    assert "no finished runs below aim" in err
    assert "--methods aim erm" in err
    assert call(capsys, "--methods", "aim", "erm")[0] == 0
    assert call(capsys, results, "--methods", "aim", "erm")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["two sides, got 0", "spurbench compare 'aim[1,25%]' erm"]),
        (["a"], ["two sides, got 1"]),
        (["a", "b", "c"], ["two sides, got 3"]),
        (["results", "nowhere"], ["no result folder or Parquet table nowhere", "--methods"]),
        (["aim", "emr"], ["no finished run of 'aim'", "there are ERM", "neither is there a folder"]),
        (["erm", "emr"], ["did you mean 'ERM'?"]),
        (["--methods", "erm", "aim"], ["no finished run of 'aim'"]),
        (["empty", "results"], ["no finished runs below empty"]),
        (["results/runs", "results"], ["the folder above 'runs'"]),
        (["broken.parquet", "results"], ["no finished runs below broken.parquet", "damaged"]),
        (["text.txt", "results"], ["no finished runs below text.txt"]),
        (["results", "results", "--fail-if-worse", "nan"], ["percent points from 0 to 100"]),
        (["results", "results", "--metric", "wga"], ["worst_group_accuracy"]),
        (["results", "results", "--selct", "last"], ["did you mean --select?"]),
        (["results", "results", "--select", "oracle_test_wga"], ["offer last, val_wga"]),
        (["other", "results"], ["nothing can be paired", "fingerprint"]),
    ],
)
def test_bad_input_is_explained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPURBENCH_RESULTS", raising=False)
    save_runs(tmp_path / "results", seeds=1)
    save_runs(tmp_path / "other", seeds=1, fingerprint="0" * 64)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "text.txt").write_text("no")
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    for text in expected:
        assert text in err
