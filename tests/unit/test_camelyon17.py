"""Camelyon17: WILDS' layout and splits, the box in the middle, damage, and agreement with wilds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import damage_at_random, groups_of, guesses, pixels_of, replace_text, write_csv, write_image

from spurbench.data.row_faults import kept_faults
from spurbench.datasets.camelyon17 import DATASETS
from spurbench.errors import DataError, DataMissing
from spurbench.metrics.group import accuracy, group_counts, worst_group
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["camelyon17"]
SPLITS = ("train", "val", "test", "id_val")
SPLIT_OF = {0: "train", 1: "id_val"}


def rows() -> list[dict[str, Any]]:
    """Three patches per hospital, label and split of the table; hospital 3 has no tumour in training."""
    cells = [(c, t, s) for c in range(5) for t in range(2) for s in range(2) if (c, t, s) != (3, 1, 0)] * 3
    order = np.random.default_rng(0).permutation(len(cells))
    return [
        {
            "": number,
            "patient": f"{4 + 20 * center:03}",
            "node": tumor,
            "x_coord": 3328 + number,
            "y_coord": 21792,
            "tumor": tumor,
            "slide": 10 * center + tumor,
            "center": center,
            "split": split,
        }
        for number, (center, tumor, split) in enumerate(cells[i] for i in order)
    ]


def path_of(row: dict[str, Any]) -> str:
    slide = f"patient_{row['patient']}_node_{row['node']}"
    return f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"


def split_of(row: dict[str, Any]) -> str:
    return {1: "val", 2: "test"}.get(row["center"]) or SPLIT_OF[row["split"]]


def write_camelyon17(root: Path, name: str = "camelyon17_v1.0") -> Path:
    folder = root / name
    for number, row in enumerate(rows()):
        mode = {0: "L", 1: "RGBA"}.get(number, "RGB")  # The published patches have an alpha channel.
        write_image(folder / path_of(row), number, (96, 96) if number < 3 else (48, 48), mode)
    write_csv(folder / "metadata.csv", rows())
    (folder / "RELEASE_v1.0.txt").touch()
    return folder


@pytest.mark.parametrize("name", ["camelyon17_v1.0", "camelyon17", "."])
def test_reads_the_layout(tmp_path: Path, name: str) -> None:
    folder = write_camelyon17(tmp_path, name)
    dataset = SPEC.open(tmp_path)
    for split_name in SPLITS:
        split = dataset.split(split_name)
        expected = [row for row in rows() if split_of(row) == split_name]
        names = [f"{('normal', 'tumor')[row['tumor']]}/hospital{row['center']}" for row in expected]
        assert groups_of(dataset, split_name) == names
        for position, row in enumerate(expected):
            sample = split[position]
            assert torch.equal(sample.image, pixels_of(folder / path_of(row)))
            side = sample.image.shape[1]
            assert sample.boxes is not None
            assert sample.boxes.tolist() == [[side / 3, side / 3, 2 * side / 3, 2 * side / 3]]
    assert {name.split("/")[1] for name in groups_of(dataset, "val")} == {"hospital1"}
    assert {name.split("/")[1] for name in groups_of(dataset, "test")} == {"hospital2"}
    assert groups_of(dataset, "train").count("tumor/hospital3") == 0


def test_conforms(tmp_path: Path) -> None:
    write_camelyon17(tmp_path)
    assert len(check_dataset(SPEC, tmp_path)) == len(DATASET_CHECKS)


def test_zeros_before_the_patient_stay(tmp_path: Path) -> None:
    folder = write_camelyon17(tmp_path)
    assert any(row["patient"] == "004" for row in rows())
    replace_text(folder / "metadata.csv", ",004,", ",4,")
    with pytest.raises(DataError, match=r"1 of 57 listed images are missing.*patient_4_node"):
        SPEC.open(tmp_path)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)metadata.csv and patches/ in camelyon17_v1.0/.*10.7 GB"):
        SPEC.open(tmp_path)


def test_a_missing_patch_is_named_with_its_line(tmp_path: Path) -> None:
    folder = write_camelyon17(tmp_path)
    path = folder / path_of(rows()[4])
    path.unlink()
    with pytest.raises(DataError, match=rf"the first: {path} \({folder}/metadata.csv, line 6\)"):
        SPEC.open(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("center", 5, "center is '5', expected one of 0, 1, 2, 3, 4"),
        ("tumor", "", "tumor is '', expected one of 0, 1"),
        ("split", 2, "split is '2', expected one of 0, 1"),
    ],
)
def test_bad_values(tmp_path: Path, column: str, value: object, message: str) -> None:
    folder = write_camelyon17(tmp_path)
    table = rows()
    number = next(number for number, row in enumerate(table) if row["center"] == 4)
    table[number][column] = value
    write_csv(folder / "metadata.csv", table)
    with pytest.raises(DataError, match=f"metadata.csv, line {number + 2}: {message}"):
        SPEC.open(tmp_path)


def test_the_check_names_every_faulty_row(tmp_path: Path) -> None:
    folder = write_camelyon17(tmp_path)
    table = rows()
    table[0]["tumor"], table[1]["center"] = 2, 7
    write_csv(folder / "metadata.csv", table)
    path = folder / path_of(rows()[4])
    path.unlink()
    with kept_faults() as faults:
        dataset = SPEC.open(tmp_path)
    assert [(fault.kind, fault.where, fault.problem) for fault in faults] == [
        ("row", f"{folder}/metadata.csv, line 2", "tumor is '2', expected one of 0, 1"),
        ("row", f"{folder}/metadata.csv, line 3", "center is '7', expected one of 0, 1, 2, 3, 4"),
        ("file", f"{folder}/metadata.csv, line 6", f"image {path} is missing"),
    ]
    assert sum(len(dataset.split(name)) for name in SPLITS) == len(rows()) - 3


def test_random_damage_is_never_a_traceback(tmp_path: Path) -> None:
    folder = write_camelyon17(tmp_path)
    assert damage_at_random(folder / "metadata.csv", lambda: SPEC.open(tmp_path)) > 10


def test_the_tables_split_does_not_matter_in_hospitals_1_and_2(tmp_path: Path) -> None:
    folder = write_camelyon17(tmp_path)
    before = SPEC.open(tmp_path).fingerprint()
    table = [row | ({"split": 7} if row["center"] in (1, 2) else {}) for row in rows()]
    write_csv(folder / "metadata.csv", table)
    assert SPEC.open(tmp_path).fingerprint() == before


@pytest.mark.usefixtures("torch_scatter")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # Inside wilds.
@pytest.mark.filterwarnings("ignore:Minimum metadata value for CombinatorialGrouper:UserWarning")
def test_agrees_with_wilds(tmp_path: Path) -> None:
    from wilds import get_dataset
    from wilds.common.grouper import CombinatorialGrouper
    from wilds.common.metrics.all_metrics import Accuracy

    write_camelyon17(tmp_path)
    theirs = get_dataset("camelyon17", root_dir=str(tmp_path), download=False)
    hospitals = CombinatorialGrouper(theirs, ["hospital"])
    ours = SPEC.open(tmp_path)
    for name in SPLITS:
        split, subset = ours.split(name), theirs.get_subset(name)
        hospital = hospitals.metadata_to_group(subset.metadata_array)
        assert split.group is not None
        assert torch.equal(split.y, subset.y_array)
        assert torch.equal(split.group, 5 * split.y + hospital)
        for position in range(0, len(split), 3):
            image = torch.from_numpy(np.array(subset[position][0])).permute(2, 0, 1)
            assert torch.equal(split[position].image, image)
        guess = guesses(split.y, 2)
        counts = group_counts(guess == split.y, split.group, 10)
        results, _ = theirs.eval(guess, split.y, subset.metadata_array)
        assert results["acc_avg"] == pytest.approx(accuracy(counts))
        by_hospital, _ = theirs.standard_group_eval(
            Accuracy(), hospitals, guess, split.y, subset.metadata_array, aggregate=False
        )
        worst = worst_group(group_counts(guess == split.y, split.group % 5, 5))
        assert worst is not None
        assert by_hospital["acc_wg"] == pytest.approx(worst.accuracy)
