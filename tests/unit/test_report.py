"""The report's data: the leaderboard's numbers, names that tell apart, and nothing that a page could trip over."""

import base64
import hashlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from records import write_run

from spurbench.cli import main
from spurbench.leaderboard import collect, write_parquet
from spurbench.report import failures
from spurbench.report.curves import curves_of
from spurbench.report.page import page, script_json
from spurbench.report.page_data import clip, page_data, settings_of, short


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


def document(*folders: Path) -> dict[str, Any]:
    found = collect(folders)
    runs = {path.name: path for folder in folders for path in (folder / "runs").iterdir()}
    curves = {run: read for run, folder in runs.items() if (read := curves_of(folder)) is not None}
    return page_data(settings_of(found.rows), curves)


def line(data: dict[str, Any], name: str, rule: str = "val_wga") -> dict[str, Any]:
    (found,) = [line for line in data["tables"][rule] if line["cells"][0] == name]
    return found


def test_the_table_reads_as_the_leaderboard_of_the_command_line(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(results, "best", wga=0.97, label="Mixup")  # neither the first name nor the first run
    data = document(results)
    titles = [column["title"] for column in data["columns"]]
    for rule in ("val_wga", "last"):
        assert main(["leaderboard", str(results), "--select", rule, "--format", "markdown"]) == 0
        header, _, *lines = [
            [cell.strip() for cell in text.strip("| \n").split(" | ")]
            for text in capsys.readouterr().out.splitlines()
            if text.startswith("|")
        ]
        printed = [[cells[header.index(title)] for title in titles] for cells in lines]
        assert [line["cells"] for line in data["tables"][rule]] == printed


def test_lines_hold_means_over_seeds_of_the_rule(results: Path) -> None:
    data = document(results)
    assert data["rules"] == ["val_wga", "last"]
    erm = line(data, "ERM")
    assert erm["values"]["worst_group_accuracy"] == [pytest.approx(0.71), pytest.approx(0.01)]
    assert line(data, "ERM", "last")["values"]["worst_group_accuracy"][0] == pytest.approx(0.61)
    assert [group["accuracy"][0] for group in erm["groups"]] == pytest.approx([0.71, 0.98, 0.98, 0.98])
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


def test_other_data_under_one_name_is_another_dataset(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", dataset_fingerprint="g")
    assert sorted(setting["data"] for setting in document(tmp_path)["settings"]) == ["birds f", "birds g"]


def test_the_order_of_files_does_not_matter(results: Path, tmp_path: Path) -> None:
    rows = collect([results]).rows
    shuffled = random.Random(0).sample(rows, len(rows))
    assert page_data(settings_of(shuffled), {}) == page_data(settings_of(rows), {})


def test_a_method_without_other_rules_is_in_every_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    folder = write_run(tmp_path, "b", label="DFR", wga=0.95)
    record = json.loads((folder / "result.json").read_text())
    del record["rows"][0]
    (folder / "result.json").write_text(json.dumps(record))
    data = document(tmp_path)
    assert line(data, "DFR")["cells"][5] == "last"
    assert [line["cells"][0] for line in data["tables"]["val_wga"]] == ["DFR", "ERM"]


def test_rows_that_cannot_be_used_are_named_and_the_others_served(tmp_path: Path) -> None:
    write_run(tmp_path, "good")
    write_run(tmp_path, "text", label="A", accuracy="much")
    write_run(tmp_path, "unread", label="B", config_json="{")
    write_run(tmp_path, "nan", label="C", accuracy=float("nan"))
    write_run(tmp_path, "list", label="D", stage_masks=[1])
    data = document(tmp_path)
    assert data["unusable"] == ["list", "text", "unread"]
    assert [line["cells"][0] for line in data["tables"]["val_wga"]] == ["C", "ERM"]
    assert line(data, "C")["values"]["accuracy"] == [None, None]
    json.dumps(data, allow_nan=False)


def test_numbers_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("epg", "epg_source", "gmacs", "gmacs_backbone", "params", "epg_base_rate", "groups"))
    write_run(tmp_path, "a", **nothing)
    (cells,) = [line["cells"] for line in document(tmp_path)["tables"]["val_wga"]]
    assert cells[3] == cells[8] == cells[12] == cells[13] == "-"


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
    write_parquet(collect([results]).rows, table)
    newer = tmp_path / "newer"
    write_run(newer, "erm0", seed=0, wga=0.8)
    found = collect([table, newer])
    data = page_data(settings_of(found.rows), {})
    assert line(data, "ERM")["values"]["worst_group_accuracy"][0] == pytest.approx((0.8 + 0.71 + 0.72) / 3)


def test_without_plotly_it_says_what_to_install(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(results)]) == 2
    assert "pip install 'spurbench[plots]'" in capsys.readouterr().err


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
