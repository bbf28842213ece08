"""Trees of image folders without a table: ``split/class/attribute/*.jpg`` or ``split/class/*.jpg``.

Classes and attributes are numbered in the order of their sorted names. What comes out is a ``Table`` as if somebody had
written one, so that masks and boxes are found in the same ways.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spurbench.data.image_table import SPLITS, Row, Table, split_called
from spurbench.errors import DataError
from spurbench.image_dataset import list_images, subfolders

__all__ = ["TREE", "read_tree"]

TREE = "split/class/attribute/*.jpg or split/class/*.jpg, with the splits train, val and test"


def read_tree(folder: Path) -> Table | None:
    """All images of a tree, sorted; None when ``folder`` has no ``train`` folder, so that it is no tree.

    A folder beside ``train`` is a split if its own folders are classes of ``train``; others, such as
    ``segmentations``, are left alone. Names of splits may be other words for the same (``valid``).

    Raises:
        DataError: a split is missing, a class that ``train`` lacks, or images on two levels.
    """
    named = _split_folders(folder)
    if "train" not in named:
        return None
    classes = tuple(path.name for path in subfolders(named["train"]) if _has_images(path))
    if not classes:
        return None
    splits = {name: path for name, path in named.items() if name in SPLITS or _is_split(path, classes)}
    missing = [name for name in SPLITS if name not in splits]
    if missing:
        raise DataError(f"{folder} has no folder {' and no folder '.join(missing)}; expected {TREE}")
    splits = {name: splits[name] for name in (*SPLITS, *sorted(set(splits) - set(SPLITS)))}
    leaves = [leaf for name, path in splits.items() for leaf in _leaves(name, path, classes)]
    attributes = _attributes(leaves)
    rows = tuple(
        Row(
            line=0,
            filename=image.relative_to(folder).as_posix(),
            split=leaf.split,
            y=classes.index(leaf.class_name),
            attribute=None if leaf.attribute_name is None else attributes.index(leaf.attribute_name),
            class_name=leaf.class_name,
            attribute_name=leaf.attribute_name,
        )
        for leaf in leaves
        for image in list_images(leaf.path)
    )
    _check_filled(folder, splits, rows)
    return Table(
        path=folder,
        columns=frozenset(),
        rows=rows,
        splits=tuple(splits),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """A folder that holds images."""

    path: Path
    split: str
    class_name: str
    attribute_name: str | None


def _split_folders(folder: Path) -> dict[str, Path]:
    """Folders by the split that their names may stand for."""
    found: dict[str, Path] = {}
    for path in subfolders(folder):
        name = split_called(path.name)
        if name is None:
            continue
        if name in found:
            raise DataError(f"{found[name]} and {path} both mean the split {name}; remove or rename one of them")
        found[name] = path
    return found


def _is_split(path: Path, classes: tuple[str, ...]) -> bool:
    names = {below.name for below in subfolders(path)}
    return bool(names) and names <= set(classes)


def _has_images(folder: Path) -> bool:
    return bool(list_images(folder)) or any(list_images(below) for below in subfolders(folder))


def _leaves(split: str, path: Path, classes: tuple[str, ...]) -> Iterator[_Leaf]:
    for folder in subfolders(path):
        below = [inside for inside in subfolders(folder) if list_images(inside)]
        direct = bool(list_images(folder))
        if not (direct or below):
            continue
        if folder.name not in classes:
            raise DataError(f"{folder}: class '{folder.name}' is not in train, which has {_some(classes)}")
        if direct and below:
            raise DataError(f"{folder} holds images and the folder {below[0].name}/ with images; expected {TREE}")
        if direct:
            yield _Leaf(path=folder, split=split, class_name=folder.name, attribute_name=None)
        for inside in below:
            yield _Leaf(path=inside, split=split, class_name=folder.name, attribute_name=inside.name)


def _attributes(leaves: list[_Leaf]) -> tuple[str, ...]:
    """Names of all attributes, sorted; none if images lie in the folders of their classes everywhere."""
    plain = [leaf for leaf in leaves if leaf.attribute_name is None]
    names = {leaf.attribute_name for leaf in leaves if leaf.attribute_name is not None}
    if names and plain:
        other = next(leaf for leaf in leaves if leaf.attribute_name is not None)
        raise DataError(
            f"images lie directly in {plain[0].path}, but in folders of attributes elsewhere ({other.path}); "
            "either all classes have attribute folders or none"
        )
    return tuple(sorted(names))


def _check_filled(folder: Path, splits: Mapping[str, Path], rows: tuple[Row, ...]) -> None:
    filled = {row.split for row in rows}
    empty = [path for name, path in splits.items() if name not in filled]
    if empty:
        raise DataError(f"{folder}: no images in {', '.join(map(str, empty))}; expected {TREE}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
