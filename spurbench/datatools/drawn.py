"""Drawn datasets put into a folder, beside what is there already and never over it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from spurbench.dataset import DatasetSpec
from spurbench.errors import ConfigError
from spurbench.lease import Lease

__all__ = ["write_drawn"]

COMPLETE = "complete"
"""There once everything is drawn: what is left is to move it."""


def write_drawn(spec: DatasetSpec, folder: Path) -> tuple[Path, ...]:
    """Write a drawn dataset in its official layout and return the files and folders that lie in ``folder`` now.

    It is drawn to a hidden folder inside and moved when it is complete, so that a process that is killed leaves nothing
    that looks like a dataset; the next one clears it away, or goes on moving.

    Raises:
        ConfigError: something of that name is there, ``folder`` is a file or cannot be written, or another process is
            writing this dataset there.
    """
    assert spec.write is not None
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    workplace = folder / f".spurbench-drawing-{spec.info.name}"
    content = workplace / "content"
    try:
        lease = Lease.try_take(workplace)
        if lease is None:
            raise ConfigError(f"another process is writing {spec.info.name} to {folder}; wait for it")
        try:
            with lease:
                if not (workplace / COMPLETE).exists():
                    _require_free(spec, folder, spec.writes)
                    shutil.rmtree(content, ignore_errors=True)
                    spec.write(content)
                names = sorted(path.name for path in content.iterdir())
                _require_free(spec, folder, names)
                (workplace / COMPLETE).touch()
                written = tuple((content / name).rename(folder / name) for name in names)
        except ConfigError:
            shutil.rmtree(workplace)
            raise
        shutil.rmtree(workplace)
    except OSError as error:
        raise ConfigError(f"cannot write {spec.info.name} to {folder}: {error.strerror or error}") from error
    return written


def _require_free(spec: DatasetSpec, folder: Path, names: Sequence[str]) -> None:
    clashes = [name for name in names if (folder / name).exists()]
    if clashes:
        raise ConfigError(
            f"{folder} has {', '.join(clashes)} already, which {spec.info.name} would write; name another folder"
        )
