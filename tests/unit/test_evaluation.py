"""What a dataset's publishers report: from a declaration through a run's record to tables and the terminal."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score

from spurbench.cli.render import print_rows
from spurbench.config import RunPaths
from spurbench.engine import run_one
from spurbench.evaluate import evaluate_run
from spurbench.fold import fold
from spurbench.io import read_json, write_json
from spurbench.resolve import RunRequest, resolve_run

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
OFFICIAL = """
from dataclasses import replace

from spurbench.dataset import DatasetTransform
from spurbench.metrics.f1 import macro_f1


def precision_of_blue_on_the_right(y, predicted, group):
    return float(y[(predicted == 1) & (group % 2 == 1)].double().mean())


def undefined(y, predicted, group):
    return None


TRANSFORM = DatasetTransform(
    name="official",
    version="1",
    description="",
    declare=lambda info: replace(
        info, official={"macro_f1": macro_f1, "blue": precision_of_blue_on_the_right, "none": undefined}
    ),
    change=lambda split, info: split,
)
"""
RECIPE = {"train.epochs": 2, "train.batch_size": 16, "train.optimizer.lr": 1e-3, "input.resize": 32,
          "input.image_size": 32, "evaluation.attributions": []}  # fmt: skip


class Bench:
    """A folder with a finished run on toys whose publishers report three numbers."""

    def __init__(self, root: Path) -> None:
        self.paths = RunPaths(results=root / "results", cache=root / "cache", data_root=root / "data")
        edition = root / "data" / "toys" / "edition"
        edition.parent.mkdir(parents=True)
        edition.write_text("first")
        self.plugins = (TOYS, root / "official.py")
        self.plugins[1].write_text(OFFICIAL)
        request = RunRequest(
            method="erm", dataset="toys+official", weights="none", overrides=RECIPE, plugins=self.plugins
        )
        config, _ = resolve_run(request, self.paths)
        assert run_one(config, self.paths, device="cpu", plugins=self.plugins) is not None
        self.folder = self.paths.run(config.run_id())
        self.record: dict[str, Any] = read_json(self.folder / "result.json")

    def official(self, rule: str, rows: list[dict[str, Any]] | None = None) -> dict[str, float | None]:
        (row,) = [row for row in rows or self.record["rows"] if row["selection"] == rule]
        return {entry["name"]: entry["value"] for entry in row["official"]}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("official"))


def test_rows_hold_what_the_predictions_say(bench: Bench) -> None:
    """Of every rule's own epoch, by scikit-learn and pandas."""
    predictions = pq.read_table(bench.folder / "predictions.parquet").to_pandas()
    for row in bench.record["rows"]:
        of_epoch = predictions[predictions["epoch"] == row["selected_epoch"]]
        assert bench.official(row["selection"]) == {
            "macro_f1": pytest.approx(f1_score(of_epoch["y"], of_epoch["predicted"], average="macro")),
            "blue": pytest.approx(of_epoch.query("predicted == 1 and group % 2 == 1")["y"].mean()),
            "none": None,
        }
    assert all(0 < bench.official("last")[name] < 1 for name in ("macro_f1", "blue"))  # type: ignore[operator]


def test_an_evaluation_holds_them_too(bench: Bench) -> None:
    document, _ = evaluate_run(bench.folder, None, bench.paths, device=torch.device("cpu"), plugins=bench.plugins)
    assert bench.official("last", document["rows"]) == bench.official("last")
    other, _ = evaluate_run(
        bench.folder, None, bench.paths, split="val", device=torch.device("cpu"), plugins=bench.plugins
    )
    assert bench.official("last", other["rows"])["blue"] != bench.official("last")["blue"]


def test_other_datasets_have_none(bench: Bench, tmp_path: Path) -> None:
    request = RunRequest(method="erm", dataset="toys", weights="none", overrides=RECIPE, plugins=(TOYS,))
    paths = bench.paths.model_copy(update={"results": tmp_path})
    config, _ = resolve_run(request, paths)
    record = run_one(config, paths, device="cpu", plugins=(TOYS,))
    assert record is not None
    assert {row["official"] for row in record["rows"]} == {None}


def test_tables_carry_them(bench: Bench, tmp_path: Path) -> None:
    folded = fold([bench.paths.results])
    folded.write(tmp_path / "table.parquet")
    for source in (folded, fold([tmp_path / "table.parquet"])):
        (row,) = source.all_rows("last")
        assert {entry["name"]: entry["value"] for entry in row["official"]} == bench.official("last")


def test_records_and_tables_without_the_column_are_read(bench: Bench, tmp_path: Path) -> None:
    """As the second schema wrote them."""
    folder = tmp_path / "runs" / bench.folder.name
    folder.mkdir(parents=True)
    rows = [{k: v for k, v in row.items() if k != "official"} | {"schema_version": 2} for row in bench.record["rows"]]
    write_json(folder / "result.json", bench.record | {"schema_version": 2, "rows": rows})
    old = fold([tmp_path])
    old.write(tmp_path / "table.parquet")
    pq.write_table(pq.read_table(tmp_path / "table.parquet").drop_columns(["official"]), tmp_path / "table.parquet")
    for source in (old, fold([tmp_path / "table.parquet"])):
        assert (source.damaged, source.notes) == ({}, [])
        (row,) = source.all_rows("last")
        assert (row["official"], row["schema_version"]) == (None, 2)


def test_a_run_shows_them_beside_the_others(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(bench.record["rows"])
    shown = capsys.readouterr().out
    header, last = (next(line for line in shown.splitlines() if line.split()[:1] == [word]).split("  ")
                    for word in ("selection", "last"))  # fmt: skip
    titles, cells = ([cell.strip() for cell in line if cell.strip()] for line in (header, last))
    values = dict(zip(titles, cells, strict=True))
    f1 = bench.official("last")["macro_f1"]
    assert f1 is not None
    assert (values["macro_f1"], values["none"]) == (f"{100 * f1:.1f}", "-")
    print_rows([{name: value for name, value in row.items() if name != "official"} for row in bench.record["rows"]])
    assert "macro_f1" not in capsys.readouterr().out
