"""Records from class folders."""

from collections.abc import Sequence
from pathlib import Path

from spurbench.data.image_set import ImageRecord
from spurbench.dataset import DatasetInfo
from spurbench.errors import DataError
from spurbench.image_dataset import list_records, subfolders

__all__ = ["class_records"]

NUM_SHOWN = 3


def class_records(info: DatasetInfo, folder: Path, below: str, names: Sequence[str], split: str) -> list[ImageRecord]:
    """The images in ``folder / below``, in a folder for each class; ``names`` of these in the order of the labels.

    Raises:
        DataError: folders of classes are missing.
    """
    parent = folder / below
    found = {each.name for each in subfolders(parent)} if parent.is_dir() else set()
    missing = [name for name in names if name not in found]
    if missing:
        others = len(found - set(names))
        packed = [name for name in missing if (parent / f"{name}.tar").is_file()]
        raise DataError(
            f"{info.name}: {parent} lacks {len(missing)} of {len(names)} class folders "
            f"({', '.join(missing[:NUM_SHOWN])}{', ...' if len(missing) > NUM_SHOWN else ''})"
            + (f" and holds {others} others" if others else "")
            + (f"; {packed[0]}.tar belongs unpacked into {packed[0]}/" if packed else "; was everything unpacked?")
        )
    return [
        record for y, name in enumerate(names) for record in list_records(folder, f"{below}/{name}", split=split, y=y)
    ]
