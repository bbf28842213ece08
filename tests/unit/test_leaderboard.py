"""Tables: what is averaged, what is kept apart, and that files hold what records say."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from spurbench.fold import fold
from spurbench.leaderboard import best_draws, lines_of


def record(
    run_id: str, *, seed: int, wga: float, tau: float = 0.25, fingerprint: str = "f", **changes: Any
) -> dict[str, Any]:
    config = {"method": {"name": "aim", "config": {"tau": tau}}, "seed": seed}
    row = {
        "run_id": run_id, "schema_version": 1, "status": "finished", "provenance": "measured", "method": "aim",
        "label": f"AIM[1,{100 * tau:g}%]", "config_json": json.dumps(config), "dataset": "birds",
        "dataset_version": "1", "dataset_fingerprint": fingerprint,
        "backbone": "net", "weights": "none", "seed": seed, "access": "none",
        "split": "test", "n": 10, "n_correct": 9, "accuracy": 0.9, "worst_group_accuracy": wga,
        "groups": [{"group": 0, "name": "a", "n": 10, "correct": 9}], "gmacs": 1.0, "gmacs_backbone": 1.0,
        "params": 5, "params_backbone": 5,
    }  # fmt: skip
    rows = [{**row, "selection": "val_wga"}, {**row, "selection": "last", "worst_group_accuracy": wga / 2}]
    return {"run_id": run_id, "status": "finished", "rows": rows, "machine": {"device": "cpu"}, **changes}


def save(folder: Path, *records: dict[str, Any]) -> Path:
    for document in records:
        path = folder / "runs" / document["run_id"] / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(document))
    return folder


def table(*sources: Path, rule: str = "val_wga") -> list[dict[str, Any]]:
    return lines_of(fold(sources).rows(rule))


def test_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    save(tmp_path, record("a", seed=0, wga=0.5), record("b", seed=1, wga=0.7), record("c", seed=2, wga=0.6))
    (line,) = table(tmp_path)
    assert line["worst_group_accuracy_mean"] == pytest.approx(0.6)
    assert line["worst_group_accuracy_sd"] == pytest.approx(0.1)
    assert line["worst_group_accuracy_values"] == [0.5, 0.7, 0.6]
    assert line["seeds"] == [0, 1, 2]


def test_the_rule_is_chosen_when_the_table_is_made(tmp_path: Path) -> None:
    save(tmp_path, record("a", seed=0, wga=0.5))
    assert table(tmp_path, rule="last")[0]["worst_group_accuracy_mean"] == 0.25
    assert table(tmp_path, rule="oracle_test_wga") == []


def test_other_options_and_other_data_never_share_a_line(tmp_path: Path) -> None:
    save(
        tmp_path,
        record("a", seed=0, wga=0.5),
        record("b", seed=1, wga=0.5, tau=0.35),
        record("c", seed=2, wga=0.5, fingerprint="g"),
    )
    assert len(table(tmp_path)) == 3


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_settings_are_told_apart_by_all_but_the_seed_of_the_run(tmp_path: Path, separators: tuple[str, str]) -> None:
    options: list[dict[str, Any]] = [{"tau": 1}, {"seed": 3}, {"seed": 4}, {"x": "seed"}, {"x": 'a "seed":5'}, {"é": 1}]
    settings = [
        {"method": {"name": "aim", "config": changed}, "train": {"epochs": epochs}}
        for changed in options
        for epochs in (3, 4)
    ]
    for number, setting in enumerate(settings):
        for seed in (0, 7, 12):
            config = {"method": setting["method"], "seed": seed, "train": setting["train"]}
            save(tmp_path, with_config(f"{number}-{seed}", seed, json.dumps(config, separators=separators)))
    lines = {line["setting"]: line["seeds"] for line in table(tmp_path)}
    assert lines == {setting_of(setting): [0, 7, 12] for setting in settings}


def test_a_seed_in_disguise_is_none_of_the_method(tmp_path: Path) -> None:
    method = '"method":{"name":"aim","config":{"seed":%d}}'
    save(tmp_path, *(with_config(str(n), 0, '{"\\u0073eed":0,' + method % n + "}") for n in (5, 6)))
    assert len(table(tmp_path)) == 2


def with_config(run_id: str, seed: int, text: str) -> dict[str, Any]:
    document = record(run_id, seed=seed, wga=0.5)
    for row in document["rows"]:
        row["config_json"] = text
    return document


def setting_of(config: dict[str, Any], fingerprint: str = "f") -> str:
    """As tables that were published name it."""
    return hashlib.sha256(json.dumps([config, fingerprint], sort_keys=True).encode()).hexdigest()[:16]


def test_independent_of_file_order_and_folders(tmp_path: Path) -> None:
    records = [record(str(i), seed=i, wga=i / 10) for i in range(5)]
    whole = table(save(tmp_path / "all", *records))
    random.Random(0).shuffle(records)
    parts = [save(tmp_path / "x", *records[:2]), save(tmp_path / "y", *records[2:])]
    assert table(*parts) == whole


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    folders = [save(tmp_path / name, record("a", seed=0, wga=wga)) for name, wga in (("x", 0.5), ("y", 0.6))]
    (line,) = table(*folders)
    assert line["worst_group_accuracy_values"] == [0.6]


def test_failed_and_damaged_records_are_named_and_skipped(tmp_path: Path) -> None:
    save(tmp_path, record("a", seed=0, wga=0.5), record("b", seed=1, wga=0.0, status="failed"))
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs" / "half" / "result.json").write_text('{"run_id": "ha')
    found = fold([tmp_path])
    assert found.failed == ["b"]
    assert [Path(path).parent.name for path in found.damaged] == ["half"]
    assert {row["run_id"] for row in found.rows("val_wga")} == {"a"}


def test_parquet_holds_what_the_records_say(tmp_path: Path) -> None:
    documents = [record("a", seed=0, wga=0.5), record("b", seed=1, wga=0.7)]
    fold([save(tmp_path, *documents)]).write(tmp_path / "all.parquet")
    again = fold([tmp_path / "all.parquet"])
    assert again.damaged == {}
    for document, row in zip(documents, again.rows("val_wga"), strict=True):
        written = {key: value for key, value in row.items() if value is not None}
        assert written == document["rows"][0] | document["machine"]
    assert table(tmp_path / "all.parquet") == table(tmp_path)


def with_options(run_id: str, seed: int, val: float, wga: float, **options: Any) -> dict[str, Any]:
    document = record(run_id, seed=seed, wga=wga)
    config = {"method": {"name": "aim", "config": {"tau": 0.25, **options}}, "seed": seed}
    for row in document["rows"]:
        row |= {"config_json": json.dumps(config), "val_wga": val, "val_accuracy": 1 - val}
    return document


def test_best_draw_is_chosen_by_validation_and_not_by_test(tmp_path: Path) -> None:
    save(
        tmp_path,
        *(with_options(f"a{seed}", seed, val=0.8, wga=0.3, width=1) for seed in range(2)),
        *(with_options(f"b{seed}", seed, val=0.7, wga=0.9, width=2) for seed in range(2)),
        with_options("c0", 0, val=1.0, wga=1.0, width=3),  # not all seeds yet
    )
    (line,) = best_draws(table(tmp_path), "val_wga")
    assert (line["options"]["width"], line["n_draws"]) == (1, 2)
    (line,) = best_draws(table(tmp_path, rule="last"), "last")  # by plain accuracy on validation
    assert line["options"]["width"] == 2


def test_method_with_its_own_final_model_stands_in_every_table_but_the_oracles(tmp_path: Path) -> None:
    document = record("a", seed=0, wga=0.6)
    document["rows"] = document["rows"][1:]
    save(tmp_path, document, record("b", seed=0, wga=0.4, tau=0.5))
    assert [line["selection"] for line in table(tmp_path)] == ["val_wga", "last"]
    assert table(tmp_path, rule="oracle_test_wga") == []


def test_tables_of_the_first_schema_are_read_with_nulls(tmp_path: Path) -> None:
    fold([save(tmp_path, record("a", seed=0, wga=0.5))]).write(tmp_path / "new.parquet")
    added = ["erasure", "val_accuracy", "val_wga", "val_worst_class"]
    pq.write_table(pq.read_table(tmp_path / "new.parquet").drop_columns(added), tmp_path / "old.parquet")
    old, new = (fold([tmp_path / f"{name}.parquet"]) for name in ("old", "new"))
    assert old.damaged == {}
    rows = list(old.rows("val_wga"))
    assert rows == list(new.rows("val_wga"))
    assert {row[name] for row in rows for name in added} == {None}


def test_erasure_becomes_the_share_of_predictions_that_stay(tmp_path: Path) -> None:
    for seed, agree in ((0, 90), (1, 80)):
        document = record(f"r{seed}", seed=seed, wga=0.5)
        for row in document["rows"]:
            row["erasure"] = [
                {"erased": erased, "fill": fill, "n": 100, "agree": agree - minus, "correct": 1}
                for erased, minus in (("outside", 0), ("inside", 50))
                for fill in ("mean", "blur")
            ]
        save(tmp_path, document)
    (line,) = table(tmp_path)
    assert line["erasure_outside_mean"] == pytest.approx(0.85)
    assert line["erasure_inside_mean"] == pytest.approx(0.35)
    assert line["erasure_outside_control_mean"] is None


def oracle(run_id: str, seed: int, wga: float, finished_at: str, **more: Any) -> dict[str, Any]:
    document = record(run_id, seed=seed, wga=wga, **more)
    for row in document["rows"]:
        config = json.loads(row["config_json"]) | {"evaluation": {"oracle": True, "batch_size": 8}}
        row |= {"config_json": json.dumps(config)}
    document["machine"]["finished_at"] = finished_at
    return document


def test_a_run_with_an_oracle_row_is_a_seed_like_the_others(tmp_path: Path) -> None:
    plain = [oracle(f"r{seed}", seed, wga, "1") for seed, wga in ((0, 0.5), (1, 0.6))]
    for document in plain:
        for row in document["rows"]:
            row["config_json"] = row["config_json"].replace('"oracle": true', '"oracle": false')
    save(tmp_path, *plain, oracle("r2", 2, 0.7, "1"), oracle("r3", 0, 0.9, "2"))
    (line,) = table(tmp_path)
    assert line["seeds"] == [0, 1, 2]
    assert line["worst_group_accuracy_values"] == [0.9, 0.6, 0.7]  # seed 0 was trained again later
    assert line["run_ids"] == ["r3", "r1", "r2"]
