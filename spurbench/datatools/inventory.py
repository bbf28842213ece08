"""Which datasets are here and which are missing; no image is opened."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spurbench.dataset import Dataset, DatasetInfo, DatasetSpec
from spurbench.datatools.archives import find_archive
from spurbench.datatools.check import count_findings, group_counts
from spurbench.datatools.prepare import archive_places
from spurbench.datatools.warnings import kept_warnings
from spurbench.errors import DataError, DataMissing
from spurbench.registry import Registry

__all__ = ["Stock", "take_stock"]

State = Literal["built in", "here", "other counts", "damaged", "packed", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What is known of one dataset."""

    name: str
    origin: str
    """Module or file that declares it."""
    version: str
    state: State
    """``other counts``: it opens, but has not the published number of images; ``packed``: only archives are there."""
    images: int | None
    """In all splits, of what is here."""
    annotation: str
    """What EPG is measured with: mask, box, mask+box or none; of what is here, otherwise of the published set."""
    archive_bytes: int | None
    """Of all archives, where it is published."""
    license: str
    source: str
    """Where it is from."""
    citation: str
    advice: str
    """What to do about it: empty when it is here."""

    def document(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "version": self.version,
            "images": self.images,
            "annotation": self.annotation,
            "archive_bytes": self.archive_bytes,
            "license": self.license,
            "source": self.source,
            "citation": self.citation,
            "advice": self.advice,
        }


def take_stock(registry: Registry, root: Path | None, part: str = "") -> Iterator[Stock]:
    """Every registered dataset with ``part`` in its name, sorted; without those that only read people's own folders."""
    for name, entry in sorted(registry.entries.items()):
        if entry.value.info.classes and part.lower() in name:
            yield _look(name, entry.origin, entry.value, root)


def _look(name: str, origin: str, spec: DatasetSpec, root: Path | None) -> Stock:
    state, dataset, advice = _state(spec, root)
    info = spec.info if dataset is None else dataset.info
    sizes = [archive.size for archive in spec.info.archives]
    return Stock(
        name=name,
        origin=origin,
        version=info.version,
        state=state,
        images=None if dataset is None else sum(len(dataset.split(split)) for split in info.splits),
        annotation=_annotation(info),
        archive_bytes=sum(size or 0 for size in sizes) if sizes and all(sizes) else None,
        license=info.license,
        source=info.source,
        citation=info.citation,
        advice=advice,
    )


def _state(spec: DatasetSpec, root: Path | None) -> tuple[State, Dataset | None, str]:
    try:
        return "built in", spec.open(None), ""
    except DataMissing:
        pass
    try:
        with kept_warnings():
            dataset = spec.open(root)
    except DataMissing:
        archives = [find_archive(archive, archive_places(root, None)) for archive in spec.info.archives]
        if any(archives):
            return "packed", None, f"spurbench data prepare {spec.info.name}"
        return "missing", None, ""
    except (DataError, OSError) as error:
        return "damaged", None, str(error)
    if any(finding.severity == "error" for finding in count_findings(dataset.info, group_counts(dataset))):
        return "other counts", dataset, f"spurbench data check {spec.info.name}"
    return "here", dataset, ""


def _annotation(info: DatasetInfo) -> str:
    parts = [word for word, there in (("mask", info.has_masks), ("box", info.has_boxes)) if there]
    return "+".join(parts) or "none"
