"""Disk space comes back, and nothing that anybody needs goes with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from spurbench.clean import find_waste, remove
from spurbench.cli import main
from spurbench.lease import Lease

FINISHED: dict[str, Any] = {"status": "finished", "rows": [{}], "machine": {"attempts": 1}}


def put(path: Path, num_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A finished run, a failed one, one that was begun, and a shared training."""
    runs = tmp_path / "runs"
    for name, record in (("done", FINISHED), ("failed", {"status": "failed"}), ("begun", None)):
        put(runs / name / "weights" / "last.pt", 100)
        put(runs / name / "checkpoint" / "state.pt", 1000)
        put(runs / name / "epochs.parquet", 10)
        if record is not None:
            (runs / name / "result.json").write_text(json.dumps(record))
    put(runs / "begun" / "checkpoint" / ".state.pt.12.tmp", 7)
    put(tmp_path / "phases" / "key" / "outcome.pt", 50)
    return tmp_path


def found(results: Path, **what: bool) -> dict[str, int]:
    return {str(waste.path.relative_to(results)): waste.num_bytes for waste in find_waste(results, **what)}


def test_only_what_nothing_needs_goes_unless_more_is_named(results: Path) -> None:
    assert found(results) == {"runs/done/checkpoint": 1000, "runs/begun/checkpoint/.state.pt.12.tmp": 7}
    more = found(results, weights=True, phases=True, failed=True).keys() - found(results).keys()
    assert more == {"runs/done/weights", "runs/failed", "phases/key"}


def test_what_somebody_works_on_stays(results: Path) -> None:
    with (
        Lease.try_take(results / "runs" / "begun") or pytest.fail("held"),
        Lease.try_take(results / "phases" / "key") or pytest.fail("held"),
    ):
        assert found(results, phases=True) == {"runs/done/checkpoint": 1000}


def test_work_that_begins_between_looking_and_removing_is_left_alone(results: Path) -> None:
    (waste,) = (waste for waste in find_waste(results, phases=True) if "phases" in waste.path.parts)
    with Lease.try_take(waste.path) or pytest.fail("held"):
        remove(waste)
        assert (waste.path / "outcome.pt").exists()
    remove(waste)
    assert not waste.path.exists()
    remove(waste)


def test_a_file_with_two_names_counts_once(results: Path) -> None:
    (results / "phases" / "key" / "epoch.pt").hardlink_to(results / "runs" / "done" / "weights" / "last.pt")
    sizes = found(results, weights=True, phases=True)
    assert sizes["runs/done/weights"] + sizes["phases/key"] == 100 + 50


def test_command(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", "--results", str(results), "--weights", "--dry-run"]) == 0
    assert "1.11 kB would go" in capsys.readouterr().err
    assert (results / "runs" / "done" / "weights").exists()
    assert main(["clean", "--results", str(results), "--weights"]) == 0
    assert sorted(path.name for path in (results / "runs" / "done").iterdir()) == ["epochs.parquet", "result.json"]
    assert (results / "runs" / "failed" / "weights").exists()
    assert main(["clean", "--results", str(results / "nothing")]) == 2
