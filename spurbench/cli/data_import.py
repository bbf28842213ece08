"""``spurbench data import``: own images to a folder that ``--dataset DIR`` opens."""

import argparse
from pathlib import Path


def execute(options: argparse.Namespace) -> int:
    """Write ``metadata.csv``; say what is in it."""
    from spurbench.datatools.exchange import import_images

    to = Path(options.to).expanduser()
    images = None if options.images is None else Path(options.images).expanduser()
    dataset = import_images(Path(options.source).expanduser(), images, to)
    info = dataset.info
    numbers = ", ".join(f"{len(dataset.split(name)):,} {name}" for name in info.splits)
    attributes = "no attribute" if info.attributes is None else f"{len(info.attributes)} attributes"
    regions = [word for word, there in (("masks", info.has_masks), ("boxes", info.has_boxes)) if there]
    print(f"{to / 'metadata.csv'}: {numbers}; {len(info.classes)} classes, {attributes}", end="")
    print(f", {' and '.join(regions)}" if regions else ", neither masks nor boxes")
    print(f"check it: spurbench data check {to}/")
    return 0
