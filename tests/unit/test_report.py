"""The report's data: the leaderboard's numbers, names that tell apart, and nothing that a page could trip over."""

import base64
import hashlib
import json
import random
import re
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import GROUPS, write_run
from scipy import stats

from spurbench.cli import main
from spurbench.fold import fold
from spurbench.report import failures
from spurbench.report.curves import curves_of
from spurbench.report.page import page, script_json
from spurbench.report.page_data import page_data, short
from spurbench.report.problems import problems
from spurbench.report.tables import tables_of
from spurbench.reported import Reported, load_reported, shipped
from spurbench.text import clip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two methods over three seeds, one with masks at two taus."""
    for seed in range(3):
        write_run(tmp_path, f"erm{seed}", seed=seed, wga=0.7 + 0.01 * seed)
        for tau in (0.25, 0.5):
            write_run(
                tmp_path, f"aim{tau}{seed}", seed=seed, wga=0.9 + 0.005 * seed, label=f"AIM[1,{tau:.0%}]", stages=1,
                tau=tau, overhead=0.015,
            )  # fmt: skip
    return tmp_path


def document(*sources: Path, published: Sequence[Reported] = ()) -> dict[str, Any]:
    folded = fold(sources)
    runs = {path.name: path for source in sources if source.is_dir() for path in (source / "runs").iterdir()}
    curves = {run: read for run, folder in runs.items() if (read := curves_of(folder)) is not None}
    data = page_data(tables_of(folded), curves, published)
    return data | {"problems": problems(folded, data["rules"])}


def cell(data: dict[str, Any], found: dict[str, Any], title: str) -> str:
    text: str = found["cells"][[column["title"] for column in data["columns"]].index(title)]
    return text


def line(data: dict[str, Any], name: str, rule: str = "val_wga") -> dict[str, Any]:
    (found,) = [line for line in data["tables"][rule] if line["cells"][0] == name]
    return found


def test_the_table_reads_as_the_leaderboard_of_the_command_line(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Neither the first name nor the first run.
    write_run(results, "best", wga=0.97, label="Mixup", images_per_second=90.0, images_per_second_backbone=100.0)
    data = document(results)
    *titles, pretraining, average, source = [column["title"] for column in data["columns"]]
    assert (pretraining, average, source) == ("pretraining", "average", "source"), "of published rows alone"
    for rule in ("val_wga", "last"):
        assert main(["leaderboard", str(results), "--select", rule, "--format", "markdown"]) == 0
        header, _, *lines = [
            [cell.strip() for cell in text.strip("| \n").split(" | ")]
            for text in capsys.readouterr().out.splitlines()
            if text.startswith("|")
        ]
        printed = [[cells[header.index(title)] for title in titles] for cells in lines]
        assert [line["cells"][:-3] for line in data["tables"][rule]] == printed


def test_lines_hold_means_over_seeds_of_the_rule(results: Path) -> None:
    data = document(results)
    assert data["rules"] == ["val_wga", "last"]
    erm = line(data, "ERM")
    assert erm["values"]["worst_group_accuracy"] == [pytest.approx(0.71), pytest.approx(0.01)]
    assert line(data, "ERM", "last")["values"]["worst_group_accuracy"][0] == pytest.approx(0.61)
    assert [mean for mean, _ in erm["groups"]["accuracy"]] == pytest.approx([0.71, 0.98, 0.98, 0.98])
    names = data["group_sets"][erm["groups"]["set"]]
    assert names == {"numbers": [0, 1, 2, 3], "names": list(GROUPS), "n": [100] * 4}
    assert erm["interval"] == pytest.approx(stats.t.interval(0.95, 2, 0.71, stats.sem([0.70, 0.71, 0.72])), rel=1e-5)
    assert cell(data, erm, "WGA 95 %") == "[68.5, 73.5]"
    assert erm["erased"] is None
    aim = line(data, "AIM[1,25%]")
    assert [mean for mean, _ in aim["erased"]] == [0.95, 0.5, 0.7]
    assert aim["stages"] == [{"density": [0.3, 0.0], "epg": [0.4, 0.0]}]


def test_a_setting_has_its_cost_and_the_curves_of_all_seeds(results: Path) -> None:
    data = document(results)
    setting = data["settings"][line(data, "AIM[1,50%]")["setting"]]
    assert (setting["overhead"], setting["stages"], setting["tau"], setting["runs"]) == (0.015, 1, 0.5, 3)
    assert [run["seed"] for run in setting["curves"]] == [0, 1, 2]
    assert setting["curves"][1]["series"]["val_wga"] == pytest.approx([0.905, 0.895, 0.885])
    assert setting["curves"][0]["density"] == [pytest.approx([0.5, 0.4, 0.3])]


def predicted_run(results: Path, name: str, share: float, **changes: Any) -> None:
    """A run of 400 predictions that are its record's; this share of them is right."""
    group = np.repeat(np.arange(4), 100)
    right = np.random.default_rng(zlib.crc32(name.encode())).random(400) < share
    worst = min(float(right[group == number].mean()) for number in range(4))
    columns = {"n_correct": int(right.sum()), "accuracy": float(right.mean()), "worst_group_accuracy": worst}
    folder = write_run(results, name, **columns, **changes)
    zeros = np.zeros(400, dtype=int)
    table = {"epoch": zeros + 2, "index": np.arange(400), "group": group, "y": zeros, "predicted": 1 - right}
    pq.write_table(pa.table(table), folder / "predictions.parquet")


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Of four seeds, of two, of one, and of two without predictions."""
    results = tmp_path / "predicted"
    for label, count in (("ERM", 4), ("DFR", 2), ("LfF", 1)):
        for seed in range(count):
            predicted_run(results, f"{label}{seed}", 0.8, label=label, seed=seed)
    for seed in range(2):
        write_run(results, f"jtt{seed}", label="JTT", seed=seed, wga=0.5 + 0.1 * seed)
    return results


def written(path: Path) -> dict[str, Any]:
    """The document of a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def test_intervals_over_images_are_those_of_the_leaderboard_and_the_page_says_what_they_are(
    predicted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    out = predicted / "report.html"
    ends = {}
    for over in ("seeds", "images"):
        assert main(["report", str(predicted), "-o", str(out), "--intervals", over]) == 0
        capsys.readouterr()
        assert main(["leaderboard", str(predicted), "--intervals", over, "--format", "markdown"]) == 0
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        data = written(out)
        ends[over] = {name: cell(data, line(data, name), "WGA 95 %") for name in ("ERM", "DFR", "LfF", "JTT")}
        for name, text in ends[over].items():
            (row,) = [row for row in printed if row.startswith(f"| {name} ")]
            assert f" {text} " in row
        marked = {name for name, text in ends[over].items() if text.endswith("?")}
        assert marked == (set() if over == "seeds" else {"DFR", "JTT"})
        assert data["intervals"] == (
            ["WGA 95 %: Student's t over seeds, for these test images."]
            if over == "seeds"
            else [
                "WGA 95 %: seeds and test images are both samples, by bootstrap; in rows whose question mark says so, "
                "seeds alone (Student's t).",
                "Question marks: too narrow below 4 seeds; not all runs have predictions here: over seeds alone.",
            ]
        )
    assert ends["seeds"]["ERM"] != ends["images"]["ERM"]
    assert ends["seeds"]["LfF"] == ends["images"]["LfF"] == "-"
    assert line(data, "DFR")["doubt"] == "too narrow below 4 seeds"
    assert line(data, "ERM")["doubt"] is None


def test_without_asking_intervals_are_over_seeds(predicted: Path) -> None:
    pytest.importorskip("plotly")
    out = predicted / "report.html"
    assert main(["report", str(predicted), "-o", str(out)]) == 0
    assert written(out)["intervals"] == ["WGA 95 %: Student's t over seeds, for these test images."]


def test_of_single_seeds_no_interval_is_promised(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    assert document(tmp_path)["intervals"] == ["WGA 95 %: none, as no setting here has several seeds that differ."]


def test_of_very_many_doubts_the_first_are_named(tmp_path: Path) -> None:
    for number in range(9):
        for seed in range(2):
            predicted_run(tmp_path, f"{number}.{seed}", 0.8 - 0.2 * seed, label=f"M{number}", seed=seed)
        path = tmp_path / "runs" / f"{number}.0" / "predictions.parquet"
        table = pq.read_table(path)
        pq.write_table(table.set_column(4, "predicted", table["y"]), path)
    table = tables_of(fold([tmp_path]), "images", [tmp_path])
    sentences = page_data(table, {})["intervals"]
    assert sentences[-1].count("not those of its record") == 3
    assert sentences[-1].endswith("; and 6 more.")


def test_settings_that_differ_in_tau_and_stages_alone_share_a_map(tmp_path: Path) -> None:
    write_run(tmp_path, "a", label="AIM[1,25%]", stages=1, tau=0.25)
    write_run(tmp_path, "b", label="AIM[2,auto]", stages=2, tau="auto")
    write_run(tmp_path, "c", label="AIM[2,25%]", stages=2, tau=0.25, options={"fusion": "literal"})
    families = {setting["label"]: setting["family"] for setting in document(tmp_path)["settings"]}
    assert families["AIM[1,25%]"] == families["AIM[2,auto]"] != families["AIM[2,25%]"]


def test_settings_with_one_label_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "a", options={"power": 1, "same": 0})
    write_run(tmp_path, "b", options={"power": 2, "same": 0})
    write_run(tmp_path, "c", dataset="cows", options={"power": 3, "same": 0})
    assert sorted(setting["name"] for setting in document(tmp_path)["settings"]) == [
        "ERM",
        "ERM power=1",
        "ERM power=2",
    ]


def test_other_data_under_one_name_is_another_dataset_and_stands_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", seed=1)
    write_run(tmp_path, "c", dataset_fingerprint="g")
    data = document(tmp_path)
    assert {setting["data"]: setting["runs"] for setting in data["settings"]} == {"birds f": 2, "birds g": 1}
    apart = {cell(data, line, "dataset"): line["apart"] for line in data["tables"]["val_wga"]}
    assert apart == {"birds f": None, "birds g": "other data: fingerprint g instead of f"}


def test_another_recipe_stands_apart_with_the_reason_and_behind_the_others(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, f"a{seed}", seed=seed, wga=0.7)
    write_run(tmp_path, "b", wga=0.9, epochs=9)
    write_run(tmp_path, "c", wga=0.8, epochs=8)
    lines = document(tmp_path)["tables"]["val_wga"]
    assert [line["apart"] for line in lines] == [
        None,
        "another recipe: train.epochs=9 instead of 3",
        "another recipe: train.epochs=8 instead of 3",
    ]
    assert lines[1]["best"] is None, "it is no draw of the others"


def test_draws_are_chosen_on_validation_and_another_budget_stands_apart(tmp_path: Path) -> None:
    for power, wga in ((1, 0.7), (2, 0.9), (3, 0.8)):
        for seed in range(2):
            write_run(tmp_path, f"erm{power}{seed}", seed=seed, wga=wga, options={"power": power}, val_wga=1 - wga)
    write_run(tmp_path, "lff", label="LfF", wga=0.99)
    data = document(tmp_path)
    best = {cell(data, line, "method"): line["best"] for line in data["tables"]["val_wga"]}
    assert best == {
        "ERM power=1": {"draws": 3, "apart": None},
        "ERM power=2": None,
        "ERM power=3": None,
        "LfF": {"draws": 1, "apart": "another tuning budget: best of 1 draws instead of 3"},
    }
    assert {cell(data, line, "draws") for line in data["tables"]["val_wga"]} == {"1"}, "until best ones are asked for"


def publication(**changes: Any) -> Reported:
    facts: dict[str, Any] = {
        "method": "ERM", "variant": "plain", "dataset": "Birds", "backbone": "Net-50", "pretraining": "ImageNet",
        "metric": "worst_group_acc", "value": 72.6, "std": 0.34, "seeds": 5, "selection": "worst-group val",
        "average": "", "source": "a paper, Table 1", "evidence": "secondary", "note": "one trial",
        "counterpart": ("ERM", "birds", "net", "worst_group_accuracy"),
    }  # fmt: skip
    return Reported(**facts | changes)


def test_published_numbers_stand_beside_measured_ones_and_are_in_none_of_them(results: Path) -> None:
    average = "weighted by training prevalence"
    rows = [
        publication(),
        publication(value=97.0, std=None, average=average, counterpart=("ERM", "birds", "net", "adjusted_accuracy")),
        publication(value=71.0, note="another trial"),
        publication(backbone="Other", counterpart=("", "birds", "other", "accuracy"), pretraining="", selection=""),
        publication(counterpart=("ERM", "whales", "net", "accuracy")),
        publication(counterpart=None),
    ]
    alone, data = document(results), document(results, published=rows)
    assert data["published_elsewhere"] == 2
    assert (data["tables"], data["runs"]) == (alone["tables"], alone["runs"])
    assert data["settings"][: len(alone["settings"])] == alone["settings"]
    first, second, third = data["published"]
    titles = ("method", "WGA", "accuracy", "seeds", "draws", "rule", "dataset", "backbone", "pretraining", "average")
    assert [cell(data, first, title) for title in titles] == [
        "ERM plain (published)", "72.6 ± 0.3", "-", "5", "-", "worst-group val", "birds", "net", "ImageNet",
        f"97.0: {average}",
    ]  # fmt: skip
    assert cell(data, first, "source") == "a paper, Table 1; secondary; one trial"
    assert (cell(data, second, "WGA"), cell(data, second, "average")) == ("71.0 ± 0.3", "-")
    assert [cell(data, third, title) for title in titles[5:]] == [
        "not stated", "birds", "other", "not stated", "not stated",
    ]  # fmt: skip
    assert data["settings"][first["setting"]]["among"] == ["birds", "net"]
    assert data["settings"][third["setting"]]["among"] == ["birds"]


def test_every_published_number_with_a_counterpart_can_stand_beside_one(tmp_path: Path) -> None:
    rows = load_reported(shipped())
    datasets = sorted({row.counterpart[1] for row in rows if row.counterpart})
    for number, dataset in enumerate(datasets):
        write_run(tmp_path, f"run{number}", dataset=dataset)
    data = document(tmp_path, published=rows)
    metrics = ("WGA", "accuracy", "EPG", "group mean")
    shown = sum(cell(data, line, title) != "-" for line in data["published"] for title in metrics)
    beside_their_definition = sum(
        row.counterpart is not None and row.counterpart[3] == "adjusted_accuracy" for row in rows
    )
    assert shown + beside_their_definition + data["published_elsewhere"] == len(rows)
    assert data["published_elsewhere"] == sum(row.counterpart is None for row in rows)


def test_the_order_of_sources_does_not_matter(results: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (results / "runs").iterdir())
    shuffled = random.Random(0).sample(names, len(names))
    for place, name in enumerate(shuffled):
        shutil.copytree(results / "runs" / name, tmp_path / "apart" / str(place) / "runs" / name)
    apart = fold([tmp_path / "apart" / str(place) for place in range(len(names))])
    assert page_data(tables_of(apart), {}) == page_data(tables_of(fold([results])), {})


def test_a_method_without_other_rules_is_in_every_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    folder = write_run(tmp_path, "b", label="DFR", wga=0.95)
    record = json.loads((folder / "result.json").read_text())
    del record["rows"][0]
    (folder / "result.json").write_text(json.dumps(record))
    data = document(tmp_path)
    assert cell(data, line(data, "DFR"), "rule") == "last"
    assert [line["cells"][0] for line in data["tables"]["val_wga"]] == ["DFR", "ERM"]


def test_rows_that_cannot_be_used_are_named_and_the_others_served(tmp_path: Path) -> None:
    write_run(tmp_path, "good")
    write_run(tmp_path, "text", label="A", accuracy="much")
    write_run(tmp_path, "unread", label="B", config_json="{")
    write_run(tmp_path, "nan", label="C", accuracy=float("nan"))
    write_run(tmp_path, "list", label="D", stage_masks=[1])
    write_run(tmp_path, "newer", label="E", schema_version=99)
    write_run(tmp_path, "odd", label="F", groups=[{"n": 3}, {"group": 1, "n": 0, "correct": 0}], stage_masks=[{}])
    data = document(tmp_path)
    reasons = {
        "text": "accuracy should be float",
        "unread": "config_json is no run's configuration",
        "nan": "accuracy is nan",
        "list": "a value does not fit its column",
        "newer": "schema 99 is newer than this spurbench's",
        "odd": "a value does not fit its column",
    }
    assert len(data["problems"]) == len(reasons)
    for reason in reasons.values():
        assert any(text.startswith("left out, damaged: ") and reason in text for text in data["problems"]), reason
    assert [line["cells"][0] for line in data["tables"]["val_wga"]] == ["ERM"]
    json.dumps(data, allow_nan=False)


def test_a_conflict_is_told_and_the_last_source_counts(tmp_path: Path) -> None:
    for place, wga in (("one", 0.7), ("two", 0.8)):
        write_run(tmp_path / place, "same", wga=wga)
    data = document(tmp_path / "one", tmp_path / "two")
    assert cell(data, line(data, "ERM"), "WGA") == "80.0"
    (told,) = [text for text in data["problems"] if "(val_wga)" in text]
    assert told == (
        "conflict: run same (val_wga) is there 2 times with different numbers: worst_group_accuracy "
        f"0.7 in {clip(tmp_path / 'one')}, 0.8 in {clip(tmp_path / 'two')}; the last one counts"
    )


def test_of_very_many_problems_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    write_run(tmp_path, "good")
    for number in range(60):
        (write_run(tmp_path, f"bad{number:02}") / "result.json").write_text("")
    told = document(tmp_path)["problems"]
    assert len(told) == 51
    assert told[-1] == "and 10 more damaged records"


def test_names_of_very_many_groups_are_on_the_page_once(tmp_path: Path) -> None:
    names = tuple(f"a group with a long name {number}" for number in range(372))
    for seed in range(3):
        for label in ("A", "B", "C", "D"):
            write_run(tmp_path, f"{label}{seed}", seed=seed, label=label, group_names=names)
    data = document(tmp_path)
    (kind,) = data["group_sets"]
    assert kind["names"] == list(names)
    assert len(line(data, "A")["groups"]["accuracy"]) == 372
    assert "long name" not in json.dumps(data["tables"])


def test_mask_density_per_group_comes_from_the_table_of_epochs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", label="AIM[2,25%]", stages=2, tau=0.25)
    rows = pq.read_table(folder / "epochs.parquet").to_pylist()
    by_group = [None, [[0.1, None], [0.3, 0.4]], [[0.2, None], [0.3, 0.4]]]
    changed = [row | {"val_density_by_group": value} for row, value in zip(rows, by_group, strict=True)]
    pq.write_table(pa.Table.from_pylist(changed), folder / "epochs.parquet")
    curves = curves_of(folder)
    assert curves is not None
    assert curves["by_group"] == [[[None, 0.1, 0.2], [None, None, None]], [[None, 0.3, 0.3], [None, 0.4, 0.4]]]


def test_numbers_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("epg", "epg_source", "gmacs", "gmacs_backbone", "params", "epg_base_rate", "groups"))
    write_run(tmp_path, "a", **nothing)
    data = document(tmp_path)
    (found,) = data["tables"]["val_wga"]
    absent = ("WGA 95 %", "EPG", "base rate", "density", "GMACs", "params M", "img/s")
    assert {cell(data, found, title) for title in absent} == {"-"}


def test_long_trainings_are_thinned_and_keep_their_end(tmp_path: Path) -> None:
    curves = curves_of(write_run(tmp_path, "a", epochs=1000))
    assert curves is not None
    assert len(curves["epochs"]) <= 151
    assert (curves["epochs"][0], curves["epochs"][-1]) == (1, 1000)
    assert curves["series"]["train_loss"][-1] == 0.001


@pytest.mark.parametrize("content", [b"", b"PAR1 no table", None])
def test_curves_that_cannot_be_read_are_left_out(tmp_path: Path, content: bytes | None) -> None:
    folder = write_run(tmp_path, "a")
    (folder / "epochs.parquet").unlink()
    if content is not None:
        (folder / "epochs.parquet").write_bytes(content)
    assert curves_of(folder) is None
    assert document(tmp_path)["settings"][0]["curves"] == []


def test_clipped_strings_are_short_and_still_differ() -> None:
    long = "x" * 10_000
    assert clip("short") == "short"
    assert len(clip(long + "a")) < 200
    assert clip(long + "a") != clip(long + "b")
    assert clip("\ud800" * 200)  # half a character, as a damaged record may hold


def test_short_numbers() -> None:
    assert short(0.123456789) == 0.123457
    assert short(float("nan")) is short(float("inf")) is short(None) is None


def test_json_in_a_page_is_no_markup_and_reads_the_same() -> None:
    hostile = {"a": "</script><script>alert(1)</script>", "b": "<!--", "c": "&lt;\u2028\ud800 'x' \"y\""}
    text = script_json(hostile)
    assert not re.search("[<>&\u2028\ud800]", text)
    assert json.loads(text) == hostile


def test_only_the_scripts_of_the_page_may_run() -> None:
    pytest.importorskip("plotly")
    text = page({"a": 1})
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]


def test_the_command_writes_one_file_and_says_what_is_in_it(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    write_run(results, "failed")
    (results / "runs" / "failed" / "result.json").write_text('{"run_id": "failed", "status": "failed", "rows": []}')
    (results / "runs" / "erm0" / "result.json").write_text("{half")
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(results), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert re.search(r"report.html \(.* MB, 8 runs of 3 settings, 0 galleries\)", said.out)
    assert "skipped a damaged record" in said.err
    assert "1 failed runs are not in the report: failed" in said.err
    assert out.read_text().startswith("<!doctype html>")
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_tables_and_folders_together_the_later_one_counts(results: Path, tmp_path: Path) -> None:
    table = tmp_path / "all.parquet"
    fold([results]).write(table)
    newer = tmp_path / "newer"
    write_run(newer, "erm0", seed=0, wga=0.8)
    data = document(table, newer)
    assert line(data, "ERM")["values"]["worst_group_accuracy"][0] == pytest.approx((0.8 + 0.71 + 0.72) / 3)


def test_without_plotly_it_says_what_to_install(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(results)]) == 2
    assert "pip install -e '.[plots]' -c constraints.txt" in capsys.readouterr().err


def test_no_runs_is_said_with_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly")
    out = ["-o", str(tmp_path / "report.html")]
    assert main(["report", str(tmp_path), *out]) == 2
    assert "there are no finished runs" in capsys.readouterr().err
    assert main(["report", str(tmp_path), str(tmp_path / "absent"), *out]) == 2
    assert f"nothing at {tmp_path}/absent; name result folders" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("number", ["-1", "two", "²"])
def test_a_wrong_number_of_galleries_is_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", f"--gallery={number}"])
    assert stopped.value.code == 2
    assert "a whole number from 0" in capsys.readouterr().err


def test_a_gallery_shows_the_worst_groups_most_confident_failures(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", epochs=5)
    columns = {
        "epoch": [4, 4, 4, 4, 4, 3],
        "index": [0, 1, 2, 3, 4, 5],
        "y": [0] * 6,
        "group": [0, 0, 0, 1, 0, 0],
        "predicted": [1, 1, 0, 1, 1, 1],
        "confidence": [0.6, 0.9, 0.99, 0.95, 0.7, 1.0],
    }
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    row = json.loads((folder / "result.json").read_text())["rows"][0]
    assert failures._failures(folder, row, 2) == [1, 4]
    assert failures._failures(folder, row, 9) == [1, 4, 0]


def test_weights_without_what_they_belong_to_make_no_gallery(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("plotly")
    (results / "runs" / "aim0.250" / "weights").mkdir()
    (results / "runs" / "aim0.250" / "weights" / "phase0_epoch0002.pt").write_bytes(b"")
    out = tmp_path / "report.html"
    assert main(["report", str(results), "-o", str(out)]) == 0
    assert "no gallery of run aim0.250: the predictions of run aim0.250 are not here" in capsys.readouterr().err
