"""Jobs of a real SLURM, started here by ``cluster/slurm-local.sh``: equal bits, whatever ends a job.

Skipped without the packages slurm-wlm and munge; ``$SPURBENCH_REQUIRE_SLURM`` makes that a failure.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from spurbench.cli import main
from spurbench.config import RunPaths
from spurbench.errors import ConfigError, RunFailed, SpurbenchError
from spurbench.launch import launch, slurm, slurm_wait
from spurbench.launch.local import launch_local
from spurbench.launch.options import LaunchOptions
from spurbench.launch.slurm_job import SlurmTask, record_key
from spurbench.launch.slurm_queue import note_of, with_queue
from spurbench.lease import owner_of
from spurbench.sweep import Planned, SweepFile, plan

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).with_name("toys.py")
SWEEP = {
    "datasets": ["toys"],
    "train": {"epochs": 2, "batch_size": 16, "optimizer": {"lr": 1e-3}},
    "set": {"input.resize": 32, "input.image_size": 32, "backbone.weights": "none"},
}
PATIENCE = 120.0


class Board:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None: ...

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None: ...

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None: ...


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A private SLURM; its folder."""
    where = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name, path=where) is None]
    absent += [] if importlib.util.find_spec("submitit") else ["the package submitit"]
    if absent:
        reason = f"{absent[0]} is not installed: apt-get install slurm-wlm munge; pip install -e '.[slurm]'"
        if os.environ.get("SPURBENCH_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "cluster" / "slurm-local.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_LOCAL_DIR", str(folder))
        patch.setenv("SLURM_LOCAL_CPUS", "8")
        patch.setenv("SLURM_LOCAL_MEM_MB", "32000")
        started = subprocess.run(["bash", script, "start"], capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stderr
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name in [name for name in os.environ if name.startswith(("TOYS_", "SLURM_JOB", "SBATCH_"))]:
            patch.delenv(name)
        patch.setattr(slurm_wait, "_LOOK_SECONDS", 0.3)
        patch.setattr(slurm_wait, "_QUEUE_SECONDS", 1.0)
        try:
            yield folder
        finally:
            subprocess.run(["bash", script, "stop"], capture_output=True, check=True)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def runs_in(folder: Path, methods: Sequence[str], seeds: str = "0") -> list[Planned]:
    edition = folder / "data" / "toys" / "edition"
    edition.parent.mkdir(parents=True, exist_ok=True)
    edition.write_text("first")
    paths = RunPaths(results=folder / "results", cache=folder / "cache", data_root=folder / "data")
    return plan(SweepFile(**SWEEP, methods=methods, seeds=seeds), paths, (TOYS,))  # type: ignore[arg-type]


def profile_of(folder: Path, **content: Any) -> Path:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def by_slurm(runs: Sequence[Planned], board: Board | None = None, **options: Any) -> dict[str, Any]:
    how = LaunchOptions(device="cpu", plugins=(TOYS,), **{"jobs": 4, **options})
    return {run.run_id: outcome for run, outcome in launch("slurm", runs, how, board or Board())}


def one_by_one(runs: Sequence[Planned]) -> dict[str, dict[str, Any] | SpurbenchError]:
    outcomes = launch_local(runs, device="cpu", plugins=(TOYS,), observer=Board())
    return {run.run_id: outcome for run, outcome in outcomes}


def job_of(run: Planned) -> str:
    note = note_of(run)
    assert note is not None
    return note.full_id


def log_of(run: Planned) -> str:
    note = note_of(run)
    assert note is not None
    return Path(note.log).read_text() if Path(note.log).exists() else ""


def slurm_says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_same_bits_as_on_this_machine_without_sacct(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs in one job, of which one fails; nobody asks the accounting that many clusters do not have."""
    accounting = tmp_path / "bin" / "sacct"
    accounting.parent.mkdir()
    accounting.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexit 1\n")
    accounting.chmod(0o755)
    monkeypatch.setenv("PATH", f"{accounting.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TOYS_DIR", str(tmp_path))
    methods = ["noisy", "bad_loss", "erm"]
    board = Board()
    runs = runs_in(tmp_path / "there", methods)
    outcomes = by_slurm(runs, board, wait=True, runs_per_job=3)
    expected = one_by_one(runs_in(tmp_path / "here", methods))
    assert outcomes.keys() == expected.keys()
    for run, failed in zip(runs, (False, True, False), strict=True):
        here, there = expected[run.run_id], outcomes[run.run_id]
        if failed:
            assert isinstance(there, RunFailed)
            assert str(there) == str(here)
            continue
        assert isinstance(here, dict)
        assert isinstance(there, dict)
        assert there["machine"]["launcher"] == "slurm"
        assert there["machine"].keys() == here["machine"].keys()
        assert {**there, "machine": None} == {**here, "machine": None}
    assert len({job_of(run) for run in runs}) == 1
    assert "3 runs in 1 job, 1 at a time, each with 1 CPU, 2 GB, no GPU, 60 minutes" in "\n".join(board.notes)
    assert not (tmp_path / "asked").exists()


@pytest.mark.slow
def test_whatever_ends_a_job_the_numbers_stay(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four jobs are stopped in the second epoch: cancelled, told that time is up, requeued without warning, killed."""
    runs = runs_in(tmp_path, ["noisy"], "0-3")
    cancelled, timed_out, requeued, killed = runs
    monkeypatch.setenv("TOYS_HALT", "step train 1 1")
    folders = {run.run_id: tmp_path / f"toys{run.config.seed}" for run in runs}
    for run in runs:
        folders[run.run_id].mkdir()
        monkeypatch.setenv("TOYS_DIR", str(folders[run.run_id]))
        assert by_slurm([run]) == {}, "nothing stays alive without --wait"
    monkeypatch.delenv("TOYS_HALT")
    for run in runs:
        wait_for((folders[run.run_id] / "halted").exists, f"the place to halt; its log:\n{log_of(run)}")

    slurm_says("scancel", job_of(cancelled))
    slurm_says("scancel", "--signal=USR2", job_of(timed_out))
    slurm_says("scontrol", "requeue", job_of(requeued))
    owner = owner_of(killed.folder)
    assert owner is not None
    os.kill(owner["pid"], signal.SIGKILL)
    # SLURM delivers signals in order, and submitit notes this one, which is harmless, in the log; scancel sends it too.
    time.sleep(0.5)
    slurm_says("scancel", "--signal=CONT", job_of(timed_out))
    for run in (cancelled, timed_out):
        wait_for(lambda run=run: "SIGCONT" in log_of(run), "the signals")  # type: ignore[misc]
        time.sleep(0.5)
        (folders[run.run_id] / "go").touch()
    # This one does not come to save: it is killed some seconds later, and must not halt when it starts again.
    wait_for(lambda: owner_of(requeued.folder) is None, "the end of the requeued process")
    (folders[requeued.run_id] / "go").touch()
    wait_for(lambda: owner_of(cancelled.folder) is None, "the end of the cancelled process")

    assert "stopped by SIGTERM; everything is saved" in log_of(cancelled)
    wait_for(lambda: "stopped by SIGUSR2; everything is saved" in log_of(timed_out), "the save")
    first_jobs = {run.run_id: job_of(run) for run in runs}
    for run in (cancelled, killed):
        wait_for(lambda run=run: not slurm_says("squeue", "-h", "-j", job_of(run)), "the end of its job")  # type: ignore[misc]
        assert run.state == "stopped"
    board = Board()
    outcomes = by_slurm(runs, board, wait=True)
    assert "2 runs already in the queue, not submitted again" in board.notes
    assert [job_of(run) == first_jobs[run.run_id] for run in runs] == [False, True, True, False]
    expected = one_by_one(runs_in(tmp_path / "here", ["noisy"], "0-3"))
    for run in runs:
        here, there = expected[run.run_id], outcomes[run.run_id]
        assert isinstance(here, dict)
        assert isinstance(there, dict), f"{there}\n{log_of(run)}"
        assert there["rows"] == here["rows"]
        assert there["machine"]["attempts"] == 2
        assert there["machine"]["launcher"] == "slurm"
        assert not (run.folder / "checkpoint").exists()


def test_nothing_is_submitted_twice_and_status_knows(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = runs_in(tmp_path, ["noisy", "erm"])
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({**SWEEP, "methods": ["noisy", "erm"]}))
    monkeypatch.setenv("SPURBENCH_CACHE", str(tmp_path / "cache"))
    where = ["--data-root", str(tmp_path / "data"), "--results", str(tmp_path / "results"), "--plugin", str(TOYS)]
    command = ["sweep", str(sweep), *where]
    held = profile_of(tmp_path, additional={"hold": True})

    def status() -> list[str]:
        assert main([*command, "--status", "--json"]) == 0
        return [line["state"] for line in json.loads(capsys.readouterr().out)["runs"]]

    assert status() == ["waiting", "waiting"]
    assert main([*command, "--launcher", "slurm", "--profile", str(held)]) == 0
    told = capsys.readouterr().err
    job = job_of(runs[0]).partition("_")[0]
    assert f"submitted job {job}: 2 runs in 2 jobs, 1 at a time" in told
    assert f"{sweep} --plugin {TOYS} --results {tmp_path / 'results'} --status" in told
    note = json.loads((runs[1].folder / "job.json").read_text())
    assert note["launcher"] == "slurm"
    assert (note["job_id"], note["array_task"]) == (job, 1)
    assert Path(note["log"]).is_relative_to(tmp_path / "results" / "slurm")
    assert status() == ["queued", "queued"]

    assert main([*command, "--launcher", "slurm", "--profile", str(held)]) == 0
    assert "2 runs already in the queue" in capsys.readouterr().err
    assert [job_of(run) for run in runs] == [f"{job}_0", f"{job}_1"]
    assert len(list((tmp_path / "results" / "slurm").glob("spurbench-*"))) == 1
    with monkeypatch.context() as patch:  # a machine that sees the folder and has no SLURM
        patch.setenv("PATH", str(tmp_path))
        assert status() == ["queued", "queued"]
    with monkeypatch.context() as patch:  # a controller that is down; the real squeue would try for minutes
        silent = tmp_path / "bin" / "squeue"
        silent.parent.mkdir()
        silent.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
        silent.chmod(0o755)
        patch.setenv("PATH", f"{silent.parent}:{os.environ['PATH']}")
        assert status() == ["queued", "queued"]
        with pytest.raises(ConfigError, match=r"nothing was submitted: .*Unable to contact slurm controller"):
            by_slurm(runs)
    told_states, lines = with_queue(runs, ["running", "waiting"])
    assert told_states == ["running", "queued"]
    assert lines == [f"2 runs in SLURM's job {job}, pending (JobHeldUser)"]

    slurm_says("scancel", job_of(runs[1]))
    assert status() == ["queued", "waiting"]
    slurm_says("scancel", job)
    assert status() == ["waiting", "waiting"]

    threads = [threading.Thread(target=by_slurm, args=(runs,), kwargs={"profile": held}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert status() == ["queued", "queued"]
    assert len(list((tmp_path / "results" / "slurm").glob("spurbench-*"))) == 2, "the three of them made one"
    slurm_says("scancel", job_of(runs[0]).partition("_")[0])


def test_job_that_ends_without_a_record_is_not_waited_for(cluster: Path, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, ["noisy"])
    held = profile_of(tmp_path, additional={"hold": True})
    board = Board()
    outcomes: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: outcomes.update(by_slurm(runs, board, wait=True, profile=held)))
    thread.start()
    wait_for(lambda: "1 run pending" in board.notes, "the job")
    slurm_says("scancel", job_of(runs[0]))
    thread.join(timeout=PATIENCE)
    assert not thread.is_alive()
    assert isinstance(outcomes[runs[0].run_id], RunFailed)
    assert "the job ended without a record; log: " in str(outcomes[runs[0].run_id])
    assert "start the same command again to resume" in str(outcomes[runs[0].run_id])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"partition": "no_such"}, "invalid partition specified: no_such"),
        ({"gpus": 1}, "Invalid generic resource"),
        ({"memory_gb": 4000}, "Memory specification can not be satisfied"),
        ({"additional": {"no-such-option": 1}}, "unrecognized option '--no-such-option=1'"),
    ],
)
def test_refused_profile_leaves_nothing_behind(
    cluster: Path, tmp_path: Path, content: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = runs_in(tmp_path, ["noisy", "erm"])
    profile = profile_of(tmp_path, **content)
    with pytest.raises(ConfigError) as caught:
        by_slurm(runs, profile=profile)
    assert words in str(caught.value)
    assert "nothing was submitted" in str(caught.value)
    assert f"change {profile}" in str(caught.value)
    assert [run.state for run in runs] == ["waiting", "waiting"]
    assert [path.name for path in (tmp_path / "results" / "slurm").iterdir()] == ["lock"]
    assert capsys.readouterr() == ("", "")


def test_more_jobs_than_an_array_may_have(cluster: Path, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, ["noisy"], "0-1001")
    with pytest.raises(
        ConfigError, match=r"(?s)Invalid job array specification.*1002 jobs may be more.*--runs-per-job"
    ):
        by_slurm(runs)


# --------------------------------------------------------------------------------------------------- without a cluster


def test_run_that_failed_is_not_repeated_when_its_job_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOYS_DIR", str(tmp_path))
    (run,) = runs_in(tmp_path, ["bad_loss"])

    def attempts() -> int:
        task = SlurmTask(runs=(run,), device="cpu", plugins=(TOYS,), threads=1, records={run.run_id: before})
        with pytest.raises(SystemExit) if before_fails else pytest.MonkeyPatch.context():
            task()
        number: int = json.loads((run.folder / "result.json").read_text())["machine"]["attempts"]
        return number

    before, before_fails = record_key(run), True
    assert attempts() == 1
    before_fails = False
    assert attempts() == 1
    before, before_fails = record_key(run), True  # submitted with --retry-failed
    assert attempts() == 2


@pytest.mark.parametrize(
    ("hidden", "words"), [("sbatch", "no sbatch on this machine"), ("submitit", r"pip install -e '\.\[slurm\]'")]
)
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str, words: str
) -> None:
    if hidden == "submitit":
        monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=words):
        by_slurm(runs_in(tmp_path, ["noisy"]))


def test_job_submitted_from_within_a_job_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "SLURM_MEM_PER_CPU", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with slurm._outside_any_job():
        assert "SLURM_MEM_PER_CPU" in os.environ, "on a login node it is the user's own setting"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with slurm._outside_any_job():
        assert {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))} == {
            "SLURM_CONF",
            "SBATCH_ACCOUNT",
        }
    assert os.environ["SLURM_MEM_PER_CPU"] == "x"


def test_part_of_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gpus-per-run 0\.5: a SLURM job gets whole GPUs"):
        by_slurm(runs_in(tmp_path, ["noisy"]), gpus_per_run=0.5)
