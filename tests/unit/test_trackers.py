"""Numbers of a run in TensorBoard, W&B and MLflow, read back with what these libraries read them with."""

import importlib.util
import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from spurbench import tracking
from spurbench.cli import main
from spurbench.config import RunConfig, RunPaths
from spurbench.engine import Silent, run_one
from spurbench.errors import ConfigError
from spurbench.io import read_json
from spurbench.resolve import RunRequest, resolve_run
from spurbench.tracking import TRACKERS, Tracked, require_trackers, tell_finished

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
RECIPE = {"train.epochs": 2, "train.batch_size": 16, "input.resize": 32, "input.image_size": 32}
LIBRARIES = pytest.mark.filterwarnings("ignore")


class Bench:
    """A folder for runs on toys."""

    def __init__(self, root: Path, method: str = "noisy") -> None:
        self.paths = RunPaths(results=root / "results", cache=root / "cache", data_root=root / "data")
        edition = root / "data" / "toys" / "edition"
        edition.parent.mkdir(parents=True)
        edition.write_text("first")
        self.config = self.with_seed(0, method)

    def with_seed(self, seed: int, method: str = "noisy") -> RunConfig:
        request = RunRequest(
            method=method, dataset="toys", weights="none", seed=seed, overrides=RECIPE, plugins=(TOYS,)
        )  # fmt: skip
        return resolve_run(request, self.paths)[0]

    @property
    def folder(self) -> Path:
        return self.paths.run(self.config.run_id())

    def run(self, *names: str, notes: list[str] | None = None, **more: Any) -> dict[str, Any]:
        with Tracked(Notes([] if notes is None else notes), names, self.config, self.paths) as tracked:
            record = run_one(self.config, self.paths, device="cpu", plugins=(TOYS,), observer=tracked, **more)
            assert record is not None
            tracked.finish(record)
        return record

    def epochs(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / "epochs.parquet")


class Notes(Silent):
    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        self.notes.append(text)


class Fake:
    """A tracker that remembers, and fails where it is told to."""

    runs: dict[str, list[tuple[str, int, float]]]
    fails: str

    def __init__(self, subject: Any) -> None:
        if self.fails == "open":
            raise RuntimeError("no such server\nand a long story")
        self.lines = self.runs.setdefault(subject.key, [])

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.fails == "log":
            raise OSError("no space")
        self.lines += [(name, step, value) for name, value in values.items()]

    def close(self, *, finished: bool) -> None:
        if self.fails == "close":
            raise RuntimeError("gone")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    class Fresh(Fake):
        fails = ""

    Fresh.runs = {}
    monkeypatch.setattr(tracking, "TRACKERS", {"fake": Fresh, "other": Fresh})
    return Fresh


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def expected(bench: Bench, record: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """What a tracker should know, from the run's own files."""
    numbers: dict[tuple[str, int], float] = {}
    for row in bench.epochs().to_dict("records"):
        names = [name for name in row if name.startswith(("train_", "val_")) and isinstance(row[name], float)]
        numbers |= {(f"{row['phase']}/{name}", row["epoch"] + 1): row[name] for name in names if row[name] == row[name]}
        for group, (n, correct) in enumerate(zip(row["val_n"], row["val_correct"], strict=True)):
            numbers[f"{row['phase']}/val_accuracy_group{group}", row["epoch"] + 1] = correct / n
    for row in record["rows"]:
        for name in ("accuracy", "worst_group_accuracy", "epg"):
            numbers[f"test/{row['selection']}/{name}", -1] = row[name]
    return numbers


def same(found: Mapping[tuple[str, int], float], bench: Bench, record: Mapping[str, Any], *, exact: bool) -> None:
    """Steps of test rows are not compared: they are told once."""
    wanted = expected(bench, record)
    found = {(name, -1 if name.startswith("test/") else step): value for (name, step), value in found.items()}
    assert set(wanted) <= set(found)
    assert {name for name in found if not name[0].startswith("test/")} == {
        name for name in wanted if not name[0].startswith("test/")
    }
    for name, value in wanted.items():
        assert found[name] == (value if exact else pytest.approx(value, rel=1e-6)), name


# -------------------------------------------------------------------------------------------------------- the libraries


@LIBRARIES
def test_tensorboard_holds_every_epoch_and_the_test_rows(tmp_path: Path) -> None:
    """Phases that each count from 1, one of them without epochs."""
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    bench = Bench(tmp_path, "chain")
    notes: list[str] = []
    record = bench.run("tensorboard", notes=notes)
    assert not any("gets no more" in note for note in notes), notes
    (folder,) = (bench.paths.results / "tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]) == len(found)  # nothing twice
    same(found, bench, record, exact=False)
    (text,) = events.Tensors("config/text_summary")
    assert "train.epochs: 2" in text.tensor_proto.string_val[0].decode()


@LIBRARIES
def test_mlflow_holds_the_same(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    notes: list[str] = []
    record = bench.run("mlflow", notes=notes)
    assert not any("gets no more" in note for note in notes), notes
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("spurbench")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2"
    history = [
        (name, m.step, m.value) for name in run.data.metrics for m in client.get_metric_history(run.info.run_id, name)
    ]
    found = {(name, step): value for name, step, value in history}
    assert len(history) == len(found)
    same(found, bench, record, exact=True)


def read_wandb(path: Path) -> Iterator[dict[str, float]]:
    """The history in an offline file: records in LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):  # still being written
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            if record.WhichOneof("record_type") == "history":
                yield {
                    ".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }


@LIBRARIES
def test_wandb_holds_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    notes: list[str] = []
    record = bench.run("wandb", notes=notes)
    assert not any("gets no more" in note for note in notes), notes
    (file,) = (bench.paths.results / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 30
    while len(entries := list(read_wandb(file))) < 3 and time.monotonic() < end:
        time.sleep(0.1)  # its own process closes the file some time after the run was finished
    found: dict[tuple[str, int], float] = {}
    for entry in entries:
        ((_, epoch),) = [(name, value) for name, value in entry.items() if name.endswith("/epoch")]
        found |= {
            (name, int(epoch)): value
            for name, value in entry.items()
            if not name.startswith("_") and not name.endswith("/epoch")
        }
    same(found, bench, record, exact=True)


# ------------------------------------------------------------------------------------------------------- told just once


def test_a_run_that_was_stopped_goes_on_in_its_tracker(bench: Bench, fake: type[Fake]) -> None:
    class Stop(Exception):
        pass

    class Stopping(Notes):
        def epoch(self, row: Mapping[str, Any]) -> None:
            if row["epoch"] == 1:
                raise Stop

    tracked = Tracked(Stopping([]), ["fake"], bench.config, bench.paths)
    with pytest.raises(Exception, match="Stop"), tracked:
        run_one(bench.config, bench.paths, device="cpu", plugins=(TOYS,), observer=tracked)
    (lines,) = fake.runs.values()
    assert {step for _, step, _ in lines} == {1}
    record = bench.run("fake")
    (lines,) = fake.runs.values()
    assert len({line[:2] for line in lines}) == len(lines)
    same({(name, step): value for name, step, value in lines}, bench, record, exact=True)


def test_a_finished_run_can_be_told_later_and_only_once(bench: Bench, fake: type[Fake]) -> None:
    record = bench.run()
    assert not fake.runs
    bench.run("fake")
    (lines,) = fake.runs.values()
    same({(name, step): value for name, step, value in lines}, bench, record, exact=True)
    length = len(lines)
    bench.run("fake", "fake")
    assert tell_finished(["fake"], bench.config, bench.paths, record, print) == ["fake"]
    assert len(lines) == length
    tell_finished(["other"], bench.config, bench.paths, record, print)
    assert len(lines) == 2 * length


def test_a_run_that_is_started_over_is_another(bench: Bench, fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("fake")
    monkeypatch.setattr("spurbench.engine.run.now_utc", lambda: "2000-01-01T00:00:00+00:00")
    bench.run("fake", force=True)
    first, second = fake.runs.values()
    assert {line[:2] for line in first} == {line[:2] for line in second}
    assert list(fake.runs)[1] == f"{bench.config.run_id()}-20000101000000"


def test_phases_that_were_taken_over_are_told(tmp_path: Path, fake: type[Fake]) -> None:
    bench = Bench(tmp_path, "refit")
    bench.run()
    other = Bench.__new__(Bench)
    other.paths, other.config = bench.paths, bench.with_seed(0, "continued")
    record = other.run("fake")
    assert other.epochs()["shared"].any()
    (lines,) = fake.runs.values()
    same({(name, step): value for name, step, value in lines}, other, record, exact=True)


# -------------------------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_fails_costs_nothing_and_is_said_once(bench: Bench, fake: type[Fake], where: str) -> None:
    fake.fails = where
    notes: list[str] = []
    record = bench.run("fake", notes=notes)
    said = [note for note in notes if "fake gets no more numbers, the run goes on" in note]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert record["status"] == "finished"
    fake.fails = ""
    assert bench.run("fake")["rows"] == record["rows"]
    if where == "log":  # what was not told is told now
        (lines,) = fake.runs.values()
        same({(name, step): value for name, step, value in lines}, bench, record, exact=True)


def test_one_that_fails_does_not_keep_others_from_their_numbers(
    bench: Bench, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad(fake):  # type: ignore[valid-type, misc]
        fails = "log"

    Bad.runs = {}
    monkeypatch.setattr(tracking, "TRACKERS", {"bad": Bad, "good": fake})
    record = bench.run("bad", "good")
    (lines,) = fake.runs.values()
    same({(name, step): value for name, step, value in lines}, bench, record, exact=True)
    assert tell_finished(["bad", "good"], bench.config, bench.paths, record, print) == ["good"]


@pytest.mark.parametrize("text", ["{", "[]", '{"begun": 3}', '{"begun": "x", "told": 4}'])
def test_a_damaged_note_of_what_was_told_is_made_anew(bench: Bench, fake: type[Fake], text: str) -> None:
    bench.run("fake")
    (bench.folder / "tracked.json").write_text(text)
    bench.run("fake")
    assert read_json(bench.folder / "tracked.json")["told"]["fake"][-1] == "test"


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Also not where only a folder of its name lies, as these libraries leave them."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else find(n, *a))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--method", "erm", "--dataset", "minibirds100", "--log", name]) == 2
    assert f"install it with: pip install -e '.[{name}]' -c constraints.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: importlib.machinery.ModuleSpec(n, None))
    with pytest.raises(ConfigError, match=f"--log {name} needs its library"):
        require_trackers([name])


# -------------------------------------------------------------------------------------------------------------- command


def test_a_sweep_tells_of_all_its_runs(
    bench: Bench, fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were done before, too; and what is known is not repeated."""
    monkeypatch.setattr(tracking, "TRACKERS", {"tensorboard": fake})
    monkeypatch.setenv("SPURBENCH_CACHE", str(bench.paths.cache))
    sweep = {"datasets": ["toys"], "methods": ["noisy"], "seeds": [0, 1], "set": {**RECIPE, "backbone.weights": "none"}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = ["sweep", str(tmp_path / "sweep.yaml"), "--plugin", str(TOYS), "--data-root", str(bench.paths.data_root)]
    command += ["--results", str(bench.paths.results), "--device", "cpu"]
    assert main(command) == 0
    assert not fake.runs
    assert main([*command, "--log", "tensorboard"]) == 0
    assert len(fake.runs) == 2
    lengths = [len(lines) for lines in fake.runs.values()]
    assert main([*command, "--log", "tensorboard"]) == 0
    assert [len(lines) for lines in fake.runs.values()] == lengths
