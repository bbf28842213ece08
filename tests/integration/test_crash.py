"""A run that is killed, stopped, starved or broken at any moment ends, once started again, as if nothing had been."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Bench, assert_same_run, files_of, leftovers, wait_for

Reference = Callable[[str], Path]

# ------------------------------------------------------------------------------------------------------------ kill -9


@pytest.mark.parametrize(
    "place",
    [
        "decode val 20",  # building the cache
        "step train 0 2",  # before there is any checkpoint
        "step train 1 3",  # within an epoch
        "val train 2",  # between an epoch's training and its checkpoint
        "sync phase0_epoch0001.pt 1",  # weights written, the state that refers to them is not
        "sync state.pt 2",  # a checkpoint written and not yet in place
        "test",  # measuring the finished model
        "sync predictions.parquet 1",
        "sync result.json 1",
    ],
)
def test_killed_run_resumes_to_the_same_bits(bench: Bench, reference: Reference, place: str) -> None:
    bench.kill_at(place)
    assert not (bench.run / "result.json").exists()
    record = bench.finish()
    assert_same_run(bench.run, reference("noisy"))
    assert record["rows"] == bench.result()["rows"]


@pytest.mark.parametrize(
    "place",
    [
        "step warm 1 0",
        "sync hard.pt 1",  # while the second phase is prepared
        "step again 1 1",
        "start more",  # at the door of a phase
        "step more 0 1",  # where the start has changed model and method in place
        "step more 1 1",
        "refit",  # in the phase without epochs
        "sync phase3_epoch0000.pt 1",
    ],
)
def test_run_of_many_phases_resumes_in_each(bench: Bench, reference: Reference, place: str) -> None:
    bench.method = "chain"
    bench.kill_at(place)
    bench.finish()
    assert_same_run(bench.run, reference("chain"))


def test_killed_again_and_again(bench: Bench, reference: Reference) -> None:
    """Every process dies in the middle of a write, each a few writes after it began."""
    bench.method = "chain"
    writes = random.Random(0)
    for _ in range(8):
        bench.kill_at(f"sync {writes.randint(5, 8)}")
    assert len(leftovers(bench.results)) == 1, "each process removes what the one before it left"
    bench.finish()
    assert_same_run(bench.run, reference("chain"))
    assert bench.result()["machine"]["attempts"] == 9


def test_half_written_checkpoint_is_ignored_and_removed(bench: Bench, reference: Reference) -> None:
    bench.kill_at("sync state.pt 3")
    (temporary,) = leftovers(bench.run)
    temporary.write_bytes(temporary.read_bytes()[:1000])
    bench.finish()
    assert bench.result()["machine"]["attempts"] == 2
    assert_same_run(bench.run, reference("noisy"))


@pytest.mark.slow
def test_installed_command_killed_at_once_and_later(bench: Bench, reference: Reference) -> None:
    """The program itself, without the short cut that starts the other processes here."""
    command = [str(Path(sys.executable).with_name("spurbench")), *bench.arguments()]
    process = subprocess.Popen(
        command,
        env=bench.environment("step train 1 0", bench.folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        wait_for(lambda: (bench.folder / "halted").exists(), "the place to halt")
        process.kill()
    done = subprocess.run(command, env=bench.environment("", bench.folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming run" in done.stderr
    assert_same_run(bench.run, reference("noisy"))


# ---------------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGUSR2, 140, "SIGUSR2")],
)
def test_signal_saves_within_the_epoch(
    bench: Bench, reference: Reference, number: signal.Signals, code: int, name: str
) -> None:
    child = bench.start(halt="step train 0 1").await_halt()
    child.send(number).let_go()
    assert child.wait() == code
    assert f"stopped by {name}; the run is saved, start the same command again to resume it" in child.err
    assert "Traceback" not in child.err
    assert (bench.run / "checkpoint" / "state.pt").exists(), "the first epoch has not ended, so this is mid-epoch"
    assert not (bench.run / "result.json").exists()
    assert not (bench.run / "lease").exists()
    record = bench.finish()
    assert record["machine"]["attempts"] == 2
    assert_same_run(bench.run, reference("noisy"))


@pytest.mark.parametrize("place", ["decode train 40", "start more", "step more 1 2", "test"])
def test_ctrl_c_anywhere_leaves_a_run_that_resumes(bench: Bench, reference: Reference, place: str) -> None:
    bench.method = "chain"
    child = bench.start(halt=place).await_halt()
    child.send(signal.SIGINT).let_go()
    assert child.wait() == 130
    assert "start the same command again to resume it" in child.err
    assert not leftovers(bench.folder)
    bench.finish()
    assert_same_run(bench.run, reference("chain"))


def test_second_ctrl_c_stops_at_once(bench: Bench, reference: Reference) -> None:
    child = bench.start(halt="step train 1 1").await_halt()
    child.send(signal.SIGINT).await_turn().send(signal.SIGINT)
    assert child.wait() == 130
    assert "Traceback" not in child.err
    bench.finish()
    assert_same_run(bench.run, reference("noisy"))


# ------------------------------------------------------------------------------------------------- finished and forced


def test_finished_run_is_printed_without_its_data(bench: Bench) -> None:
    first = bench.finish()
    (bench.folder / "data" / "toys" / "edition").unlink()
    before = files_of(bench.results)
    again = bench.start()
    assert again.record() == first
    assert files_of(bench.results) == before
    assert "epoch" not in again.err


def test_force_keeps_the_old_result_until_the_new_one_is_complete(bench: Bench, reference: Reference) -> None:
    bench.finish()
    old = (bench.run / "result.json").read_bytes()
    for place in ("step train 0 1", "sync result.json 1"):
        bench.kill_at(place, "--force")
        assert (bench.run / "result.json").read_bytes() == old
    record = bench.finish("--force")
    assert record["machine"]["attempts"] == 1, "forced means from the start"
    assert (bench.run / "result.json").read_bytes() != old
    assert_same_run(bench.run, reference("noisy"))


def test_truncated_result_is_not_taken_for_finished(bench: Bench, reference: Reference) -> None:
    bench.finish()
    path = bench.run / "result.json"
    path.write_text(path.read_text()[:500])
    bench.finish()
    assert_same_run(bench.run, reference("noisy"))


# ------------------------------------------------------------------------------------------------------ other failures


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("bad_loss", "the loss is not finite at step 3 of epoch 2 (phase train)"),
        ("bad_gradient", "weights are not finite after step 4 of epoch 2 (phase train)"),
    ],
)
def test_bad_numbers_stop_the_run_and_spare_the_checkpoint(
    bench: Bench, reference: Reference, method: str, words: str
) -> None:
    bench.method = method
    child = bench.start()
    assert child.wait() == 1
    assert f"spurbench: {words}" in child.err
    assert "last good checkpoint is kept" in child.err
    assert "Traceback" not in child.err
    assert_failed_record(bench.result(), words)

    again = bench.start()
    assert again.wait() == 1
    assert "resuming run" in again.err
    assert words in again.err

    repaired = bench.start(halt="step train 1 0").await_halt()
    (repaired.folder / "repaired").touch()
    record = repaired.let_go().record()
    assert "after 1 epochs" in repaired.err
    assert record["machine"]["attempts"] == 3
    assert [row["selected_epoch"] for row in record["rows"] if row["selection"] == "last"] == [2]


def assert_failed_record(result: dict[str, Any], words: str) -> None:
    assert result["status"] == "failed"
    assert words in result["error"]
    (row,) = result["rows"]
    assert row["status"] == "failed"
    assert row["n"] == row["n_correct"] == 0
    assert row.get("accuracy") is None
    assert row.get("worst_group_accuracy") is None


class SmallDisk:
    """A file system of its own, of 64 MB."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.filler = place / "filler"

    def fill(self) -> None:
        """Take what is free, to the last block."""
        with self.filler.open("ab", buffering=0) as stream:
            for size in (1 << 20, 1 << 12):
                try:
                    while stream.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def set_writable(self, writable: bool) -> None:
        mode = "rw" if writable else "ro"
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.place)], check=True)


@pytest.fixture
def disk(bench: Bench) -> Iterator[SmallDisk]:
    place = bench.folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    bench.results = place / "results"
    yield SmallDisk(place)
    bench.close()
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_while_training(bench: Bench, reference: Reference, disk: SmallDisk) -> None:
    bench.finish("--seed", "7")
    earlier = files_of(bench.results)
    child = bench.start(halt="step train 1 1").await_halt()
    disk.fill()
    assert child.let_go().wait() == 1
    assert "no space left on the device" in child.err
    assert "start the same command again: it resumes" in child.err
    assert "Traceback" not in child.err
    assert not leftovers(disk.place)
    assert {path: content for path, content in files_of(bench.results).items() if path in earlier} == earlier

    still_full = bench.start()
    assert still_full.wait() == 1
    assert "No space left on device; mend that and start the same command again" in still_full.err

    disk.filler.unlink()
    record = bench.finish()
    assert record["machine"]["attempts"] == 2
    assert_same_run(bench.results / "runs" / record["run_id"], reference("noisy"))


def test_full_disk_while_writing_results(bench: Bench, reference: Reference, disk: SmallDisk) -> None:
    child = bench.start(halt="test").await_halt()
    disk.fill()
    assert child.let_go().wait() == 1
    assert "No space left on device; mend that and start the same command again" in child.err
    assert "Traceback" not in child.err
    assert not leftovers(disk.place)
    assert not (bench.run / "result.json").exists()
    disk.filler.unlink()
    bench.finish()
    assert_same_run(bench.run, reference("noisy"))


def test_results_folder_that_cannot_be_written(bench: Bench, disk: SmallDisk) -> None:
    disk.set_writable(False)
    child = bench.start()
    assert child.wait() == 2
    assert f"cannot write to the results folder {bench.results}: Read-only file system" in child.err
    disk.set_writable(True)
    bench.results.write_text("a file")
    child = bench.start()
    assert child.wait() == 2
    assert f"cannot write to the results folder {bench.results}" in child.err
    assert bench.results.read_text() == "a file"
