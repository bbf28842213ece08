"""The engine in this process: what it selects, writes, reuses and refuses."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from spurbench.checkpoint import load_tensors, save_tensors
from spurbench.config import OptimizerConfig, RunConfig, RunPaths
from spurbench.dataset import DatasetInfo
from spurbench.engine import run_one
from spurbench.engine.artifacts import FolderStore
from spurbench.engine.restore import restore_model
from spurbench.engine.run import finished_record
from spurbench.engine.selection import best_epochs, default_rule, rules_for
from spurbench.engine.stop import Interrupted
from spurbench.engine.training import rate_at
from spurbench.errors import AccessDenied, ConfigError, ResultConflict, SpurbenchError
from spurbench.metrics.stats import wilson
from spurbench.resolve import RunRequest, resolve_run

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
INFO = DatasetInfo(name="any", version="1", classes=("a", "b"), attributes=("x", "y"))
RECIPE = {
    "train.epochs": 3,
    "train.batch_size": 16,
    "train.optimizer.lr": 1e-3,
    "input.resize": 32,
    "input.image_size": 32,
}


class Bench:
    """Results, cache and data of one test, and runs in this process."""

    def __init__(self, folder: Path) -> None:
        self.paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
        self.edition = folder / "data" / "toys" / "edition"
        self.edition.parent.mkdir(parents=True)
        self.edition.write_text("first")

    def config(self, method: str = "noisy", dataset: str = "toys", **changes: Any) -> RunConfig:
        overrides = {**RECIPE, **{key.replace("__", "."): value for key, value in changes.items()}}
        request = RunRequest(method=method, dataset=dataset, weights="none", overrides=overrides, plugins=(TOYS,))
        return resolve_run(request, self.paths)[0]

    def folder(self, config: RunConfig) -> Path:
        return self.paths.run(config.run_id())

    def run(self, config: RunConfig, **more: Any) -> dict[str, Any]:
        record = run_one(config, self.paths, device="cpu", plugins=(TOYS,), **more)
        assert record is not None
        return record

    def last_weights(self, config: RunConfig) -> dict[str, Any]:
        (path,) = (self.folder(config) / "weights").glob("*_epoch0002.pt")
        weights = load_tensors(path)
        assert weights is not None
        return weights


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Finished:
    """One finished run with the oracle, for tests that only read."""

    def __init__(self, bench: Bench) -> None:
        self.config = bench.config(evaluation__oracle=True)
        self.record = bench.run(self.config)
        self.folder = bench.folder(self.config)
        self.epochs = pq.read_table(self.folder / "epochs.parquet").to_pylist()
        self.predictions = pq.read_table(self.folder / "predictions.parquet").to_pylist()
        self.rows = {row["selection"]: row for row in self.record["rows"]}
        self.bench = bench


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(Bench(tmp_path_factory.mktemp("finished")))


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# ---------------------------------------------------------------------------------------------------------- selection


def epochs_with(*scores: float | None) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "val_wga": score} for epoch, score in enumerate(scores)]


class TestSelection:
    @pytest.mark.parametrize(
        ("scores", "chosen"),
        [
            ((0.1, 0.3, 0.2), (1, 0.3)),
            ((0.3, 0.1, 0.3, 0.2), (2, 0.3)),  # ties go to the later epoch
            ((0.0, 0.0, 0.0), (2, 0.0)),
            ((None, 0.2, None), (1, 0.2)),
        ],
    )
    def test_best_epoch(self, scores: tuple[float | None, ...], chosen: tuple[int, float]) -> None:
        assert best_epochs(epochs_with(*scores), ["val_wga"]) == {"val_wga": chosen}

    def test_rule_without_any_score_is_left_out(self) -> None:
        assert best_epochs(epochs_with(None, None), ["val_wga", "last"]) == {"last": (1, None)}

    def test_rules_of_a_dataset_with_attributes(self) -> None:
        rules = rules_for(INFO, oracle=False, only_last=False)
        assert rules == ("val_wga", "val_worst_class", "val_accuracy", "last")
        assert default_rule(rules) == "val_wga"

    def test_no_group_rule_without_attributes(self) -> None:
        rules = rules_for(replace(INFO, attributes=None), oracle=False, only_last=False)
        assert rules == ("val_worst_class", "val_accuracy", "last")
        assert default_rule(rules) == "val_worst_class"

    def test_oracle_only_on_demand(self) -> None:
        assert rules_for(INFO, oracle=True, only_last=False)[-1] == "oracle_test_wga"
        assert rules_for(INFO, oracle=True, only_last=True) == ("last",)

    def test_run_without_attributes(self, bench: Bench) -> None:
        record = bench.run(bench.config(dataset="toys_plain"))
        assert [row["selection"] for row in record["rows"]] == ["val_worst_class", "val_accuracy", "last"]
        assert all(row["oracle"] is False for row in record["rows"])
        assert all([group["name"] for group in row["groups"]] == ["red", "blue"] for row in record["rows"])
        epochs = pq.read_table(bench.folder(bench.config(dataset="toys_plain")) / "epochs.parquet")
        assert not [name for name in epochs.column_names if "test" in name], "test counts without --oracle"


@pytest.mark.parametrize(
    ("options", "step", "rate"),
    [
        ({"schedule": "constant"}, 99, 1.0),
        ({"schedule": "cosine"}, 0, 1.0),
        ({"schedule": "cosine"}, 50, 0.5),
        ({"schedule": "cosine", "warmup": 0.1}, 0, 0.1),
        ({"schedule": "cosine", "warmup": 0.1}, 9, 1.0),
        ({"schedule": "cosine", "warmup": 0.1}, 55, 0.5),
        ({"schedule": "constant", "warmup": 0.1}, 10, 1.0),
    ],
)
def test_learning_rate(options: dict[str, Any], step: int, rate: float) -> None:
    assert rate_at(OptimizerConfig(**options), step, 100) == pytest.approx(rate)


# ----------------------------------------------------------------------------------------- rows, told again from tables


class TestRows:
    def test_one_row_per_rule(self, finished: Finished) -> None:
        assert list(finished.rows) == ["val_wga", "val_worst_class", "val_accuracy", "last", "oracle_test_wga"]
        assert all(row["oracle"] is True for row in finished.rows.values())

    def test_epochs_are_those_that_the_rules_name(self, finished: Finished) -> None:
        assert [row["epoch"] for row in finished.epochs] == [0, 1, 2]
        for rule, row in finished.rows.items():
            if rule == "last":
                assert (row["selected_epoch"], row["selection_score"]) == (2, None)
                continue
            best = max(epoch[rule] for epoch in finished.epochs)
            latest = max(epoch["epoch"] for epoch in finished.epochs if epoch[rule] == best)
            assert (row["selected_epoch"], row["selection_score"]) == (latest, best)

    def test_scores_follow_from_the_counts_of_each_epoch(self, finished: Finished) -> None:
        for epoch in finished.epochs:
            n, correct = epoch["val_n"], epoch["val_correct"]
            assert sum(n) == 32
            assert epoch["val_accuracy"] == sum(correct) / 32
            assert epoch["val_wga"] == min(c / k for c, k in zip(correct, n, strict=True))
            by_class = [((correct[i] + correct[i + 1]), (n[i] + n[i + 1])) for i in (0, 2)]
            assert epoch["val_worst_class"] == min(c / k for c, k in by_class)
            assert sum(epoch["test_n"]) == 40

    def test_oracle_saw_what_is_measured_in_the_end(self, finished: Finished) -> None:
        for row in finished.rows.values():
            epoch = finished.epochs[row["selected_epoch"]]
            assert [group["correct"] for group in row["groups"]] == epoch["test_correct"]
            assert row["worst_group_accuracy"] == epoch["oracle_test_wga"]

    def test_counts_follow_from_the_predictions(self, finished: Finished) -> None:
        for row in finished.rows.values():
            samples = [s for s in finished.predictions if s["epoch"] == row["selected_epoch"]]
            assert [sample["index"] for sample in samples] == list(range(40))
            right = [sample["predicted"] == sample["y"] for sample in samples]
            assert (row["n"], row["n_correct"]) == (40, sum(right))
            assert row["accuracy"] == sum(right) / 40
            shares = []
            for group in row["groups"]:
                inside = [r for r, sample in zip(right, samples, strict=True) if sample["group"] == group["group"]]
                assert (group["n"], group["correct"]) == (len(inside), sum(inside))
                shares.append((sum(inside) / len(inside), group["name"], sum(inside), len(inside)))
            accuracy, name, correct, n = min(shares, key=lambda share: share[0])
            assert (row["worst_group_accuracy"], row["worst_group"]) == (accuracy, name)
            assert (row["worst_group_low"], row["worst_group_high"]) == wilson(correct, n)
            assert row["group_mean_accuracy"] == pytest.approx(sum(share[0] for share in shares) / 4)

    def test_epg_follows_from_the_predictions(self, finished: Finished) -> None:
        for row in finished.rows.values():
            samples = [s for s in finished.predictions if s["epoch"] == row["selected_epoch"]]
            values = [s["epg_gradcam_mask"] for s in samples if s["epg_gradcam_mask"] is not None]
            assert row["epg_n"] == len(values)
            assert row["epg"] == pytest.approx(sum(values) / len(values))
            assert (row["epg_source"], row["epg_region"]) == ("gradcam", "mask")

    def test_kept_weights_give_the_predictions_again(self, finished: Finished) -> None:
        kept = {int(path.stem[-4:]) for path in (finished.folder / "weights").iterdir()}
        assert kept == {finished.rows["val_wga"]["selected_epoch"], 2}
        method, model, mean, std = restore_model(
            finished.config, finished.folder, 2, torch.device("cpu"), plugins=(TOYS,)
        )
        frames = torch.stack([image_of(finished, index) for index in range(40)]).float().div(255)
        scale = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
        with torch.inference_mode():
            guess = method.evaluate(model, (frames - scale[0]) / scale[1]).logits.argmax(1)
        assert guess.tolist() == [s["predicted"] for s in finished.predictions if s["epoch"] == 2]

    def test_validation_scores_are_those_of_the_chosen_epoch(self, finished: Finished) -> None:
        for row in finished.rows.values():
            epoch = finished.epochs[row["selected_epoch"]]
            for name in ("val_accuracy", "val_wga", "val_worst_class"):
                assert row[name] == epoch[name]

    def test_every_epoch_is_measured_once(self, finished: Finished) -> None:
        chosen = {row["selected_epoch"] for row in finished.rows.values()}
        assert {sample["epoch"] for sample in finished.predictions} == chosen
        assert len(finished.predictions) == 40 * len(chosen)


def image_of(finished: Finished, index: int) -> torch.Tensor:
    from spurbench.engine.run import open_dataset

    return open_dataset(finished.config, finished.bench.paths, (TOYS,)).split("test")[index].image


# --------------------------------------------------------------------------------------------------------- supervision


def test_train_groups_do_not_reach_a_method_that_declares_nothing(finished: Finished) -> None:
    config = finished.bench.config(dataset="toys_shuffled_train_groups", evaluation__oracle=True)
    record = finished.bench.run(config)
    assert same(finished.bench.last_weights(config), finished.bench.last_weights(finished.config))
    for row in record["rows"]:
        original = finished.rows[row["selection"]]
        assert row["selected_epoch"] == original["selected_epoch"]
        assert row["groups"] == original["groups"]
    assert any(
        row["adjusted_accuracy"] != finished.rows[row["selection"]]["adjusted_accuracy"] for row in record["rows"]
    )


def test_test_labels_change_metrics_but_no_weight_and_no_selected_epoch(finished: Finished) -> None:
    plain = finished.bench.config()
    shuffled = finished.bench.config(dataset="toys_shuffled_test_labels")
    before, after = (finished.bench.run(config)["rows"] for config in (plain, shuffled))
    assert same(finished.bench.last_weights(shuffled), finished.bench.last_weights(plain))
    selected = [
        [(row["selection"], row["selected_epoch"], row["selection_score"]) for row in rows] for rows in (before, after)
    ]
    assert selected[0] == selected[1]
    assert [row["n_correct"] for row in before] != [row["n_correct"] for row in after]


def test_oracle_changes_no_weight_and_no_other_rule(finished: Finished) -> None:
    plain = finished.bench.config()
    rows = finished.bench.run(plain)["rows"]
    assert same(finished.bench.last_weights(finished.config), finished.bench.last_weights(plain))
    for row in rows:
        original = finished.rows[row["selection"]]
        ours = {key: value for key, value in row.items() if key not in ("run_id", "config_json", "oracle")}
        assert ours == {key: original[key] for key in ours}


# --------------------------------------------------------------------------------------------------- reuse and refusal


class TestReuse:
    def test_same_data_and_device(self, finished: Finished) -> None:
        before = (finished.folder / "result.json").stat().st_mtime_ns
        assert finished.bench.run(finished.config) == finished.record
        assert (finished.folder / "result.json").stat().st_mtime_ns == before

    def test_without_the_data(self, finished: Finished) -> None:
        text = finished.bench.edition.read_text()
        finished.bench.edition.unlink()
        try:
            observer = StopAfter(9)
            assert finished.bench.run(finished.config, observer=observer) == finished.record
            (note,) = observer.notes
            assert "is finished; its data were not looked at again:" in note
        finally:
            finished.bench.edition.write_text(text)

    def test_other_data_is_refused(self, finished: Finished) -> None:
        finished.bench.edition.write_text("second")
        try:
            with pytest.raises(ResultConflict, match=r"fingerprint first, here second.*--force"):
                finished.bench.run(finished.config)
        finally:
            finished.bench.edition.write_text("first")
        assert finished_record(finished.folder) == finished.record

    def test_other_class_of_device_is_refused(self, bench: Bench, finished: Finished) -> None:
        record = json.loads(json.dumps(finished.record))
        record["machine"]["device"] = "cuda"
        bench.folder(finished.config).mkdir(parents=True)
        (bench.folder(finished.config) / "result.json").write_text(json.dumps(record))
        with pytest.raises(
            ResultConflict, match=r"finished on cuda, this call is on cpu; use --device cuda, or --force"
        ):
            bench.run(finished.config)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda record: json.dumps(record)[:-100],
            lambda record: "",
            lambda record: "[]",
            lambda record: "\udcff",
            lambda record: json.dumps({**record, "status": "failed"}),
            lambda record: json.dumps({**record, "rows": []}),
            lambda record: json.dumps({**record, "machine": None}),
        ],
    )
    def test_damaged_record_is_not_finished(
        self, finished: Finished, tmp_path: Path, damage: Callable[[dict[str, Any]], str]
    ) -> None:
        path = tmp_path / "result.json"
        path.write_text(json.dumps(finished.record))
        assert finished_record(tmp_path) == finished.record
        path.write_bytes(damage(finished.record).encode(errors="surrogateescape"))
        assert finished_record(tmp_path) is None


class StopAfter:
    """An observer that stops the run after some epochs, as a signal would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs -= 1
        if self.epochs == 0:
            raise Interrupted(15)


def begin(bench: Bench, config: RunConfig, epochs: int = 1) -> Path:
    """A run that has stopped after some epochs; returns its checkpoint."""
    with pytest.raises(Interrupted):
        bench.run(config, observer=StopAfter(epochs))
    path = bench.folder(config) / "checkpoint" / "state.pt"
    assert path.exists()
    return path


class TestResume:
    def test_on_other_data_is_refused(self, bench: Bench) -> None:
        config = bench.config()
        checkpoint = begin(bench, config)
        content = checkpoint.read_bytes()
        bench.edition.write_text("second")
        with pytest.raises(ResultConflict, match=r"begun with fingerprint first, here it is second; .* --force"):
            bench.run(config)
        assert checkpoint.read_bytes() == content
        assert not (bench.folder(config) / "result.json").exists(), "a refusal is no failure of the run"
        bench.run(config, force=True)

    def test_on_another_class_of_device_is_refused(self, bench: Bench) -> None:
        config = bench.config()
        checkpoint = begin(bench, config)
        state = load_tensors(checkpoint)
        assert state is not None
        save_tensors(checkpoint, {**state, "device": "cuda"})
        with pytest.raises(ResultConflict, match=r"begun with device cuda, here it is cpu"):
            bench.run(config)

    def test_damaged_checkpoint_starts_over(self, bench: Bench, finished: Finished) -> None:
        config = bench.config(evaluation__oracle=True)
        checkpoint = begin(bench, config, epochs=2)
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
        assert bench.run(config)["rows"] == finished.record["rows"]

    def test_artifacts_without_a_checkpoint_are_not_trusted(self, bench: Bench) -> None:
        config = bench.config("chain")
        checkpoint = begin(bench, config, epochs=3)
        artifact = bench.folder(config) / "artifacts" / "hard.pt"
        made = artifact.read_bytes()
        save_tensors(artifact, {"value": torch.full((64,), 100.0)})
        checkpoint.unlink()
        begin(bench, config, epochs=3)
        assert artifact.read_bytes() == made

    def test_says_where_it_goes_on(self, bench: Bench) -> None:
        config = bench.config()
        begin(bench, config, epochs=2)
        observer = StopAfter(9)
        assert bench.run(config, observer=observer)["machine"]["attempts"] == 2
        assert observer.notes == [f"resuming run {config.run_id()} after 2 epochs"]
        first = finished_record(bench.folder(config))
        assert first is not None
        assert bench.run(config, force=True)["machine"]["attempts"] == 1

    def test_is_left_to_another_process_on_request(self, bench: Bench) -> None:
        from spurbench.lease import Lease

        config = bench.config()
        lease = Lease.try_take(bench.folder(config))
        assert lease is not None
        with lease:
            assert run_one(config, bench.paths, device="cpu", plugins=(TOYS,), wait=False) is None


# -------------------------------------------------------------------------------------------------------------- phases


class TestPhases:
    def test_table_of_epochs_has_the_columns_of_all_phases(self, bench: Bench) -> None:
        config = bench.config("chain")
        record = bench.run(config)
        assert [(row["selection"], row["selected_epoch"]) for row in record["rows"]] == [("last", -1)]
        epochs = pq.read_table(bench.folder(config) / "epochs.parquet").to_pylist()
        assert [(row["position"], row["phase"], row["epoch"]) for row in epochs] == [
            *((position, name, epoch) for position, name in enumerate(("warm", "again", "more")) for epoch in (0, 1)),
            (3, "refit", -1),  # a phase without epochs is measured on validation once
        ]
        for row in epochs:
            for name in ("warm", "again", "more"):
                assert (row[f"train_{name}"] is not None) == (row["phase"] == name)
        restore_model(config, bench.folder(config), -1, torch.device("cpu"), plugins=(TOYS,))

    def test_scratch_begins_with_the_initial_weights(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        from spurbench.engine import phases

        seen: list[dict[str, torch.Tensor]] = []
        train = phases.train_phase

        def spy(config: Any, method: Any, phase: Any, position: int, view: Any, state: Any, **more: Any) -> None:
            seen.append({key: value.clone() for key, value in state.model.state_dict().items()})
            train(config, method, phase, position, view, state, **more)

        monkeypatch.setattr(phases, "train_phase", spy)
        bench.run(bench.config("chain"))
        warm, again, more = seen
        assert same(warm, again)
        assert not same(again, more)

    def test_earlier_phases_keep_weights_for_a_method_that_has_only_last(self, bench: Bench) -> None:
        """``chain`` asks for ``val_accuracy`` of a phase while its run offers ``last`` alone."""
        config = bench.config("last_only")
        record = bench.run(config)
        assert [row["selection"] for row in record["rows"]] == ["last"]
        bench.run(bench.config("chain"))

    @pytest.mark.parametrize(
        ("rule", "error", "words"),
        [
            ("val_wga", AccessDenied, "add Access.VAL_GROUPS"),
            ("best", ConfigError, "no weights were kept for rule 'best'; the phase offers val_wga, val_worst_class"),
        ],
    )
    def test_candidates_that_a_method_may_not_have(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, rule: str, error: type[SpurbenchError], words: str
    ) -> None:
        original = FolderStore.candidate
        monkeypatch.setattr(FolderStore, "candidate", lambda store, _: original(store, rule))
        with pytest.raises(error, match=words):
            bench.run(bench.config("chain"))


class TestSharing:
    """Equal phases are trained once, and nothing but time tells."""

    @pytest.mark.parametrize("method", ["refit", "continued"])
    def test_taken_over_phase_gives_the_same_bits(self, bench: Bench, tmp_path: Path, method: str) -> None:
        alone = Bench(tmp_path / "alone")
        expected = alone.run(alone.config(method))
        bench.run(bench.config("erm"))
        observer = StopAfter(-1)
        record = bench.run(bench.config(method), observer=observer)
        assert any("taken from" in note for note in observer.notes)
        assert record["rows"] == expected["rows"]
        ours, theirs = (next((b.folder(b.config(method)) / "weights").iterdir()) for b in (bench, alone))
        assert same(load_tensors(ours) or {}, load_tensors(theirs) or {})

    def test_a_phase_that_was_interrupted_is_offered_and_taken_as_well(self, bench: Bench, tmp_path: Path) -> None:
        alone = Bench(tmp_path / "alone")
        expected = alone.run(alone.config("refit"))
        with pytest.raises(Interrupted):
            bench.run(bench.config("refit"), observer=StopAfter(1))
        with pytest.raises(Interrupted):
            bench.run(bench.config("erm"), observer=StopAfter(2))
        bench.run(bench.config("erm"))  # goes on where it was, and offers the phase
        observer = StopAfter(-1)
        record = bench.run(bench.config("refit"), observer=observer)
        assert any("resuming" in note for note in observer.notes)
        assert any("taken from" in note for note in observer.notes)
        assert record["rows"] == expected["rows"]
        epochs = pq.read_table(bench.folder(bench.config("refit")) / "epochs.parquet").to_pylist()
        assert [row["epoch"] for row in epochs] == [0, 1, 2, -1], "each epoch once"

    def test_first_of_them_may_be_any_method(self, bench: Bench) -> None:
        bench.run(bench.config("refit"))
        observer = StopAfter(-1)
        record = bench.run(bench.config("erm"), observer=observer)
        assert any("taken from" in note for note in observer.notes)
        assert {row["selection"] for row in record["rows"]} == {"val_wga", "val_worst_class", "val_accuracy", "last"}
        assert record["machine"]["train_seconds"] > 0, "training time counts, whoever spent it"

    @pytest.mark.parametrize("changes", [
        {"seed": 1}, {"train__epochs": 2}, {"train__optimizer__lr": 2e-3}, {"train__batch_size": 8},
        {"input__flip": False}, {"evaluation__oracle": True},
    ])  # fmt: skip
    def test_whatever_shapes_the_phase_keeps_it_apart(self, bench: Bench, changes: dict[str, Any]) -> None:
        bench.run(bench.config("erm"))
        observer = StopAfter(-1)
        config = bench.config("refit", **{key: value for key, value in changes.items() if key != "seed"})
        bench.run(config.model_copy(update={"seed": changes.get("seed", 0)}), observer=observer)
        assert not any("taken from" in note for note in observer.notes)

    @pytest.mark.parametrize("method", ["noisy", "weighted"])
    def test_other_steps_and_other_weights_are_trained(self, bench: Bench, method: str) -> None:
        bench.run(bench.config("erm"))
        observer = StopAfter(-1)
        bench.run(bench.config(method), observer=observer)
        assert not any("taken from" in note for note in observer.notes)

    def test_other_data_are_another_phase(self, bench: Bench) -> None:
        bench.run(bench.config("erm"))
        bench.edition.write_text("second")
        observer = StopAfter(-1)
        bench.run(bench.config("refit"), observer=observer)
        assert not any("taken from" in note for note in observer.notes)

    def test_force_trains_again(self, bench: Bench) -> None:
        bench.run(bench.config("refit"))
        observer = StopAfter(-1)
        bench.run(bench.config("refit"), observer=observer, force=True)
        assert not any("taken from" in note for note in observer.notes)

    def test_damaged_outcome_is_not_used(self, bench: Bench) -> None:
        bench.run(bench.config("erm"))
        (outcome,) = (bench.paths.results / "phases").glob("*/outcome.pt")
        outcome.write_bytes(b"half")
        record = bench.run(bench.config("refit"))
        assert record["status"] == "finished"

    def test_phases_may_be_deleted(self, bench: Bench) -> None:
        bench.run(bench.config("erm"))
        shutil.rmtree(bench.paths.results / "phases")
        assert bench.run(bench.config("refit"))["status"] == "finished"
        assert bench.last_weights(bench.config("erm")), "the run's own files are its own"


@pytest.mark.parametrize("method", ["groupdro", "dfr", "lisa"])
def test_labels_that_the_data_lack_are_refused_before_anything_is_written(bench: Bench, method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"method {method} needs group labels .*toys_plain has none; .*do without: .*erm"
    ):
        bench.run(bench.config(method, dataset="toys_plain"))
    assert not bench.paths.results.exists()


def test_empty_mask_is_told(bench: Bench) -> None:
    observer = StopAfter(-1)
    bench.run(bench.config("blind"), observer=observer)
    assert any("mask" in note and "is empty on test" in note for note in observer.notes)


def test_number_of_threads_is_the_next_runs_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    before = torch.get_num_threads()
    observer = StopAfter(99)
    monkeypatch.setattr(observer, "epoch", lambda row: used.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        bench.run(bench.config(train__epochs=1), observer=observer)
        assert used == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_building_again_for_the_cost_leaves_the_trained_method_alone() -> None:
    from spurbench.costs import model_costs
    from spurbench.methods.lff import LfF, LfFConfig

    trained = LfF(LfFConfig())  # building sets its averages back
    model_costs(trained, "test_convnext", 32, 2)
    assert not vars(trained).keys() & {"average", "visited"}


def test_signal_in_the_last_moment_still_stops_what_follows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from spurbench.engine import phases

    config = bench.config(train__epochs=1)
    monkeypatch.setattr(phases.Trainer, "tidy", lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        bench.run(config)
    assert finished_record(bench.folder(config)) is not None
