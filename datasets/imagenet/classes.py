"""Classes of ImageNet's subsets, from the tables beside this file."""

import csv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ImageNetClass", "read_classes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNetClass:
    """One class; its position in a table is its label."""

    wnid: str
    """WordNet id, which is the name of its folder: ``n02086240``."""
    index: int
    """Among ImageNet's 1,000 classes, in the order of their wnids."""
    name: str
    """The first of its lemmas."""
    columns: dict[str, str]
    """The whole row, by column."""


def read_classes(subset: str) -> tuple[ImageNetClass, ...]:
    """The classes of ``<subset>.tsv``, in the order of their labels, which is that of their wnids."""
    with Path(__file__).with_name(f"{subset}.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, dialect="excel-tab"))
    return tuple(
        ImageNetClass(
            wnid=row["wnid"],
            index=int(row["imagenet_index"]),
            name=row["lemma"].split(",")[0],
            columns=row,
        )
        for row in rows
    )
