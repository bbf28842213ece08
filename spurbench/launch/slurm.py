"""Runs as jobs of a SLURM cluster, through submitit. Nothing stays alive on the login node unless it is asked to.

One call submits one job array. A note beside each run names its job, so the same command submits nothing twice, and
any later call, on any machine that sees the results, knows where the runs are.
"""

import contextlib
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from spurbench.engine.provenance import now_utc
from spurbench.errors import ConfigError, cannot_write_results, install_line
from spurbench.launch.options import Board, LaunchOptions, Outcomes, from_anywhere
from spurbench.launch.slurm_job import SlurmTask, record_key
from spurbench.launch.slurm_profile import SlurmProfile, load_profile
from spurbench.launch.slurm_queue import JobNote, QueuedJob, QueueSilent, jobs_of, note_of, write_note
from spurbench.launch.slurm_wait import follow
from spurbench.sweep import Planned, count

__all__ = ["launch"]

_LOOK_SECONDS = 1.0
_ENDING_SECONDS = 60.0
"""Longest time in which a job ends; clusters let it save for ``KillWait``, 30 seconds by default."""
_MANY = 10**6
"""Time limits and preemptions that a job may live through."""


def launch(runs: Sequence[Planned], options: LaunchOptions, board: Board) -> Outcomes:
    """Submit what is not in the queue already; with ``options.wait`` yield each run as it ends.

    Raises:
        ConfigError: no SLURM, no submitit, a bad profile, or one that SLURM refuses; nothing was submitted then.
    """
    profile = _with_flags(load_profile(options.profile), options)
    _require_tools()
    if not runs:
        return
    runs = [from_anywhere(run) for run in runs]
    records = {run.run_id: record_key(run) for run in runs}
    with _alone(runs[0].paths.results):
        missing = _not_queued(runs, profile, board)
        if missing:
            _submit(missing, profile, options, records, board)
    if options.wait:
        yield from follow(runs, records, board)


def _with_flags(profile: SlurmProfile, options: LaunchOptions) -> SlurmProfile:
    """The profile with what the command line says over it."""
    changes: dict[str, int] = {}
    if options.runs_per_job is not None:
        changes["runs_per_job"] = options.runs_per_job
    if options.gpus_per_run is not None:
        if options.gpus_per_run != int(options.gpus_per_run):
            raise ConfigError(
                f"--gpus-per-run {options.gpus_per_run:g}: a SLURM job gets whole GPUs and does its runs one after "
                "the other; use --gpus-per-run 1, or --launcher local --jobs N inside an allocation to share a GPU"
            )
        changes["gpus"] = int(options.gpus_per_run)
    return profile.model_copy(update=changes)


def _require_tools() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--launcher slurm needs submitit: {install_line('slurm')}") from error
    absent = [name for name in ("sbatch", "squeue", "srun", "scontrol") if shutil.which(name) is None]
    if absent:
        raise ConfigError(
            f"--launcher slurm: no {absent[0]} on this machine; log in to the cluster's login node (some need "
            "`module load slurm`) and start the same command there, or use --launcher local"
        )


@contextlib.contextmanager
def _alone(results: Path) -> Iterator[None]:
    """One process at a time asks the queue and submits, so that two do not submit the same."""
    import fcntl

    try:
        (results / "slurm").mkdir(parents=True, exist_ok=True)
        stream = (results / "slurm" / "lock").open("a")
    except OSError as error:
        raise cannot_write_results(results, error) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _not_queued(runs: Sequence[Planned], profile: SlurmProfile, board: Board) -> list[Planned]:
    """Runs that no job will bring, and that nobody works on elsewhere."""
    try:
        jobs = _settled(runs, board)
    except QueueSilent as error:
        raise ConfigError(f"SLURM does not answer, nothing was submitted: {error}") from error
    if jobs:
        board.note(f"{count(len(jobs), 'run')} already in the queue, not submitted again")
        pending = [run for run in runs if run.run_id in jobs and jobs[run.run_id].state == "PENDING"]
        _tell_of_other_profiles(pending, profile, board)
    missing = [run for run in runs if run.run_id not in jobs]
    held = [run for run in missing if note_of(run) is None and run.state == "running"]
    if held:
        board.note(f"{count(len(held), 'run')} being computed outside of SLURM, left to whoever does it")
    return [run for run in missing if run not in held]


def _tell_of_other_profiles(pending: Sequence[Planned], profile: SlurmProfile, board: Board) -> None:
    """A profile that was changed after jobs were submitted is not theirs: say so, and how it becomes theirs."""
    wanted = profile.model_dump(mode="json")
    others = [note for run in pending if (note := note_of(run)) and note.profile and note.profile != wanted]
    if not others:
        return
    asked = others[0].profile or {}
    changes = [f"{key} {asked.get(key)}, now {value}" for key, value in wanted.items() if asked.get(key) != value]
    jobs = " ".join(dict.fromkeys(note.job_id for note in others))
    board.note(
        f"{count(len(others), 'run')} in the queue with another profile ({'; '.join(changes)}); to submit what has "
        f"not begun with this one: scancel --state=PENDING {jobs}, then the same command again"
    )


def _settled(runs: Sequence[Planned], board: Board) -> dict[str, QueuedJob]:
    """Jobs in the queue. One that is ending may be on its way back into it, so that is waited for.

    One that does not come to an end counts as gone: a new job waits until the old process has.
    """
    end = time.monotonic() + _ENDING_SECONDS
    told = False
    while True:
        jobs = jobs_of(runs)
        ending = [run_id for run_id, job in jobs.items() if job.state == "COMPLETING"]
        if not ending or time.monotonic() > end:
            return {run_id: job for run_id, job in jobs.items() if run_id not in ending}
        if not told:
            board.note(f"the job of {count(len(ending), 'run')} is just ending; waiting in case it starts again")
            told = True
        time.sleep(_LOOK_SECONDS)


# ------------------------------------------------------------------------------------------------------- submitting


def _submit(
    runs: Sequence[Planned],
    profile: SlurmProfile,
    options: LaunchOptions,
    records: Mapping[str, str | None],
    board: Board,
) -> None:
    """One job array; nothing is left behind if SLURM refuses it."""
    import submitit

    name = f"spurbench-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = runs[0].paths.results / "slurm" / name
    plugins = tuple(plugin.absolute() for plugin in options.plugins)
    parts = [tuple(runs[start : start + profile.runs_per_job]) for start in range(0, len(runs), profile.runs_per_job)]
    tasks = [
        SlurmTask(
            runs=part,
            device=options.device,
            plugins=plugins,
            threads=profile.cpus,
            records={run.run_id: records[run.run_id] for run in part},
        )
        for part in parts
    ]
    try:
        # submitit prints what sbatch says; it is in the error as well.
        with contextlib.redirect_stderr(io.StringIO()), _outside_any_job():
            executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_MANY)
            executor.update_parameters(**profile.sbatch(name=name, jobs=options.jobs))
            jobs = executor.submit_array(tasks)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise cannot_write_results(folder, error) from error
    except RuntimeError as error:  # what submitit makes of sbatch's
        shutil.rmtree(folder, ignore_errors=True)
        raise _refused(str(error), len(tasks), options.profile) from error
    for job, part in zip(jobs, parts, strict=True):
        job_id, _, task = job.job_id.partition("_")
        note = JobNote(
            job_id=job_id,
            array_task=int(task) if task else None,
            name=name,
            log=str(job.paths.stdout),
            submitted_at=now_utc(),
            profile=profile.model_dump(mode="json"),
        )
        for run in part:
            write_note(run, note)
    board.note(
        f"submitted job {jobs[0].job_id.partition('_')[0]}: {count(len(runs), 'run')} in "
        f"{count(len(jobs), 'job')}, {min(options.jobs, len(jobs))} at a time, each with {profile.in_words()}\n"
        f"logs: {folder}/*_log.out (runs/<run_id>/job.json names each run's)"
    )


def _refused(message: str, jobs: int, profile: Path | None) -> ConfigError:
    """SLURM's own words, and what can be done."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in message.strip().splitlines()]
    hint = f"change {profile}" if profile is not None else "say what this cluster wants with --profile FILE"
    if "array" in message and jobs > 1:
        hint = (
            f"{jobs} jobs may be more than this cluster takes at once (scontrol show config | grep MaxArraySize): "
            "put several runs into each with --runs-per-job N"
        )
    if "ctld" in message or "contact slurm controller" in message.lower():  # nobody has answered
        return ConfigError(
            f"no SLURM controller answers, nothing was submitted: {'; '.join(lines)}\n"
            "look with `sinfo` and at $SLURM_CONF; cluster/slurm-local.sh starts a private SLURM on one machine"
        )
    return ConfigError(f"SLURM refused the jobs, nothing was submitted: {'; '.join(lines)}\n{hint}")


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide what an enclosing job tells its processes: the new job would take it for its own."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if inside and name.startswith(("SLURM_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
