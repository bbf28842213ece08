"""A finished run elsewhere: its model in Python, its weights in a file, its numbers on other data."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import spurbench
from spurbench.cli import main
from spurbench.config import RunPaths
from spurbench.data.transforms import evaluation_images
from spurbench.dataset import DatasetInfo
from spurbench.engine import run_one
from spurbench.engine.evaluation import Scorer, load_split
from spurbench.errors import ConfigError, DataMissing
from spurbench.evaluate import evaluate_run
from spurbench.io import read_json, write_json
from spurbench.resolve import RunRequest, dataset_entry, resolve_run
from spurbench.saved import SavedRun, _class_names, load_run

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
CPU = torch.device("cpu")
RECIPE = {
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.optimizer.lr": 1e-3,
    "input.resize": 36,
    "input.image_size": 32,
    "evaluation.attributions": ["gradcam", "input_x_gradient"],
}
DARK = """
from dataclasses import replace
from spurbench.dataset import DatasetTransform

class Dark:
    def __init__(self, plain):
        self.plain, self.y, self.group = plain, plain.y, plain.group
    def __len__(self):
        return len(self.plain)
    def __getitem__(self, index):
        sample = self.plain[index]
        return replace(sample, image=sample.image // 8)

TRANSFORM = DatasetTransform(
    name="dark", version="1", description="", declare=lambda info: info, change=lambda split, info: Dark(split)
)
"""


class Bench:
    """A folder with a finished run of AIM on toys."""

    def __init__(self, root: Path, method: str = "aim[1,50%]") -> None:
        self.root = root
        self.paths = RunPaths(results=root / "results", cache=root / "cache", data_root=root / "data")
        edition = root / "data" / "toys" / "edition"
        edition.parent.mkdir(parents=True)
        edition.write_text("first")
        request = RunRequest(method=method, dataset="toys", weights="none", overrides=RECIPE, plugins=(TOYS,))
        self.config, _ = resolve_run(request, self.paths)
        record = run_one(self.config, self.paths, device="cpu", plugins=(TOYS,))
        assert record is not None
        self.record = json.loads(json.dumps(record))
        self.folder = self.paths.run(self.config.run_id())

    def load(self, **more: Any) -> SavedRun:
        return load_run(self.folder, **more)

    def evaluate(self, dataset: str | None = None, **more: Any) -> tuple[dict[str, Any], Path]:
        return evaluate_run(self.folder, dataset, self.paths, device=CPU, **more)

    def copy(self, to: Path) -> "Bench":
        """A copy for a test that damages things."""
        shutil.copytree(self.root, to, dirs_exist_ok=True)
        other = object.__new__(Bench)
        other.__dict__ |= self.__dict__
        other.paths = RunPaths(results=to / "results", cache=to / "cache", data_root=to / "data")
        other.folder = other.paths.run(self.config.run_id())
        return other


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("finished"))


# ------------------------------------------------------------------------------------------------------------ in Python


def test_the_model_predicts_what_the_run_has_recorded(bench: Bench) -> None:
    """From the dataset's own images, not from the cache; the counts are made by pandas."""
    run = spurbench.load_run(bench.config.run_id()[:6], results=bench.paths.results)
    assert not run.model.training
    assert run.rule == "val_wga"
    spec, _ = dataset_entry("toys", (TOYS,))
    split = spec.open(bench.paths.data_root).split("test")
    samples = [split[index] for index in range(len(split))]
    predicted = run.predict(run.prepare([sample.image for sample in samples])).logits.argmax(1)
    frame = pd.DataFrame({"group": split.group, "right": (predicted == split.y).numpy()})
    by_group = frame.groupby("group")["right"]
    assert by_group.mean().min() == run.row["worst_group_accuracy"]
    assert by_group.sum().tolist() == [group["correct"] for group in run.row["groups"]]


def test_images_get_in_as_in_evaluation(bench: Bench) -> None:
    run = bench.load()
    spec, _ = dataset_entry("toys", (TOYS,))
    dataset = spec.open(bench.paths.data_root)
    arrays = load_split(dataset, "test", resize=run.input.resize, cache=bench.paths.cache)
    expected = evaluation_images(arrays.frames.images[torch.arange(3)], run.input, run.mean, run.std)
    tensors = [dataset.split("test")[index].image for index in range(3)]
    pictures = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in tensors]
    assert torch.equal(run.prepare(tensors), expected)
    assert torch.equal(run.prepare(pictures), expected)
    with pytest.raises(ConfigError, match=r"uint8 \[3, H, W\], got torch.float32"):
        run.prepare([torch.zeros(3, 8, 8)])


def test_rules_choose_the_weights(bench: Bench) -> None:
    assert set(bench.load().kept_rules()) >= {"val_wga", "last"}
    last = bench.load(rule="last")
    assert last.row["selected_epoch"] == 1
    with pytest.raises(ConfigError, match=r"offers the rules val_wga, .*, not oracle_test_wga"):
        bench.load(rule="oracle_test_wga")


@given(
    classes=st.lists(st.text("ab/ ", min_size=1), min_size=2, max_size=4, unique=True),
    attributes=st.none() | st.lists(st.text("wxy", min_size=1), min_size=2, max_size=4, unique=True),
)
def test_class_names_come_from_the_groups(classes: list[str], attributes: list[str] | None) -> None:
    info = DatasetInfo(
        name="any", version="1", classes=tuple(classes), attributes=None if attributes is None else tuple(attributes)
    )
    assert _class_names([{"name": name} for name in info.group_names], len(classes)) == info.classes


def test_exported_weights_load_without_spurbench(bench: Bench, tmp_path: Path) -> None:
    run = bench.load()
    file = run.export(tmp_path / "model.safetensors")
    state = load_file(file)
    assert state.keys() == run.model.state_dict().keys()
    trunk = timm.create_model(run.config.backbone.name, num_classes=0)
    own = {name: value for name, value in state.items() if name.startswith("backbone.trunk.")}
    trunk.load_state_dict({name.removeprefix("backbone.trunk."): value for name, value in own.items()})
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert json.loads(about["classes"]) == ["red", "blue"]
    assert about["run_id"] == bench.config.run_id()
    other = torch.load(run.export(tmp_path / "model.pt"), weights_only=True)
    assert all(torch.equal(other[name], value) for name, value in state.items())
    with pytest.raises(ConfigError, match=r"must end in \.safetensors, \.pt, \.pth"):
        run.export(tmp_path / "model.onnx")


def test_the_package_offers_nothing_else_lazily() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        _ = spurbench.load_runs


# -------------------------------------------------------------------------------------------------------- on other data


@pytest.mark.parametrize("method", ["aim", "chain"])
def test_own_data_gives_the_recorded_numbers(bench: Bench, method: str, tmp_path: Path) -> None:
    """All columns of all rules whose weights are kept: masks, attributions and erasures too."""
    done = bench.copy(tmp_path / "copy") if method == "aim" else Bench(tmp_path, method)
    document, target = done.evaluate()
    recorded = {row["selection"]: row for row in done.record["rows"]}
    assert {row["selection"] for row in document["rows"]} == set(done.load().kept_rules())
    for row in json.loads(target.read_text())["rows"]:
        assert {name: value for name, value in row.items() if value is not None} == {
            name: value for name, value in recorded[row["selection"]].items() if value is not None
        }
    assert target.parent.parent == done.folder / "evaluations"
    assert document["run"]["machine"] == done.record["machine"]
    assert document["machine"]["versions_json"] == done.record["machine"]["versions_json"]


def test_what_was_measured_is_read(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = bench.copy(tmp_path)
    first, target = done.evaluate(split="val")
    assert first["dataset"]["split"] == "val"
    calls = []
    measure = Scorer.measure
    monkeypatch.setattr(Scorer, "measure", lambda *a, **k: calls.append(1) or measure(*a, **k))
    assert done.evaluate(split="val") == (first, target)
    assert not calls
    done.evaluate(split="val", force=True)
    assert calls
    for spoil in ("started over", "half written", "other schema"):
        calls.clear()
        if spoil == "started over":
            record = read_json(done.folder / "result.json")
            record["machine"]["finished_at"] = "2000-01-01T00:00:00+00:00"
            write_json(done.folder / "result.json", record)
        elif spoil == "half written":
            target.write_text(target.read_text()[:50])
        else:
            write_json(target, {**read_json(target), "schema_version": 0})
        done.evaluate(split="val")
        assert calls, spoil


def test_another_set_with_the_same_classes(bench: Bench) -> None:
    document, target = bench.evaluate("toys_shuffled_test_labels")
    row = document["rows"][0]
    assert (row["dataset"], row["run_id"]) == ("toys_shuffled_test_labels", bench.config.run_id())
    assert row["accuracy"] < bench.record["rows"][0]["accuracy"]
    assert document["run"]["dataset"] == "toys"
    assert target.parent.name.startswith("toys_shuffled_test_labels-")
    plain, _ = bench.evaluate("toys_plain")
    row = plain["rows"][0]
    assert (row["worst_group"] in ("red", "blue"), row.get("epg"), row["adjusted_accuracy"]) == (True, None, None)


def test_a_transformed_set(bench: Bench, tmp_path: Path) -> None:
    plugin = tmp_path / "dark.py"
    plugin.write_text(DARK)
    document, target = bench.evaluate("toys+dark", plugins=(plugin,))
    assert document["dataset"]["name"] == document["rows"][0]["dataset"] == "toys+dark"
    assert document["rows"][0]["groups"] != bench.record["rows"][0]["groups"]
    assert target.parent.name.startswith("toys+dark-")


def test_without_the_data_of_its_training(bench: Bench, tmp_path: Path) -> None:
    """A copied results folder is enough; what needs the training counts is null."""
    done = bench.copy(tmp_path)
    (done.paths.data_root / "toys" / "edition").write_text("second")  # type: ignore[operator]
    document, _ = done.evaluate()
    assert document["rows"][0]["adjusted_accuracy"] is None
    assert document["rows"][0]["accuracy"] == done.record["rows"][0]["accuracy"]


def test_no_leaderboard_has_it_as_a_run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.evaluate("toys_shuffled_test_labels")
    assert main(["leaderboard", str(bench.paths.results), "--format", "json"]) == 0
    assert "toys_shuffled_test_labels" not in capsys.readouterr().out


def test_the_command_prints_what_run_prints(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--results", str(bench.paths.results), "--data-root", str(bench.paths.data_root)]
    run_id = bench.config.run_id()
    assert main(["eval", run_id[:5], "--split", "val", "--select", "last", *where]) == 0
    out, err = capsys.readouterr()
    assert "on toys, minibirds_resnet, seed 0, val split" in out
    assert "last" in out
    assert "val_wga" not in out
    assert "trained on toys, measured on toys" in err
    assert main(["eval", run_id[:5], "--split", "val", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "evaluation"


# ------------------------------------------------------------------------------------------------------------ refusals


def test_other_classes_are_refused(bench: Bench) -> None:
    with pytest.raises(
        ConfigError, match=r"minibirds50 has other classes: landbird, waterbird; run .* trained on toys with red, blue"
    ):
        bench.evaluate("minibirds50")


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        (None, "tset", "toys has no split 'tset'; available: train, val, test"),
        ("toyz", "test", "unknown dataset 'toyz'; did you mean 'toys'"),
        ("./nowhere", "test", "nowhere"),
    ],
)
def test_names_that_do_not_exist(bench: Bench, dataset: str | None, split: str, message: str) -> None:
    with pytest.raises((ConfigError, DataMissing), match=message):
        bench.evaluate(dataset, split=split)


def test_runs_that_cannot_be_used(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = bench.copy(tmp_path)
    where = ["--results", str(done.paths.results)]
    assert main(["eval", "zz", *where]) == 2
    assert "no run 'zz' below" in capsys.readouterr().err
    shutil.rmtree(done.folder / "weights")
    with pytest.raises(DataMissing, match=r"weights of the run in .* are gone; .* --force"):
        done.load()
    write_json(done.folder / "result.json", {**read_json(done.folder / "result.json"), "status": "failed"})
    with pytest.raises(DataMissing, match="is not finished"):
        done.load()
