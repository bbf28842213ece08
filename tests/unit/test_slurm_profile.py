"""Profiles of the SLURM launcher: what they say to sbatch, and what is wrong with them in words."""

import json
from pathlib import Path

import pytest

from spurbench.config import RunPaths
from spurbench.errors import ConfigError
from spurbench.launch import slurm, slurm_wait
from spurbench.launch.slurm_profile import SlurmProfile, load_profile
from spurbench.launch.slurm_queue import JobNote, QueuedJob, note_of, write_note
from spurbench.lease import Lease
from spurbench.sweep import MethodGrid, Planned, SweepFile, plan

ROOT = Path(__file__).parents[2]


def profile(folder: Path, text: str) -> SlurmProfile:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return load_profile(path)


def test_without_a_profile_a_job_is_small_and_goes_to_the_default_partition() -> None:
    asked = load_profile(None).sbatch(name="x", jobs=3)
    assert {key: value for key, value in asked.items() if value is not None} == {
        "job_name": "x",
        "time": 60,
        "cpus_per_task": 1,
        "mem": "2048M",
        "signal_delay_s": 120,
        "setup": ['export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"', "export PYTHONSAFEPATH=1"],
        "array_parallelism": 3,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True},
    }


def test_everything_reaches_the_script(tmp_path: Path) -> None:
    sbatch_text = pytest.importorskip("submitit.slurm.slurm")._make_sbatch_string
    full = profile(
        tmp_path,
        """
        {partition: gpu, account: me, qos: low, constraint: a100|h100, exclude: "n[1,2]", time_minutes: 90, cpus: 4,
         memory_gb: 7.5, gpus: 2, signal_delay_seconds: 60, setup: module load cuda,
         additional: {mail_type: FAIL, exclusive: true, gres: "gpu:a100:1", requeue: false, no-requeue: true}}
        """,
    )
    text = sbatch_text(command="python", folder=tmp_path, map_count=8, **full.sbatch(name="x", jobs=3))
    lines = text.splitlines()
    for option in (
        "account=me", "array=0-7%3", "constraint='a100|h100'", "cpus-per-task=4", "exclude='n[1,2]'", "exclusive",
        "gpus-per-node=2", "gres=gpu:a100:1", "job-name=x", "mail-type=FAIL", "mem=7680M", "no-requeue",
        "partition=gpu", "qos=low", "signal=USR2@60", "time=90",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --requeue" not in lines
    assert not [line for line in lines if "wckey" in line]
    assert lines.index("module load cuda") < next(n for n, line in enumerate(lines) if line.startswith("srun "))


def test_memory_is_not_asked_for_where_that_is_forbidden(tmp_path: Path) -> None:
    assert profile(tmp_path, "memory_gb: null").sbatch(name="x", jobs=1)["mem"] is None


def test_in_words(tmp_path: Path) -> None:
    assert load_profile(None).in_words() == "1 CPU, 2 GB, no GPU, 60 minutes"
    assert (
        profile(tmp_path, "{cpus: 8, memory_gb: null, gpus: 2, time_minutes: 5}").in_words()
        == "8 CPUs, the default memory, 2 GPUs, 5 minutes"
    )


def test_example_is_a_profile(tmp_path: Path) -> None:
    """Also with everything in it that is commented out."""
    text = (ROOT / "cluster" / "slurm.yaml").read_text()
    assert profile(tmp_path, text) == SlurmProfile(cpus=4, memory_gb=8, runs_per_job=4)
    head, _, rest = text.partition("# partition:")
    full = profile(tmp_path, head + "\n".join(line.removeprefix("# ") for line in f"# partition:{rest}".splitlines()))
    assert full.model_fields_set == set(SlurmProfile.model_fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: gpu", r"unknown option 'partitoin'; did you mean 'partition'\? available: account"),
        ("cpus: 0", r"cpus: .*greater than 0 \(got 0\)"),
        ("time_minutes: 1h", r"time_minutes: .* \(got '1h'\)"),
        ("gpus: 0.5", r"gpus: .* \(got 0\.5\)"),
        ("memory_gb: .inf", r"memory_gb: .*finite"),
        ("{time_minutes: 2, signal_delay_seconds: 120}", r"signal_delay_seconds 120 must be below the time limit, 120"),
        ("additional: {array: 0-3, --output: x}", r"additional: array, output: the launcher sets this itself"),
        ("- partition", r"must hold lines such as partition: gpu"),
        ("1: 2", r"must hold lines such as partition: gpu"),
        ("partition: [", r"is not valid YAML"),
    ],
)
def test_wrong_profile_is_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)cluster\.yaml.*{words}"):
        profile(tmp_path, text)


def test_absent_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory; cluster/slurm\.yaml is an example"):
        load_profile(tmp_path / "none.yaml")


def test_a_job_that_no_node_can_take_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    from spurbench.launch import slurm_queue

    known = {"a": "job 7, pending (PartitionConfig)", "b": "job 8, pending (Resources)"}
    monkeypatch.setattr(slurm_queue, "queued", lambda runs: known)
    _, lines = slurm_queue.with_queue([], [])
    assert lines == [
        "1 run in SLURM's job 7, pending (PartitionConfig); no node may ever take it: scancel 7, change the profile, "
        "and start the same command again",
        "1 run in SLURM's job 8, pending (Resources)",
    ]


class Board:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def planned(folder: Path, seeds: int) -> list[Planned]:
    sweep = SweepFile(datasets=["minibirds100"], methods=[MethodGrid(name="erm")], seeds=list(range(seeds)))
    return plan(sweep, RunPaths(results=folder / "results", cache=folder / "cache"))


def submitted(run: Planned, task: int, profile: SlurmProfile | None) -> None:
    asked = None if profile is None else profile.model_dump(mode="json")
    write_note(run, JobNote(job_id="12", array_task=task, name="n", log="l", submitted_at="now", profile=asked))


def test_jobs_that_wait_with_another_profile_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned(tmp_path, 5)
    old, new = SlurmProfile(time_minutes=60), SlurmProfile(time_minutes=5, partition="gpu")
    for task, (run, profile) in enumerate(zip(runs, (old, old, new, None, old), strict=True)):
        submitted(run, task, profile)
    states = ("PENDING", "RUNNING", "PENDING", "PENDING", "PENDING")
    jobs = {run.run_id: QueuedJob(name="n", state=state, reason="") for run, state in zip(runs, states, strict=True)}
    monkeypatch.setattr(slurm, "jobs_of", lambda runs: jobs)
    board = Board()
    assert slurm._not_queued(runs, new, board) == []  # type: ignore[arg-type]
    assert board.notes == [
        "5 runs already in the queue, not submitted again",
        "2 runs in the queue with another profile (partition None, now gpu; time_minutes 60, now 5); to submit what "
        "has not begun with this one: scancel --state=PENDING 12, then the same command again",
    ]
    board = Board()
    assert slurm._not_queued(runs[2:4], new, board) == []  # type: ignore[arg-type]
    assert len(board.notes) == 1, "a job with this profile, and one of which nothing is known"


def test_a_note_of_an_older_version_is_read(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, 1)
    submitted(run, 0, None)
    note = json.loads((run.folder / "job.json").read_text())
    del note["profile"]
    (run.folder / "job.json").write_text(json.dumps(note))
    found = note_of(run)
    assert found is not None
    assert found.full_id == "12_0"


def test_of_a_job_that_does_its_runs_in_turn_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = planned(tmp_path, 3)
    jobs = {run.run_id: QueuedJob(name="n", state="RUNNING", reason="") for run in runs[:2]}
    jobs[runs[2].run_id] = QueuedJob(name="n", state="PENDING", reason="")
    monkeypatch.setattr(slurm_wait, "jobs_of", lambda runs: jobs)
    board = Board()
    queue = slurm_wait._Queue(board)  # type: ignore[arg-type]
    with Lease.try_take(runs[0].folder) or pytest.fail("no lease"):
        queue.look(runs)
    assert board.notes == ["1 run next in a running job, 1 run pending, 1 run running"]
    assert not any(queue.misses.values())
