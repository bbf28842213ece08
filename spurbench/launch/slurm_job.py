"""What happens inside a SLURM job: its runs one after the other, and back into the queue when time is up."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spurbench.engine import Interrupted
from spurbench.engine.provenance import now_utc
from spurbench.engine.stop import stop_on_signals
from spurbench.io import hash_file
from spurbench.launch.local import launch_local
from spurbench.sweep import Planned, name_of

__all__ = ["SlurmTask", "record_key"]


def record_key(run: Planned) -> str | None:
    """Tells one record of a run from another; None without a record."""
    try:
        return hash_file(run.folder / "result.json")
    except OSError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmTask:
    """The function that submitit calls in a job. Its state lies on disk: each call does what is still missing.

    A job starts again after its time limit, preemption, ``scontrol requeue`` and the failure of its node.
    """

    runs: tuple[Planned, ...]
    device: str
    plugins: tuple[Path, ...]
    threads: int
    """CPUs of the job, for runs whose recipe does not fix the number of threads."""
    records: Mapping[str, str | None]
    """``record_key`` of every run when it was submitted."""

    def __call__(self) -> None:
        """Do the runs.

        Raises:
            SystemExit: with 1 if a run failed; otherwise when a signal has ended the job, and everything is saved.
        """
        import torch

        torch.set_num_threads(self.threads)
        log = _Log()
        failed, stopped_by = 0, None
        with stop_on_signals() as stop:  # also between two runs
            try:
                runs = [run for run in self.runs if not self._failed_in_this_job(run)]
                outcomes = launch_local(runs, device=self.device, plugins=self.plugins, observer=log, launcher="slurm")
                for run, outcome in outcomes:
                    stop.check()
                    failed += not isinstance(outcome, dict)
                    log.note(f"{'done' if isinstance(outcome, dict) else 'failed'}: {name_of(run)}")
            except Interrupted as error:
                stopped_by = error.signal_number
                log.note(f"stopped by {signal.Signals(stopped_by).name}; everything is saved")
        if stopped_by == signal.SIGUSR2:
            # Time is up. submitit's own handler is in place again: it puts the job back into the queue and exits.
            signal.raise_signal(signal.SIGUSR2)
        if stopped_by is not None:
            raise SystemExit(128 + stopped_by)
        if failed:
            raise SystemExit(1)

    def checkpoint(self) -> Any:
        """What submitit does after a requeue: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _failed_in_this_job(self, run: Planned) -> bool:
        """Before a requeue; such a run is left alone until ``--retry-failed``."""
        return run.state == "failed" and record_key(run) != self.records[run.run_id]


class _Log:
    """Lines with a time, for the job's log."""

    def note(self, text: str) -> None:
        print(f"{now_utc()} {text}", flush=True)

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float]) -> None: ...

    def epoch(self, row: Mapping[str, Any]) -> None:
        group = "" if row["val_wga"] is None else f", WGA {row['val_wga']:.3f}"
        self.note(
            f"{row['phase']} epoch {row['epoch'] + 1}: loss {row['train_loss']:.4f}, "
            f"val accuracy {row['val_accuracy']:.3f}{group}"
        )
