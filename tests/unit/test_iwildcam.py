"""iWildCam: WILDS' layout, damage, and agreement with wilds, also on what our columns are there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import damage_at_random, guesses, pixels_of, replace_text, write_csv, write_image

from spurbench.data.row_faults import kept_faults
from spurbench.datasets.iwildcam import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.metrics.f1 import macro_f1
from spurbench.metrics.group import accuracy, group_counts, group_mean_accuracy
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["iwildcam"]
SPLITS = ("train", "val", "test", "id_val", "id_test")


def rows() -> list[dict[str, Any]]:
    """Four species, the last of them in training only."""
    cells = [(split, y) for split in SPLITS for y in (0, 0, 1, 1, 2, 2, 0, 1, 3) if y < 3 or split == "train"]
    order = np.random.default_rng(0).permutation(len(cells))
    return [
        {
            "": number,
            "split": split,
            "location_remapped": number % 4,
            "location": 10 + number % 4,
            "sequence_remapped": number,
            "seq_id": f"s{number}",
            "y": y,
            "category_id": 7 * y,
            "datetime": "2013-06-05 05:44:19.000",
            "filename": f"{number:04x}-21bc.jpg",
            "image_id": f"{number:04x}-21bc",
        }
        for number, (split, y) in enumerate(cells[i] for i in order)
    ]


def write_iwildcam(root: Path, name: str = "iwildcam_v2.0") -> Path:
    folder = root / name
    for number, row in enumerate(rows()):
        write_image(folder / "train" / row["filename"], number, (40, 30), "L" if number == 1 else "RGB")
    write_csv(folder / "metadata.csv", rows())
    (folder / "RELEASE_v2.0.txt").touch()
    return folder


@pytest.mark.parametrize("name", ["iwildcam_v2.0", "iwildcam", "."])
def test_reads_the_layout(tmp_path: Path, name: str) -> None:
    folder = write_iwildcam(tmp_path, name)
    dataset = SPEC.open(tmp_path)
    assert len(dataset.info.classes) == 182
    for split_name in SPLITS:
        split = dataset.split(split_name)
        expected = [row for row in rows() if row["split"] == split_name]
        assert split.y.tolist() == [row["y"] for row in expected]
        assert split.group is None
        for position, row in enumerate(expected):
            assert torch.equal(split[position].image, pixels_of(folder / "train" / row["filename"]))


def test_conforms(tmp_path: Path) -> None:
    write_iwildcam(tmp_path)
    assert len(check_dataset(SPEC, tmp_path)) == len(DATASET_CHECKS)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)metadata.csv and train/ in iwildcam_v2.0/.*12 GB"):
        SPEC.open(tmp_path)


def test_damage(tmp_path: Path) -> None:
    folder = write_iwildcam(tmp_path)
    table = folder / "metadata.csv"
    text = table.read_text()
    image = folder / "train" / rows()[3]["filename"]
    image.rename(image.with_suffix(".JPG"))
    with pytest.raises(DataError, match=rf"1 of 41 listed images are missing, the first: {image} \({table}, line 5\)"):
        SPEC.open(tmp_path)
    table.write_text(text[:-20])
    with pytest.raises(DataError, match=r"line 42: 10 values, expected 11 as in the header; is the file cut off"):
        SPEC.open(tmp_path)
    table.write_text(text)
    replace_text(table, "id_val", "cis_val")
    with pytest.raises(DataError, match=r"split is 'cis_val', expected one of train, val, test, id_val, id_test"):
        SPEC.open(tmp_path)
    changed = rows()
    changed[0]["y"] = 182
    write_csv(table, changed)
    with pytest.raises(DataError, match=r"line 2: y is '182', expected one of 0 ... 181 \(182 values\)"):
        SPEC.open(tmp_path)


def test_the_check_names_every_faulty_row(tmp_path: Path) -> None:
    folder = write_iwildcam(tmp_path)
    table = rows()
    table[0]["split"], table[1]["y"] = "cis_val", 182
    write_csv(folder / "metadata.csv", table)
    image = folder / "train" / rows()[3]["filename"]
    image.unlink()
    with kept_faults() as faults:
        dataset = SPEC.open(tmp_path)
    assert [(fault.kind, fault.where, fault.problem.partition(",")[0]) for fault in faults] == [
        ("row", f"{folder}/metadata.csv, line 2", "split is 'cis_val'"),
        ("row", f"{folder}/metadata.csv, line 3", "y is '182'"),
        ("file", f"{folder}/metadata.csv, line 5", f"image {image} is missing"),
    ]
    assert sum(len(dataset.split(name)) for name in SPLITS) == len(rows()) - 3


def test_random_damage_is_never_a_traceback(tmp_path: Path) -> None:
    folder = write_iwildcam(tmp_path)
    assert damage_at_random(folder / "metadata.csv", lambda: SPEC.open(tmp_path)) > 10


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # Inside wilds.
@pytest.mark.filterwarnings("ignore:Minimum metadata value for CombinatorialGrouper:UserWarning")
def test_agrees_with_wilds(tmp_path: Path) -> None:
    from wilds import get_dataset

    write_iwildcam(tmp_path)
    theirs = get_dataset("iwildcam", root_dir=str(tmp_path), download=False)
    ours = SPEC.open(tmp_path)
    assert ours.info.official is not None
    official = ours.info.official["macro_f1"]
    for name in SPLITS:
        split, subset = ours.split(name), theirs.get_subset(name)
        assert torch.equal(split.y, subset.y_array)
        for position in range(0, len(split), 3):
            image = np.array(subset[position][0].convert("RGB"))
            assert torch.equal(split[position].image, torch.from_numpy(image).permute(2, 0, 1))
        guess = guesses(split.y, 4)
        results, _ = theirs.eval(guess, split.y, subset.metadata_array)
        counts = group_counts(guess == split.y, split.y, 182)
        assert results["acc_avg"] == pytest.approx(accuracy(counts))
        assert results["recall-macro_all"] == pytest.approx(group_mean_accuracy(counts))
        assert results["F1-macro_all"] == pytest.approx(official(split.y, guess, split.group))


def test_macro_f1_by_hand() -> None:
    y, predicted = torch.tensor([0, 0, 0, 5, 5]), torch.tensor([0, 0, 5, 5, 7])
    assert macro_f1(y, predicted) == pytest.approx((2 * 2 / (3 + 2) + 2 * 1 / (2 + 2)) / 2)  # Not over class 7.
    assert macro_f1(y[:0], predicted[:0]) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60))
def test_macro_f1_is_wilds(pairs: list[tuple[int, int]]) -> None:
    """Classes without samples, without predictions, and without either are among them."""
    from wilds.common.metrics.all_metrics import F1

    y, predicted = torch.tensor(pairs).T
    assert macro_f1(y, predicted) == pytest.approx(F1(average="macro").compute(predicted, y)["F1-macro_all"])
