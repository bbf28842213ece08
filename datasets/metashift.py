"""MetaShift's cats and dogs, indoors and outdoors: two trees that their publishers' script writes.

``metashift`` is the unmixed tree as SubpopBench uses it; most published numbers are on it::

    metashift/MetaShift-Cat-Dog-indoor-outdoor/train/cat/cat(indoor)/<id>.jpg   train/dog/dog(outdoor)/<id>.jpg
                                               test/cat/cat(outdoor)/<id>.jpg   test/dog/dog(indoor)/<id>.jpg

All four folders are pooled, whatever their names say of a split; a quarter of the images is test and a tenth val, each
rounded down. SubpopBench draws them from an unsorted listing, so that its split differs between machines (its paper has
2,276/349/874); here test are those that come first in the order of the sha256 of their ids, then val, then train.

``metashift_mixed`` is the tree for the publishers' subpopulation shift, with 100 of 850 training images of a class in
the unusual context (the script's default; others warn) and 144 test images in each group::

    MetaShift-subpopulation-shift/{train,val_out_of_domain}/{cat,dog}/<id>.jpg    imageID_to_group.pkl

``val_out_of_domain`` is what their paper tests on, so it is test here, and val are 20 % of each training group by
``hold_out_val``. The contexts are in the pickle, which is read as data only (``plain_pickle``). The images in this tree
are links unless it was copied.

Boxes of the animals come from GQA's scene graphs, ``train_sceneGraphs.json`` and ``val_sceneGraphs.json``, when those
lie in ``sceneGraphs/`` beside the tree or in the data root: every object called cat, or dog, as the label says. Reading
them takes some seconds. Images whose graph has no such object have no box.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spurbench.data.draws import name_order
from spurbench.data.image_files import system_errors_as_data_errors
from spurbench.data.image_set import ImageRecord
from spurbench.data.image_table import Box
from spurbench.data.plain_pickle import load_plain_pickle
from spurbench.dataset import DatasetInfo, DatasetSpec
from spurbench.errors import DataError
from spurbench.image_dataset import ImageDataset, find_folder, hold_out_val, list_records, open_records

__all__ = ["DATASETS", "open_mixed", "open_unmixed"]

UNMIXED = "MetaShift-Cat-Dog-indoor-outdoor"
MIXED = "MetaShift-subpopulation-shift"
GROUPS_FILE = "imageID_to_group.pkl"
CONTEXTS = ("outdoor", "indoor")
GRAPHS = ("train_sceneGraphs.json", "val_sceneGraphs.json")

_DESCRIPTION = (
    "Cats and dogs of Visual Genome, indoors and outdoors; training has mostly cats indoors and dogs outdoors"
)
_LICENSE = "CC BY 4.0 (Visual Genome, GQA)"
_CITATION = (
    "Liang, Zou: MetaShift: A Dataset of Datasets for Evaluating Contextual Distribution Shifts and Training "
    "Conflicts, ICLR 2022, arXiv 2202.06523"
)
_BOXES = "For boxes, unpack https://nlp.stanford.edu/data/gqa/sceneGraphs.zip to sceneGraphs/"

INFO = DatasetInfo(
    name="metashift",
    version="1",
    classes=("dog", "cat"),
    attributes=CONTEXTS,
    description=_DESCRIPTION,
    license=_LICENSE,
    citation=f"{_CITATION}; split after Yang, Zhang, Katabi, Ghassemi: Change is Hard, ICML 2023",
    source="metashift.tar.gz of https://github.com/YyzHarry/SubpopBench (Dropbox link in its "
    f"subpopbench/scripts/download.py); unpack to metashift/{UNMIXED}/. {_BOXES}",
    has_boxes=True,
    likely_counts={"train": (2276,), "val": (349,), "test": (874,)},
)

MIXED_INFO = DatasetInfo(
    name="metashift_mixed",
    version="1",
    classes=("cat", "dog"),
    attributes=CONTEXTS,
    description=f"{_DESCRIPTION} (100 of 850 are not); test is balanced",
    license=_LICENSE,
    citation=_CITATION,
    source="dataset/subpopulation_shift_cat_dog_indoor_outdoor.py of https://github.com/Weixin-Liang/MetaShift, which "
    f"writes {MIXED}/ from GQA's images. {_BOXES}",
    has_boxes=True,
    expected_counts={"train": (80, 600, 600, 80), "val": (20, 150, 150, 20), "test": (144,) * 4},
)


@system_errors_as_data_errors()
def open_unmixed(root: Path | None) -> ImageDataset:
    """Open the unmixed tree below a data root, with SubpopBench's shares of train, val and test.

    Raises:
        DataMissing: no root was given, or the tree is not there.
        DataError: malformed scene graphs.
    """
    cells = {"train/cat/cat(indoor)", "train/dog/dog(outdoor)", "test/cat/cat(outdoor)", "test/dog/dog(indoor)"}
    folder = find_folder(
        INFO,
        root,
        (f"metashift/{UNMIXED}", UNMIXED, f"MetaShift/{UNMIXED}"),
        holds=lambda folder: all((folder / below).is_dir() for below in cells),
        expected=", ".join(f"{below}/" for below in sorted(cells)),
    )
    pool = [
        record
        for y, label in enumerate(INFO.classes)
        for attribute, context in enumerate(CONTEXTS)
        for part in ("train", "test")
        for record in list_records(
            folder, f"{part}/{label}/{label}({context})", split="train", y=y, attribute=attribute
        )
    ]
    return open_records(INFO, folder, list(_with_boxes(_divided(pool), INFO, folder, root)))


@system_errors_as_data_errors()
def open_mixed(root: Path | None) -> ImageDataset:
    """Open the tree of the publishers' subpopulation shift below a data root.

    Raises:
        DataMissing: no root was given, or the tree is not there.
        DataError: an image without a context, or malformed files.
    """
    folder = find_folder(
        MIXED_INFO,
        root,
        (MIXED, f"metashift/{MIXED}", f"MetaShift/{MIXED}"),
        holds=lambda folder: (folder / GROUPS_FILE).is_file() and (folder / "train" / "cat").is_dir(),
        expected=f"{GROUPS_FILE} and train/cat/",
    )
    groups = load_plain_pickle(folder / GROUPS_FILE)
    if not isinstance(groups, dict):
        raise DataError(f"{folder / GROUPS_FILE} is no dictionary of image ids")
    records = [
        replace(record, attribute=_context(folder / GROUPS_FILE, groups, record, label))
        for split, part in (("train", "train"), ("test", "val_out_of_domain"))
        for y, label in enumerate(MIXED_INFO.classes)
        for record in list_records(folder, f"{part}/{label}", split=split, y=y)
    ]
    return open_records(MIXED_INFO, folder, list(_with_boxes(hold_out_val(records), MIXED_INFO, folder, root)))


DATASETS = {
    INFO.name: DatasetSpec(info=INFO, open=open_unmixed),
    MIXED_INFO.name: DatasetSpec(info=MIXED_INFO, open=open_mixed),
}


def _divided(pool: Sequence[ImageRecord]) -> list[ImageRecord]:
    """A quarter of all images for test and a tenth for val, by the order of their ids."""
    ordered = sorted(pool, key=lambda record: (name_order(record.path.stem), record.key))
    num_test, num_val = len(pool) // 4, len(pool) // 10
    splits = {
        record.key: "test" if position < num_test else "val" if position < num_test + num_val else "train"
        for position, record in enumerate(ordered)
    }
    return [replace(record, split=splits[record.key]) for record in pool]


def _context(path: Path, groups: dict[Any, Any], record: ImageRecord, label: str) -> int:
    """The attribute, from an entry such as ``["cat(indoor)"]``."""
    entry = groups.get(record.path.stem)
    expected = [[f"{label}({context})"] for context in CONTEXTS]
    if entry not in expected:
        raise DataError(
            f"{path} has {entry!r} for image {record.path.stem} ({record.path}), expected {expected[0]} or "
            f"{expected[1]}"
        )
    return expected.index(entry)


def _with_boxes(
    records: Sequence[ImageRecord], info: DatasetInfo, folder: Path, root: Path | None
) -> Iterator[ImageRecord]:
    """The records with boxes of the objects that their label names, as far as there are scene graphs."""
    graphs: dict[str, Any] = {}
    for path in _graph_files((folder.absolute().parent, *(() if root is None else (root,)))):
        graphs |= _read_graphs(path)
    for record in records:
        graph = graphs.get(record.path.stem)
        if graph is None:
            yield record
            continue
        try:
            frame = int(graph["width"]), int(graph["height"])
            boxes = tuple(_boxes(graph, info.classes[record.y], frame))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"scene graph of image {record.path.stem} is malformed: {error!r}; expected width, height and objects "
                f"with name, x, y, w, h"
            ) from error
        yield replace(record, boxes=boxes, box_frame=frame if boxes else None)


def _graph_files(places: Sequence[Path]) -> list[Path]:
    """The scene graphs of the first place that has any."""
    for place in places:
        for folder in (place / "sceneGraphs", place):
            found = [folder / name for name in GRAPHS if (folder / name).is_file()]
            if found:
                return found
    return []


def _read_graphs(path: Path) -> dict[str, Any]:
    try:
        graphs = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); is the file cut off?") from error
    if not isinstance(graphs, dict):
        raise DataError(f"{path} is no dictionary of image ids")
    return graphs


def _boxes(graph: dict[str, Any], name: str, frame: tuple[int, int]) -> Iterator[Box]:
    """Boxes of all objects called ``name`` that have an area inside the image, in a stable order."""
    for _, thing in sorted(graph["objects"].items()):
        if thing["name"] == name:
            x, y, width, height = (float(thing[key]) for key in ("x", "y", "w", "h"))
            if max(x, 0) < min(x + width, frame[0]) and max(y, 0) < min(y + height, frame[1]):
                yield x, y, x + width, y + height
