"""From archives to a dataset that opens, and to its cache of decoded frames."""

import glob
import hashlib
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from spurbench.data.cache import frame_bytes, load_frames
from spurbench.dataset import Archive, Dataset, DatasetSpec, content_key
from spurbench.datatools.archives import archive_fault, find_archive, unpack
from spurbench.datatools.download import download
from spurbench.datatools.warnings import kept_warnings
from spurbench.errors import DataError, DataMissing, data_missing
from spurbench.lease import Lease, owner_of

__all__ = ["archive_places", "build_cache", "cache_bytes", "prepare_files"]

Progress = Callable[[str, int, int], None]
Tell = Callable[[str], None]


def archive_places(root: Path | None, archives: Path | None) -> tuple[Path, ...]:
    """Folders where archives may lie."""
    return tuple(place for place in (archives, root) if place is not None)


def prepare_files(
    spec: DatasetSpec, root: Path, archives: Path | None, *, fetch: bool, progress: Progress, tell: Tell
) -> Dataset:
    """The opened dataset, unpacked from its archives as far as it is not there yet.

    Args:
        spec: the dataset.
        root: data root, where it is unpacked.
        archives: a further folder where archives may lie, and where fetched ones go.
        fetch: whether archives with an address may be downloaded.
        progress: called with (task, done, all).
        tell: called with lines for the user.

    Raises:
        DataMissing: an archive that is needed is not there; says what to fetch and where to put it.
        DataError: a damaged or unsafe archive, or another process at work on the same set.
    """
    dataset, problem = _opened(spec, root)
    if dataset is not None and _complete(spec, dataset):
        tell(f"{spec.info.name} is there already; nothing to unpack")
        return dataset
    places = archive_places(root, archives)
    absent: list[Archive] = []
    for archive in spec.info.archives:
        path = find_archive(archive, places)
        if path is None and fetch and archive.url:
            path = download(archive, archives or root, progress)
            known = archive.sha256 or archive.md5
            tell(f"fetched {path}" + ("" if known else " (no checksum of it is published)"))
        if path is None:
            absent.append(archive)
            continue
        _unpack(spec, archive, path, root, progress, tell)
        dataset, problem = _opened(spec, root)
        if dataset is not None and _complete(spec, dataset):
            return dataset
    if dataset is None:
        if not isinstance(problem, DataMissing):
            assert problem is not None  # since nothing was opened
            raise problem
        raise _not_there(spec, root, absent, places, problem) from problem
    if absent:
        tell(f"{spec.info.name} opens, without {_lacking(spec, dataset)}; not found: {_wanted(absent, places)}")
    return dataset


def cache_bytes(dataset: Dataset, resize: int) -> int:
    """Size of the cache of all splits."""
    return sum(
        frame_bytes(len(dataset.split(name)), resize, masks=dataset.info.has_masks) for name in dataset.info.splits
    )


def build_cache(dataset: Dataset, resize: int, folder: Path, progress: Progress) -> None:
    """Decode every split into the cache below ``folder``, as far as it is not there; see ``load_frames``."""
    for name in dataset.info.splits:
        task = f"decoding {name}"
        load_frames(
            dataset.split(name),
            key=content_key(dataset, name),
            resize=resize,
            folder=folder,
            has_boxes=dataset.info.has_boxes,
            progress=lambda done, total, task=task: progress(task, done, total),  # type: ignore[misc]
        )


def _opened(spec: DatasetSpec, root: Path) -> tuple[Dataset | None, DataMissing | DataError | None]:
    try:
        with kept_warnings():
            return spec.open(root), None
    except (DataMissing, DataError) as error:
        return None, error


def _complete(spec: DatasetSpec, dataset: Dataset) -> bool:
    return not _lacking(spec, dataset)


def _lacking(spec: DatasetSpec, dataset: Dataset) -> str:
    parts = [("masks", "has_masks"), ("boxes", "has_boxes")]
    return " and ".join(word for word, name in parts if getattr(spec.info, name) and not getattr(dataset.info, name))


def _unpack(spec: DatasetSpec, archive: Archive, path: Path, root: Path, progress: Progress, tell: Tell) -> None:
    fault = archive_fault(path, archive, hashed=True, progress=progress)
    if fault is not None:
        raise DataError(f"{path}: {fault}".replace(f"{path}: {path}", str(path)))
    workplace = _workplace(root, path)
    lease = Lease.try_take(workplace)
    if lease is None:
        owner = owner_of(workplace) or {"pid": "?", "host": "?"}
        raise DataError(f"process {owner['pid']} on {owner['host']} is unpacking {path}; wait for it")
    with lease:
        into = root / archive.into
        done = unpack(path, into, workplace / "content", archive, progress)
    if done.new:
        tell(f"unpacked {path} to {into}: {_some(done.new)}")
    if done.kept:
        tell(
            f"left as it was: {_some(done.kept)} in {into}; if it is incomplete, move it away and prepare "
            f"{spec.info.name} again"
        )


def _workplace(root: Path, path: Path) -> Path:
    """Where an archive is unpacked first; what another file of this name has left there goes."""
    stat = path.stat()
    identity = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    workplace = root / ".spurbench-unpacking" / f"{path.name}-{identity}"
    for other in workplace.parent.glob(f"{glob.escape(path.name)}-*"):
        if other != workplace and owner_of(other) is None:
            shutil.rmtree(other, ignore_errors=True)
    return workplace


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _not_there(
    spec: DatasetSpec, root: Path, absent: Sequence[Archive], places: Sequence[Path], problem: DataMissing
) -> DataMissing:
    """Why there is nothing to open, and how to get what is missing."""
    if not spec.info.archives:
        return DataMissing(f"nothing to unpack, since no archive of {spec.info.name} is known; {problem}")
    if not absent:
        return DataMissing(f"all archives of {spec.info.name} are unpacked, and yet {problem}")
    download = " --download" if any(archive.url for archive in absent) else ""
    return data_missing(
        str(problem).partition("\n")[0],
        looked_for=_wanted(absent, places),
        get=spec.info.source,
        then=f"spurbench data prepare {spec.info.name} --data-root {shlex.quote(str(root))}{download}",
    )


def _wanted(absent: Sequence[Archive], places: Sequence[Path]) -> str:
    """Which archives are not there."""
    names = [f"{archive.filename}{' (--download fetches it)' if archive.url else ''}" for archive in absent]
    return f"{', '.join(names)} in {' and '.join(f'{place}/' for place in places)}"
