"""FMoW: WILDS' layout, splits by time, regions, damage, and agreement with wilds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import damage_at_random, groups_of, guesses, pixels_of, replace_text, write_csv, write_image

from spurbench.data.row_faults import kept_faults
from spurbench.datasets.fmow import CLASSES, DATASETS, OTHER, REGIONS, worst_region_accuracy
from spurbench.errors import DataError, DataMissing
from spurbench.metrics.group import accuracy, group_counts, worst_group
from spurbench.testing import DATASET_CHECKS, check_dataset

SPEC = DATASETS["fmow"]
SPLITS = ("train", "val", "test", "id_val", "id_test")
COUNTRIES = {"CHN": "Asia", "FRA": "Europe", "KEN": "Africa", "USA": "Americas", "AUS": "Oceania"}
REGION_OF = COUNTRIES | {"XKX": "Other"}
"""Kosovo is not in the table."""
TIMES = {
    "2002-01-01T00:00:00Z": 0, "2012-12-31T23:59:59Z": 0, "2013-01-01T00:00:00Z": 1, "2015-12-31T23:59:59Z": 1,
    "2016-01-01T00:00:00Z": 2, "2017-06-30T10:20:30Z": 2,
}  # fmt: skip
SPLIT_OF = {("train", 0): "train", ("val", 0): "id_val", ("test", 0): "id_test", ("val", 1): "val", ("test", 2): "test"}
CATEGORIES = ("airport", "multi-unit_residential", "zoo")


def rows() -> list[dict[str, Any]]:
    cells = [
        (split, time, country, CATEGORIES[(place + number) % 3])
        for split in ("train", "val", "test", "seq")
        for number, time in enumerate(TIMES)
        for place, country in enumerate(REGION_OF)
    ]
    order = np.random.default_rng(0).permutation(len(cells))
    return [
        {
            "split": split,
            "img_filename": f"{category}_{number}_rgb.jpg",
            "category": category,
            "visible": 1,
            "country_code": country,
            "cloud_cover": 0,
            "timestamp": time,
        }
        for number, (split, time, country, category) in enumerate(cells[i] for i in order)
    ]


def split_of(row: dict[str, Any]) -> str | None:
    return SPLIT_OF.get((row["split"], TIMES[row["timestamp"]]))


def write_fmow(root: Path, name: str = "fmow_v1.1") -> Path:
    """Images exist for the rows that are used, and for no others."""
    folder = root / name
    for number, row in enumerate(rows()):
        if split_of(row):
            write_image(folder / "images" / f"rgb_img_{number}.png", number, (32, 32), "L" if number == 4 else "RGB")
    write_csv(folder / "rgb_metadata.csv", rows())
    countries = [{"name": code, "alpha-3": code, "region": region} for code, region in COUNTRIES.items()]
    write_csv(folder / "country_code_mapping.csv", countries)
    (folder / "RELEASE_v1.1.txt").touch()
    return folder


@pytest.mark.parametrize("name", ["fmow_v1.1", "fmow", "."])
def test_reads_the_layout(tmp_path: Path, name: str) -> None:
    folder = write_fmow(tmp_path, name)
    dataset = SPEC.open(tmp_path)
    for split_name in SPLITS:
        split = dataset.split(split_name)
        expected = [(number, row) for number, row in enumerate(rows()) if split_of(row) == split_name]
        names = [f"{row['category']}/{REGION_OF[row['country_code']]}" for _, row in expected]
        assert groups_of(dataset, split_name) == names
        for position, (number, _) in enumerate(expected):
            assert torch.equal(split[position].image, pixels_of(folder / "images" / f"rgb_img_{number}.png"))
    assert len(dataset.split("test")) == 12
    assert len(dataset.split("train")) == 12


def test_conforms(tmp_path: Path) -> None:
    write_fmow(tmp_path)
    assert len(check_dataset(SPEC, tmp_path)) == len(DATASET_CHECKS)


def test_a_folder_without_further_splits_is_smaller_and_opens(tmp_path: Path) -> None:
    folder = write_fmow(tmp_path)
    table = [row | ({"split": "seq"} if (split_of(row) or "").startswith("id_") else {}) for row in rows()]
    write_csv(folder / "rgb_metadata.csv", table)
    dataset = SPEC.open(tmp_path)
    assert dataset.info.splits == ("train", "val", "test")
    assert len(dataset.split("test")) == 12
    write_csv(
        folder / "rgb_metadata.csv", [row | ({"split": "seq"} if split_of(row) == "val" else {}) for row in table]
    )
    with pytest.raises(DataError, match=r"no images for val; was everything unpacked\?"):
        SPEC.open(tmp_path)


def test_other_zones_and_blank_regions(tmp_path: Path) -> None:
    folder = write_fmow(tmp_path)
    number = next(n for n, row in enumerate(rows()) if split_of(row) == "id_test")
    table = rows()
    table[number] |= {"timestamp": "2016-01-01T01:00:00+02:00", "country_code": "ATA"}  # Still 2015 in UTC.
    write_csv(folder / "rgb_metadata.csv", table)
    before = len(SPEC.open(tmp_path).split("id_test"))
    table[number]["timestamp"] = "2016-01-01 01:00:00"
    write_csv(folder / "rgb_metadata.csv", table)
    replace_text(folder / "country_code_mapping.csv", "\n", "\nAntarctica,ATA,\n")
    dataset = SPEC.open(tmp_path)
    assert len(dataset.split("id_test")) == before == 11
    assert groups_of(dataset, "test").count(f"{table[number]['category']}/Other") > 0
    assert len(dataset.split("test")) == 13


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"(?s)rgb_metadata.csv, country_code_.* images/ in fmow_v1.1/.*54"):
        SPEC.open(tmp_path)


def test_damage(tmp_path: Path) -> None:
    folder = write_fmow(tmp_path)
    table = folder / "rgb_metadata.csv"
    text = table.read_text()
    number = next(n for n, row in enumerate(rows()) if split_of(row) == "train")

    def damaged(column: str, value: str) -> str:
        changed = rows()
        changed[number][column] = value
        write_csv(table, changed)
        with pytest.raises(DataError) as caught:
            SPEC.open(tmp_path)
        return str(caught.value)

    line = f"{table}, line {number + 2}: "
    assert damaged("timestamp", "spring") == line + "timestamp is 'spring', expected 2016-01-31T10:20:30Z"
    assert "timestamp is '0001-01-01T00:00:00+05:00'" in damaged("timestamp", "0001-01-01T00:00:00+05:00")
    assert damaged("category", "moon") == line + "category is 'moon', expected one of airport ... zoo (62 values)"
    assert damaged("split", "dev") == line + "split is 'dev', expected one of train, val, test, seq"
    table.write_text(text)
    image = folder / "images" / f"rgb_img_{number}.png"
    image.unlink()
    with pytest.raises(DataError, match=rf"{image} \({line[:-2]}\)"):
        SPEC.open(tmp_path)
    replace_text(folder / "country_code_mapping.csv", "Asia", "Asien")
    with pytest.raises(DataError, match=r"country_code_mapping.csv, line 2: region is 'Asien', expected one of Asia"):
        SPEC.open(tmp_path)
    (folder / "country_code_mapping.csv").unlink()
    with pytest.raises(DataError, match=r"country_code_mapping.csv is missing"):
        SPEC.open(tmp_path)


def test_the_check_names_every_faulty_row(tmp_path: Path) -> None:
    folder = write_fmow(tmp_path)
    table, countries = folder / "rgb_metadata.csv", folder / "country_code_mapping.csv"
    replace_text(countries, "Asia", "Asien")
    first, second, third, fourth, *_, last = [n for n, row in enumerate(rows()) if split_of(row) == "train"]
    lines = table.read_text().splitlines()
    for number, change in {
        first: lambda line: f"{line},1",
        second: lambda line: line.replace("train", "dev"),
        third: lambda line: line.replace("T00:00:00Z", " noon").replace("T23:59:59Z", " noon"),
        fourth: lambda line: ",".join(["train", "x", "moon", *line.split(",")[3:]]),
    }.items():
        lines[number + 1] = change(lines[number + 1])
    table.write_text("".join(f"{line}\n" for line in lines))
    image = folder / "images" / f"rgb_img_{last}.png"
    image.unlink()
    with kept_faults() as faults:
        dataset = SPEC.open(tmp_path)
    assert [(fault.kind, fault.where, fault.problem.partition(",")[0]) for fault in faults] == [
        ("row", f"{countries}, line 2", "region is 'Asien'"),
        *(
            ("row", f"{table}, line {number + 2}", problem)
            for number, problem in sorted(
                {
                    first: "8 values",
                    second: "split is 'dev'",
                    third: f"timestamp is '{rows()[third]['timestamp'][:10]} noon'",
                    fourth: "category is 'moon'",
                }.items()
            )
        ),
        ("file", f"{table}, line {last + 2}", f"image {image} is missing"),
    ]
    # A row that is left out does not move the numbers of the images after it.
    left = {f"images/rgb_img_{n}.png" for n, row in enumerate(rows()) if split_of(row) == "train"}
    left -= {f"images/rgb_img_{n}.png" for n in (first, second, third, fourth, last)}
    assert {record.key for record in dataset.split("train").records} == left  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["rgb_metadata.csv", "country_code_mapping.csv"])
def test_random_damage_is_never_a_traceback(tmp_path: Path, name: str) -> None:
    folder = write_fmow(tmp_path)
    assert damage_at_random(folder / name, lambda: SPEC.open(tmp_path)) > 10


# The worst region


def test_worst_region_by_hand() -> None:
    region = torch.tensor([0, 0, 0, 1, 1, OTHER, OTHER])
    y = torch.tensor([3, 3, 0, 3, 0, 0, 3])
    predicted = torch.tensor([3, 0, 0, 3, 1, 1, 1])
    group = y * len(REGIONS) + region
    assert worst_region_accuracy(y, predicted, group) == 1 / 2
    assert worst_region_accuracy(y[:3], predicted[:3], group[:3]) == 2 / 3
    assert worst_region_accuracy(y[5:], predicted[5:], group[5:]) is None


@pytest.mark.usefixtures("torch_scatter")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # Inside wilds.
def test_agrees_with_wilds(tmp_path: Path) -> None:
    from wilds import get_dataset

    write_fmow(tmp_path)
    theirs = get_dataset("fmow", root_dir=str(tmp_path), download=False)
    their_names = theirs._metadata_map["region"]
    ours = SPEC.open(tmp_path)
    assert ours.info.official is not None
    official = ours.info.official["worst_region_accuracy"]
    others_are_worst = False
    for name in SPLITS:
        split, subset = ours.split(name), theirs.get_subset(name)
        assert split.group is not None
        assert torch.equal(split.y, subset.y_array)
        regions = [their_names[int(row[0])] for row in subset.metadata_array]
        assert groups_of(ours, name) == [f"{CLASSES[y]}/{region}" for y, region in zip(split.y, regions, strict=True)]
        for position in range(0, len(split), 3):
            image = torch.from_numpy(np.array(subset[position][0])).permute(2, 0, 1)
            assert torch.equal(split[position].image, image)
        guess = guesses(split.y, 62)
        guess[split.group % len(REGIONS) == OTHER] = 1  # Mostly wrong, which must not count.
        counts = group_counts(guess == split.y, split.group, ours.info.num_groups)
        results, _ = theirs.eval(guess, split.y, subset.metadata_array)
        assert results["acc_avg"] == pytest.approx(accuracy(counts))
        for index, region in enumerate(REGIONS):
            assert results[f"count_region:{region}"] == counts.n[index :: len(REGIONS)].sum()
        worst = official(split.y, guess, split.group)
        assert results["acc_worst_region"] == pytest.approx(worst)
        everywhere = worst_group(group_counts(guess == split.y, split.group % len(REGIONS), len(REGIONS)))
        assert everywhere is not None
        assert worst is not None
        others_are_worst |= everywhere.accuracy < worst
    assert others_are_worst
