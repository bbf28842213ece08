"""What a sweep's folder holds: finished runs that no longer count, time, disk, shared trainings."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from spurbench import survey as surveying
from spurbench.config import RunConfig, RunPaths
from spurbench.engine import run_one
from spurbench.io import folder_bytes
from spurbench.lease import Lease
from spurbench.schema import SCHEMA_VERSION
from spurbench.survey import awaited, disk_bytes, expected_bytes, set_aside, shared_trainings, survey, told_apart
from spurbench.sweep import MethodGrid, Planned, SweepFile, plan

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
RECIPE = {"epochs": 1, "batch_size": 32}


def runs_of(folder: Path, *methods: str, seeds: int = 1) -> list[Planned]:
    edition = folder / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True, exist_ok=True)
    if not edition.exists():
        edition.write_text("first")
    sweep = SweepFile(
        datasets=["toys"],
        methods=[MethodGrid(name=name) for name in methods],
        seeds=list(range(seeds)),
        train=RECIPE,
        set={"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"},
    )
    paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
    return plan(sweep, paths, (TOYS,))


def record_of(run: Planned) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run.folder / "result.json").read_text())
    return document


def write_record(run: Planned, config: RunConfig | None = None, **machine: Any) -> None:
    """A finished record as far as a survey reads it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    moments = {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:40+00:00"}
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "rows": [{"dataset_fingerprint": "first"}],
        "machine": {"attempts": 1, **moments, **machine},
        "config": None if config is None else config.model_dump(mode="json"),
    }
    (run.folder / "result.json").write_text(json.dumps(record))


def test_a_run_of_other_data_is_stale_and_can_be_made_again(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "erm")
    run_one(run.config, run.paths, device="cpu", plugins=(TOYS,))
    assert survey([run], (TOYS,)).states == ["done"]
    (tmp_path / "data" / "toys" / "edition").write_text("second")
    found = survey([run], (TOYS,))
    assert found.states == ["stale"]
    assert found.stale[run.run_id] == "made with other data of toys (fingerprint first, here second)"
    before = record_of(run)
    set_aside(run)
    assert survey([run], (TOYS,)).states == ["stopped"]
    assert json.loads((run.folder / "replaced-1.json").read_text()) == before
    run_one(run.config, run.paths, device="cpu", plugins=(TOYS,))
    assert survey([run], (TOYS,)).states == ["done"]
    assert record_of(run)["rows"][0]["dataset_fingerprint"] == "second"


def test_without_the_data_nothing_is_called_stale(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "erm")
    write_record(run)
    shutil.rmtree(tmp_path / "data")
    assert survey([run], (TOYS,)).states == ["done"]


def test_other_code_is_named_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(tmp_path, "erm", seeds=3)
    monkeypatch.setattr(surveying, "git_state", lambda: ("0123456789", False))
    monkeypatch.setattr(surveying, "versions_json", lambda: '{"torch": "2"}')
    write_record(runs[0], git_commit="0123456789", git_dirty=False, versions_json='{"torch": "2"}')
    write_record(runs[1], git_commit="0123456789", git_dirty=True, versions_json='{"torch": "2"}')
    write_record(runs[2], git_commit=None, versions_json='{"torch": "3"}')
    assert survey(runs, (TOYS,)).code == {
        "commit 0123456 with local changes (torch 2)": 1,
        "an installed version (torch 3)": 1,
    }


def test_time_left_is_judged_by_runs_that_differ_in_their_seed_alone(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "erm", "chain", "weighted", seeds=2)  # seeds outermost
    assert survey(runs, (TOYS,)).seconds_left(runs) is None
    write_record(runs[0])
    write_record(runs[1], finished_at="2026-01-01T00:10:00+00:00")
    # erm 100 s, chain 600 s, and two of weighted at the median of both
    assert survey(runs, (TOYS,)).seconds_left(runs) == (100 + 600 + 2 * 350, 2)


def test_runs_that_can_share_a_training_are_counted(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "erm", "refit", "continued", "weighted", "noisy", seeds=2)
    # erm, refit and continued begin alike; weighted chooses its samples, noisy steps otherwise
    assert shared_trainings(runs, (TOYS,)) == (6, 4)


def test_shared_trainings_are_those_that_the_engine_shares(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "erm", "refit", "weighted", "noisy")
    for run in runs:
        run_one(run.config, run.paths, device="cpu", plugins=(TOYS,))
    _, saved = shared_trainings(runs, (TOYS,))
    assert saved == 1
    phases = [path for path in (tmp_path / "results" / "phases").iterdir() if path.is_dir()]
    assert len(phases) == 2, "one for erm and refit, one for weighted"


def test_disk_is_counted_and_expected(tmp_path: Path) -> None:
    (run,) = runs_of(tmp_path, "erm")
    kept, most = expected_bytes(run)
    assert disk_bytes([run]) == []
    run_one(run.config, run.paths, device="cpu", plugins=(TOYS,))
    (there,) = disk_bytes([run])
    everything = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    assert everything / 2 < there < everything, "weights lie in the shared training as well, and count there in part"
    assert kept / 3 < everything < 1.2 * kept < most
    assert there + folder_bytes(tmp_path / "results" / "phases") > 1.4 * everything


def test_a_run_that_was_left_for_a_shared_training_waits_for_who_does_it(tmp_path: Path) -> None:
    first, second = runs_of(tmp_path, "erm", "refit")
    run_one(first.config, first.paths, device="cpu", plugins=(TOYS,))
    (phase,) = (path for path in (tmp_path / "results" / "phases").iterdir() if path.is_dir())
    for part in phase.iterdir():
        part.unlink()
    (first.folder / "result.json").unlink()
    with Lease.try_take(phase) or pytest.fail("no lease"):
        assert run_one(second.config, second.paths, device="cpu", plugins=(TOYS,), wait=False) is None
        states = survey([first, second], (TOYS,)).states
        assert states == ["stopped", "waiting"]
        (stranger,) = awaited([first, second], states).items()
        assert stranger == (f"process {os.getpid()} on {socket.gethostname()}", 1)
        with Lease.try_take(first.folder) or pytest.fail("no lease"):
            states = survey([first, second], (TOYS,)).states
            assert states == ["running", "waiting"]
            assert awaited([first, second], states) == {"ERM on toys, seed 0": 1}
    assert not awaited([first, second], survey([first, second], (TOYS,)).states), "nobody does it any more"
    assert run_one(second.config, second.paths, device="cpu", plugins=(TOYS,)) is not None
    assert second.state == "done"
    assert second.waits_for() is None


def test_time_left_is_judged_by_like_runs_of_other_sweeps_as_well(tmp_path: Path) -> None:
    before = runs_of(tmp_path, "erm", "chain", "weighted")
    write_record(before[0], config=before[0].config)
    write_record(before[1], config=before[1].config, finished_at="2026-01-01T00:10:00+00:00")
    (before[2].folder).mkdir(parents=True)
    (before[2].folder / "result.json").write_text(json.dumps({"status": "finished", "rows": [{}], "machine": {"a": 1}}))
    sweep = SweepFile(
        datasets=["toys"],
        methods=[MethodGrid(name="erm"), MethodGrid(name="noisy")],
        train={**RECIPE, "optimizer": {"lr": 1e-3}},
        set={"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"},
    )
    runs = plan(sweep, before[0].paths, (TOYS,))
    # erm as the other sweep's erm, and noisy like all that are known to be like runs of this sweep
    assert survey(runs, (TOYS,)).seconds_left(runs) == (100 + 100, 1)


def test_runs_are_told_apart_by_label_and_by_the_options_in_which_they_differ(tmp_path: Path) -> None:
    sweep = SweepFile.model_validate(
        {
            "datasets": ["toys"],
            "methods": {
                "erm": None,
                "aim": {"num_stages": [1, 2], "tau": [0.25], "fusion": ["guided", "literal"]},
                "mixup": {"train.optimizer.lr": [1e-4, 1e-3], "train": {"epochs": 2}},
            },
            "seeds": "0-1",
            "set": {"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"},
        }
    )
    runs = plan(sweep, RunPaths(results=tmp_path / "results", cache=tmp_path / "cache"), (TOYS,))
    one_seed = [
        ("ERM", ""),
        ("AIM[1,25%]", "fusion=guided"),
        ("AIM[1,25%]", "fusion=literal"),
        ("AIM[2,25%]", "fusion=guided"),
        ("AIM[2,25%]", "fusion=literal"),
        ("Mixup", "train.optimizer.lr=0.0001"),
        ("Mixup", "train.optimizer.lr=0.001"),
    ]
    assert told_apart(runs, (TOYS,)) == 2 * one_seed
