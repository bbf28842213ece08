"""``spurbench data check`` and ``data list``: every fault is found, named by file and row, and stops nothing."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from spurbench.cli import main
from spurbench.cli.render import print_table
from spurbench.config import InputConfig
from spurbench.data.image_set import ImageRecord
from spurbench.dataset import Archive, Dataset, DatasetInfo, DatasetSpec, Fault, find_dataset
from spurbench.datatools.check import CheckReport, check_data
from spurbench.datatools.inventory import take_stock
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import open_records
from spurbench.registry import Entry, Registry, load_registry

GEOMETRY = InputConfig(resize=32, image_size=28)
INFO = DatasetInfo(name="toys", version="1", classes=("a", "b"), attributes=("x", "y"), source="the shelf")
SPLITS = ("train", "val", "test")

Make = Callable[..., Any]


def toy_records(root: Path, per_group: int = 1) -> list[ImageRecord]:
    """``per_group`` images of every split and group, 40 x 48, with masks and boxes."""
    records = []
    for split in SPLITS:
        for group in range(4):
            for number in range(per_group):
                key = f"{split}/{group}/{number}.png"
                path, mask = root / key, root / "masks" / key
                for folder in (path.parent, mask.parent):
                    folder.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    rng = np.random.default_rng([SPLITS.index(split), group, number])
                    Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(path)
                    levels = np.zeros((48, 40), dtype=np.uint8)
                    levels[16:32, 12:30] = 255
                    Image.fromarray(levels).save(mask)
                records.append(
                    ImageRecord(
                        where=f"list.txt, line {len(records) + 1}",
                        path=path,
                        key=key,
                        split=split,
                        y=group // 2,
                        attribute=group % 2,
                        mask=mask,
                        boxes=((12.0, 16.0, 30.0, 32.0),),
                    )
                )
    return records


def toys(info: DatasetInfo = INFO, change: Callable[[list[ImageRecord]], list[ImageRecord]] = list) -> DatasetSpec:
    """A dataset of the images that lie below the data root."""

    def open_toys(root: Path | None) -> Dataset:
        if root is None or not (root / "train").is_dir():
            raise DataMissing(f"toys not found below {root}; get it from {info.source}")
        return open_records(info, root, change(toy_records(root)))

    return DatasetSpec(info=info, open=open_toys)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A data root with all toys."""
    toy_records(tmp_path)
    return tmp_path


def check(spec: DatasetSpec, root: Path, **options: Any) -> CheckReport:
    return check_data(spec, root, GEOMETRY, places=(root,), **options)


def found(report: CheckReport) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.severity, finding.where.partition(" ")[0]) for finding in report.findings]


def test_nothing_is_wrong_with_good_data(shelf: Path) -> None:
    report = check(toys(replace(INFO, expected_counts=dict.fromkeys(SPLITS, (1, 1, 1, 1)))), shelf)
    assert report.findings == []
    assert report.files == 12
    assert report.num_bytes == sum(path.stat().st_size for path in shelf.glob("t*/*/*.png")) + sum(
        path.stat().st_size for path in shelf.glob("val/*/*.png")
    )
    assert report.counts == dict.fromkeys(SPLITS, (1, 1, 1, 1))
    document = report.document()
    assert document["ok"]
    assert document["counts"]["val"] == {"a/x": 1, "a/y": 1, "b/x": 1, "b/y": 1}
    assert document["objects"]["test"]["mask"] == {"annotated": 4, "empty": 0, "cropped_away": 0, "cut": 0}
    json.dumps(document, allow_nan=False)


def test_all_damage_is_found_in_order_and_named(shelf: Path) -> None:
    truncated = shelf / "train/1/0.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (shelf / "train/3/0.png").write_text("<html>no image</html>")
    (shelf / "masks/train/3/0.png").write_bytes(b"")
    Image.new("L", (10, 11), 255).save(shelf / "masks/val/0/0.png")
    Image.new("L", (40, 48), 0).save(shelf / "masks/val/2/0.png")
    (shelf / "test/0/0.png").unlink()

    def outside(records: list[ImageRecord]) -> list[ImageRecord]:
        moved = replace(records[5], boxes=((50.0, 50.0, 60.0, 60.0),))
        return [*records[:5], moved, *records[6:]]

    def leave_missing(root: Path | None) -> Dataset:
        assert root is not None
        records = toy_records(root)  # writes the file that is missing
        (root / "test/0/0.png").unlink()
        return open_records(INFO, root, outside(records))

    report = check(DatasetSpec(info=INFO, open=leave_missing), shelf)
    assert found(report) == [
        ("file", "error", "train[1]"),
        ("file", "error", "train[3]"),
        ("mask", "error", "train[3]"),
        ("mask", "error", "val[0]"),
        ("box", "error", "val[1]"),
        ("object", "warning", "val[2]"),
        ("file", "error", "test[0]"),
    ]
    first, *_ = report.findings
    assert first.where == f"train[1] {truncated} (list.txt, line 2)"
    assert first.problem.startswith("cannot be decoded")
    problems = [finding.problem for finding in report.findings]
    assert "is 10 x 11 pixels (width x height), but its image" in problems[3]
    assert "lies outside its image" in problems[4]
    assert "has no foreground" in problems[5]
    assert "No such file" in problems[6]
    assert report.objects["val"]["mask"].empty == 1


def test_fast_reads_headers_only(shelf: Path) -> None:
    truncated = shelf / "train/1/0.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    (shelf / "train/3/0.png").write_text("no image")
    Image.new("L", (10, 11), 255).save(shelf / "masks/val/0/0.png")
    (shelf / "masks/val/1/0.png").write_bytes(b"")
    report = check(toys(), shelf, fast=True)
    assert found(report) == [
        ("file", "error", "train[3]"),
        ("mask", "error", "val[0]"),
        ("mask", "error", "val[1]"),
    ]
    assert "10 x 11" in report.findings[1].problem
    assert report.document()["fast"]


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("odd"), "ValueError: odd"), (DataError("bad mask"), "bad mask")]
)
def test_readers_may_fail_in_any_way(shelf: Path, error: Exception, told: str) -> None:
    def fail(path: Path, where: str) -> Any:
        raise error

    def open_toys(root: Path | None) -> Dataset:
        assert root is not None
        return open_records(INFO, root, toy_records(root), read_mask=fail)

    report = check(DatasetSpec(info=INFO, open=open_toys), shelf)
    assert [(f.kind, f.problem) for f in report.findings] == [("mask", told)] * 12


def test_counts_that_were_verified_are_errors_and_others_warnings(shelf: Path) -> None:
    info = replace(INFO, expected_counts={"train": (1, 2, 1, 0), "val": (4,)}, likely_counts={"test": (5,)})
    report = check(toys(info), shelf)
    assert found(report) == [("count", "error", "train"), ("count", "warning", "test")]
    assert report.findings[0].problem == "4 images (published 4): a/y 1 (published 2), b/y 1 (published 0)"
    assert report.findings[1].problem == "4 images, published 5"
    report = check(toys(replace(INFO, expected_counts={"id_val": (3, 2, 1, 0)})), shelf)
    assert [f.problem for f in report.findings] == ["there is no such split, published with 6 images"]


def test_equal_images(shelf: Path) -> None:
    same = (shelf / "train/0/0.png").read_bytes()
    for other in ("train/1/0.png", "train/3/0.png", "test/0/0.png"):
        (shelf / other).write_bytes(same)
    report = check(toys(), shelf)
    assert found(report) == [
        ("duplicate", "warning", "train[1]"),
        ("duplicate", "warning", "train[3]"),
        ("duplicate", "error", "test[0]"),
    ]
    assert f"the same image as train[0] {shelf}/train/0/0.png (list.txt, line 1)" in report.findings[0].problem
    assert "with another label" not in report.findings[0].problem
    assert "with another label (b, not a)" in report.findings[1].problem
    # A published set is as it is.
    published = check(toys(replace(INFO, likely_counts={"train": (4,)})), shelf)
    assert [finding.severity for finding in published.findings] == ["warning"] * 3


def test_a_further_split_may_list_test_files_again_but_none_of_train(shelf: Path) -> None:
    def with_parts(of: str) -> Callable[[list[ImageRecord]], list[ImageRecord]]:
        return lambda records: records + [replace(r, split="part") for r in records if r.split == of]

    info = replace(INFO, splits=(*SPLITS, "part"))
    assert check(toys(info, with_parts("test")), shelf).findings == []
    for of in ("train", "val"):
        assert found(check(toys(info, with_parts(of)), shelf)) == [
            ("duplicate", "error", f"part[{index}]") for index in range(4)
        ]


def test_reference_tables(shelf: Path) -> None:
    def faults(dataset: Dataset) -> Iterator[Fault]:
        yield Fault(severity="warning", where="list.txt, line 3", problem="a is b")
        raise DataError("table is gone")

    report = check(replace(toys(), check=faults), shelf)
    assert [(f.kind, f.severity, f.where, f.problem) for f in report.findings] == [
        ("reference", "warning", "list.txt, line 3", "a is b"),
        ("reference", "error", "toys", "cannot be compared with its reference table: table is gone"),
    ]


def test_what_a_loader_logs_is_found_too(shelf: Path, caplog: pytest.LogCaptureFixture) -> None:
    from logging import getLogger

    plain = toys()

    def open_toys(root: Path | None) -> Dataset:
        getLogger("spurbench.somewhere").warning("boxes are ignored")
        return plain.open(root)

    report = check(replace(plain, open=open_toys), shelf)
    assert [(f.kind, f.severity, f.problem) for f in report.findings] == [("open", "warning", "boxes are ignored")]
    assert caplog.records == []


# --- objects in evaluation geometry, against torchvision ---


@pytest.mark.parametrize(("rows", "columns"), [((0, 2), (0, 3)), ((0, 20), (5, 9)), ((20, 30), (10, 20))])
def test_objects_that_are_cropped_away(shelf: Path, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    levels = np.zeros((48, 40), dtype=np.uint8)
    levels[slice(*rows), slice(*columns)] = 255
    mask = shelf / "masks/test/1/0.png"
    Image.fromarray(levels).save(mask)
    counts = check(toys(), shelf).objects["test"]["mask"]
    squashed = resize(Image.fromarray(levels), [32, 32], InterpolationMode.NEAREST)
    whole, left = (int((np.asarray(image) > 127).sum()) for image in (squashed, center_crop(squashed, [28, 28])))
    assert (counts.gone, counts.cut) == (left == 0, 0 < left < whole)
    assert counts.annotated == 4


def test_boxes_that_are_cropped_away(shelf: Path) -> None:
    def moved(records: list[ImageRecord]) -> list[ImageRecord]:
        boxes = [((0.0, 0.0, 2.0, 48.0),), ((0.0, 0.0, 20.0, 20.0),), ((10.0, 10.0, 20.0, 20.0),), ()]
        return [*records[:8], *(replace(r, boxes=b) for r, b in zip(records[8:], boxes, strict=True))]

    counts = check(toys(change=moved), shelf).objects["test"]["box"]
    assert (counts.annotated, counts.gone, counts.cut, counts.empty) == (3, 1, 1, 0)


# --- archives and opening ---


def archive_of(path: Path, **changes: Any) -> Archive:
    data = path.read_bytes()
    known = {"size": len(data), "md5": hashlib.md5(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}
    return Archive(filename=path.name, **(known | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"sha256": None}, None),
        ({"size": 3}, "12 bytes, published 3: it is cut off, damaged or no such archive; fetch"),
        ({"size": 13}, "12 bytes, published 13: it is cut off, damaged or no such archive; fetch"),
        ({"sha256": "0" * 64}, "sha256 is "),
        (
            {"sha256": None, "md5": "1" * 32, "url": "https://example.org/x"},
            "fetch it again from https://example.org/x",
        ),
    ],
)
def test_archives_are_compared(shelf: Path, changes: dict[str, Any], told: str | None) -> None:
    path = shelf / "toys.tar"
    path.write_bytes(b"some content")
    report = check(toys(replace(INFO, archives=(archive_of(path, **changes),))), shelf)
    if told is None:
        assert report.findings == []
        assert report.archives == {str(path): "checksum as published"}
    else:
        assert [(f.kind, f.severity, f.where) for f in report.findings] == [("archive", "error", str(path))]
        assert told in report.findings[0].problem
        assert report.archives == {str(path): "differs from the published file"}


def test_archives_without_published_facts_and_in_a_hurry(shelf: Path) -> None:
    path = shelf / "toys.tar"
    path.write_bytes(b"some content")
    plain = toys(replace(INFO, archives=(Archive(filename="toys.tar"), Archive(filename="absent.tar"))))
    assert check(plain, shelf).archives == {str(path): "nothing is published to compare it with"}
    wrong = toys(replace(INFO, archives=(archive_of(path, sha256="0" * 64),)))
    assert check(wrong, shelf, fast=True).archives == {str(path): "size as published"}


def test_a_web_page_is_no_archive(shelf: Path) -> None:
    (shelf / "toys.zip").write_bytes(b"\n <!DOCTYPE html><title>Google Drive - virus scan warning</title>")
    report = check(toys(replace(INFO, archives=(Archive(filename="toys.zip"),))), shelf)
    assert "is a web page, not the archive; delete it and fetch it again by hand" in report.findings[0].problem


def test_what_does_not_open_is_a_finding(tmp_path: Path) -> None:
    def malformed(root: Path | None) -> Dataset:
        raise DataError("metadata.csv, line 7: y is 'x'")

    report = check(DatasetSpec(info=INFO, open=malformed), tmp_path)
    assert [(f.kind, f.severity, f.problem) for f in report.findings] == [
        ("open", "error", "metadata.csv, line 7: y is 'x'")
    ]
    with pytest.raises(DataMissing, match="toys not found"):
        check(toys(), tmp_path)
    (tmp_path / "toys.zip").write_bytes(b"PK")
    report = check(toys(replace(INFO, archives=(Archive(filename="toys.zip"),))), tmp_path)
    assert "not unpacked: spurbench data prepare toys" in report.errors[0].problem


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_end_in_a_report(shelf: Path, data: st.DataObject) -> None:
    originals = {name: (shelf / name).read_bytes() for name in ("train/0/0.png", "masks/train/1/0.png")}
    for name, good in originals.items():
        cut = data.draw(st.integers(0, len(good)))
        start = data.draw(st.integers(0, len(good)))
        junk = data.draw(st.binary(max_size=20))
        (shelf / name).write_bytes((good[:start] + junk + good[start + len(junk) :])[:cut])
    try:
        report = check(toys(), shelf)
    finally:
        for name, good in originals.items():
            (shelf / name).write_bytes(good)
    assert {f.where.partition(" ")[0] for f in report.findings} <= {"train[0]", "train[1]"}


# --- the command ---


def test_the_command_on_a_folder(waterbirds_root: Make, capsys: pytest.CaptureFixture[str]) -> None:
    layout = waterbirds_root("my_birds", masks="my_birds/segmentations")
    assert main(["data", "check", str(layout.folder)]) == 0
    out = capsys.readouterr().out
    assert "0 errors, 0 warnings" in out
    assert "landbird/land" in out
    layout.image(3).write_bytes(layout.image(3).read_bytes()[:300])
    assert main(["data", "check", str(layout.folder), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    (error,) = document["errors"]
    assert error["kind"] == "file"
    assert f"{layout.image(3)} ({layout.folder / 'metadata.csv'}, line 5)" in error["where"]
    assert not document["ok"]
    layout.table.write_text("img_filename,y,split,place\n../a.jpg,9,9,9\n")
    assert main(["data", "check", str(layout.folder), "--json"]) == 1
    row, none_left = json.loads(capsys.readouterr().out)["errors"]
    assert row["kind"] == "row"
    assert row["where"].endswith("metadata.csv, line 2")
    assert row["problem"].startswith("split is '9'")
    assert "no good rows" in none_left["problem"]
    assert main(["data", "check", str(layout.root / "none")]) == 2


def test_the_command_on_a_published_set(waterbirds_root: Make, capsys: pytest.CaptureFixture[str]) -> None:
    layout = waterbirds_root()
    assert main(["data", "check", "waterbirds95", "--data-root", str(layout.root), "--fast"]) == 1
    captured = capsys.readouterr()
    assert "error: train: 10 images (published 4,795): landbird/land 3 (published 3,498), " in captured.out
    assert "headers only" in captured.out
    assert "is not the published set" not in captured.err  # said once
    layout.change(2, y=7)
    assert main(["data", "check", "waterbirds95", "--data-root", str(layout.root)]) == 1
    assert "error: " in (out := capsys.readouterr().out)
    assert "metadata.csv, line 4: y is '7', expected a whole number from 0 to 1" in out
    assert main(["data", "check", "waterbirds95"]) == 2
    assert "needs a data root" in capsys.readouterr().err
    assert main(["data", "check", "waterbird95"]) == 2
    assert "did you mean 'waterbirds95' or " in capsys.readouterr().err


@pytest.mark.parametrize("own", [True, False])
def test_every_faulty_row_and_every_missing_file_is_named(
    waterbirds_root: Make, capsys: pytest.CaptureFixture[str], own: bool
) -> None:
    folder = "my_birds" if own else "waterbird_complete95_forest2water2"
    layout = waterbirds_root(folder, masks=f"{folder}/segmentations")
    layout.change(0, y="x")
    layout.change(1, split=9)
    layout.change(3, img_filename=layout.rows[2]["img_filename"])
    layout.image(4).unlink()
    layout.image(5).unlink()
    mask = (layout.folder / "segmentations" / layout.rows[6]["img_filename"]).with_suffix(".png")
    mask.unlink()
    layout.image(7).write_bytes(b"no image")
    what = [str(layout.folder)] if own else ["waterbirds95", "--data-root", str(layout.root)]
    assert main(["data", "check", *what, "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    told = [(e["kind"], e["where"].rpartition("line ")[2].rstrip(")"), e["problem"]) for e in errors]
    told = [entry for entry in told if entry[0] in ("row", "file", "mask")]
    assert [entry[:2] for entry in told] == [
        ("row", "2"), ("row", "3"), ("row", "5"), ("file", "6"), ("file", "7"), ("mask", "8"), ("file", "9"),
    ]  # fmt: skip
    assert "y is 'x'" in told[0][2]
    assert "already listed in line 4" in told[2][2]
    assert told[3][2] == f"image {layout.image(4)} is missing"
    assert told[5][2] == f"mask {mask} is missing"
    assert "cannot be decoded" in told[6][2]
    assert main(["data", "check", *what]) == 1
    assert ("what is damaged or missing is in" in capsys.readouterr().err) is not own


def test_when_no_image_is_there_they_are_not_named_singly(waterbirds_root: Make) -> None:
    layout = waterbirds_root()
    for number in range(len(layout.rows)):
        layout.image(number).unlink()
    (error,) = check(find_dataset("waterbirds95"), layout.root).errors
    assert f"{len(layout.rows)} of {len(layout.rows)} listed images are missing" in error.problem


def test_faults_of_rows_still_stop_a_run(waterbirds_root: Make) -> None:
    layout = waterbirds_root()
    layout.image(4).unlink()
    check(find_dataset("waterbirds95"), layout.root)
    with pytest.raises(DataError, match="1 of 27 listed images are missing"):
        find_dataset("waterbirds95").open(layout.root)


def test_the_command_goes_on_after_a_bad_row_of_a_set_with_its_own_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two bad rows and a file that does not decode, of different stages of the check, in one report."""
    rows = [("0000.jpg", "0", "train"), ("0001.jpg", "200", "train"), ("0002.jpg", "1", "dev")]
    rows += [(f"{10 + n:04}.jpg", "1", split) for n, split in enumerate(("val", "test", "id_val", "id_test"))]
    table = tmp_path / "iwildcam_v2.0/metadata.csv"
    (table.parent / "train").mkdir(parents=True)
    for seed, (name, *_) in enumerate(rows):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(table.parent / "train" / name)
    (table.parent / "train/0010.jpg").write_bytes(b"no image")
    table.write_text("filename,y,split\n" + "".join(f"{','.join(row)}\n" for row in rows))
    assert main(["data", "check", "iwildcam", "--data-root", str(tmp_path), "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [(error["kind"], error["where"].rpartition(f"{table}, ")[2].rstrip(")")) for error in errors] == [
        ("row", "line 3"),
        ("row", "line 4"),
        ("file", "line 5"),
    ]
    assert main(["run", "--method", "erm", "--dataset", "iwildcam", "--data-root", str(tmp_path)]) == 2
    assert f"{table}, line 3: y is '200', expected one of 0 ... 181" in capsys.readouterr().err


def test_names_that_contradict_each_other_are_faults_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{number % 3},{number % 2},{'cat' if number in (0, 3, 4) else 'dog'}\n")
    (tmp_path / "metadata.csv").write_text("filename,split,y,class_name\n" + "".join(lines))
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [(error["kind"], error["where"].rpartition(" ")[2]) for error in errors] == [("row", "4"), ("row", "5")]


def test_a_faulty_row_alone_needs_no_archive(waterbirds_root: Make, capsys: pytest.CaptureFixture[str]) -> None:
    layout = waterbirds_root()
    layout.change(0, y=7)
    assert main(["data", "check", "waterbirds95", "--data-root", str(layout.root)]) == 1
    assert "data prepare" not in capsys.readouterr().err


def test_transformed_test_images_are_files_as_well(waterbirds_root: Make, capsys: pytest.CaptureFixture[str]) -> None:
    layout = waterbirds_root("my_birds", masks="my_birds/segmentations")
    name = f"{layout.folder}+peripheral"
    for fast in ([], ["--fast"]):
        assert main(["data", "check", name, "--json", *fast]) == 0
        assert json.loads(capsys.readouterr().out)["files"] == len(layout.rows)
    test = layout.rows_of(2)[0]
    layout.image(test).write_bytes(b"no image")
    for fast in ([], ["--fast"]):
        assert main(["data", "check", name, "--json", *fast]) == 1
        (error,) = json.loads(capsys.readouterr().out)["errors"]
        assert error["kind"] == "file"
        assert f"line {test + 2}" in error["where"]


def test_transformed_sets_are_compared_as_what_they_are_made_of(
    waterbirds_root: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = waterbirds_root(masks="waterbird_complete95_forest2water2/segmentations")
    names = ["waterbirds95", "waterbirds95+peripheral"]
    reports = []
    for name in names:
        assert main(["data", "check", name, "--data-root", str(layout.root), "--fast", "--json"]) == 1
        reports.append(json.loads(capsys.readouterr().out))
    plain, changed = ({(e["kind"], e["problem"]) for e in report["errors"]} for report in reports)
    assert plain == changed
    assert {kind for kind, _ in plain} == {"count", "reference"}
    assert reports[0]["notes"] == []
    assert main(["data", "check", names[1], "--data-root", str(layout.root), "--fast"]) == 1
    assert (
        "note: files, labels and counts were compared with what is published of waterbirds95; what +peripheral makes "
        "of the images of test was not, for no such images are published"
    ) in capsys.readouterr().out


def test_a_fault_of_nearly_all_images_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [f"{number % 3:03}.Nobird/{number}.jpg" for number in range(60)] + ["001.Black_footed_Albatross/1.jpg"]
    rows = "".join(f"{key},{number % 2},{number % 3},{number % 2}\n" for number, key in enumerate(keys))
    for key in keys:
        path = tmp_path / "waterbirds95" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(key), int(path.stem), 0)).save(path)
    (tmp_path / "waterbirds95/metadata.csv").write_text(f"img_filename,y,split,place\n{rows}")
    assert main(["data", "check", "waterbirds95", "--data-root", str(tmp_path), "--fast", "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    summary, label, *examples = [error for error in errors if error["kind"] == "reference"]
    assert summary["problem"].startswith(
        "60 of 61 images lie in folders that are none of CUB's 200 species: this is not"
    )
    assert label["problem"].endswith("is labelled landbird, but 001.Black_footed_Albatross is waterbird")
    assert len(examples) == 20
    assert examples[0]["where"].endswith("line 2")


def test_drawn_sets_have_images_and_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    from spurbench.cli.data_check import _print

    spec = find_dataset("miniwatermarks95")
    report = check_data(spec, None, GEOMETRY, fast=True)
    _print(report)
    assert f"; drawn, {report.images:,} images, in" in capsys.readouterr().out
    assert report.images == sum(len(spec.open(None).split(name)) for name in spec.info.splits)


def test_many_groups_stay_readable(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = tuple(f"n{number}" for number in range(200))
    report = check(toys(replace(INFO, classes=names, attributes=names)), shelf)
    document = report.document()
    assert document["num_groups"] == 40_000
    assert document["counts"]["train"] == {"n0/n0": 1, "n0/n1": 1, "n1/n0": 1, "n1/n1": 1}
    from spurbench.cli.data_check import _print

    _print(report)
    out = capsys.readouterr().out
    assert len(out) < 4000
    assert "4 of 40,000" in out


def test_computed_sets_are_checked_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    spec = find_dataset("minibirds95")

    class Part:
        def __init__(self, split: Any) -> None:
            self.split, self.y, self.group = split, split.y[:20], split.group[:20]

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            return self.split[range(20)[index]]

    class Few:
        info = replace(spec.info, splits=("train",), expected_counts=None)

        def split(self, name: str) -> Any:
            return Part(spec.open(None).split(name))

    report = check_data(DatasetSpec(info=Few.info, open=lambda root: Few()), None, GEOMETRY)  # type: ignore[arg-type,return-value]
    assert report.findings == []
    assert report.files == 0
    assert report.objects["train"]["mask"].annotated == 20


# --- data list ---


def test_take_stock(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    toy_records(tmp_path / "here")
    (tmp_path / "packed.zip").write_bytes(b"PK")

    def fail(root: Path | None) -> Dataset:
        if root is None:
            raise DataMissing("no root")
        raise DataError("line 3 is bad")

    def below(spec: DatasetSpec, name: str) -> DatasetSpec:
        return replace(spec, open=lambda root: spec.open(None if root is None else root / name))

    archives = (Archive(filename="packed.zip", size=5), Archive(filename="b.zip", size=7))
    other = toys(replace(INFO, name="other", expected_counts={"train": (1, 1, 1, 2)}))
    specs = {
        "damaged": DatasetSpec(info=INFO, open=fail),
        "here": below(toys(), "here"),
        "missing": toys(replace(INFO, archives=(Archive(filename="a"), Archive(filename="b", size=1)))),
        "other": below(other, "here"),
        "packed": toys(replace(INFO, name="packed", archives=archives, has_boxes=True)),
        "procedural": find_dataset("minibirds50"),
        "reader": DatasetSpec(info=replace(INFO, classes=()), open=fail),
    }
    registry = Registry("datasets", {name: Entry(name, spec, "test") for name, spec in specs.items()})
    stock = {item.name: item for item in take_stock(registry, tmp_path)}
    assert {name: item.state for name, item in stock.items()} == {
        "damaged": "damaged",
        "here": "here",
        "missing": "missing",
        "other": "other counts",
        "packed": "packed",
        "procedural": "built in",
    }
    assert stock["damaged"].advice == "line 3 is bad"
    assert (stock["here"].images, stock["here"].annotation, stock["here"].advice) == (12, "mask+box", "")
    assert stock["missing"].archive_bytes is None
    assert (stock["missing"].advice, stock["missing"].source) == ("", "the shelf")
    assert stock["other"].advice == "spurbench data check other"
    assert (stock["packed"].archive_bytes, stock["packed"].annotation) == (12, "box")
    assert stock["packed"].advice == "spurbench data prepare packed"
    assert stock["procedural"].images == 4500
    assert [item.name for item in take_stock(registry, None, "pac")] == ["packed"]


def test_the_list_command(waterbirds_root: Make, capsys: pytest.CaptureFixture[str]) -> None:
    layout = waterbirds_root()
    assert main(["data", "list", "--json", "--data-root", str(layout.root)]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert items["waterbirds95"]["state"] == "other counts"
    assert items["waterbirds95"]["images"] == len(layout.rows)
    assert items["waterbirds95"]["annotation"] == "none"
    assert items["waterbirds100"]["state"] == "missing"
    assert items["waterbirds100"]["annotation"] == "mask+box"
    assert items["minibirds100"]["state"] == "built in"
    assert main(["data", "list", "waterbirds100", "--data-root", str(layout.root)]) == 0
    out = capsys.readouterr().out
    assert "from Google Drive, https://drive.google.com/uc?id=1zJpQYGEt1SuwitlNfE06TFyLaWX-st1k" in out
    assert "cite Petryk, Dunlap" in out
    assert "licence Non-commercial research and education (terms of CUB-200-2011 and Places)" in out


def test_variants_that_differ_in_name_only_share_a_line(
    waterbirds_root: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = waterbirds_root()
    assert main(["data", "list", "--data-root", str(layout.root)]) == 0
    out, summary = capsys.readouterr()
    names = [line.split()[0] for line in out.splitlines()[3:] if line.startswith("  ") and line.strip()]
    assert "isic2018_*" in names
    assert not [name for name in names if name.startswith("isic2018_") and name != "isic2018_*"]
    assert "isic2018_*: 27 variants; spurbench data list isic2018_ lists them\n" in out
    assert {"waterbirds95", "waterbirds100", "minibirds95", "imagenet9"} <= set(names)
    assert names == sorted(names)
    number = sum(int(part.split()[0]) for part in summary.partition(";")[0].split(", "))
    assert number == len([1 for entry in load_registry("datasets").entries.values() if entry.value.info.classes])
    assert main(["data", "list", "isic2018_"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n  isic2018_") == 27
    assert "variants" not in out


def test_the_list_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "waterbird950"]) == 2
    assert "no dataset matches 'waterbird950'; did you mean 'waterbirds95'?" in capsys.readouterr().err
    assert main(["data", "list", str(tmp_path), "--json"]) == 2
    error = capsys.readouterr().err
    assert f"spurbench data list --data-root {tmp_path}" in error
    assert f"spurbench data check {tmp_path}" in error


def test_a_table_without_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("nothing", ["a", "b"], [])
    assert "a" in capsys.readouterr().out
