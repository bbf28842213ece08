"""Which runs wait or run in SLURM: a note beside each run says what job it is in, ``squeue`` says whether that lives.

Accounting (``sacct``) is not needed. Everything here works, and says less, on a machine without SLURM.
"""

import contextlib
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spurbench.io import read_json, write_json
from spurbench.sweep import Planned, count

__all__ = [
    "JobNote",
    "QueueSilent",
    "QueuedJob",
    "jobs_of",
    "note_of",
    "queued",
    "squeue",
    "with_queue",
    "write_note",
]

_ANSWER_SECONDS = 20.0
_NEVER_SUBMITTED_HERE = "Invalid job id"
"""``squeue`` says so, and fails, about a single job that it has forgotten."""


class QueueSilent(Exception):
    """``squeue`` is not there or did not answer, so nothing is known about any job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobNote:
    """What ``runs/<run_id>/job.json`` holds: the job that the run was last submitted in."""

    launcher: str = "slurm"
    job_id: str
    """Of the array, where there is one."""
    array_task: int | None
    name: str
    """Of the submission: tells the job from another cluster's with the same number."""
    log: str
    submitted_at: str
    profile: dict[str, Any] | None = None
    """What the job was asked for; None in notes of versions that did not tell."""

    @property
    def full_id(self) -> str:
        """As ``squeue`` and ``scancel`` know it."""
        return self.job_id if self.array_task is None else f"{self.job_id}_{self.array_task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """A job that SLURM has not ended."""

    name: str
    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETING`` (ending, or on its way back into the queue), and rarer ones."""
    reason: str

    def __str__(self) -> str:
        why = self.state == "PENDING" and self.reason not in ("None", "")
        return f"{self.state.lower()}{f' ({self.reason})' if why else ''}"


def write_note(run: Planned, note: JobNote) -> None:
    """Leave a note in the run's folder."""
    write_json(run.folder / "job.json", asdict(note))


def note_of(run: Planned) -> JobNote | None:
    """The note of a run; None if it was never submitted."""
    try:
        return JobNote(**read_json(run.folder / "job.json"))
    except (OSError, ValueError, TypeError):
        return None


def squeue(ids: Iterable[str]) -> dict[str, QueuedJob]:
    """What SLURM knows of jobs that have not ended, by full id.

    Args:
        ids: of jobs or whole arrays.

    Raises:
        QueueSilent: it cannot be asked.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(wanted)}", "--format=%i|%T|%j|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except FileNotFoundError as error:
        raise QueueSilent("there is no squeue on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise QueueSilent(f"squeue did not answer within {_ANSWER_SECONDS:.0f} seconds") from error
    except OSError as error:
        raise QueueSilent(f"squeue: {error.strerror or error}") from error
    if done.returncode and _NEVER_SUBMITTED_HERE not in done.stderr:
        raise QueueSilent(done.stderr.strip() or f"squeue failed with exit code {done.returncode}")
    jobs = {}
    for line in done.stdout.splitlines():
        full_id, state, name, reason = line.strip().split("|", maxsplit=3)
        jobs[full_id] = QueuedJob(name=name, state=state, reason=reason)
    return jobs


def jobs_of(runs: Sequence[Planned]) -> dict[str, QueuedJob]:
    """Runs whose job has not ended, by run id.

    Raises:
        QueueSilent: SLURM cannot be asked.
    """
    notes = {run.run_id: note for run in runs if (note := note_of(run)) is not None}
    known = squeue(note.job_id for note in notes.values())
    found = {run_id: (known.get(note.full_id), note) for run_id, note in notes.items()}
    return {run_id: job for run_id, (job, note) in found.items() if job is not None and job.name == note.name}


def queued(runs: Sequence[Planned]) -> dict[str, str]:
    """For people: runs whose job has not ended, by run id, with words such as ``job 12, pending (Resources)``.

    Never fails. Where SLURM cannot be asked, what was submitted and has not begun counts as queued.
    """
    notes = {run.run_id: note for run in runs if (note := note_of(run)) is not None}
    with contextlib.suppress(QueueSilent):
        return {run_id: f"job {notes[run_id].job_id}, {job}" for run_id, job in jobs_of(runs).items()}
    return {
        run.run_id: f"job {notes[run.run_id].job_id}, submitted; squeue cannot be asked from here"
        for run in runs
        if run.run_id in notes and not _has_begun(run)
    }


_NEVER = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
"""Reasons of SLURM's for jobs that wait for something that does not come by itself."""


def with_queue(runs: Sequence[Planned], states: Sequence[str]) -> tuple[list[Any], list[str]]:
    """What ``--status`` says: states in which ``queued`` is known, and a line for each job and state of it.

    A run is ``running`` only while a process works on it; the next one of the same job is ``queued``.
    """
    known = queued([run for run, state in zip(runs, states, strict=True) if state not in ("done", "stale")])
    told = []
    for run, state in zip(runs, states, strict=True):
        if run.run_id in known and state != "running":
            told.append("queued")
        elif state == "stopped" and not _has_begun(run):  # its folder holds nothing but the note of a job that is gone
            told.append("waiting")
        else:
            told.append(state)
    lines = [
        f"{count(number, 'run')} in SLURM's {text}{_advice(text)}" for text, number in Counter(known.values()).items()
    ]
    return told, lines


def _advice(text: str) -> str:
    """What to do about a job that no node of its partition can take."""
    if not any(reason in text for reason in _NEVER):
        return ""
    job = text.removeprefix("job ").partition(",")[0]
    return f"; no node may ever take it: scancel {job}, change the profile, and start the same command again"


def _has_begun(run: Planned) -> bool:
    return (run.folder / "config.json").exists()
