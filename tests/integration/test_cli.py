"""The command line as a person uses it: outputs, exit codes, and what bad input gets to read."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from spurbench.attribution.registry import ATTRIBUTIONS, Attribution
from spurbench.cli import main
from spurbench.config import AttributionName


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPURBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


TINY = ("--set", "train.epochs=1", "--set", "evaluation.attributions=[]", "--set", "evaluation.erasure=false")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "--method", "amm", "--dataset", "minibirds100"], ["did you mean 'aim'?", "spurbench list methods"]),
        (["run", "--method", "aim", "--dataset", "minibird100"], ["did you mean 'minibirds100' or "]),
        (["run", "--method", "aim[9,25%]", "--dataset", "minibirds100"], ["num_stages 9", "4 stages", "1 to 4"]),
        (["run", "--method", "aim[1,150%]", "--dataset", "minibirds100"], ["method.tau", "1.5"]),
        (["run", "--method", "aim[1,0%]", "--dataset", "minibirds100"], ["method.tau", "greater than 0"]),
        (["run", "--method", "aim[1", "--dataset", "minibirds100"], ["cannot read method", "aim[2,35%]"]),
        (["run", "--method", "erm[3]", "--dataset", "minibirds100"], ["too many values in brackets"]),
        (["show", "--method", "aim", "--dataset", "minibirds100", "--set", "method.taus=1"], ["method.taus", "'tau'"]),
        (
            ["show", "--method", "aim", "--dataset", "minibirds100", "--set", "trian.epochs=1"],
            ["did you mean 'train'?"],
        ),
        (["show", "--method", "aim", "--dataset", "minibirds100", "--set", "epochs=1"], ["needs a section"]),
        (["show", "--method", "aim", "--dataset", "minibirds100", "--set", "train.epochs"], ["KEY=VALUE"]),
        (["show", "--method", "erm", "--dataset", "minibirds100", "--lr", "nan"], ["train.optimizer.lr", "finite"]),
        (["show", "--method", "erm", "--dataset", "minibirds100", "--epochs", "0"], ["train.epochs", "greater than 0"]),
        (["show", "--method", "erm", "--dataset", "minibirds100", "--preset", "minibird"], ["'minibirds'", "convnext"]),
        (["show", "--method", "erm", "--dataset", "minibirds100", "--backbone", "resnet5"], ["'resnet50'"]),
        (["show", "--method", "erm", "--dataset", "minibirds100", "--weights", "no/such.pt"], ["no weights file"]),
        (["show", "--method", "erm", "--dataset", "minibirds100", "--plugin", "none.py"], ["no plugin file"]),
        (["run", "--method", "erm", "--dataset", "waterbirds100"], ["--data-root", "SPURBENCH_DATA"]),
        (["run", "--method", "erm", "--dataset", "waterbirds95", "--data-root", "."], ["metadata.csv", "minibirds"]),
        (["run", "--method", "erm", "--dataset", "./nothere"], ["nothere"]),
        (["run", "--method", "erm", "--dataset", "minibirds100", "--device", "cuda:99"], ["not available"]),
        (["run", "--method", "erm", "--dataset", "minibirds100", "--backbone", "resnet18"], ["prefetch resnet18"]),
        (["run", "--method", "erm", "--dataset", "minibirds100", "--seed", "-1"], ["seed"]),
        (["run", "--method", "erm", "--dataset", "minibirds100", "--epoch", "3"], ["--epochs"]),
        (["rnu"], ["did you mean 'run'?"]),
        (["leaderboard", "nowhere"], ["nothing at nowhere"]),
        (["explain", "0123"], ["no run '0123'"]),
        (["explain", "--attribution", "gradcm"], ["gradcm", "'gradcam'"]),
        (
            ["show", "--method", "erm", "--dataset", "minibirds100", "--set", "evaluation.attributions=[cam]"],
            ["evaluation.attributions", "'gradcam'", "'uniform'"],
        ),
        (["cost", "--method", "aim[7,30%]"], ["num_stages 7"]),
        (["cost", "--method", "aim", "--set", "train.epochs=3"], ["options of the method only"]),
        (["sweep", "none.yaml"], ["no sweep file"]),
        (["data", "generate", "waterbirds95", "--to", "x"], ["cannot be generated", "minibirds95"]),
    ],
)
def test_bad_input_is_explained(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: list[str]) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    for text in expected:
        assert text in err
    assert "Traceback" not in err


def test_debug_shows_the_cause(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="unknown method"):
        main(["run", "--method", "amm", "--dataset", "minibirds100", "--debug"])


@pytest.mark.slow
def test_run_prints_one_document_and_is_not_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("run", "--method", "aim[2,35%]", "--dataset", "minibirds100", "--epochs", "1", "--json", "--seed", "3")
    code, out, err = call(capsys, *arguments)
    assert code == 0, err
    document = json.loads(out)
    assert set(document) == {"run_id", "config", "rows", "machine"}
    rows = {row["selection"]: row for row in document["rows"]}
    assert set(rows) == {"val_wga", "val_worst_class", "val_accuracy", "last"}
    row = rows["val_wga"]
    assert (row["label"], row["num_stages"], row["tau"], row["seed"]) == ("AIM[2,35%]", 2, 0.35, 3)
    assert row["accuracy"] == row["n_correct"] / row["n"]
    assert row["worst_group_accuracy"] == min(group["correct"] / group["n"] for group in row["groups"])
    assert row["epg_source"] == "mask"
    assert 0 < row["epg"] < 1
    assert {(entry["source"], entry["region"]) for entry in row["epg_all"]} == {
        (source, region) for source in ("mask", "gradcam") for region in ("mask", "box")
    }
    assert row["gmacs"] > row["gmacs_backbone"]
    assert row["params"] > row["params_backbone"]

    started = time.monotonic()
    code, again, _ = call(capsys, *arguments)
    assert code == 0
    assert json.loads(again) == document
    assert time.monotonic() - started < 2

    code, out, _ = call(capsys, "leaderboard", "--select", "last", "--format", "json", "--output", "all.parquet")
    board = json.loads(out)
    assert [entry["label"] for entry in board["table"]] == ["AIM[2,35%]"]
    assert board["table"][0]["n_seeds"] == 1
    assert board["table"][0]["worst_group_accuracy_sd"] is None
    import pandas as pd

    frame = pd.read_parquet("all.parquet")
    assert sorted(frame["selection"]) == sorted(rows)

    kinds = {(entry["erased"], entry["fill"]): entry for entry in row["erasure"]}
    assert set(kinds) == {(e, f) for e in ("outside", "inside", "outside_control") for f in ("mean", "blur")}
    for (erased, _), entry in kinds.items():
        assert entry["n"] == row["n"] - (erased == "outside_control")
        assert 0 <= min(entry["agree"], entry["correct"]) <= max(entry["agree"], entry["correct"]) <= entry["n"]

    code, out, _ = call(capsys, "explain", "-o", "masks.png", "--count", "4")
    assert code == 0
    assert Path("masks.png").read_bytes().startswith(b"\x89PNG")
    with Image.open("masks.png") as sheet:
        assert sheet.height == 6 * 148  # input, object, mask, those of two stages, GradCAM
    for name in get_args(AttributionName):  # in GradCAM's place
        code, out, err = call(capsys, "explain", "-o", "more.png", "--count", "4", "--attribution", name)
        assert code == 0, err
        with Image.open("masks.png") as sheet, Image.open("more.png") as more:
            assert more.width == sheet.width
            assert more.height == sheet.height

    def refuse(*_: object) -> None:
        raise ValueError("no such layer")

    with monkeypatch.context() as patch:
        patch.setitem(ATTRIBUTIONS, "gradcam", Attribution(refuse, "bilinear"))  # type: ignore[arg-type]
        assert call(capsys, "explain", "-o", "less.png", "--count", "4")[0] == 0  # the mask says enough
        code, _, err = call(capsys, "explain", document["run_id"], "-o", "no.png", "--attribution", "gradcam")
    assert code == 2
    assert "no such layer; choose another --attribution" in err
    with Image.open("less.png") as sheet:
        assert sheet.height == 5 * 148

    code, out, _ = call(capsys, "run", "--algorithm", "AIM[2,0.35]", *arguments[3:])
    assert json.loads(out)["run_id"] == document["run_id"]


def test_show_agrees_with_run_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "show", "--method", "aim[2,35%]", "--dataset", "minibirds95", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["config"]["method"]["config"]["tau"] == 0.35
    assert not Path("results").exists()
    _, text, _ = call(capsys, "show", "--method", "aim[2,35%]", "--dataset", "minibirds95")
    assert document["run_id"] in text


def test_cost_prints_flat_keys(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "cost", "--method", "aim[1,25%]", "--backbone", "convnext_tiny", "--json")
    document = json.loads(out)
    assert code == 0
    assert {"gmacs", "gmacs_backbone", "params", "params_backbone"} <= set(document)
    assert document["image_size"] == 224
    assert document["num_classes"] == 1000


@pytest.mark.parametrize("what", ["methods", "datasets", "backbones", "presets"])
def test_list_names_everything(capsys: pytest.CaptureFixture[str], what: str) -> None:
    code, out, _ = call(capsys, "list", what, "--json")
    names = [item["name"] for item in json.loads(out)]
    assert code == 0
    assert len(names) == len(set(names))
    expected = {"methods": "aim", "datasets": "minibirds100", "backbones": "convnext_tiny", "presets": "minibirds"}
    assert expected[what] in names


@pytest.mark.slow
def test_official_layout_end_to_end(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """minibirds written as WaterBirds, read by the real loader, by name and as a plain folder; then damaged."""
    assert call(capsys, "data", "generate", "minibirds100", "--to", "data")[0] == 0
    what = ("--method", "aim", "--preset", "minibirds", *TINY, "--json")
    code, out, err = call(capsys, "run", "--dataset", "waterbirds100", "--data-root", "data", *what)
    assert code == 0, err
    row = json.loads(out)["rows"][0]
    assert "published" in caplog.text  # counts differ from the archive's: said, not refused
    assert [group["name"] for group in row["groups"]] == [
        "landbird/land", "landbird/water", "waterbird/land", "waterbird/water",
    ]  # fmt: skip
    assert row["n"] == 1000
    assert row["epg_n"] + row["epg_no_region"] == 1000

    folder = "data/waterbird_1.0_forest2water2"
    code, out, err = call(capsys, "run", "--dataset", folder, *what)
    assert code == 0, err
    assert json.loads(out)["rows"][0]["dataset"].startswith("folder:")

    victim = sorted(Path(folder).glob("*/*.jpg"))[5]
    victim.write_bytes(victim.read_bytes()[:200])
    code, out, err = call(capsys, "run", "--dataset", folder, "--seed", "1", *what)
    assert code == 2
    assert victim.name in err
    assert "row" in err or "line" in err


def test_sweep_plans_runs_and_skips(capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text(
        "datasets: [minibirds100]\nseeds: 0-2\n"
        "methods: [erm, {name: aim, grid: {num_stages: [1, 2], tau: [0.25, 0.35]}}]\n"
        "train: {optimizer: {lr: 1.0e-4}}\n"
    )
    code, out, err = call(capsys, "sweep", "s.yaml", "--dry-run", "--json")
    planned = json.loads(out)["runs"]
    assert code == 0
    assert len(planned) == 15
    assert len({run["run"] for run in planned}) == 15
    assert "15 waiting" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datasets: [minibirds100]\nmethods: []\n", "methods"),
        ("datasets: [minibirds100]\nmethods: [erm]\nsedes: 0-1\n", "did you mean 'seeds'?"),
        ("datasets: [minibirds100]\nmethods: [{name: aim, grid: {tau: [0.2, 2]}}]\n", "method.tau"),
        ("datasets: [minibirds100]\nmethods: [erm]\nseeds: a-b\n", "seeds"),
        ("datasets: [minibirds100]\nmethods: [erm]\nexclude: [{method: emr}]\n", "matches no run"),
        ("datasets: [minibirds100]\nmethods: [erm]\nexclude: [{method: erm}]\n", "everything is excluded"),
        ("datasets: [minibirds100]\nmethods: [{name: erm, train: {epoch: 2}}]\n", "train.epoch"),
        ("- just\n- a list\n", "must hold"),
        ("datasets: [", "not valid YAML"),
    ],
)
def test_sweep_files_are_checked_completely(capsys: pytest.CaptureFixture[str], text: str, expected: str) -> None:
    Path("s.yaml").write_text(text)
    code, _, err = call(capsys, "sweep", "s.yaml")
    assert code == 2
    assert expected in err
    assert not Path("results").exists()


def test_help_costs_little_more_than_argparse() -> None:
    def best(command: list[str]) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        return min(times)

    bare = best([sys.executable, "-c", "import argparse, json"])
    assert best([str(Path(sys.executable).parent / "spurbench"), "--help"]) < 3 * bare
