"""What ``spurbench sweep`` says: what it refuses, what it leaves alone and why, and what it is doing."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from spurbench.cli import main
from spurbench.cli.live import live_board
from spurbench.config import RunPaths
from spurbench.engine.record import failed_record
from spurbench.errors import ConfigError
from spurbench.io import write_json
from spurbench.launch import ray_cluster
from spurbench.launch.options import LaunchOptions
from spurbench.launch.pool import _tell, _Worker
from spurbench.schema import SCHEMA_VERSION
from spurbench.sweep import Planned, SweepFile, load_sweep, plan

TOYS = Path(__file__).parents[1] / "integration" / "toys.py"
GRID = (
    "datasets: [toys]\nmethods: [erm]\nseeds: {seeds}\ntrain: {{epochs: 1, batch_size: 32}}\n"
    "set: {{input.resize: 32, input.image_size: 32, backbone.weights: none}}\n"
)


class Sweep:
    """A sweep of toys in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], seeds: str = "0-2") -> None:
        (folder / "data" / "toys").mkdir(parents=True)
        self.edition = folder / "data" / "toys" / "edition"
        self.edition.write_text("first")
        self.file = folder / "s.yaml"
        self.file.write_text(GRID.format(seeds=seeds))
        self.paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
        self.runs: list[Planned] = plan(load_sweep(self.file), self.paths, (TOYS,))
        self._capsys = capsys

    def __call__(self, *flags: str) -> tuple[int, str, str]:
        where = ("--results", str(self.paths.results), "--data-root", str(self.paths.data_root), "--plugin", str(TOYS))
        code = main(["sweep", str(self.file), *where, "--device", "cpu", *flags])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def finish(self, run: Planned, fingerprint: str) -> None:
        """A finished record as far as a sweep reads it."""
        moments = {"started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:40+00:00"}
        record = {
            "schema_version": SCHEMA_VERSION,
            "status": "finished",
            "rows": [{"dataset_fingerprint": fingerprint}],
            "machine": {"attempts": 1, **moments},
        }
        write_json(run.folder / "result.json", record)

    def fail(self, run: Planned, error: str) -> None:
        write_json(run.folder / "config.json", {})
        write_json(run.folder / "result.json", failed_record(run.config, error, {}))


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    return Sweep(tmp_path, capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--stop-early", "val_wga"), "--stop-early is for --launcher ray, and this is --launcher local; add"),
        (("--address", "auto"), "--address is for --launcher ray,"),
        (("--gpus-per-run", "0"), "--gpus-per-run is for --launcher ray or slurm,"),
        (("--profile", "nofile.yaml"), "--profile is for --launcher slurm,"),
        (("--runs-per-job", "2"), "--runs-per-job is for --launcher slurm,"),
        (("--wait",), "--wait is for --launcher slurm,"),
        (("--launcher", "ray", "--wait"), "--wait is for --launcher slurm, and this is --launcher ray; add --launcher"),
        (("--launcher", "slurm", "--address", "auto"), "--address is for --launcher ray, and this is --launcher slurm"),
        (("--launcher", "slurm", "--jobs", "auto"), "--jobs auto is for --launcher local"),
        (("--dry-run", "--wait"), "--wait is for --launcher slurm,"),
    ],
)
def test_what_another_launcher_heeds_is_refused(sweep: Sweep, flags: tuple[str, ...], words: str) -> None:
    code, _, err = sweep(*flags)
    assert code == 2
    assert err.startswith(f"spurbench: {words}")
    assert not sweep.paths.results.exists()


def test_a_stale_run_is_not_done_until_it_is_made_again(sweep: Sweep) -> None:
    for run, fingerprint in zip(sweep.runs, ("first", "second", "first"), strict=True):
        sweep.finish(run, fingerprint)
    code, out, err = sweep("--json")
    assert code == 0
    assert "3 runs: 2 done, 1 stale\n" in err
    assert "2 of 3 runs done, 1 stale (--redo-stale makes it again), 0 failed\n" in err
    assert json.loads(out) == {"runs": 3, "done": 2, "stale": 1, "failed": 0, "finished_now": []}

    code, _, err = sweep("--dry-run", "--redo-stale")
    assert "3 runs: 2 done, 1 to be made again\n" in err
    assert sweep.runs[1].finished, "a plan changes nothing"
    code, _, err = sweep("--status", "--redo-stale")
    assert "3 runs: 2 done, 1 stale\n" in err

    code, _, err = sweep("--redo-stale")
    assert code == 0
    assert "3 runs: 2 done, 1 to be made again\n" in err
    assert "stale: 1 finished run was made with other data of toys (fingerprint second, here first); to be made" in err
    assert "stopped" not in err
    assert "3 of 3 runs done, 0 failed\n" in err


def test_why_runs_failed_is_told_where_they_stand_and_where_they_are_left_alone(sweep: Sweep) -> None:
    first, second, third = sweep.runs
    sweep.fail(first, "the loss is not finite at step 3\nmore of it")
    sweep.fail(second, "the loss is not finite at step 3")
    sweep.fail(third, "out of memory")
    log = {"job_id": "7", "array_task": 1, "name": "n", "log": "/logs/7_1.out", "submitted_at": "now"}
    write_json(third.folder / "job.json", log)
    expected = (
        "failed: ERM on toys, seed 0 and 1 run more: the loss is not finite at step 3 (record: "
        f"{first.folder / 'result.json'})\n"
        f"failed: ERM on toys, seed 2: out of memory (record: {third.folder / 'result.json'}, log: /logs/7_1.out)\n"
    )
    code, out, err = sweep("--status", "--json")
    assert code == 0
    assert expected in err
    document: dict[str, Any] = json.loads(out)
    assert document["counts"] == {"failed": 3}
    assert document["seconds_left"] is None
    assert document["disk"]["folders"] == 3
    assert document["disk"]["bytes"] > 0
    assert [run["error"] for run in document["runs"]] == [*2 * ["the loss is not finite at step 3"], "out of memory"]
    assert document["runs"][2]["log"] == "/logs/7_1.out"
    code, _, err = sweep()
    assert code == 1
    assert expected in err
    assert "left alone: 3 that failed before" in err


def test_many_reasons_are_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = Sweep(tmp_path, capsys, seeds="0-11")
    for number, run in enumerate(many.runs):
        many.fail(run, f"reason {number}")
    _, _, err = many("--status")
    assert err.count("(record: ") == 10
    assert "failed: 2 reasons more; --status --json has them by run" in err


def test_time_left_is_in_the_document(sweep: Sweep) -> None:
    sweep.finish(sweep.runs[0], "first")
    _, out, err = sweep("--status", "--json", "--jobs", "2")
    document = json.loads(out)
    assert document["counts"] == {"done": 1, "waiting": 2}
    assert (document["seconds_left"], document["at_once"]) == (100.0, 2)
    assert "(judged by 1 run that is done)" in err
    assert [run["folder"] for run in document["runs"]] == [str(sweep.runs[0].folder), None, None]


def test_status_of_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Sweep(tmp_path, capsys, seeds="0")
    code, _, err = one("--status")
    assert code == 0
    assert err.startswith(f"1 run: 1 waiting\nno results folder at {one.paths.results}: nothing has run there")
    assert not one.paths.results.exists()


@pytest.mark.parametrize(("draws", "told"), [(2, False), (3, True), (None, True)])
def test_unequal_random_budgets_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], draws: int | None, told: bool
) -> None:
    random = "" if draws is None else f", random: {{draws: {draws}, train.optimizer.lr: {{low: 0.1, high: 1}}}}"
    file = tmp_path / "s.yaml"
    file.write_text(
        "datasets: [minibirds100]\nmethods:\n"
        "  - {name: jtt, random: {draws: 2, upweight: [20, 50, 100]}}\n"
        f"  - {{name: erm{random}}}\n"
    )
    assert main(["sweep", str(file), "--results", str(tmp_path / "results"), "--dry-run"]) == 0
    note = f"note: random budgets differ (jtt 2, erm {draws or 'none'}); a table"
    assert (note in capsys.readouterr().err) == told


def test_runs_at_once_are_told_apart_by_their_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = plan(SweepFile(datasets=["minibirds100"], methods=["aim[2,25%]"]), RunPaths(cache=tmp_path))  # type: ignore[list-item]
    worker = _Worker(1, "cpu", (), 1)
    with live_board("title", 2) as board:
        _tell(board, worker, run, "progress", ("find epoch 1/2", 3, 10, {"loss": 0.5}))
        _tell(board, worker, run, "note", "resumed")
    name = "AIM[2,25%] on minibirds100, seed 0"
    assert capsys.readouterr().err == f"title\n{name}: find epoch 1/2: 3/10 loss 0.500\n{name}: resumed\n"


def test_a_cluster_that_is_gone_is_not_asked_about_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client would wait for half a minute."""
    monkeypatch.setattr(ray_cluster, "_has_token", lambda: True)
    monkeypatch.setattr(ray_cluster, "_asks_for_token", lambda address: pytest.fail("asked"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}"):
            ray_cluster.require_ray(LaunchOptions(address=address))


def test_whoever_is_not_let_in_hears_that_there_may_be_no_cluster() -> None:
    message = str(ray_cluster._refused("10.0.0.1:6379", "timed out\nmore"))
    assert message.startswith("cannot join a Ray cluster at 10.0.0.1:6379: timed out\neither no cluster is there")
    assert "same versions of Python and Ray" in message
