"""Several runs at once: equal numbers, a death that costs one run, signals that save all."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spurbench.checkpoint import load_tensors
from spurbench.config import RunPaths
from spurbench.engine import Interrupted
from spurbench.errors import SpurbenchError
from spurbench.launch.local import launch_local
from spurbench.launch.pool import devices_for, run_pool
from spurbench.launch.room import Room
from spurbench.sweep import Planned, SweepFile, plan

TOYS = Path(__file__).with_name("toys.py")
RECIPE = {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 1e-3}}


class Board:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.shown: set[int] = set()
        self.on_epoch: Callable[[], None] = lambda: None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        self.shown.add(worker)

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None:
        self.on_epoch()

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None: ...


def runs_in(folder: Path, methods: list[str], seeds: str = "0") -> list[Planned]:
    edition = folder / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True, exist_ok=True)
    edition.write_text("first")
    sweep = SweepFile(
        datasets=["toys"], methods=methods, seeds=seeds, train=RECIPE,  # type: ignore[arg-type]
        set={"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"},
    )  # fmt: skip
    paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
    return plan(sweep, paths, (TOYS,))


def pool(runs: list[Planned], board: Board, jobs: int = 2) -> dict[str, dict[str, Any] | SpurbenchError]:
    outcomes = run_pool(runs, jobs=jobs, device="cpu", plugins=(TOYS,), board=board)
    return {run.config.run_id(): outcome for run, outcome in outcomes}


@pytest.mark.slow
def test_same_bits_as_one_after_the_other_and_shared_phases_once(tmp_path: Path) -> None:
    methods = ["erm", "refit", "continued", "noisy"]
    board = Board()
    together = runs_in(tmp_path / "together", methods, "0-1")
    outcomes = pool(together, board, jobs=3)
    assert len(outcomes) == 8
    assert board.shown <= {0, 1, 2}
    alone = runs_in(tmp_path / "alone", methods, "0-1")
    for run, record in launch_local(alone, device="cpu", plugins=(TOYS,), observer=board):
        assert isinstance(record, dict)
        other = outcomes[run.config.run_id()]
        assert isinstance(other, dict), other
        assert other["rows"] == record["rows"]
        assert other["machine"]["attempts"] == 1
    shared = list((tmp_path / "together" / "results" / "phases").glob("*/outcome.pt"))
    assert len(shared) == 2, "one ERM per seed serves three methods"
    for path in shared:
        here, there = (
            load_tensors(path),
            load_tensors(tmp_path / "alone" / "results" / "phases" / path.parent.name / path.name),
        )
        assert here is not None
        assert there is not None
        assert all(torch.equal(here["model"][key], there["model"][key]) for key in here["model"])


@pytest.mark.slow
def test_killed_worker_costs_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOYS_HALT", "step train 1 1")
    monkeypatch.setenv("TOYS_DIR", str(tmp_path))
    runs = runs_in(tmp_path, ["noisy", "erm", "refit"])  # only noisy stops at that place
    (noisy, *_) = runs

    def kill() -> None:
        while not (tmp_path / "halted").exists():
            time.sleep(0.05)
        from spurbench.lease import owner_of

        owner = owner_of(noisy.paths.run(noisy.config.run_id()))
        assert owner is not None
        os.kill(owner["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    board = Board()
    outcomes = pool(runs, board)
    thread.join()
    error = outcomes.pop(noisy.config.run_id())
    assert isinstance(error, SpurbenchError)
    assert "SIGKILL" in str(error)
    assert all(isinstance(outcome, dict) for outcome in outcomes.values()), outcomes
    assert [run.state for run in runs] == ["failed", "done", "done"]
    monkeypatch.delenv("TOYS_HALT")
    (record,) = pool([noisy], board).values()
    assert isinstance(record, dict)
    reference = runs_in(tmp_path / "reference", ["noisy"])
    ((_, expected),) = launch_local(reference, device="cpu", plugins=(TOYS,), observer=board)
    assert isinstance(expected, dict)
    assert record["rows"] == expected["rows"]


@pytest.mark.slow
def test_signal_saves_every_run(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, ["noisy", "last_only"])
    board = Board()
    board.on_epoch = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"):
        pool(runs, board)
    assert all(run.state in ("stopped", "waiting", "done") for run in runs)
    assert any(run.state == "stopped" for run in runs)
    board.on_epoch = lambda: None
    assert all(isinstance(outcome, dict) for outcome in pool(runs, board).values())
    assert [run.state for run in runs] == ["done", "done"]


def test_failed_run_is_yielded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOYS_DIR", str(tmp_path))
    runs = runs_in(tmp_path, ["bad_loss", "erm"])
    outcomes = pool(runs, Board(), jobs=1)
    assert isinstance(outcomes[runs[0].config.run_id()], SpurbenchError)
    assert isinstance(outcomes[runs[1].config.run_id()], dict)


def test_devices_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_for("auto", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert devices_for("cuda:1", 2) == ["cuda:1", "cuda:1"]
    assert devices_for("cpu", 2) == ["cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_for("auto", 2) == ["auto", "auto"]


@dataclass(slots=True)
class Growing(Room):
    """Place for one run until one has ended, then for two."""

    ended: int = 0

    def learn(self, record: Mapping[str, Any]) -> None:
        self.ended += 1

    def places(self) -> list[str]:
        return ["cpu"] * min(2, 1 + self.ended)


@pytest.mark.slow
def test_more_workers_start_once_there_is_known_to_be_room(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, ["erm", "noisy"], "0-1")
    board = Board()
    room = Growing("cpu", {}, cores=2, threads=1)
    outcomes = run_pool(runs, jobs=2, device="cpu", plugins=(TOYS,), board=board, room=room)
    first, _ = next(outcomes)
    assert (first.run_id, board.shown) == (runs[0].run_id, {0})
    rest = list(outcomes)
    assert len(rest) == 3
    assert board.shown == {0, 1}
