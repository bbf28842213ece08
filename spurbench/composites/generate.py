"""Writes a WaterBirds folder: images, ``metadata.csv``, and a manifest of what it was made from."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import PIL
from PIL import Image, features

from spurbench import __version__
from spurbench.composites.pixels import Pixels, blend, fit_background
from spurbench.composites.plan import CATEGORIES, Composite, assign, group_counts, read_plan, table_text
from spurbench.data.cub import find_cub, read_cub
from spurbench.data.image_files import ExistingFiles
from spurbench.errors import ConfigError, DataError, DataMissing
from spurbench.io import atomic_write, hash_file, read_json, remove_leftovers, write_json
from spurbench.lease import Lease

__all__ = ["Layer", "find_cub_and_masks", "generate_waterbirds"]

Layer = Literal["both", "foreground", "background"]
Fill = Literal["black", "grey"]
Progress = Callable[[int, int], None]
"""Gets the number of images that are done and of all."""

RULE = 1
"""Raised when equal settings give other assignments or pixels."""
FILLS: dict[Fill, int] = {"black": 0, "grey": 128}
PLACES_FOLDERS = (".", "data_large_standard", "data_large", "data_256_standard", "data_256")
"""Where the photographs lie below ``places``, from either archive: as it unpacks, or as torchvision calls it."""
MASKS = "segmentations"
WORK = ".generation"
"""Folder with the state of an unfinished generation."""
BEGUN = f"{WORK}/settings.json"
"""What is being made; there until it is finished."""
TABLE, MANIFEST, SOURCES = "metadata.csv", "manifest.json", "sources.csv"
NUM_SHOWN = 3
ANY: Any = object()


@contextlib.contextmanager
def _system_errors_as_data_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}; "
            "what is done stays, and the same command goes on"
        ) from error


@_system_errors_as_data_errors()
def generate_waterbirds(
    cub: Path,
    places: Path,
    to: Path,
    *,
    correlation: float | None = None,
    seed: int = 0,
    like: Path | None = None,
    corrected: bool = False,
    layer: Layer = "both",
    fill: Fill = "black",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write WaterBirds to the folder ``to`` and return it; a generation that was stopped goes on where it was.

    Every file is whole or absent, and ``metadata.csv``, without which the folder is no dataset, comes last.

    Args:
        cub: ``CUB_200_2011/`` or the folder that holds it; ``segmentations/`` inside it or beside it.
        places: Places365-Standard, the folder with ``b/bamboo_forest/`` or the one above it.
        correlation: part of the training birds that stand on the place of their class.
        seed: of split, places and photographs.
        like: a published ``metadata.csv`` whose assignments are taken instead of drawing any.
        corrected: label three species right that are published as waterbirds.
        layer: ``"foreground"`` paints the bird on ``fill``, ``"background"`` the photograph with the bird's shape
            cut out in ``fill``. The shape stays visible, so a background is not free of the class.
        threads: images at once; by default one per core.

    Raises:
        ConfigError: settings that contradict each other or those that the folder was begun with.
        DataMissing: no CUB, masks or Places where they were said to be.
        DataError: a source file is missing or damaged.
    """
    if (correlation is None) == (like is None):
        raise ConfigError("name either a correlation such as 0.95 or a metadata.csv to follow, and not both")
    source = _find_sources(cub, places)
    if like is None:
        assert correlation is not None
        birds = read_cub(source.cub)
        composites = assign(birds, _photographs(source), correlation=correlation, seed=seed, corrected=corrected)
    else:
        composites = read_plan(like, corrected=corrected)
    settings: dict[str, Any] = {
        "rule": RULE,
        "correlation": correlation,
        "seed": None if like is not None else seed,
        "like": None if like is None else hash_file(like),
        "labels": "corrected" if corrected else "official",
        "layer": layer,
        "fill": None if layer == "both" else fill,
        "places": source.places.name,
        "assignments": hashlib.sha256(table_text(composites).encode()).hexdigest(),
        "software": _software(),
    }
    _require_sources(source, composites)
    if _is_finished(to, settings):
        shutil.rmtree(to / WORK, ignore_errors=True)
        return to
    _begin(to, settings)
    with _alone(to):
        remove_leftovers(to)
        made = _compose_all(source, to, composites, layer, FILLS[fill], threads, progress)
        _finish(source, to, composites, settings, made)
    shutil.rmtree(to / WORK)
    return to


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """Folders that are read."""

    cub: Path
    masks: Path
    places: Path

    def files(self, composite: Composite) -> tuple[Path, Path, Path]:
        """Photograph and mask of the bird, and the background."""
        mask = PurePosixPath(composite.bird).with_suffix(".png")
        return self.cub / "images" / composite.bird, self.masks / mask, self.places / composite.background[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What one image was made from: sha256 of each file. One row of ``sources.csv``."""

    img_filename: str
    place_filename: str
    bird_sha256: str
    mask_sha256: str
    place_sha256: str
    image_sha256: str


def find_cub_and_masks(cub: Path) -> tuple[Path, Path]:
    """The folder of CUB-200-2011 and that of its masks, either inside it or beside it.

    Raises:
        DataMissing: one of them is not there.
    """
    folder = find_cub([cub])
    if folder is None:
        raise DataMissing(
            f"no CUB-200-2011 in {cub}/: expected images.txt, train_test_split.txt and images/ there or in "
            "CUB_200_2011/ below; spurbench data list cub200 tells where to get it"
        )
    inside = [place / MASKS for place in (folder, folder.absolute().parent)]
    masks = next((place for place in inside if place.is_dir()), None)
    if masks is None:
        raise DataMissing(
            f"no masks: {MASKS}/ lies neither in {folder}/ nor beside it; unpack CUB's segmentations.tgz there"
        )
    return folder, masks


def _find_sources(cub: Path, places: Path) -> _Sources:
    folder, masks = find_cub_and_masks(cub)
    first = _category_folder(CATEGORIES[0][0])
    found = next((places / name for name in PLACES_FOLDERS if (places / name / first).is_dir()), None)
    if found is None:
        raise DataMissing(
            f"no Places365-Standard in {places}/: expected {first}/ there or in {', '.join(PLACES_FOLDERS[1:])}; "
            "unpack train_large_places365standard.tar (http://places2.csail.mit.edu/download.html)"
        )
    return _Sources(cub=folder, masks=masks, places=found.resolve())


def _category_folder(category: str) -> str:
    return f"{category[0]}/{category}"


def _photographs(source: _Sources) -> dict[int, list[str]]:
    """All photographs of land and of water, as they are named in ``metadata.csv``."""
    pools: dict[int, list[str]] = {}
    for place, categories in enumerate(CATEGORIES):
        pools[place] = []
        for category in map(_category_folder, categories):
            folder = source.places / category
            if not folder.is_dir():
                raise DataMissing(f"{folder}/ is missing; was Places365 unpacked completely?")
            pools[place] += [f"/{category}/{path.name}" for path in folder.glob("*.jpg")]
    return pools


def _require_sources(source: _Sources, composites: Sequence[Composite]) -> None:
    existing = ExistingFiles()
    missing = [path for one in composites for path in source.files(one) if path not in existing]
    if missing:
        shown = "; ".join(map(str, missing[:NUM_SHOWN]))
        raise DataMissing(f"{len(missing):,} source files are missing, the first: {shown}; unpack their archives again")


def _software() -> dict[str, str]:
    """What decides the pixels beside the sources."""
    return {
        "pillow": PIL.__version__,
        "jpeg": f"{features.version('jpg')}{' turbo' if features.check('libjpeg_turbo') else ''}",
    }


def _is_finished(to: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder already is what is wanted, as far as it depends on settings."""
    if (to / BEGUN).exists() or not (to / MANIFEST).is_file():
        return False
    manifest = read_json(to / MANIFEST)
    there = manifest.get("settings", {}) if isinstance(manifest, dict) else {}
    _require_equal(to, there, {**settings, "software": ANY})
    return True


def _begin(to: Path, settings: Mapping[str, Any]) -> None:
    """Write down what is being made, or make sure that this is what was begun."""
    begun = to / BEGUN
    if begun.is_file():
        _require_equal(to, read_json(begun), settings)
        return
    if to.exists() and not to.is_dir():
        raise ConfigError(f"{to} is a file; name a new folder")
    if to.exists() and any(path.name != WORK for path in to.iterdir()):
        raise ConfigError(f"{to} is not empty; name a new folder, or one in which a generation was stopped")
    write_json(begun, settings)


def _require_equal(to: Path, there: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    differ = [name for name, value in settings.items() if value is not ANY and there.get(name) != value]
    if differ:
        shown = ", ".join(f"{name} {there.get(name)} (now {settings[name]})" for name in differ)
        raise ConfigError(f"{to} was made with other settings: {shown}; name a new folder")


@contextlib.contextmanager
def _alone(to: Path) -> Iterator[None]:
    lease = Lease.try_take(to / WORK)
    if lease is None:
        raise ConfigError(f"another process is writing to {to}; wait for it, or name another folder")
    with lease:
        yield


def _compose_all(
    source: _Sources,
    to: Path,
    composites: Sequence[Composite],
    layer: Layer,
    fill: int,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, _Made]:
    """What was made, by the bird's name; what an earlier process has finished is not made again."""
    journal = to / WORK / "made.jsonl"
    existing = ExistingFiles()
    made = {one.img_filename: one for one in _read_journal(journal) if to / one.img_filename in existing}
    left = [one for one in composites if one.bird not in made]
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        with journal.open("a", encoding="utf-8") as stream:
            stream.write("\n")  # What a killed process wrote last may have no end.
            for future in as_completed([pool.submit(_compose, source, to, one, layer, fill) for one in left]):
                done = future.result()
                made[done.img_filename] = done
                stream.write(f"{json.dumps(asdict(done))}\n")
                stream.flush()
                if progress is not None:
                    progress(len(made), len(composites))
    finally:
        pool.shutdown(cancel_futures=True)
    return made


def _read_journal(path: Path) -> Iterator[_Made]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):  # a line that was cut off
            yield _Made(**json.loads(line))


def _compose(source: _Sources, to: Path, composite: Composite, layer: Layer, fill: int) -> _Made:
    files = source.files(composite)
    contents = [path.read_bytes() for path in files]
    bird, levels = (np.asarray(_decode(*pair)) for pair in zip(files[:2], contents[:2], strict=True))
    if bird.shape != levels.shape:
        raise DataError(
            f"mask {files[1]} is {_size(levels)} pixels (width x height), but its image {files[0]} is {_size(bird)}; "
            "masks must be as large as their images"
        )
    background: Pixels = np.full_like(bird, fill)
    if layer != "foreground":
        photograph = _decode(files[2], contents[2])
        fitted = np.asarray(fit_background(photograph, bird.shape[1], bird.shape[0]))
        bird, background = (bird, fitted) if layer == "both" else (background, fitted)
    image = blend(bird, levels, background)
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG")  # at PIL's own quality, as published
    with atomic_write(to / composite.bird) as stream:
        stream.write(encoded.getvalue())
    digests = [hashlib.sha256(data).hexdigest() for data in (*contents, encoded.getvalue())]
    return _Made(
        img_filename=composite.bird,
        place_filename=composite.background,
        bird_sha256=digests[0],
        mask_sha256=digests[1],
        place_sha256=digests[2],
        image_sha256=digests[3],
    )


def _decode(path: Path, data: bytes) -> Image.Image:
    """In RGB; of a mask all three channels are then equal."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Damaged bytes raise nearly anything in PIL.
        raise DataError(
            f"{path} cannot be decoded: {error}; is the file damaged or cut off? Unpack it again"
        ) from error


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"


def _finish(
    source: _Sources,
    to: Path,
    composites: Sequence[Composite],
    settings: Mapping[str, Any],
    made: Mapping[str, _Made],
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in fields(_Made)]
    writer.writerow(names)
    writer.writerows([getattr(made[one.bird], name) for name in names] for one in composites)
    _write_text(to / SOURCES, stream.getvalue())
    lists = [source.cub / name for name in ("images.txt", "train_test_split.txt", "image_class_labels.txt")]
    manifest = {
        "made_by": f"spurbench {__version__}",
        "settings": settings,
        "groups": "2 y + place: landbird/land, landbird/water, waterbird/land, waterbird/water",
        "counts": group_counts(composites),
        "sha256": {
            SOURCES: hash_file(to / SOURCES),
            TABLE: settings["assignments"],
            **{path.name: hash_file(path) for path in lists if path.is_file()},
        },
    }
    write_json(to / MANIFEST, manifest)
    _write_text(to / TABLE, table_text(composites))
    (to / BEGUN).unlink()  # From here on it is finished, whatever else is left.


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as stream:
        stream.write(text.encode())
