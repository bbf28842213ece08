"""What may go from a results folder. Records, tables and whatever somebody works on always stay."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spurbench.engine.run import finished_record, has_failed
from spurbench.io import folder_bytes
from spurbench.lease import owner_of

__all__ = ["Waste", "find_waste", "remove"]


@dataclass(frozen=True, slots=True)
class Waste:
    """Files or a folder that can be deleted."""

    path: Path
    num_bytes: int
    why: str


def find_waste(results: Path, *, weights: bool = False, phases: bool = False, failed: bool = False) -> list[Waste]:
    """What nothing needs any more: leftovers of killed processes, and checkpoints of finished runs.

    Args:
        weights: also weights and artifacts of finished runs; their numbers stay, ``explain`` can no longer show them.
        phases: also trainings that several runs can share; runs to come make them again.
        failed: also all that failed runs left, their records included.
    """
    found = []
    for folder in _folders(results / "runs"):
        if owner_of(folder) is not None:
            continue
        found += [_waste(path, "left by a process that was killed") for path in folder.rglob(".*.tmp")]
        if finished_record(folder) is not None:
            unneeded = ["checkpoint", *(["weights", "artifacts"] if weights else [])]
            found += [_waste(folder / name, f"{name} of a finished run") for name in unneeded]
        elif failed and has_failed(folder):
            found.append(_waste(folder, "a failed run"))
    for folder in _folders(results / "phases") if phases else ():
        if owner_of(folder) is None:
            found.append(_waste(folder, "a training that runs can share"))
    return [waste for waste in found if waste.path.exists()]


def remove(waste: Waste) -> None:
    """Delete it; what is gone already is no mistake."""
    if waste.path.is_dir() and owner_of(waste.path) is not None:
        return  # somebody has begun to work on it
    if waste.path.is_dir():
        shutil.rmtree(waste.path, ignore_errors=True)
    else:
        waste.path.unlink(missing_ok=True)


def _folders(parent: Path) -> Iterator[Path]:
    if parent.is_dir():
        yield from sorted(path for path in parent.iterdir() if path.is_dir())


def _waste(path: Path, why: str) -> Waste:
    # Runs and the trainings they share have files in common: each name counts for its part.
    return Waste(path, folder_bytes(path), why)
