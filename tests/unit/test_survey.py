"""What a sweep's folder holds: finished runs that no longer count, time, disk, shared trainings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spurbench import survey as surveying
from spurbench.config import RunPaths
from spurbench.engine import run_one
from spurbench.io import folder_bytes
from spurbench.survey import disk_bytes, expected_bytes, set_aside, shared_trainings, survey
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


def write_record(run: Planned, **machine: Any) -> None:
    """A finished record as far as a survey reads it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    moments = {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:40+00:00"}
    record = {
        "schema_version": 2,
        "status": "finished",
        "rows": [{"dataset_fingerprint": "first"}],
        "machine": {"attempts": 1, **moments, **machine},
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
