"""Disturb sweeps at random moments, again and again, and compare what comes out with a sweep that nobody disturbed.

    python tests/chaos/kill_at_random.py --times 50 | tee tests/chaos/kill_at_random.log

Every trial starts a sweep of four short runs, kills something at a random moment (a second or so after so many of them
are done), starts the same command again until it is done, and then looks: no run lost, none twice, every number equal
to the bit, nothing half written left behind.
What is killed is one of

    worker         a worker process of the local launcher, by kill -9
    launcher       the local launcher itself, by kill -9
    all            launcher and workers at once, by kill -9
    ray-worker     a Ray actor that trains, by kill -9 (with one of its own agents, Ray ends the node)
    ray-driver     the process that runs Ray Tune, by kill -9
    ray-node       one of two Ray nodes, by kill -9
    slurm-cancel   a SLURM job, by scancel
    slurm-requeue  a SLURM job, by scontrol requeue
    slurm-usr2     a SLURM job gets USR2, as before its time limit
    slurm-kill     the Python process of a SLURM job, by kill -9
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "integration" / "toys.py"
GRID = """datasets: [toys]
methods: [noisy, chain]
seeds: 0-1
train: {epochs: 2, batch_size: 16, num_threads: 1, optimizer: {lr: 1.0e-3}}
set: {input.resize: 32, input.image_size: 32, backbone.weights: none}
"""
PATIENCE = 300.0
"""Seconds after which something that should end never will."""


@dataclass
class Sweep:
    """A sweep in a folder of its own."""

    folder: Path
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "data" / "toys").mkdir(parents=True, exist_ok=True)
        (self.folder / "data" / "toys" / "edition").write_text("first")
        (self.folder / "grid.yaml").write_text(GRID)

    def start(self, *flags: str) -> "subprocess.Popen[bytes]":
        """The command, in a process group of its own."""
        where = ("--results", str(self.folder / "results"), "--data-root", str(self.folder / "data"))
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "spurbench", "sweep", str(self.folder / "grid.yaml"), "--plugin", str(TOYS),
                 "--device", "cpu", *where, *(flags or self.flags)],
                stdout=log, stderr=log, start_new_session=True, cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "SPURBENCH_CACHE": str(self.folder / "cache"),
                     **self.environment},
            )  # fmt: skip

    def finish(self) -> int:
        """Start the same command until everything is done; returns how often that took."""
        for number in range(1, 5):
            ended(self.start(*self.flags, "--retry-failed"))
            if len(self.records()) == 4:
                return number
        raise AssertionError(f"not done after {number} more starts; see {self.folder / 'log'}")

    def records(self) -> dict[str, dict[str, Any]]:
        """Finished records by run id."""
        documents = (json.loads(path.read_text()) for path in self.folder.glob("results/runs/*/result.json"))
        return {document["run_id"]: document for document in documents if document["status"] == "finished"}

    def compare(self, reference: "Sweep") -> None:
        """Equal in all that does not depend on machine and attempts, and nothing half is left."""
        ours, theirs = self.records(), reference.records()
        assert ours.keys() == theirs.keys(), (sorted(ours), sorted(theirs))
        for run_id, record in ours.items():
            assert record["rows"] == theirs[run_id]["rows"], run_id
            here, there = (sweep.folder / "results" / "runs" / run_id for sweep in (self, reference))
            for name in ("epochs.parquet", "predictions.parquet"):
                assert pq.read_table(here / name).equals(pq.read_table(there / name)), (run_id, name)
            left = [path.name for path in here.rglob("*") if path.name.endswith(".tmp") or path.name == "lease"]
            assert not left, left
            assert not (here / "checkpoint").exists()


def ended(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code, within patience."""
    try:
        return process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("a command did not end") from None


def children_of(pid: int, text: str) -> list[int]:
    """Living descendants whose command line or title has a text in it."""
    found = []
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    for candidate in parents:
        above = candidate
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and candidate != pid:
            with contextlib.suppress(OSError):
                if text in (Path("/proc") / str(candidate) / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(candidate)
    return found


def kill(pid: int) -> None:
    """kill -9, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------ what is killed
# Each function starts the sweep, disturbs it once at a moment, and waits for the end of what it started. It returns
# whether there was anything to disturb.


@dataclass(frozen=True)
class Moment:
    """So many seconds after a sweep has so many finished runs; with 0, after its first run has begun; -1: its start."""

    done: int
    seconds: float

    def wait(self, sweep: Sweep, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """Until then, or until the sweep ends before."""

        def has_come() -> bool:
            begun = self.done < 0 or any(sweep.folder.glob("results/runs/*/lease"))
            return (begun if self.done < 1 else len(sweep.records()) >= self.done) or len(sweep.records()) == 4

        wait_for(lambda: has_come() or (process is not None and process.poll() is not None), str(self), sweep.folder)
        time.sleep(self.seconds)

    def __str__(self) -> str:
        what = {-1: "the start", 0: "the first run's begin"}.get(self.done, f"{self.done} of 4 runs")
        return f"{self.seconds:.1f} s after {what}"


Disturb = Callable[[Sweep, Moment, random.Random], bool]


def kill_one(text: str) -> Disturb:
    """One of the launcher's processes that have a text in their command line."""

    def disturb(sweep: Sweep, moment: Moment, rng: random.Random) -> bool:
        process = sweep.start()
        moment.wait(sweep, process)
        workers = children_of(process.pid, text)
        if workers:
            kill(rng.choice(workers))
        ended(process)
        return bool(workers)

    return disturb


def kill_starter(text: str) -> Disturb:
    """The launcher alone: processes that have a text in their command line have to notice, and end."""

    def disturb(sweep: Sweep, moment: Moment, rng: random.Random) -> bool:
        process = sweep.start()
        moment.wait(sweep, process)
        others = children_of(process.pid, text)
        process.kill()
        process.wait()
        wait_for(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in others), "processes without a launcher", others
        )
        return process.returncode == -signal.SIGKILL

    return disturb


def kill_all(sweep: Sweep, moment: Moment, rng: random.Random) -> bool:
    """Everything at once, as a power cut."""
    process = sweep.start()
    moment.wait(sweep, process)
    workers = children_of(process.pid, "spawn_main")
    for pid in (process.pid, *workers):
        kill(pid)
    process.wait()
    return process.returncode == -signal.SIGKILL


def kill_ray_node(sweep: Sweep, moment: Moment, rng: random.Random) -> bool:
    """One of two nodes; the sweep goes on on the other."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = sweep.start(*sweep.flags, "--address", cluster.address)
        moment.wait(sweep, process)
        running = process.poll() is None
        for info in node.all_processes.values():
            for started in info:
                kill(started.process.pid)
        ended(process)
        return running
    finally:
        cluster.shutdown()


def disturb_job(act: Callable[[str, Sweep], None]) -> Disturb:
    """Something done to a random job of the sweep."""

    def disturb(sweep: Sweep, moment: Moment, rng: random.Random) -> bool:
        ended(sweep.start("--launcher", "slurm", "--jobs", "2"))
        moment.wait(sweep)
        environment = {**os.environ, **sweep.environment}
        command = ["squeue", "-h", "-t", "R", "-o", "%A"]
        jobs = subprocess.run(command, capture_output=True, text=True, env=environment).stdout.split()
        if jobs:
            act(rng.choice(jobs), sweep)
        return bool(jobs)

    return disturb


def slurm(*command: str) -> Callable[[str, Sweep], None]:
    """A command of SLURM's with the job's number at its end."""

    def act(job: str, sweep: Sweep) -> None:
        subprocess.run([*command, job], env={**os.environ, **sweep.environment}, capture_output=True)

    return act


def kill_job_process(job: str, sweep: Sweep) -> None:
    """The Python process of a job."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"submitit.core._submit" in (entry / "cmdline").read_bytes():
                variables = (entry / "environ").read_bytes().split(b"\0")
                if f"SLURM_JOB_ID={job}".encode() in variables:
                    kill(int(entry.name))


def wait_for(condition: Callable[[], bool], what: str, show: Any = "") -> None:
    """Look again and again, within patience."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what} {show}"
        time.sleep(0.1)


LOCAL, RAY, SLURM = (
    ("--jobs", "2"),
    ("--launcher", "ray", "--jobs", "2"),
    ("--launcher", "slurm", "--jobs", "2", "--wait"),
)
KINDS: dict[str, tuple[tuple[str, ...], Disturb]] = {
    "worker": (LOCAL, kill_one("spawn_main")),
    "launcher": (LOCAL, kill_starter("spawn_main")),
    "all": (LOCAL, kill_all),
    "ray-worker": (RAY, kill_one("ray::ImplicitFunc")),
    "ray-driver": (RAY, kill_starter("ray")),
    "ray-node": (RAY, kill_ray_node),
    "slurm-cancel": (SLURM, disturb_job(slurm("scancel"))),
    "slurm-requeue": (SLURM, disturb_job(slurm("scontrol", "requeue"))),
    "slurm-usr2": (SLURM, disturb_job(slurm("scancel", "--batch", "--signal=USR2"))),
    "slurm-kill": (SLURM, disturb_job(kill_job_process)),
}


@contextlib.contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """A real SLURM on this machine, and the environment that reaches it."""
    script = str(ROOT / "cluster" / "slurm-local.sh")
    folder = tempfile.mkdtemp(prefix="slurm-chaos-")
    environment = {**os.environ, "SLURM_LOCAL_DIR": folder}
    done = subprocess.run([script, "start"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    exports = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    try:
        yield exports
    finally:
        subprocess.run([script, "stop"], capture_output=True, env=environment)
        shutil.rmtree(folder, ignore_errors=True)


def trials(kinds: list[str], times: int, seed: int, folder: Path) -> Iterator[str]:
    """A line per trial.

    Raises:
        AssertionError: a lost run, a doubled one, another number, something that never ends.
    """
    rng = random.Random(seed)
    reference = Sweep(folder / "reference", ("--jobs", "1"))
    assert reference.finish() == 1
    with contextlib.ExitStack() as stack:
        needs_slurm = any(name.startswith("slurm") for name in kinds)
        environment = stack.enter_context(slurm_cluster()) if needs_slurm else {}
        for number in range(times):
            name = kinds[number % len(kinds)]
            flags, disturb = KINDS[name]
            moment = Moment(rng.choice([-1, 0, 0, 1, 1, 2, 2, 3]), rng.uniform(0.0, 1.5))
            sweep = Sweep(folder / f"trial {number}", flags, environment)
            hit = disturb(sweep, moment, rng)
            done_before = len(sweep.records())
            starts = sweep.finish()
            sweep.compare(reference)
            attempts = sum(record["machine"]["attempts"] for record in sweep.records().values())
            shutil.rmtree(sweep.folder)
            what = "killed" if hit else "nothing to kill"
            after = f"{starts} more start{'s' if starts > 1 else ' '}, {attempts} attempts in all; 4 runs, equal"
            yield f"{number + 1:3} {name:14} {what} {moment}, {done_before} of 4 runs done at its end; {after}"


def main() -> None:
    """Print a line per trial, then how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-at-random-") as folder:
        for line in trials(options.kinds, options.times, options.seed, Path(folder)):
            print(line, flush=True)
    print(f"{options.times} trials: no run lost, none twice, every number equal to the bit")


if __name__ == "__main__":
    main()
