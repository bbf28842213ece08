"""Staying until SLURM has finished: gentle looks at the records on disk, and now and then a question to ``squeue``."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from spurbench.engine.run import finished_record
from spurbench.errors import RunFailed, SpurbenchError
from spurbench.io import read_json
from spurbench.launch.options import Board, Outcomes
from spurbench.launch.slurm_job import record_key
from spurbench.launch.slurm_queue import QueueSilent, jobs_of, note_of
from spurbench.sweep import Planned, count, name_of

__all__ = ["follow"]

_LOOK_SECONDS = 2.0
"""Between two looks at the records of few runs; with many, each costs a hundredth of a second more."""
_QUEUE_SECONDS = 10.0
"""Between two questions to the controller."""
_MISSES = 2
"""Times that a job must be gone: news of jobs reach this machine earlier than their last files."""
_SILENCE_SECONDS = 3600.0
"""A controller that does not answer for so long is not waited for."""


def follow(runs: Sequence[Planned], records: Mapping[str, str | None], board: Board) -> Outcomes:
    """Yield runs as their records appear, and those whose job is gone without one.

    Args:
        records: ``record_key`` of every run before it was submitted.

    Raises:
        RunFailed: SLURM has not answered for an hour.
    """
    left = {run.run_id: run for run in runs}
    queue = _Queue(board)
    try:
        while left:
            queue.look(list(left.values()))
            for run_id, run in list(left.items()):
                outcome = _outcome(run, records[run_id])
                if outcome is None and queue.misses[run_id] >= _MISSES:
                    outcome = _vanished(run)
                if outcome is not None:
                    del left[run_id]
                    if not isinstance(outcome, dict):
                        board.note(f"failed: {name_of(run)}: {outcome}")
                    yield run, outcome
            if left:
                time.sleep(_LOOK_SECONDS + 0.01 * len(left))
    except KeyboardInterrupt:
        board.note("the jobs go on without this command; scancel ends them")
        raise


class _Queue:
    """What has become of jobs; asks the controller now and then."""

    def __init__(self, board: Board) -> None:
        self.misses: Counter[str] = Counter()
        """How often in a row nobody worked on a run any more, by run id."""
        self._board = board
        self._asked = -math.inf
        self._answered = time.monotonic()
        self._told = ""

    def look(self, runs: Sequence[Planned]) -> None:
        """Ask if it is time to.

        Raises:
            RunFailed: no answer for an hour.
        """
        if time.monotonic() - self._asked < _QUEUE_SECONDS:
            return
        self._asked = time.monotonic()
        try:
            jobs = jobs_of(runs)
        except QueueSilent as error:
            if self._asked - self._answered > _SILENCE_SECONDS:
                raise RunFailed(
                    f"SLURM has not answered for an hour: {error}\n"
                    "the jobs may go on without this command; start it again to look"
                ) from error
            self._tell(f"SLURM does not answer, waiting: {error}")
            return
        self._answered = self._asked
        states: Counter[str] = Counter()
        for run in runs:
            job, running = jobs.get(run.run_id), run.state == "running"
            self.misses[run.run_id] = 0 if job or running else self.misses[run.run_id] + 1
            if job:  # one that runs does its runs in turn
                states["next in a running job" if job.state == "RUNNING" and not running else job.state.lower()] += 1
        self._tell(", ".join(f"{count(number, 'run')} {state}" for state, number in sorted(states.items())))

    def _tell(self, text: str) -> None:
        if text and text != self._told:
            self._told = text
            self._board.note(text)


def _outcome(run: Planned, before: str | None) -> dict[str, Any] | SpurbenchError | None:
    """The record of a finished run, the error of one that has failed since it was submitted, or None."""
    folder = run.folder
    record = finished_record(folder)
    if record is not None:
        return record
    if run.state == "failed" and record_key(run) != before:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return RunFailed(str(read_json(folder / "result.json")["error"]))
    return None


def _vanished(run: Planned) -> RunFailed:
    note = note_of(run)
    log = "" if note is None else f"; log: {note.log}"
    return RunFailed(f"the job ended without a record{log}; start the same command again to resume")
