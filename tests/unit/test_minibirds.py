import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spurbench.datasets.minibirds import DATASETS, pretext_split
from spurbench.datasets.minibirds.birds import SPECIES
from spurbench.datasets.minibirds.export import OFFICIAL_SPLITS, write_waterbirds
from spurbench.datasets.minibirds.layout import Columns
from spurbench.datasets.minibirds.scenes import FAMILIES
from spurbench.drawing.stream import Stream
from spurbench.errors import ConfigError
from spurbench.types import Sample

NAMES = tuple(DATASETS)
SPLITS = ("train", "val", "test", "id_val")
NAMES_AND_SPLITS = list(product(NAMES, SPLITS))
EVEN = (250, 250, 250, 250)
COUNTS = {
    "minibirds100": {"train": (1000, 0, 0, 1000), "val": EVEN, "test": EVEN, "id_val": (250, 0, 0, 250)},
    "minibirds95": {"train": (950, 50, 50, 950), "val": EVEN, "test": EVEN, "id_val": (237, 13, 12, 238)},
    "minibirds50": {"train": (500, 500, 500, 500), "val": EVEN, "test": EVEN, "id_val": (125, 125, 125, 125)},
}
# sha256 over images and masks of the first 32 samples. A change here needs a new VERSION in drawing.py.
CHECKSUMS = {
    ("minibirds100", "train"): "34fdfe54838ffc876a884748c20da14bbff45a6ae3191171d87e0b38fc176270",
    ("minibirds100", "val"): "2d231c2a7069fb22d49e91a385d0d165cd485007e9dd4f591f6f7d2877fbe32e",
    ("minibirds100", "test"): "20095e311636c2350ff66522eb84e9214da870ec9cdef37759b7513e153c1089",
    ("minibirds100", "id_val"): "e7cdcda515d3bb6940c4aea30a1cf7c6cf52d1923b56dfbca9271516aa5aebd2",
    ("minibirds95", "train"): "d99f5b9404177cb544c3226f48f8a6cb65ff25cdf827fa00f21455f65219a336",
    ("minibirds95", "val"): "2d231c2a7069fb22d49e91a385d0d165cd485007e9dd4f591f6f7d2877fbe32e",
    ("minibirds95", "test"): "20095e311636c2350ff66522eb84e9214da870ec9cdef37759b7513e153c1089",
    ("minibirds95", "id_val"): "cdab5723d6d292822113bb33373b1e402154f18c93361b746d07cf67d44e482f",
    ("minibirds50", "train"): "cba752d1fec20aa08d44508abdafbc332433b74cbc09a042bace35764938e3f9",
    ("minibirds50", "val"): "2d231c2a7069fb22d49e91a385d0d165cd485007e9dd4f591f6f7d2877fbe32e",
    ("minibirds50", "test"): "20095e311636c2350ff66522eb84e9214da870ec9cdef37759b7513e153c1089",
    ("minibirds50", "id_val"): "75d262628034ab49c573d5b383812a75dc7a3d4106eb2543b3b36f10ca324ab7",
}
PINNED_STREAM = (381, 0.8133432669093532, -0.46160888058736443)
# Words by which the generator of WaterBirds tells waterbirds from landbirds.
WATERBIRD_WORDS = (
    "albatross",
    "auklet",
    "cormorant",
    "frigatebird",
    "fulmar",
    "gull",
    "jaeger",
    "kittiwake",
    "pelican",
    "puffin",
    "tern",
    "gadwall",
    "grebe",
    "mallard",
    "merganser",
    "guillemot",
    "pacific_loon",
)


def split_of(name, split):
    return DATASETS[name].open(None).split(split)


def checksum(samples):
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.image.numpy().tobytes())
        digest.update(sample.mask.numpy().tobytes())
    return digest.hexdigest()


def assert_equal(first: Sample, second: Sample):
    assert (first.y, first.group, first.index) == (second.y, second.group, second.index)
    for field in ("image", "mask", "boxes"):
        assert torch.equal(getattr(first, field), getattr(second, field))


def mask_box(mask):
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(("name", "split"), NAMES_AND_SPLITS)
def test_group_counts_are_exact(name, split):
    data = split_of(name, split)
    counts = tuple(torch.bincount(data.group, minlength=4).tolist())
    assert counts == COUNTS[name][split] == DATASETS[name].info.expected_counts[split]
    assert len(data) == len(data.y) == sum(counts)


@pytest.mark.parametrize(("name", "split"), NAMES_AND_SPLITS)
def test_columns_agree_and_species_are_balanced(name, split):
    data = split_of(name, split)
    species, place = np.array(data.columns.species), np.array(data.columns.place)
    assert np.array_equal(data.y, species >= 12)
    assert np.array_equal(data.group, 2 * (species >= 12) + place)
    assert np.ptp(np.bincount(species, minlength=24)) <= 1
    for group in np.unique(data.group):
        members = species[data.group.numpy() == group]
        assert np.ptp(np.bincount(members % 12, minlength=12)) <= 1


@pytest.mark.parametrize(("name", "split"), NAMES_AND_SPLITS)
def test_pixels_are_the_published_ones(name, split):
    data = split_of(name, split)
    assert checksum(data[i] for i in range(32)) == CHECKSUMS[name, split]


def test_evaluation_images_do_not_depend_on_the_correlation():
    for split in ("val", "test"):
        assert len({split_of(name, split).columns for name in NAMES}) == 1


def test_images_do_not_depend_on_order_or_thread():
    data = split_of("minibirds95", "train")
    ahead = [data[i] for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        back = list(pool.map(split_of("minibirds95", "train").__getitem__, reversed(range(24))))
    for first, second in zip(ahead, reversed(back), strict=True):
        assert_equal(first, second)


def test_samples_are_what_the_protocol_says():
    data = split_of("minibirds95", "val")
    areas = []
    for index in range(100):
        sample = data[index]
        assert sample.image.shape == (3, 64, 64)
        assert sample.image.dtype == torch.uint8
        assert sample.mask.shape == (64, 64)
        assert sample.mask.dtype == torch.bool
        assert sample.boxes.dtype == torch.float32
        assert sample.boxes.tolist() == [list(mask_box(sample.mask.numpy()))]
        assert (sample.index, sample.y, sample.group) == (index, data.y[index], data.group[index])
        areas.append(sample.mask.double().mean().item())
    assert min(areas) > 0.03
    assert max(areas) < 0.3
    assert 0.10 < np.mean(areas) < 0.14


def test_positions_outside_the_split_are_refused():
    data = split_of("minibirds95", "id_val")
    for index in (-1, 500):
        with pytest.raises(IndexError, match=r"0\.\.499"):
            data[index]


def test_unknown_splits_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'id_val'"):
        split_of("minibirds95", "idval")


def test_colours_do_not_tell_the_classes():
    for part in ("body", "wing", "belly", "bare"):
        colours = [[getattr(s, part) for s in SPECIES if s.waterbird == water] for water in (False, True)]
        assert sorted(colours[0]) == sorted(colours[1])
    assert len({(s.body, s.wing, s.belly) for s in SPECIES}) == 24
    assert all(len({s.body, s.wing, s.belly}) == 3 for s in SPECIES)


def test_names_follow_the_label_rule_of_waterbirds():
    for species in SPECIES:
        assert species.waterbird == any(word in species.name.lower() for word in WATERBIRD_WORDS)


def test_fingerprints_are_stable_and_distinct():
    prints = [DATASETS[name].open(None).fingerprint() for name in NAMES]
    assert prints == [DATASETS[name].open(None).fingerprint() for name in NAMES]
    assert len(set(prints)) == len(NAMES)


def test_pretext_images():
    data = pretext_split("train", 2000)
    assert data.group is None
    assert tuple(data.y.tolist()) == data.columns.species
    assert set(data.y.tolist()) == set(range(24))
    shares = np.bincount(data.columns.place) / 2000
    assert np.allclose(shares, (0.2, 0.2, 0.6), atol=0.04)
    assert data[3].group is None
    assert_equal(data[3], pretext_split("train", 2000)[3])
    assert not torch.equal(data[3].image, pretext_split("held_out", 2000)[3].image)


def test_background_tells_the_place_but_not_the_class():
    """A probe on background colours learns class from place where they coincide, which is no use on the test split."""
    train, test = split_of("minibirds100", "train"), split_of("minibirds100", "test")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit([background_colours(train[i]) for i in range(400)], train.y[:400].numpy())
    predicted = probe.predict([background_colours(test[i]) for i in range(400)])
    assert np.mean(predicted == test.columns.place[:400]) >= 0.9
    assert abs(np.mean(predicted == test.y[:400].numpy()) - 0.5) < 0.08


def background_colours(sample):
    mask = sample.mask.numpy()
    near = mask.copy()  # outlines fade over a pixel
    near[1:] |= mask[:-1]
    near[:-1] |= mask[1:]
    near[:, 1:] |= mask[:, :-1]
    near[:, :-1] |= mask[:, 1:]
    pixels = sample.image.numpy()[:, ~near]
    return np.concatenate([np.histogram(channel, bins=8, range=(0, 256))[0] / channel.size for channel in pixels])


def test_stream_numbers():
    stream = Stream("test")
    assert all(0 <= stream.below(3) < 3 for _ in range(100))
    assert all(2.0 <= stream.uniform(2.0, 5.0) < 5.0 for _ in range(100))
    assert sorted(stream.shuffled(range(50))) == list(range(50))
    numbers = stream.normals(100, 100)
    assert abs(numbers.mean()) < 0.05
    assert abs(numbers.std() - 1) < 0.05
    # Pinned: the first numbers of a stream are the same everywhere.
    again = Stream("test")
    assert (again.below(1000), again.uniform(), again.normal()) == PINNED_STREAM


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "data"
    DATASETS["minibirds95"].write(folder)
    return folder


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_writes_what_it_says(written):
    assert {path.name for path in written.iterdir()} == set(DATASETS["minibirds95"].writes)


def test_written_metadata(written):
    images = written / "waterbird_complete95_forest2water2"
    header = (images / "metadata.csv").read_text().split("\n", 1)[0]
    assert header == "img_id,img_filename,y,split,place,place_filename"
    table = pd.read_csv(images / "metadata.csv")
    assert table.img_id.tolist() == list(range(1, 4001))
    for number, split in enumerate(("train", "val", "test")):
        rows = table[table.split == number]
        assert tuple(np.bincount(2 * rows.y + rows.place, minlength=4)) == COUNTS["minibirds95"][split]
    assert table.img_filename.is_unique
    assert all((images / name).is_file() for name in table.img_filename)
    folders = table.img_filename.str.split("/").str[0]
    assert sorted(folders.unique()) == [f"{n:03d}.{s.name}" for n, s in enumerate(SPECIES, start=1)]
    assert np.array_equal(table.y, folders.str[:3].astype(int) > 12)
    places = table.place_filename.str.extract(r"^/(.)/(.+)/(\d{8})\.jpg$")
    assert (places[0] == places[1].str[0]).all()
    for place in (0, 1):
        assert set(places[1][table.place == place]) == set(FAMILIES[place])


def test_written_masks_and_boxes(written):
    images, cub = written / "waterbird_complete95_forest2water2", written / "CUB_200_2011"
    names = dict(line.split() for line in (cub / "images.txt").read_text().splitlines())
    boxes = [line.split() for line in (cub / "bounding_boxes.txt").read_text().splitlines()]
    assert [box[0] for box in boxes] == list(names) == [str(n) for n in range(1, 4001)]
    for number, *box in boxes[::40]:
        image = read(images / names[number])
        values = read((cub / "segmentations" / names[number]).with_suffix(".png"))
        assert (image.shape, values.shape) == ((64, 64, 3), (64, 64))
        assert set(np.unique(values)) == {0, 255}
        x0, y0, x1, y1 = mask_box(values)
        assert box == [f"{v:.1f}" for v in (x0, y0, x1 - x0, y1 - y0)]


def test_written_images_are_the_drawn_ones(written):
    images = written / "waterbird_complete95_forest2water2"
    table = pd.read_csv(images / "metadata.csv")
    first = table[table.split == 2].iloc[0]
    data = split_of("minibirds95", "test")
    found = next(i for i in range(len(data)) if data.columns.species[i] == 0)
    stored = read(images / first.img_filename).astype(int).transpose(2, 0, 1)
    assert np.abs(stored - data[found].image.numpy()).mean() < 4  # JPEG


def test_writing_twice_gives_equal_files(tmp_path):
    columns = {split: split_of("minibirds95", split).columns for split in OFFICIAL_SPLITS}
    few = {split: Columns(c.species[:40], c.place[:40]) for split, c in columns.items()}
    for folder in ("first", "second"):
        write_waterbirds(tmp_path / folder, "birds", 0, few)
    files = [
        {p.relative_to(tmp_path / folder): p.read_bytes() for p in (tmp_path / folder).rglob("*") if p.is_file()}
        for folder in ("first", "second")
    ]
    assert len(files[0]) == 2 * 120 + 3
    assert files[0] == files[1]


def test_writing_refuses_a_used_folder(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(ConfigError, match="not empty"):
        DATASETS["minibirds100"].write(tmp_path)
