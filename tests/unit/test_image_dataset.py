"""What loaders of image folders share: listings, hold-outs that depend on names alone, masks that pair."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spurbench.data.draws import name_order
from spurbench.data.image_set import ImageRecord
from spurbench.data.row_faults import kept_faults
from spurbench.dataset import Archive, DatasetInfo
from spurbench.errors import DataError, DataMissing
from spurbench.image_dataset import add_masks, find_folder, hold_out_val, list_images, list_records, require_files

GROUPS = st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 1) | st.none()), st.integers(0, 40), max_size=6)


def record(key: str, y: int = 0, attribute: int | None = None, split: str = "train") -> ImageRecord:
    return ImageRecord(where="here", path=Path(key), key=key, split=split, y=y, attribute=attribute)


def records_of(sizes: dict[tuple[int, int | None], int]) -> list[ImageRecord]:
    return [record(f"{y}/{a}/{i}.jpg", y, a) for (y, a), size in sizes.items() for i in range(size)]


@given(sizes=GROUPS, percent=st.integers(0, 100))
def test_a_share_of_every_group_is_held_out(sizes: dict[tuple[int, int | None], int], percent: int) -> None:
    before = records_of(sizes)
    after = hold_out_val(before, share=percent / 100)
    assert [replace(r, split="train") for r in after] == before
    held_out = Counter((r.y, r.attribute) for r in after if r.split == "val")
    expected = {group: round(percent / 100 * size) for group, size in sizes.items()}
    assert held_out == {group: number for group, number in expected.items() if number}


def test_not_more_than_the_most() -> None:
    held_out = Counter((r.y, r.split) for r in hold_out_val(records_of({(0, None): 100, (1, None): 10}), most=7))
    assert held_out == {(0, "train"): 93, (0, "val"): 7, (1, "train"): 8, (1, "val"): 2}


@given(sizes=GROUPS, seed=st.integers())
def test_the_order_of_the_records_does_not_count(sizes: dict[tuple[int, int | None], int], seed: int) -> None:
    before = records_of(sizes)
    shuffled = list(before)
    random.Random(seed).shuffle(shuffled)
    split_of = {r.key: r.split for r in hold_out_val(before)}
    assert all(split_of[r.key] == r.split for r in hold_out_val(shuffled))


def test_one_image_more_moves_at_most_one_other() -> None:
    before = {r.key: r.split for r in hold_out_val([record(f"{i}.jpg") for i in range(100)])}
    after = {r.key: r.split for r in hold_out_val([record(f"{i}.jpg") for i in range(101)])}
    assert sum(after[key] != split for key, split in before.items()) <= 1


def test_only_train_is_divided() -> None:
    test = [record(f"{i}.jpg", split="test") for i in range(10)]
    assert hold_out_val(test) == test


def test_the_order_of_names_is_pinned() -> None:
    """That of their sha256, for ever: another order would be other splits under the same version."""
    assert sorted("abcdefgh", key=name_order) == ["d", "f", "c", "b", "e", "h", "a", "g"]
    assert name_order("a").hex().startswith("ca978112ca1bbdcafac231b39a23dc4d")


def test_listing_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "._a.png", ".hidden.jpg", "notes.txt", "c.jpeg"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.jpeg"]


def test_records_of_a_folder(tmp_path: Path) -> None:
    assert list_records(tmp_path, "some/where", split="val", y=1) == []
    (tmp_path / "some/where").mkdir(parents=True)
    (tmp_path / "some/where/x.png").touch()
    (only,) = list_records(tmp_path, "some/where", split="val", y=1, attribute=2)
    assert (only.key, only.path, only.split, only.y, only.attribute) == (
        *("some/where/x.png", tmp_path / "some/where/x.png"),
        *("val", 1, 2),
    )


def test_masks_of_all_or_none(tmp_path: Path) -> None:
    records = [record(f"{i}.jpg") for i in range(3)]

    def mask_of(image: ImageRecord) -> Path:
        return tmp_path / f"{image.path.stem}.png"

    assert add_masks([], mask_of) == []
    assert add_masks(records, mask_of) == records
    for i in (0, 2):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(DataError, match=r"1 of 3 masks are missing, the first: .*1\.png \(here\)"):
        add_masks(records, mask_of)
    (tmp_path / "1.png").touch()
    assert [r.mask for r in add_masks(records, mask_of)] == [tmp_path / f"{i}.png" for i in range(3)]


def test_every_missing_file_is_told_where_faults_are_kept(tmp_path: Path) -> None:
    records = [replace(record(str(tmp_path / f"{i}.jpg")), mask=tmp_path / f"{i}.png") for i in range(4)]
    plain = [replace(r, mask=None) for r in records]
    for name in ("0.jpg", "1.jpg", "2.jpg", "0.png", "3.png"):
        (tmp_path / name).touch()
    with kept_faults() as faults:
        assert require_files(records) == [records[0], plain[1], plain[2]]
    with kept_faults() as of_masks:
        assert add_masks(plain, lambda r: r.path.with_suffix(".png")) == [records[0], *plain[1:3], records[3]]
    assert [(f.kind, f.where, f.problem) for f in faults[:1]] == [
        ("file", "here", f"image {tmp_path}/3.jpg is missing")
    ]
    assert faults[1:] == of_masks
    assert [(f.kind, f.problem) for f in of_masks] == [("mask", f"mask {tmp_path}/{i}.png is missing") for i in (1, 2)]
    with pytest.raises(DataError, match=r"1 of 4 listed images are missing, the first: .*3\.jpg \(here\); was the"):
        require_files(records)


def test_when_all_files_are_missing_they_are_not_told_singly(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"2 of 2 listed images are missing, the first: .*0\.jpg"),
        kept_faults() as faults,
    ):
        require_files([record(str(tmp_path / f"{i}.jpg")) for i in range(2)])
    assert not faults


@pytest.mark.parametrize("archives", [(), (Archive(filename="toys.zip"),)])
def test_a_missing_set_is_told_in_short_lines(tmp_path: Path, archives: tuple[Archive, ...]) -> None:
    info = DatasetInfo(
        name="toys", version="1", classes=("a", "b"), attributes=None, source="the shelf", archives=archives
    )

    def refusal(root: Path | None) -> list[str]:
        with pytest.raises(DataMissing) as caught:
            find_folder(info, root, ("toys_v1", "toys"), holds=lambda _: False, expected="toys.csv")
        return str(caught.value).splitlines()

    root = tmp_path / "my data"
    root.mkdir()
    command = f"spurbench data {'prepare' if archives else 'check'} toys --data-root"
    after = "  or try:     --dataset minibirds100, which needs no download"
    assert refusal(root) == [
        f"toys not found below {root}/",
        f"  looked for: toys.csv in toys_v1/, toys/ and in {root}/ itself",
        "  get it:     the shelf",
        f"  then type:  {command} '{root}'",
        after,
    ]
    assert refusal(None) == [
        "toys needs a data root",
        "  looked for: toys_v1/ below --data-root DIR or $SPURBENCH_DATA, which are not given",
        "  get it:     the shelf",
        f"  then type:  {command} DIR",
        after,
    ]
    assert refusal(tmp_path / "elsewhere")[0] == f"toys not found: the data root {tmp_path}/elsewhere is not a folder"
