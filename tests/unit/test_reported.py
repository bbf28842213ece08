"""Published numbers: the shipped table is whole, and pairs are made only where label, dataset and backbone agree."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from spurbench.cli import main
from spurbench.errors import ConfigError
from spurbench.fold import fold
from spurbench.leaderboard import lines_of
from spurbench.reported import compare_with_reported, load_reported

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "results" / "reference" / "reported.csv"


def first_line() -> dict[str, str]:
    with SHIPPED.open(newline="") as stream:
        return dict(next(csv.DictReader(stream)))


def line(label: str, dataset: str, backbone: str, **means: float | None) -> dict[str, Any]:
    shown = {f"{name}_mean": value for name, value in means.items()}
    return {"label": label, "dataset": dataset, "backbone": backbone, **shown}


def test_the_shipped_table_is_whole() -> None:
    rows = load_reported(SHIPPED)
    assert len(rows) == 273
    assert {row.evidence for row in rows} == {"author-repo", "secondary", "secondary x2", "seed"}
    percents = [
        row for row in rows if row.metric in ("worst_group_acc", "acc", "EPG", "avg_acc", "per_group_acc", "top1")
    ]
    assert all(0 <= row.value <= 100 for row in percents)
    assert all(row.source for row in rows)


def test_counterparts_keep_what_was_printed() -> None:
    """The paper's own AIM rows, by hand."""
    aim = [row for row in load_reported(SHIPPED) if row.counterpart and row.counterpart[0] == "AIM[2,35%]"]
    wga = {
        row.counterpart[1]: row.value for row in aim if row.counterpart and row.counterpart[3] == "worst_group_accuracy"
    }
    assert wga == {"waterbirds100": 78.1, "waterbirds95": 92.3}


def test_another_setting_is_no_counterpart() -> None:
    for row in load_reported(SHIPPED):
        if row.counterpart is not None:
            assert "corrected" not in row.dataset
            assert "FG-only" not in row.variant
            assert not row.metric.endswith("_gap")


def test_pairs_need_label_dataset_backbone_and_column() -> None:
    rows = [
        row for row in load_reported(SHIPPED) if row.source.endswith("main table") and row.metric == "worst_group_acc"
    ]
    assert {row.dataset for row in rows} == {"Waterbirds 100%", "Waterbirds 95%"}
    table = [
        line("AIM[2,35%]", "waterbirds100", "convnext_tiny", worst_group_accuracy=0.75),
        line("ERM", "waterbirds100", "convnext_tiny", worst_group_accuracy=None),
        line("ERM", "waterbirds95", "resnet50", worst_group_accuracy=0.7),
    ]
    found = compare_with_reported(table, rows)
    assert [(line["label"], row.value) for line, row in found.pairs] == [("AIM[2,35%]", 78.1)]
    assert found.unmatched == {
        "ERM was not measured on waterbirds100 with convnext_tiny, or has no worst_group_accuracy": 1,
        "AIM[2,25%] was not measured on waterbirds100 with convnext_tiny, or has no worst_group_accuracy": 1,
        "nothing was measured on waterbirds95 with convnext_tiny": 3,
    }


def test_the_command_says_why_nothing_matches(capsys: pytest.CaptureFixture[str]) -> None:
    table = ROOT / "results" / "minibirds_vit.parquet"
    assert main(["leaderboard", str(table), "--against", "paper", "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pairs"] == []
    assert sum(printed["unmatched"].values()) == 273
    assert printed["unmatched"]["nothing was measured on waterbirds95"] > 10


def test_measured_minus_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (entry,) = (
        e for e in lines_of(fold([ROOT / "results" / "minibirds_vit.parquet"]).rows("val_wga")) if e["label"] == "ERM"
    )
    first = first_line()
    own = {
        "measured_dataset": "minibirds100",
        "measured_backbone": "minibirds_vit",
        "value": "10",
        "measured_label": "ERM",
    }
    with (tmp_path / "mine.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(first))
        writer.writeheader()
        writer.writerow({**first, **own, "measured_column": "worst_group_accuracy"})
    arguments = ["--against", str(tmp_path / "mine.csv"), "--format", "json"]
    assert main(["leaderboard", str(ROOT / "results" / "minibirds_vit.parquet"), *arguments]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["measured - reported"] == f"{100 * entry['worst_group_accuracy_mean'] - 10:+.1f}"


@pytest.mark.parametrize("change", [{"value": "many"}, {"value": "nan"}, {"seeds": "some"}])
def test_a_damaged_line_is_named(change: dict[str, str], tmp_path: Path) -> None:
    first = first_line()
    with (tmp_path / "mine.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(first))
        writer.writeheader()
        writer.writerows([first, {**first, **change}])
    with pytest.raises(ConfigError, match=r"mine\.csv, line 3: "):
        load_reported(tmp_path / "mine.csv")
