"""Several processes on one run: one works, the others wait and give the same record."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import Bench, Child, assert_same_run, wait_for

Reference = Callable[[str], Path]


def waits(child: Child) -> bool:
    assert not child.has_ended(), child.err
    return "waiting for its record" in child.err


def await_waiting(*children: Child) -> None:
    for child in children:
        wait_for(lambda child=child: waits(child), "a process that waits")


def test_second_process_waits_and_prints_the_same_record(bench: Bench, reference: Reference) -> None:
    worker = bench.start(halt="step train 0 0").await_halt()
    other = bench.start()
    await_waiting(other)
    assert f"is being computed by process {worker.pid} on " in other.err
    worker.let_go()
    assert other.record() == worker.record()
    assert "epoch" not in other.err, "the second process has trained"
    assert other.record()["machine"]["attempts"] == 1
    assert_same_run(bench.run, reference("noisy"))


def test_eight_at_once(bench: Bench, reference: Reference) -> None:
    children = [bench.start() for _ in range(8)]
    first, *others = [child.record() for child in children]
    assert all(record == first for record in others)
    assert first["machine"]["attempts"] == 1
    assert sum("train epoch 1" in child.err for child in children) == 1
    assert sum("train epoch 3" in child.err for child in children) == 1
    assert_same_run(bench.run, reference("noisy"))


def test_four_sweeps_at_once_share_their_runs(bench: Bench, reference: Reference) -> None:
    launchers = [bench.start_sweep("0-4") for _ in range(4)]
    for launcher in launchers:
        assert launcher.wait() == 0, launcher.err
        assert "5 of 5 runs done, 0 failed" in launcher.err
    trained = [line for launcher in launchers for line in launcher.err.splitlines() if "train epoch 3 " in line]
    assert len(trained) == 5
    records = [json.loads(path.read_text()) for path in bench.results.glob("runs/*/result.json")]
    assert sorted(record["config"]["seed"] for record in records) == [0, 1, 2, 3, 4]
    assert {record["machine"]["attempts"] for record in records} == {1}
    (first,) = (record["run_id"] for record in records if record["config"]["seed"] == 0)
    assert_same_run(bench.results / "runs" / first, reference("noisy"))


def test_one_of_those_who_wait_goes_on_for_a_killed_owner(bench: Bench, reference: Reference) -> None:
    worker = bench.start(halt="step train 2 0").await_halt()
    others = [bench.start() for _ in range(3)]
    await_waiting(*others)
    worker.kill()
    first, *rest = [child.record() for child in others]
    assert all(record == first for record in rest)
    assert first["machine"]["attempts"] == 2
    assert sum("resuming run" in child.err for child in others) == 1
    assert sum("train epoch 3" in child.err for child in others) == 1
    assert_same_run(bench.run, reference("noisy"))


def test_cache_is_built_once_for_two_runs(bench: Bench) -> None:
    """Different runs on the same data share the decoded images, also while one of them is decoding."""
    builder = bench.start(halt="decode train 0").await_halt()
    other = bench.start("--seed", "1")
    run_of_other = bench.results / "runs"
    wait_for(lambda: len(list(run_of_other.glob("*/lease"))) == 2, "the second run to begin")
    builder.let_go()
    assert builder.record()["run_id"] != other.record()["run_id"]
    assert "decoding train" not in other.err
    assert not list((bench.folder / "cache").glob(".*.tmp"))


def test_forced_run_waits_for_the_one_that_works(bench: Bench) -> None:
    worker = bench.start(halt="step train 0 0").await_halt()
    forced = bench.start("--force")
    await_waiting(forced)
    worker.let_go()
    first, second = worker.record(), forced.record()
    assert first["rows"] == second["rows"]
    assert first["machine"] != second["machine"], "forced means computed again"
