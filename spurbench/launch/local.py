"""Runs one after another in this process; ``pool.py`` has several at once. Several launchers may share a sweep."""

from collections.abc import Sequence
from pathlib import Path

from spurbench.engine import Interrupted, Observer, run_one
from spurbench.errors import SpurbenchError
from spurbench.launch.options import Outcomes
from spurbench.sweep import Planned, name_of

__all__ = ["launch_local"]


def launch_local(
    runs: Sequence[Planned], *, device: str, plugins: tuple[Path, ...], observer: Observer, launcher: str = "local"
) -> Outcomes:
    """Yield each run with its record, or with the error that stopped it; the rest go on.

    Runs that another process holds are left to it and looked at again at the end.

    Args:
        launcher: what the records say about where the runs were executed.
    """
    waiting: list[Planned] = []
    for wait, batch in ((False, runs), (True, waiting)):
        for number, run in enumerate(batch):
            observer.note(f"run {number + 1} of {len(batch)}: {name_of(run)} ({run.config.run_id()})")
            try:
                record = run_one(
                    run.config,
                    run.paths,
                    device=device,
                    plugins=plugins,
                    wait=wait,
                    launcher=launcher,
                    observer=observer,
                )
            except Interrupted:
                raise
            except SpurbenchError as error:
                observer.note(f"failed: {error}")
                yield run, error
                continue
            if record is None:
                waiting.append(run)
            else:
                yield run, record
