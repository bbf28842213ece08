"""What all launchers have in common: where the runs come from, what they were told, and what they give back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spurbench.engine.record import failed_record
from spurbench.engine.run import finished_record
from spurbench.errors import SpurbenchError
from spurbench.io import write_json
from spurbench.lease import owner_of
from spurbench.sweep import Planned

__all__ = ["Board", "LaunchOptions", "Outcomes", "bury", "from_anywhere"]

Outcomes = Iterator[tuple[Planned, dict[str, Any] | SpurbenchError]]
"""Runs as they end, each with its record or with the error that stopped it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How to execute; nothing here may change a number."""

    jobs: int = 1
    """Runs (or, on SLURM, jobs) at once."""
    pack: bool = False
    """Whether the local launcher finds out how many fit at once; ``jobs`` is then the most."""
    peak_bytes: int = 0
    """Largest device memory of runs of the same sweep that are done; 0 if unknown."""
    device: str = "auto"
    plugins: tuple[Path, ...] = ()
    address: str | None = None
    """Of a Ray cluster; a local one is started if not given."""
    gpus_per_run: float | None = None
    """Fractions are allowed on Ray. None: on Ray a whole one where there is one, on SLURM what the profile says."""
    profile: Path | None = None
    """YAML file that says what to ask SLURM for."""
    runs_per_job: int | None = None
    """Runs that one SLURM job does one after the other; the profile's, or 1, if not given."""
    wait: bool = False
    """Whether to stay until SLURM has finished everything."""
    stop_early: str | None = None
    """Validation metric by which Ray's ASHA ends runs early, such as ``val_wga``; None: no run is ended early."""


class Board(Protocol):
    """Shows what several workers do."""

    def note(self, text: str) -> None:
        """Something a person should read once."""

    def show(self, worker: int, run: str, task: str, done: int, total: int, values: Mapping[str, float]) -> None:
        """Where a worker stands; ``worker`` counts from 0 to ``LaunchOptions.jobs`` - 1."""

    def epoch_of(self, worker: int, run: str, row: Mapping[str, Any]) -> None:
        """A worker's run has ended an epoch."""


def from_anywhere(run: Planned) -> Planned:
    """The run with paths that mean the same wherever a process starts. Links stay: nodes may see other disks behind."""
    paths = {name: path.absolute() for name, path in run.paths if path is not None}
    return run.model_copy(update={"paths": run.paths.model_copy(update=paths)})


def bury(run: Planned, error: SpurbenchError, machine: Mapping[str, Any]) -> None:
    """Leave the failed record that a dead process could not write; not over a finished one, nor where one works on."""
    if finished_record(run.folder) is None and owner_of(run.folder) is None:
        write_json(run.folder / "result.json", failed_record(run.config, str(error), machine))
