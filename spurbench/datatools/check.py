"""Is a dataset on disk the published one, and does all of it open? Every fault is named, none stops the search."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from spurbench.config import InputConfig
from spurbench.data.decoding import single_threaded_operations, squash_boxes, squash_mask
from spurbench.data.image_set import ImageRecord, ImageSplit, image_size
from spurbench.data.row_faults import RowFault, kept_faults
from spurbench.data.transforms import evaluation_boxes, evaluation_masks
from spurbench.dataset import (
    UNCHANGED,
    Archive,
    Dataset,
    DatasetInfo,
    DatasetSpec,
    SplitData,
    TransformedDataset,
)
from spurbench.datatools.archives import archive_fault, find_archive
from spurbench.datatools.threads import in_order
from spurbench.datatools.warnings import kept_warnings
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import IMAGE_SUFFIXES
from spurbench.types import Sample

__all__ = [
    "CheckReport",
    "Finding",
    "ObjectCounts",
    "check_data",
    "count_findings",
    "group_counts",
    "row_finding",
    "unreadable",
]

CHUNK = 16
"""Samples that a thread looks at before it hands over what it found."""
MAX_LISTED = 8
"""Groups that one finding names."""
ALL_GROUPS = 1000
"""Up to so many groups, those without samples are in the report too."""

Severity = Literal["error", "warning"]
Kind = Literal["archive", "open", "row", "count", "file", "mask", "box", "object", "duplicate", "reference"]
Place = Literal["none", "empty", "gone", "cut", "whole"]
"""Where an object is in evaluation geometry: no object is annotated, its mask is empty, nothing or a part of it lies
in the model's input, or all of it."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong or odd."""

    kind: Kind
    severity: Severity
    where: str
    problem: str

    def document(self) -> dict[str, str]:
        """As it stands in JSON."""
        return {"kind": self.kind, "where": self.where, "problem": self.problem}


@dataclass(slots=True, kw_only=True)
class ObjectCounts:
    """How many images of a split have an annotated object, and what evaluation geometry leaves of it."""

    annotated: int = 0
    empty: int = 0
    """Masks without a pixel of foreground."""
    gone: int = 0
    """Cropped away altogether: EPG is not defined there."""
    cut: int = 0
    """Cropped away in part."""

    def add(self, place: Place) -> None:
        """Count one image."""
        self.annotated += place != "none"
        if place in ("empty", "gone", "cut"):
            setattr(self, place, getattr(self, place) + 1)


@dataclass(slots=True, kw_only=True)
class CheckReport:
    """What ``data check`` found."""

    dataset: str
    version: str
    fast: bool
    groups: tuple[str, ...] = ()
    """Names of groups, or of classes without attributes."""
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Samples per split and group."""
    objects: dict[str, dict[str, ObjectCounts]] = field(default_factory=dict)
    """Per split and annotation, ``mask`` or ``box``."""
    archives: dict[str, str] = field(default_factory=dict)
    """What is known of each archive that lies there, by path."""
    images: int = 0
    drawn: bool = False
    """Images are computed when they are asked for, so that there are no files."""
    files: int = 0
    num_bytes: int = 0
    """Of image files."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What was not compared, and why."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """What makes the data wrong."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What is worth knowing."""
        return [finding for finding in self.findings if finding.severity == "warning"]

    def document(self) -> dict[str, Any]:
        """As one JSON document."""
        sparse = len(self.groups) > ALL_GROUPS
        return {
            "dataset": self.dataset,
            "version": self.version,
            "ok": not self.errors,
            "fast": self.fast,
            "num_groups": len(self.groups),
            "counts": {
                split: {name: n for name, n in zip(self.groups, counts, strict=True) if n or not sparse}
                for split, counts in self.counts.items()
            },
            "objects": {
                split: {
                    source: {"annotated": c.annotated, "empty": c.empty, "cropped_away": c.gone, "cut": c.cut}
                    for source, c in sources.items()
                }
                for split, sources in self.objects.items()
            },
            "archives": self.archives,
            "images": self.images,
            "files": self.files,
            "bytes": self.num_bytes,
            "seconds": round(self.seconds, 3),
            "errors": [finding.document() for finding in self.errors],
            "warnings": [finding.document() for finding in self.warnings],
            "notes": self.notes,
        }


def check_data(
    spec: DatasetSpec,
    root: Path | None,
    geometry: InputConfig,
    *,
    places: Sequence[Path] = (),
    fast: bool = False,
    progress: Progress = lambda task, done, total: None,
) -> CheckReport:
    """Look at archives, counts, files, annotations, duplicates and reference tables of a dataset.

    Args:
        spec: the dataset.
        root: data root.
        geometry: of evaluation, for what the centre crop leaves of objects.
        places: folders where archives may lie.
        fast: read headers of files only, and sizes of archives: nothing of what needs pixels or whole files.
        progress: called with (task, done, all).

    Raises:
        DataMissing: neither the dataset nor an archive of it is there.
    """
    start = time.monotonic()
    report = CheckReport(dataset=spec.info.name, version=spec.info.version, fast=fast)
    _check_archives(report, spec.info.archives, places, progress)
    dataset = _open(report, spec, root)
    if dataset is not None:
        _check_counts(report, dataset)
        report.images = sum(map(sum, report.counts.values()))
        report.drawn = spec.write is not None
        with single_threaded_operations():
            _check_samples(report, dataset, geometry, progress)
        _check_reference(report, spec, dataset)
    report.seconds = time.monotonic() - start
    return report


def unreadable(name: str, error: DataError, fast: bool) -> CheckReport:
    """The report on a folder of one's own that is malformed, so that it has neither name nor version."""
    finding = Finding(kind="open", severity="error", where=name, problem=str(error))
    return CheckReport(dataset=name, version="unknown", fast=fast, findings=[finding])


def row_finding(fault: RowFault) -> Finding:
    """What is wrong with a row of a table, as it stands in a report."""
    return Finding(kind=fault.kind, severity="error", where=fault.where, problem=fault.problem)


# ------------------------------------------------------------------------------------------------ archives, opening


def _check_archives(
    report: CheckReport, archives: Sequence[Archive], places: Sequence[Path], progress: Progress
) -> None:
    for archive in archives:
        path = find_archive(archive, places)
        if path is None:
            continue
        fault = archive_fault(path, archive, hashed=not report.fast, progress=progress)
        if fault is not None:
            report.findings.append(Finding(kind="archive", severity="error", where=str(path), problem=fault))
        known = "checksum" if not report.fast and (archive.sha256 or archive.md5) else "size" if archive.size else None
        report.archives[str(path)] = (
            "differs from the published file"
            if fault is not None
            else "nothing is published to compare it with"
            if known is None
            else f"{known} as published"
        )


def _open(report: CheckReport, spec: DatasetSpec, root: Path | None) -> Dataset | None:
    """The dataset; None when it is malformed or still packed, which is then found."""
    place = spec.info.name if root is None else str(root)
    try:
        with kept_warnings() as logged, kept_faults() as faults:
            try:
                dataset = spec.open(root)
            finally:
                report.findings += map(row_finding, faults)
    except DataMissing as error:
        if not report.archives:
            raise
        what = str(error).partition("\n")[0]
        problem = f"not unpacked: spurbench data prepare {spec.info.name} ({what})"
        report.findings.append(Finding(kind="open", severity="error", where=place, problem=problem))
        return None
    except DataError as error:
        report.findings.append(Finding(kind="open", severity="error", where=place, problem=str(error)))
        return None
    report.dataset, report.version = dataset.info.name, dataset.info.version
    report.groups = dataset.info.group_names
    for record in logged:
        if record.funcName != "warn_about_counts":  # counted here, and with more to say
            report.findings.append(Finding(kind="open", severity="warning", where=place, problem=record.getMessage()))
    return dataset


# ---------------------------------------------------------------------------------------------------------- counts


def _check_counts(report: CheckReport, dataset: Dataset) -> None:
    report.counts = group_counts(dataset)
    report.findings += count_findings(dataset.info, report.counts)


def group_counts(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Samples per split and group, or class without attributes."""
    counts = {}
    for name in dataset.info.splits:
        split = dataset.split(name)
        column = split.y if split.group is None else split.group
        counts[name] = tuple(column.bincount(minlength=dataset.info.num_groups).tolist())
    return counts


def count_findings(info: DatasetInfo, counts: Mapping[str, Sequence[int]]) -> list[Finding]:
    """Where a dataset has other numbers of samples than the published one."""
    published: list[tuple[Severity, dict[str, tuple[int, ...]] | None]] = [
        ("error", info.expected_counts),
        ("warning", info.likely_counts),
    ]
    findings = []
    for severity, splits in published:
        for name, numbers in (splits or {}).items():
            problem = _difference(counts.get(name, ()), numbers, info)
            if problem is not None:
                findings.append(Finding(kind="count", severity=severity, where=name, problem=problem))
    return findings


def _difference(found: Sequence[int], published: Sequence[int], info: DatasetInfo) -> str | None:
    """What is wrong with the counts of a split, by group or in all; None when they are as published."""
    if not found:
        return f"there is no such split, published with {sum(published):,} images"
    if len(published) == 1:
        total = sum(found)
        return None if total == published[0] else f"{total:,} images, published {published[0]:,}"
    if len(published) != info.num_groups:
        return f"{info.num_groups} groups, published {len(published)}"
    rows = zip(info.group_names, found, published, strict=True)
    wrong = [f"{name} {n:,} (published {wanted:,})" for name, n, wanted in rows if n != wanted]
    if not wrong:
        return None
    more = f" and {len(wrong) - MAX_LISTED} more groups" if len(wrong) > MAX_LISTED else ""
    return f"{sum(found):,} images (published {sum(published):,}): {', '.join(wrong[:MAX_LISTED])}{more}"


# --------------------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What one sample looks like."""

    faults: tuple[tuple[Kind, Severity, str], ...] = ()
    """Kind, severity, problem."""
    digest: bytes = b""
    """Of the file's bytes; empty where it was not read."""
    num_bytes: int = 0
    places: tuple[tuple[str, Place], ...] = ()
    """Of the object, by ``mask`` and by ``box``."""


def _check_samples(report: CheckReport, dataset: Dataset, geometry: InputConfig, progress: Progress) -> None:
    seen: dict[bytes, tuple[str, int]] = {}
    own = not (dataset.info.expected_counts or dataset.info.likely_counts)
    for name in dataset.info.splits:
        split = dataset.split(name)
        look = partial(_look_at_chunk, split, _plain(dataset).split(name), fast=report.fast, geometry=geometry)
        starts = range(0, len(split), CHUNK)
        index = 0
        for looks in in_order(look, starts):
            for sample in looks:
                _take(report, dataset, name, index, sample, seen, own)
                index += 1
            progress(f"{name}: {'reading headers' if report.fast else 'decoding'}", index, len(split))


def _plain(dataset: Dataset) -> Dataset:
    """The dataset whose files are read: without transforms, which change samples and not their order."""
    while isinstance(dataset, TransformedDataset):
        dataset = dataset.base
    return dataset


def _look_at_chunk(split: SplitData, plain: SplitData, start: int, *, fast: bool, geometry: InputConfig) -> list[_Look]:
    indices = range(start, min(start + CHUNK, len(split)))
    if fast:
        return [_look_at_header(plain, index) for index in indices]
    return [_look_at(split, plain, index, geometry=geometry) for index in indices]


def _look_at_header(plain: SplitData, index: int) -> _Look:
    record = _record_of(plain, index)
    if record is None:
        return _Look()
    try:
        size = image_size(record.path, record.where)
        num_bytes = record.path.stat().st_size
    except (DataError, OSError) as error:
        return _Look(faults=(("file", "error", str(error)),))
    if record.mask is None or record.mask.suffix.lower() not in IMAGE_SUFFIXES:
        return _Look(num_bytes=num_bytes)
    try:
        mask_size = image_size(record.mask, record.where)
    except DataError as error:
        return _Look(num_bytes=num_bytes, faults=(("mask", "error", str(error)),))
    if mask_size == size:
        return _Look(num_bytes=num_bytes)
    text = f"mask {record.mask} is {_by(mask_size)} pixels, but its image {record.path} is {_by(size)}"
    return _Look(num_bytes=num_bytes, faults=(("mask", "error", text),))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _look_at(split: SplitData, plain: SplitData, index: int, *, geometry: InputConfig) -> _Look:
    """Read, hash and decode one sample; whatever is wrong with it is told, never raised."""
    record = _record_of(plain, index)
    digest, num_bytes = b"", 0
    try:
        if record is not None:
            data = record.path.read_bytes()
            digest, num_bytes = _digest(data), len(data)
        sample = split[index]
        if record is None:
            digest = _digest(sample.image.numpy().tobytes())
        places = _places(sample, geometry)
    except Exception as error:  # one bad file must not end the search, however its reader fails
        faults = _explain(plain, record, error)
        return _Look(digest=digest, num_bytes=num_bytes, faults=faults)
    if dict(places).get("mask") == "empty":
        mask = "its mask" if record is None else f"mask {record.mask}"
        faults = (("object", "warning", f"{mask} has no foreground; EPG leaves the image out"),)
        return _Look(digest=digest, num_bytes=num_bytes, places=places, faults=faults)
    return _Look(digest=digest, num_bytes=num_bytes, places=places)


def _explain(split: SplitData, record: ImageRecord | None, error: Exception) -> tuple[tuple[Kind, Severity, str], ...]:
    """All that is wrong with a sample that could not be decoded: image, mask and boxes are tried one by one."""
    if record is None or not isinstance(split, ImageSplit):
        return (("file", "error", _text(error)),)
    plain = replace(record, mask=None, boxes=(), box_frame=None)
    faults: list[tuple[Kind, Severity, str]] = []
    image_fault = _error_of(lambda: ImageSplit([plain], None)[0])
    if image_fault is not None:
        faults.append(("file", "error", image_fault))
    if record.mask is not None:
        mask, where = record.mask, record.where
        alone = partial(split.read_mask, mask, where)
        together = ImageSplit([replace(plain, mask=mask)], None, split.read_mask)
        mask_fault = _error_of(alone if image_fault else lambda: together[0])
        if mask_fault is not None:
            faults.append(("mask", "error", mask_fault))
    if record.boxes and not image_fault:
        boxed = ImageSplit([replace(record, mask=None)], None)
        box_fault = _error_of(lambda: boxed[0])
        if box_fault is not None:
            faults.append(("box", "error", box_fault))
    return tuple(faults) or (("file", "error", _text(error)),)


def _error_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except Exception as error:  # as in _look_at
        return _text(error)
    return None


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, DataError | OSError) else f"{type(error).__name__}: {error}"


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _record_of(split: SplitData, index: int) -> ImageRecord | None:
    """What is known of the files of a sample; None where it has none of its own."""
    return split.records[index] if isinstance(split, ImageSplit) else None


def _places(sample: Sample, geometry: InputConfig) -> tuple[tuple[str, Place], ...]:
    places: list[tuple[str, Place]] = []
    if sample.mask is not None:
        places.append(("mask", _place_of_mask(sample.mask, geometry)))
    if sample.boxes is not None:
        frame_1K4 = torch.from_numpy(squash_boxes(sample.boxes, sample.image, geometry.resize))[None]
        visible_1K4 = evaluation_boxes(frame_1K4, geometry).nan_to_num()
        places.append(("box", _place(_areas(visible_1K4), _areas(frame_1K4))))
    return tuple(places)


def _place_of_mask(mask_HW: torch.Tensor, geometry: InputConfig) -> Place:
    if not mask_HW.any():
        return "empty"
    frame_RR = squash_mask(mask_HW, geometry.resize)
    visible_1SS = evaluation_masks(torch.from_numpy(frame_RR.copy())[None], geometry)
    return _place(int(visible_1SS.sum()), int(frame_RR.sum()))


def _areas(boxes_1K4: torch.Tensor) -> float:
    x0, y0, x1, y1 = boxes_1K4.double().unbind(-1)
    return float(((x1 - x0) * (y1 - y0)).sum())


def _place(visible: float, whole: float) -> Place:
    return "gone" if visible <= 0 else "cut" if visible < whole * (1 - 1e-6) else "whole"


def _take(
    report: CheckReport,
    dataset: Dataset,
    name: str,
    index: int,
    look: _Look,
    seen: dict[bytes, tuple[str, int]],
    own: bool,
) -> None:
    """Put what one sample looks like into the report."""
    where = _where(dataset, name, index)
    record = _record_of(_plain(dataset).split(name), index)
    report.files += record is not None
    report.num_bytes += look.num_bytes
    for kind, severity, problem in look.faults:
        told = "" if record is None else f"{record.path} ({record.where}) "
        report.findings.append(Finding(kind=kind, severity=severity, where=where, problem=problem.removeprefix(told)))
    for source, place in look.places:
        counts = report.objects.setdefault(name, {}).setdefault(source, ObjectCounts())
        counts.add(place)
    duplicate = _duplicate(dataset, name, index, look.digest, seen) if look.digest else None
    if duplicate is not None:
        # Published sets are as they are; in people's own data a test image that trains is a mistake.
        other, problem = duplicate
        severity = "error" if own and other != name else "warning"
        report.findings.append(Finding(kind="duplicate", severity=severity, where=where, problem=problem))


def _duplicate(
    dataset: Dataset, name: str, index: int, digest: bytes, seen: dict[bytes, tuple[str, int]]
) -> tuple[str, str] | None:
    """The split of an equal image that came before, and what to say of it; None if there is none."""
    other, there = seen.setdefault(digest, (name, index))
    if (other, there) == (name, index) or _same_by_design(dataset, (other, there), (name, index)):
        return None
    before, now = (dataset.info.classes[int(dataset.split(s).y[i])] for s, i in ((other, there), (name, index)))
    labels = "" if before == now else f", with another label ({now}, not {before})"
    return other, f"the same image as {_where(dataset, other, there)}{labels}"


def _same_by_design(dataset: Dataset, first: tuple[str, int], second: tuple[str, int]) -> bool:
    """Whether two samples are one file that two splits for evaluation list, such as a part of the test split."""
    if first[0] == second[0] or {first[0], second[0]} & {"train", "val"}:
        return False
    records = [_record_of(_plain(dataset).split(name), index) for name, index in (first, second)]
    return records[0] is not None and records[1] is not None and records[0].path == records[1].path


def _where(dataset: Dataset, name: str, index: int) -> str:
    record = _record_of(_plain(dataset).split(name), index)
    return f"{name}[{index}]" if record is None else f"{name}[{index}] {record.path} ({record.where})"


# ------------------------------------------------------------------------------------------------------- reference


def _check_reference(report: CheckReport, spec: DatasetSpec, dataset: Dataset) -> None:
    plain = _plain(dataset)
    if plain is not dataset and (spec.check or plain.info.expected_counts or plain.info.likely_counts):
        changed = ", ".join(name for name in dataset.info.splits if name not in UNCHANGED)
        change = dataset.info.name.removeprefix(plain.info.name)
        report.notes.append(
            f"files, labels and counts were compared with what is published of {plain.info.name}; what {change} makes "
            f"of the images of {changed} was not, for no such images are published"
        )
    if spec.check is None:
        return
    faults: Iterator[Any] = iter(spec.check(dataset))
    while True:
        try:
            fault = next(faults)
        except StopIteration:
            return
        except (DataError, OSError) as error:
            problem = f"cannot be compared with its reference table: {error}"
            report.findings.append(
                Finding(kind="reference", severity="error", where=dataset.info.name, problem=problem)
            )
            return
        report.findings.append(
            Finding(kind="reference", severity=fault.severity, where=fault.where, problem=fault.problem)
        )
