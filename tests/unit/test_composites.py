"""WaterBirds from its sources: labels, counts, backgrounds, pixels, resumption, refusals, and what WILDS reads."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cub_layout import CubLayout, pixels, write_cub
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from spurbench.composites import generate_waterbirds
from spurbench.composites.labels import is_waterbird
from spurbench.composites.pixels import blend, fit_background
from spurbench.composites.plan import (
    CATEGORIES,
    Composite,
    assign,
    group_counts,
    read_plan,
    table_text,
    with_places,
)
from spurbench.data.cub import CubImage, species_table
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.io import hash_file
from spurbench.registry import load_registry

Pixels = npt.NDArray[np.uint8]
POOLS = {place: [f"/x/{place}/{number:08}.jpg" for number in range(12_000)] for place in (0, 1)}
"""Photographs enough for any correlation."""


def all_birds() -> list[CubImage]:
    """The 11,788 images of CUB as far as an assignment looks at them."""
    return [
        CubImage(
            id=1000 * species.number + index,
            line=1,
            name=f"{species.folder}/{index}.jpg",
            y=species.y,
            is_training=index < species.num_train,
        )
        for species in species_table()
        for index in range(species.num_train + species.num_test)
    ]


BIRDS = all_birds()


@pytest.fixture(scope="module")
def drawn() -> Callable[..., tuple[Composite, ...]]:
    """Assignments of all birds, each drawn once."""
    known: dict[tuple[float, int, bool], tuple[Composite, ...]] = {}

    def draw(correlation: float, seed: int = 0, corrected: bool = False) -> tuple[Composite, ...]:
        key = (correlation, seed, corrected)
        if key not in known:
            known[key] = assign(BIRDS, POOLS, correlation=correlation, seed=seed, corrected=corrected)
        return known[key]

    return draw


Draw = Callable[..., tuple[Composite, ...]]

# --- labels ---


def test_labels_are_those_of_the_table() -> None:
    for species in species_table():
        assert is_waterbird(species.folder) == species.waterbird, species
        assert is_waterbird(species.folder, corrected=True) == species.really_waterbird, species


# --- assignments ---


@pytest.mark.parametrize(
    ("correlation", "counts"),
    [
        (1.0, (3682, 0, 0, 1113)),
        (0.95, (3498, 184, 56, 1057)),
        (0.9, (3314, 368, 111, 1002)),
        (0.8, (2946, 736, 223, 890)),
        (0.5, (1841, 1841, 557, 556)),
        (0.0, (0, 3682, 1113, 0)),
    ],
)
def test_train_counts_are_the_published_ones(correlation: float, counts: tuple[int, ...]) -> None:
    """The published validation draw left 3,682 landbirds and 1,113 waterbirds in training."""
    training = [bird for bird in BIRDS if bird.is_training]
    by_class = [[bird for bird in training if is_waterbird(bird.species) == waterbird] for waterbird in (False, True)]
    left = {bird.name for birds, number in zip(by_class, (3682, 1113), strict=True) for bird in birds[:number]}

    unplaced = [
        Composite(
            id=str(bird.id),
            bird=bird.name,
            y=int(is_waterbird(bird.species)),
            split="test" if not bird.is_training else "train" if bird.name in left else "val",
            place=0,
            background="",
        )
        for bird in BIRDS
    ]
    found = group_counts(with_places(unplaced, correlation, seed=3))
    assert found["train"] == counts
    assert found["val"] == (467, 466, 133, 133)
    assert found["test"] == (2255, 2255, 642, 642)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("corrected", [False, True])
def test_counts_of_a_draw(drawn: Draw, correlation: float, corrected: bool) -> None:
    composites = drawn(correlation, 0, corrected)
    counts = group_counts(composites)
    assert [sum(counts[split]) for split in ("train", "val", "test")] == [4795, 1199, 5794]
    assert counts["test"] == ((2300, 2300, 597, 597) if corrected else (2255, 2255, 642, 642))
    n0, n1 = sum(counts["train"][:2]), sum(counts["train"][2:])
    val0, val1 = sum(counts["val"][:2]), sum(counts["val"][2:])
    assert (n0 + val0, n1 + val1) == ((4705, 1289) if corrected else (4615, 1379))
    assert counts["train"][1] == round((1 - correlation) * n0)
    assert counts["train"][3] == round(correlation * n1)
    assert counts["val"][1] == round(val0 / 2)
    assert counts["val"][3] == round(val1 / 2)


def test_each_bird_has_a_photograph_of_its_own_and_of_its_place(drawn: Draw) -> None:
    composites = drawn(0.9)
    assert [one.bird for one in composites] == [bird.name for bird in BIRDS]  # In CUB's order, as published.
    assert len({one.background for one in composites}) == len(composites) == 11_788
    assert all(one.background.startswith(f"/x/{one.place}/") for one in composites)
    used = Counter(one.place for one in composites)
    assert len({one.background for one in composites if one.place}) == used[1]


def test_test_birds_stay_test_birds(drawn: Draw) -> None:
    training = {bird.name: bird.is_training for bird in BIRDS}
    assert all((one.split == "test") == (not training[one.bird]) for one in drawn(0.9))


def test_draws_depend_on_the_seed_and_on_nothing_else(drawn: Draw) -> None:
    first = drawn(0.9)
    pools = {place: list(reversed(names)) for place, names in POOLS.items()}  # The order of a file system.
    assert assign(BIRDS, pools, correlation=0.9, seed=0) == first
    other = drawn(0.9, 1)
    for aspect in ("split", "place", "background"):
        assert [getattr(one, aspect) for one in other] != [getattr(one, aspect) for one in first]
    # Another correlation moves only training birds.
    moved = {a.split for a, b in zip(first, drawn(1.0), strict=True) if (a.split, a.place) != (b.split, b.place)}
    assert moved == {"train"}


def test_the_place_tells_nothing_about_the_species_or_the_split_but_the_class(drawn: Draw) -> None:
    """Whether a bird is held out is independent of where it stands: a chi-squared test on the waterbirds in test."""
    from scipy.stats import chi2_contingency

    test = [one for one in drawn(0.9) if one.split == "test" and one.y == 1]
    table = Counter((one.bird.partition("/")[0], one.place) for one in test)
    names = sorted({name for name, _ in table})
    result = chi2_contingency([[table[name, place] for place in (0, 1)] for name in names])
    assert result.pvalue > 0.001


def test_too_few_photographs_are_refused() -> None:
    pools = {0: POOLS[0], 1: POOLS[1][:4000]}
    with pytest.raises(DataError, match=r"photographs of water are needed.* there are 4,000 in ocean and lake/natural"):
        assign(BIRDS, pools, correlation=1.0, seed=0)


@pytest.mark.parametrize("correlation", [-0.1, 1.01, 95, float("nan")])
def test_impossible_correlations_are_refused(correlation: float) -> None:
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        assign(BIRDS, POOLS, correlation=correlation, seed=0)


@settings(max_examples=25, deadline=None)
@given(
    correlation=st.floats(0, 1),
    seed=st.integers(0, 2**32),
    numbers=st.lists(st.tuples(st.sampled_from(species_table()), st.booleans()), min_size=1, max_size=60),
)
def test_any_set_of_birds_gets_exact_counts(correlation: float, seed: int, numbers: list[tuple[Any, bool]]) -> None:
    birds = [
        CubImage(id=i, line=i, name=f"{species.folder}/{i}.jpg", y=species.y, is_training=training)
        for i, (species, training) in enumerate(numbers)
    ]
    pools = {place: names[:60] for place, names in POOLS.items()}
    composites = assign(birds, pools, correlation=correlation, seed=seed)
    counts = group_counts(composites)
    num_training = sum(bird.is_training for bird in birds)
    assert sum(counts["val"]) == np.round(0.2 * num_training)
    for split, fractions in {
        "train": (1 - correlation, correlation),
        "val": (0.5, 0.5),
        "test": (0.5, 0.5),
    }.items():
        for y, fraction in enumerate(fractions):
            land, water = counts[split][2 * y : 2 * y + 2]
            assert water == int(np.round(fraction * (land + water)))
    assert len({one.background for one in composites}) == len(birds)


# --- pixels ---


@settings(max_examples=60, deadline=None)
@given(images=arrays(np.uint8, (3, 5, 4, 3)))
def test_blending_is_the_published_formula(images: Pixels) -> None:
    """Against integers: (b k + 127.5) // 255 rounds exactly, since 2 b k is even and 255 odd, so there are no ties."""
    bird, levels, background = images
    ours = blend(bird, levels, background)
    b, k, g = (image.astype(np.int64) for image in images)
    exact = (2 * b * k + 255) // 510 + (2 * g * (255 - k) + 255) // 510
    assert exact.max() <= 255  # So adding as uint8 cannot overflow.
    assert np.array_equal(ours, exact)


def test_no_levels_overflow() -> None:
    """All 255 x 256 masks and birds on white, where the sum is largest."""
    bird, levels = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    white = np.full_like(bird, 255)
    assert (blend(bird, levels, white) >= np.minimum(bird, 255 - levels)).all()
    assert (blend(white, levels, bird) >= np.minimum(bird, levels)).all()
    assert (blend(bird, white, bird) == bird).all()
    assert (blend(white, np.zeros_like(bird), bird) == bird).all()


def transcribed(photograph: Image.Image, width: int, height: int) -> Image.Image:
    """The rule of the published script, step by step."""
    w, h = photograph.size
    if w < width or h < height:
        by_width = (width, int((width / w) * h))
        by_height = (int((height / h) * w), height)
        size = by_width if by_width[1] >= height else by_height
        return transcribed(photograph.resize(size, Image.Resampling.LANCZOS), width, height)
    if w / h > width / height:
        offset = (w - int(width / height * h)) // 2
        box = (offset, 0, w - offset, h)
    else:
        offset = (h - int(w / (width / height))) // 2
        box = (0, offset, w, h - offset)
    return photograph.crop(box).resize((width, height), Image.Resampling.LANCZOS)


def photograph_of(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=60, deadline=None)
@given(w=st.integers(3, 90), h=st.integers(3, 90), width=st.integers(3, 90), height=st.integers(3, 90))
def test_backgrounds_fit_by_the_published_rule(w: int, h: int, width: int, height: int) -> None:
    photograph = photograph_of(w, h)
    ours = fit_background(photograph, width, height)
    assert ours.size == (width, height)
    try:
        theirs = transcribed(photograph, width, height)
    except RecursionError:  # One pixel short for ever: there the published script stops.
        return
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_size_of_photograph_covers_every_bird() -> None:
    """Sizes for which floating-point numbers fall one pixel short too."""
    for w in range(1, 70):
        for width, height in ((49, 98), (33, 11), (7, 93)):
            assert fit_background(Image.new("RGB", (w, 2 * w + 1)), width, height).size == (width, height)


def test_the_middle_is_kept() -> None:
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = 255
    assert (np.asarray(fit_background(Image.fromarray(stripes), 20, 20)) == 255).all()
    assert (np.asarray(fit_background(Image.fromarray(stripes.transpose(1, 0, 2)), 10, 10)) == 255).all()


# --- a whole generation ---


@dataclass(frozen=True)
class Sources:
    root: Path
    cub: CubLayout
    places: Path


def write_places(folder: Path, per_category: int) -> None:
    number = 0
    for category in (category for categories in CATEGORIES for category in categories):
        for index in range(per_category):
            number += 1
            path = folder / category[0] / category / f"{index + 1:08}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph_of(30 + number % 40, 25 + number % 31, seed=number).save(path)
    (folder / "b" / "bamboo_forest" / "notes.txt").write_text("not a photograph")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    root = tmp_path_factory.mktemp("sources")
    places = root / "places365"
    write_places(places / "data_large_standard", 30)
    return Sources(root, write_cub(root), places)


def generate(sources: Sources, to: Path, **options: Any) -> Path:
    if "like" not in options:
        options.setdefault("correlation", 0.9)
    return generate_waterbirds(sources.root, sources.places, to, **options)


def rows_of(folder: Path, file: str = "metadata.csv") -> list[dict[str, str]]:
    with (folder / file).open(newline="") as stream:
        return list(csv.DictReader(stream))


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def composite_by_hand(sources: Sources, row: dict[str, str]) -> Pixels:
    """An image before it is a JPEG, by the steps of the published script."""
    name = row["img_filename"]
    bird = pixels(sources.cub.folder / "images" / name)
    with Image.open((sources.cub.segmentations / name).with_suffix(".png")) as image:
        alpha = np.asarray(image.convert("RGB")) / 255
    with Image.open(sources.places / "data_large_standard" / row["place_filename"][1:]) as image:
        place = np.asarray(transcribed(image.convert("RGB"), bird.shape[1], bird.shape[0]))
    black = np.around(bird * alpha).astype(np.uint8)
    return black + np.around(place * (1 - alpha)).astype(np.uint8)


def test_images_are_those_of_the_published_steps(sources: Sources, tmp_path: Path) -> None:
    folder = generate(sources, tmp_path / "wb")
    rows = rows_of(folder)
    assert [row["img_filename"] for row in rows] == [bird.name for bird in sources.cub.birds]
    assert [int(row["img_id"]) for row in rows] == [bird.id for bird in sources.cub.birds]
    for row in rows:
        expected = tmp_path / "expected.jpg"
        Image.fromarray(composite_by_hand(sources, row)).save(expected)  # At PIL's own quality.
        assert (folder / row["img_filename"]).read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "manifest.json",
        "metadata.csv",
        "sources.csv",
    ]


def test_the_manifest_tells_what_it_was_made_from(sources: Sources, tmp_path: Path) -> None:
    folder = generate(sources, tmp_path / "wb", seed=5)
    manifest = json.loads((folder / "manifest.json").read_text())
    settings = manifest["settings"]
    assert (settings["correlation"], settings["seed"], settings["labels"]) == (0.9, 5, "official")
    assert settings["places"] == "data_large_standard"
    assert settings["software"]["pillow"] == Image.__version__
    assert manifest["counts"] == {
        split: list(counts) for split, counts in group_counts(read_plan(folder / "metadata.csv")).items()
    }
    for name, digest in manifest["sha256"].items():
        place = folder if name.endswith(".csv") else sources.cub.folder
        assert digest == hash_file(place / name)
    table = rows_of(folder, "sources.csv")
    assert len(table) == len(sources.cub.birds)
    for row in table:
        name = row["img_filename"]
        assert row["bird_sha256"] == hash_file(sources.cub.folder / "images" / name)
        assert row["mask_sha256"] == hash_file((sources.cub.segmentations / name).with_suffix(".png"))
        assert row["place_sha256"] == hash_file(sources.places / "data_large_standard" / row["place_filename"][1:])
        assert row["image_sha256"] == hash_file(folder / name)


def test_equal_settings_make_equal_bytes(sources: Sources, tmp_path: Path) -> None:
    first = files_of(generate(sources, tmp_path / "a", threads=1))
    assert files_of(generate(sources, tmp_path / "b", threads=4)) == first
    other = files_of(generate(sources, tmp_path / "c", seed=1))
    assert other["metadata.csv"] != first["metadata.csv"]


def test_like_makes_the_same_images_again(sources: Sources, tmp_path: Path) -> None:
    first = generate(sources, tmp_path / "a")
    again = generate(sources, tmp_path / "b", like=first / "metadata.csv")
    ours, theirs = files_of(again), files_of(first)
    assert {name for name in theirs if ours[name] != theirs[name]} == {"manifest.json"}
    settings = json.loads((again / "manifest.json").read_text())["settings"]
    assert settings["like"] == hash_file(first / "metadata.csv")
    assert settings["seed"] is settings["correlation"] is None


def test_corrected_labels(sources: Sources, tmp_path: Path) -> None:
    official = generate(sources, tmp_path / "a")
    like = rows_of(generate(sources, tmp_path / "b", like=official / "metadata.csv", corrected=True))
    changed = {a["img_filename"] for a, b in zip(rows_of(official), like, strict=True) if a != b}
    assert changed == {bird.name for bird in sources.cub.birds if "Eastern_Towhee" in bird.name}
    drawn = rows_of(generate(sources, tmp_path / "c", corrected=True))
    assert {row["y"] for row in drawn if "Eastern_Towhee" in row["img_filename"]} == {"0"}
    assert {row["y"] for row in rows_of(official) if "Eastern_Towhee" in row["img_filename"]} == {"1"}


@pytest.mark.parametrize(("fill", "level"), [("black", 0), ("grey", 128)])
def test_foreground_and_background_alone(
    sources: Sources, tmp_path: Path, fill: Any, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import spurbench.composites.generate as module

    painted: dict[str, list[Pixels]] = {}
    real = Image.Image.save

    def save(image: Image.Image, *args: Any, **options: Any) -> None:
        painted.setdefault(layer, []).append(np.asarray(image))
        real(image, *args, **options)

    monkeypatch.setattr(module.Image.Image, "save", save)
    for layer in ("both", "foreground", "background"):
        generate(sources, tmp_path / layer, layer=layer, fill=fill, threads=1)
    for name in ("foreground", "background"):
        assert [one.shape for one in painted[name]] == [one.shape for one in painted["both"]]
    for bird, both, front, back in zip(
        sources.cub.birds, painted["both"], painted["foreground"], painted["background"], strict=True
    ):
        assert (front[bird.levels == 0] == level).all()
        assert (back[bird.levels == 255] == level).all()
        assert (front[bird.levels == 255] == both[bird.levels == 255]).all()
        assert (back[bird.levels == 0] == both[bird.levels == 0]).all()
        if level == 0:
            assert np.array_equal(front + back, both)


# --- what reads it ---


def test_our_loaders_read_it(sources: Sources) -> None:
    to = sources.root / "waterbirds_0.9"
    generate(sources, to)
    datasets = load_registry("datasets").entries
    folder = datasets["folder"].value.open(to)
    assert folder.info.classes == ("landbird", "waterbird")
    assert folder.info.has_masks  # CUB lies beside it.
    assert folder.info.has_boxes
    expected = group_counts(read_plan(to / "metadata.csv"))
    for split, counts in expected.items():
        assert tuple(folder.split(split).group.bincount(minlength=4).tolist()) == counts
    with pytest.raises(DataError, match="states a correlation of 90 %"):
        datasets["waterbirds95"].value.open(to)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # Inside wilds.
def test_wilds_reads_it(sources: Sources, tmp_path: Path) -> None:
    from wilds.datasets.waterbirds_dataset import WaterbirdsDataset

    folder = generate(sources, tmp_path / "waterbirds_v1.0")
    (folder / "RELEASE_v1.0.txt").touch()
    theirs = WaterbirdsDataset(root_dir=str(tmp_path), download=False)
    rows = rows_of(folder)
    groups = theirs._eval_grouper.metadata_to_group(theirs.metadata_array).tolist()
    assert groups == [2 * int(row["y"]) + int(row["place"]) for row in rows]
    assert theirs.y_array.tolist() == [int(row["y"]) for row in rows]
    assert theirs.split_array.tolist() == [int(row["split"]) for row in rows]
    image, _, _ = theirs[7]
    assert torch.equal(torch.from_numpy(np.array(image)), torch.from_numpy(pixels(folder / rows[7]["img_filename"])))


# --- stopped and resumed ---


def test_a_killed_generation_goes_on(sources: Sources, tmp_path: Path) -> None:
    to = tmp_path / "wb"
    code = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from spurbench.composites import generate_waterbirds

        def slowly(done, total):
            print(done, flush=True)
            time.sleep(0.05)

        generate_waterbirds(Path({str(sources.root)!r}), Path({str(sources.places)!r}), Path({str(to)!r}),
                            correlation=0.9, threads=1, progress=slowly)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "7":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (to / "metadata.csv").exists()  # No dataset yet.
    with pytest.raises(DataMissing):
        load_registry("datasets").entries["folder"].value.open(to)
    journal = to / ".generation" / "made.jsonl"
    with journal.open("a") as stream:
        stream.write('{"img_filename": "001.Black')  # As if it had died while writing.
    (to / ".leftover.jpg.abc.tmp").touch()
    before = {path: path.stat().st_mtime_ns for path in to.rglob("*.jpg")}
    time.sleep(0.01)
    seen: list[int] = []
    generate(sources, to, progress=lambda done, total: seen.append(done))
    assert seen[0] >= 8
    kept = [path for path, stamp in before.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) >= 7
    assert files_of(to) == files_of(generate(sources, tmp_path / "whole"))


def test_a_finished_generation_is_left_alone(sources: Sources, tmp_path: Path) -> None:
    to = generate(sources, tmp_path / "wb")
    before = {path: path.stat().st_mtime_ns for path in to.rglob("*")}
    generate(sources, to, progress=lambda done, total: pytest.fail("made again"))
    assert {path: path.stat().st_mtime_ns for path in to.rglob("*")} == before


def test_stopped_while_it_tidies_up(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path) -> None:
        (folder / "made.jsonl").unlink()
        raise KeyboardInterrupt

    to = tmp_path / "wb"
    with monkeypatch.context() as patched:
        patched.setattr("spurbench.composites.generate.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            generate(sources, to)
    generate(sources, to, progress=lambda done, total: pytest.fail("made again"))
    assert files_of(to) == files_of(generate(sources, tmp_path / "whole"))


def test_one_at_a_time(sources: Sources, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(ConfigError, match="another process is writing to"):
            generate(sources, tmp_path / "wb")

    generate(sources, tmp_path / "wb", progress=second)


@pytest.mark.parametrize("options", [{"correlation": 0.8}, {"seed": 1}, {"corrected": True}, {"layer": "foreground"}])
def test_other_settings_are_refused(sources: Sources, tmp_path: Path, options: dict[str, Any]) -> None:
    to = generate(sources, tmp_path / "wb")
    with pytest.raises(ConfigError, match=r"wb was made with other settings: .*\(now .*name a new folder"):
        generate(sources, to, **options)


def test_a_generation_that_failed_goes_on_once_its_source_is_whole(sources: Sources, tmp_path: Path) -> None:
    bird = sources.cub.image(sources.cub.birds[30])
    whole = bird.read_bytes()
    bird.write_bytes(whole[:100])
    try:
        with pytest.raises(DataError, match=f"{bird} cannot be decoded"):
            generate(sources, tmp_path / "wb", threads=1)
    finally:
        bird.write_bytes(whole)
    seen: list[int] = []
    generate(sources, tmp_path / "wb", progress=lambda done, total: seen.append(done))
    assert seen[0] > 20


# --- what is missing, damaged or contradictory ---


def test_missing_sources_are_named(sources: Sources, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no CUB-200-2011 in"):
        generate_waterbirds(tmp_path, sources.places, tmp_path / "wb", correlation=0.9)
    with pytest.raises(DataMissing, match=r"no Places365-Standard in .*expected b/bamboo_forest/"):
        generate_waterbirds(sources.root, tmp_path, tmp_path / "wb", correlation=0.9)
    masks = sources.cub.segmentations.rename(tmp_path / "masks")
    try:
        with pytest.raises(DataMissing, match="no masks: segmentations/ lies neither"):
            generate(sources, tmp_path / "wb")
    finally:
        masks.rename(sources.cub.segmentations)
    mask = sources.cub.mask(sources.cub.birds[3]).rename(tmp_path / "mask")
    try:
        with pytest.raises(DataMissing, match=r"1 source files are missing, the first: .*Albatross_0003_33.png"):
            generate(sources, tmp_path / "wb")
    finally:
        mask.rename(sources.cub.mask(sources.cub.birds[3]))
    water = (sources.places / "data_large_standard" / "o").rename(tmp_path / "o")
    try:
        with pytest.raises(DataMissing, match=r"o/ocean/ is missing; was Places365 unpacked completely"):
            generate(sources, tmp_path / "wb")
    finally:
        water.rename(sources.places / "data_large_standard" / "o")
    assert not (tmp_path / "wb").exists()


def test_a_mask_of_another_size_is_refused(sources: Sources, tmp_path: Path) -> None:
    mask = sources.cub.mask(sources.cub.birds[5])
    whole = mask.read_bytes()
    Image.new("L", (3, 4)).save(mask)
    try:
        with pytest.raises(DataError, match=f"mask {mask} is 3 x 4 pixels"):
            generate(sources, tmp_path / "wb")
    finally:
        mask.write_bytes(whole)


def test_a_folder_with_other_things_is_refused(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "wb").mkdir()
    (tmp_path / "wb" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="wb is not empty; name a new folder"):
        generate(sources, tmp_path / "wb")
    with pytest.raises(ConfigError, match=r"mine.txt is a file; name a new folder"):
        generate(sources, tmp_path / "wb" / "mine.txt")
    assert [path.name for path in (tmp_path / "wb").iterdir()] == ["mine.txt"]


def test_a_correlation_or_a_table_and_not_both(sources: Sources, tmp_path: Path) -> None:
    for options in ({"correlation": None}, {"correlation": 0.5, "like": tmp_path / "metadata.csv"}):
        with pytest.raises(ConfigError, match=r"name either a correlation such as 0.95 or a metadata.csv"):
            generate(sources, tmp_path / "wb", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bird": "../../etc/passwd.jpg"}, r"line 3: '../../etc/passwd.jpg' is not a path such as 001.Species"),
        ({"bird": "/etc/passwd.jpg"}, r"line 3: '/etc/passwd.jpg' is not a path"),
        ({"bird": "metadata.csv"}, r"line 3: 'metadata.csv' is not a path"),
        ({"background": "/o/../../secret.jpg"}, r"line 3: '/o/../../secret.jpg' is not a path such as /o/ocean"),
        ({"background": "o/ocean/1.jpg"}, r"line 3: 'o/ocean/1.jpg' is not a path such as /o/ocean"),
        ({"background": "//etc/1.jpg"}, r"line 3: '//etc/1.jpg' is not a path such as /o/ocean"),
        ({"background": ""}, r"line 3: '' is not a path such as /o/ocean"),
        ({"bird": BIRDS[0].name}, r"line 3: .* was already listed in line 2"),
        ({"y": 2}, r"line 3: y is '2'"),
    ],
)
def test_tables_to_follow_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    splits = ("train", "val", "test")
    rows = [
        Composite(id=str(i), bird=BIRDS[i].name, y=0, split=splits[i % 3], place=0, background=f"/o/ocean/{i}.jpg")
        for i in range(4)
    ]
    rows[1] = replace(rows[1], **change)
    path = tmp_path / "metadata.csv"
    path.write_text(table_text(rows))
    with pytest.raises(DataError, match=message):
        read_plan(path)


def test_a_table_without_photographs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text("img_id,img_filename,y,split,place\n1,a/b.jpg,0,0,0\n2,a/c.jpg,0,1,0\n3,a/d.jpg,0,2,0\n")
    with pytest.raises(DataError, match="missing column place_filename"):
        read_plan(path)


# --- the command ---


def command(*arguments: str) -> Any:
    import argparse

    from spurbench.cli import data_generate_waterbirds as glue

    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--to", required=True)
    glue.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.dataset in glue.MADE_FROM_SOURCES:
        return glue.execute(options)
    return glue.refuse_arguments(options)


def test_the_command_writes_and_says_what_to_do_next(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cub", str(sources.root), "--places", str(sources.places), "--to", str(tmp_path / "wb")]
    assert command("waterbirds", *flags, "--correlation", "0.8", "--seed", "4", "--threads", "2") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'wb'}\n"
    assert "48 of 48 images" in err
    assert f"--dataset {tmp_path / 'wb'}" in err
    assert files_of(tmp_path / "wb") == files_of(generate(sources, tmp_path / "same", correlation=0.8, seed=4))


def test_the_command_says_whether_masks_and_boxes_will_be_found(
    sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["waterbirds", "--cub", str(sources.root), "--places", str(sources.places), "--correlation", "0.8"]
    to = ["--to", str(tmp_path / "my sets" / "wb")]
    assert command(*flags, *to) == 0
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("masks and boxes are not found, which EPG needs; link CUB's beside it: ln -s ")
    subprocess.run(told.partition("beside it: ")[2], shell=True, check=True)  # what it says, as it says it
    assert command(*flags, *to) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "masks and boxes are found"
    info = load_registry("datasets").entries["folder"].value.open(tmp_path / "my sets" / "wb").info
    assert info.has_masks
    assert info.has_boxes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["waterbirds"], "--cub DIR and --places DIR missing"),
        (
            ["waterbirds", "--cub", "a", "--places", "b", "--like", "c", "--seed", "1"],
            "--seed has no meaning with --like",
        ),
        (["waterbirds", "--cub", "a", "--places", "b", "--like", "nowhere.csv"], "--like nowhere.csv is not a file"),
        (["waterbirds", "--cub", "a", "--places", "b", "--fill", "grey"], "--fill has no meaning without --only"),
        (["waterbirds", "--cub", "a", "--places", "b", "--threads", "0"], "--threads is 0"),
        (["minibirds95", "--cub", "a", "--seed", "0"], "--cub, --seed: only for waterbirds, not for 'minibirds95'"),
    ],
)
def test_contradictory_flags_are_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(*arguments, "--to", str(tmp_path / "wb"))
    assert command("minibirds95", "--to", str(tmp_path)) is None
