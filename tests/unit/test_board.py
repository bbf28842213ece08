"""The leaderboard as people and programs get it: rules side by side, every format, hostile names."""

import csv
import gc
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import write_run

from spurbench.cli import main
from spurbench.cli.latex import escaped
from spurbench.metrics.stats import mean_sd

ROOT = Path(__file__).parents[2]
METHODS = str(ROOT / "results" / "minibirds_methods.parquet")


def board(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["leaderboard", *arguments]) == 0
    return capsys.readouterr().out


def cells(text: str) -> list[dict[str, str]]:
    """Lines of a Markdown table by column."""
    header, _, *lines = [
        [cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in range(4):
        write_run(tmp_path / "r", f"a{seed}", seed=seed, label="AIM[1,25%]", wga=0.9 + 0.01 * seed, stages=1, tau=0.25)
        write_run(tmp_path / "r", f"b{seed}", seed=seed, label="ERM", wga=0.7 + 0.011 * seed)
        path = write_run(tmp_path / "r", f"c{seed}", seed=seed, label="DFR", wga=0.85) / "result.json"
        document = json.loads(path.read_text())
        document["rows"] = document["rows"][1:]
        path.write_text(json.dumps(document))
    return tmp_path / "r"


@pytest.mark.parametrize("arguments", [["--select", "val_wga,last"], ["--select", "val_wga", "--select", "last"]])
def test_rules_side_by_side_are_the_tables_one_by_one(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    both = {line["method"]: line for line in cells(board(capsys, str(results), *arguments, "--format", "markdown"))}
    for rule in ("val_wga", "last"):
        alone = cells(board(capsys, str(results), "--select", rule, "--format", "markdown"))
        assert {line["method"]: (line["WGA"], line["accuracy"]) for line in alone} == {
            name: (line[f"WGA {rule}"], line[f"accuracy {rule}"]) for name, line in both.items()
        }
    assert {name: line["rule"] for name, line in both.items()} == {
        "AIM[1,25%]": "as named",
        "ERM": "as named",
        "DFR": "last",
    }
    assert both["ERM"]["WGA val_wga"] != both["ERM"]["WGA last"]


def test_the_oracle_stands_only_where_runs_have_it(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(results, "oracle", seed=0, label="ERM", options={"o": 1}) / "result.json"
    text = path.read_text().replace('"selection": "last"', '"selection": "oracle_test_wga"')
    path.write_text(text)
    lines = cells(board(capsys, str(results), "--select", "val_wga,oracle_test_wga", "--format", "markdown"))
    assert {line["method"] for line in lines if line["WGA oracle_test_wga"] != "-"} == {"ERM o=1"}
    assert main(["leaderboard", str(results), "--select", "oracle_test_wga", "--format", "json"]) == 0
    said = capsys.readouterr()
    assert [line["label"] for line in json.loads(said.out)["table"]] == ["ERM"]
    assert "4 runs of DFR on birds without rule oracle_test_wga (they have last)" in said.err


def test_json_and_csv_have_every_rule_and_every_seed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(board(capsys, str(results), "--select", "val_wga,last", "--format", "json"))
    assert [(line["rule"], line["selection"], line["label"]) for line in document["table"]] == [
        ("val_wga", "val_wga", "AIM[1,25%]"),
        ("val_wga", "last", "DFR"),
        ("val_wga", "val_wga", "ERM"),
        ("last", "last", "AIM[1,25%]"),
        ("last", "last", "DFR"),
        ("last", "last", "ERM"),
    ]
    assert document["table"][0]["worst_group_accuracy_values"] == [0.9, 0.91, 0.92, 0.93]
    assert document["table"][0]["worst_group_n"] == 100
    lines = list(
        csv.DictReader(io.StringIO(board(capsys, str(results), "--select", "val_wga,last", "--format", "csv")))
    )
    assert [line["seeds"] for line in lines] == ["0 1 2 3"] * 6
    for line, entry in zip(lines, document["table"], strict=True):
        assert float(line["worst_group_accuracy_mean"]) == entry["worst_group_accuracy_mean"]


def test_every_seed_is_printed_on_demand(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = cells(board(capsys, str(results), "--seeds", "--format", "markdown"))
    assert lines[0]["WGA by seed"] == "0: 90.0, 1: 91.0, 2: 92.0, 3: 93.0"
    assert "WGA by seed" not in board(capsys, str(results))


def test_the_resolution_of_the_worst_group_is_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "one test image of the smallest group of birds is 1 points of WGA" in board(capsys, str(results))
    assert "of minibirds100, minibirds95 is 0.4 points of WGA" in board(capsys, METHODS)


def test_measured_speed_beside_the_plain_backbones(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(results, "fast", label="Fast") / "result.json"
    document = json.loads(path.read_text())
    document["machine"] |= {"images_per_second": 300.0, "images_per_second_backbone": 400.0}
    path.write_text(json.dumps(document))
    speeds = {line["method"]: line["img/s"] for line in cells(board(capsys, str(results), "--format", "markdown"))}
    assert speeds == {"Fast": "300 (0.75x)", "AIM[1,25%]": "-", "ERM": "-", "DFR": "-"}


def test_what_does_not_compare_is_left_out_told_and_shown_on_demand(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(results, "long", label="ERM", epochs=30, wga=0.99)
    assert main(["leaderboard", str(results), "--format", "markdown"]) == 0
    said = capsys.readouterr()
    assert [line["method"] for line in cells(said.out)] == ["AIM[1,25%]", "DFR", "ERM"]
    assert "not ranked: ERM on birds, 1 runs: another recipe: train.epochs=30 instead of 3" in said.err
    assert "--mixed shows them" in said.err
    assert main(["leaderboard", str(results), "--format", "markdown", "--mixed"]) == 0
    said = capsys.readouterr()
    assert [line["method"] for line in cells(said.out)] == [
        "ERM train.epochs=30",
        "AIM[1,25%]",
        "DFR",
        "ERM train.epochs=3",
    ]
    assert said.err == ""


def test_other_data_and_versions_have_names_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "a", dataset_fingerprint="f" * 64)
    write_run(tmp_path, "b", dataset_fingerprint="g" * 64)
    write_run(tmp_path, "c", dataset_version="2", weights="tag:other")
    lines = cells(board(capsys, str(tmp_path), "--mixed", "--format", "markdown"))
    assert sorted(line["dataset"] for line in lines) == ["birds 1 " + "f" * 15, "birds 1 " + "g" * 15, "birds 2"]
    assert sorted(line["backbone"] for line in lines) == ["net none", "net none", "net tag:other"]


def test_a_table_of_many_lines_is_printed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(501):
        write_run(tmp_path, f"r{number}", label=f"M{number:03}")
    lines = board(capsys, str(tmp_path)).splitlines()
    assert lines[1].split()[:3] == ["method", "WGA", "WGA"]
    assert [line.split()[0] for line in lines[3:504]] == [f"M{number:03}" for number in range(501)]
    assert len({len(line) for line in lines[1:504]}) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--select", "val_wg"], ["unknown rule 'val_wg'", "did you mean val_wga?", "available: val_wga"]),
        (["--select", "val_wga,"], ["unknown rule ''"]),
        (["--select", "val_wga,last", "--against", "paper"], ["one to --select"]),
        (["--select", "val_accuracy", "--format", "csv"], ["no run below", "offer last, val_wga"]),
    ],
)
def test_bad_requests_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]
) -> None:
    write_run(tmp_path, "a")
    try:
        code = main(["leaderboard", str(tmp_path), *arguments])
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_memory_is_searched_for_circles_again_afterwards(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(results)]) == 0
    assert gc.isenabled()
    assert main(["leaderboard", str(results / "nowhere")]) != 0
    assert gc.isenabled()


def test_nothing_finished_is_told_with_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "a" / "result.json").write_text("")
    assert main(["leaderboard", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"skipped a damaged record: {tmp_path / 'runs' / 'a' / 'result.json'}: it is empty" in said
    assert "there are no finished runs" in said


# --- LaTeX ---


def test_latex_is_bold_only_where_the_best_is_clear(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = board(capsys, str(results), "--format", "latex")
    assert r"AIM[1,25\%] & $\mathbf{91.5} \pm 1.3$ &" in text
    assert text.count(r"\mathbf") == 1
    assert "% birds, net, val_wga: AIM[1,25%] is above all others (Holm-adjusted p <" in text
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert lines[:2] == [r"\begin{tabular}{lrrr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    rows = [line for line in lines if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    assert {line.count("&") for line in rows} == {3}


def test_latex_without_seeds_enough_is_not_bold_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "a", label="A", wga=0.9)
    write_run(tmp_path, "b", label="B", wga=0.1)
    text = board(capsys, str(tmp_path), "--format", "latex", "--select", "val_wga,last")
    assert r"\mathbf" not in text
    assert "% birds, net, last: A and B have 1 seeds in common, 4 are needed" in text
    assert r"method & WGA val\_wga & accuracy val\_wga & WGA last & accuracy last & seeds \\" in text


def test_names_cannot_break_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a_b & 50% $x$ \\input{/etc/passwd} | <b> # ~ ^ \n new"
    write_run(tmp_path, "a", label=name, dataset=name)
    text = board(capsys, str(tmp_path), "--format", "latex")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert r"\input" not in body.replace(r"\textbackslash{}input", "")
    assert r"a\_b \& 50\% \$x\$ \textbackslash{}input\{/etc/passwd\} \textbar{}" in body
    for kind in ("table", "markdown", "csv"):
        assert main(["leaderboard", str(tmp_path), "--format", kind]) == 0
    assert len(cells_of_one_line(capsys.readouterr().out)) == 1


def cells_of_one_line(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text[text.index("rule,") :])))


@given(st.text(max_size=40))
def test_any_text_becomes_one_line_without_commands_of_its_own(text: str) -> None:
    found = escaped(text)
    plain = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "", found)
    plain = re.sub(r"\\[{}&%$#_]|\$\\pm\$", "", plain)
    assert not set(plain.strip("{}")) & set("\\{}&%$#_~^\n\r")


# --- spread ---


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_spread_is_that_of_the_standard_library(values: list[float]) -> None:
    import statistics

    mean, deviation = mean_sd(values)
    assert mean == statistics.fmean(values)
    assert deviation == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-16)


def test_hostile_names_stay_in_their_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "=cmd|calc <script>\n\x1b[31m\u202ered " + "x" * 10_000
    write_run(tmp_path, "a", label=name)
    assert main(["leaderboard", str(tmp_path), "--format", "markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(lines) == 3
    assert "<script>" not in lines[2]
    assert main(["leaderboard", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert max(map(len, out.splitlines())) < 1000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--output", "rows.csv"], "name a file that ends in .parquet"),
        (["--against", "paper", "--format", "latex"], "choose --format csv, markdown or json"),
    ],
)
def test_what_is_not_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    write_run(tmp_path, "a")
    assert main(["leaderboard", str(tmp_path), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_against_in_csv(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = Path(__file__).parents[2] / "results" / "minibirds_methods.parquet"
    assert main(["leaderboard", str(shipped), "--against", "paper", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("method,dataset,backbone,")
