"""docs/datasets.md names every dataset and every transform that there is."""

import re
from pathlib import Path

from spurbench.registry import load_registry

PAGE = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
OWN = "folder"
"""Stands for people's own data; nobody types it."""
FAMILIES = {
    f"isic2018_trap{fold}_{artefact}" for fold in range(1, 6) for artefact in ("dark_corner", "hair", "gel_bubble")
}
FAMILIES |= {f"isic2018_trap{fold}_ruler" for fold in (2, 3, 4)}
"""Described together."""


def test_every_dataset_is_on_the_page() -> None:
    named = set(re.findall(r"`([a-z][a-z0-9_]+)`", PAGE))
    registered = set(load_registry("datasets").entries)
    assert registered >= FAMILIES
    assert registered - FAMILIES - {OWN} <= named


def test_every_transform_is_on_the_page() -> None:
    assert {f"+{name}" for name in load_registry("transforms").entries} <= set(re.findall(r"\+[a-z]+", PAGE))
