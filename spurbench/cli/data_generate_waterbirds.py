"""``spurbench data generate waterbirds``: the part of ``data generate`` that makes a set from its sources."""

import argparse
import shlex
import sys
import time
from pathlib import Path

__all__ = ["MADE_FROM_SOURCES", "add_arguments", "execute", "refuse_arguments"]

MADE_FROM_SOURCES = ("waterbirds",)
"""What is generated from other sets and not drawn."""
_SECONDS = 5.0
"""Between two lines of progress."""
_FLAGS = ("cub", "places", "correlation", "seed", "like", "labels", "only", "fill", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``data generate`` that only sets with sources have. All are None unless they are given."""
    group = parser.add_argument_group("waterbirds", "made from CUB-200-2011 and Places365, which you need")
    group.add_argument("--cub", metavar="DIR", help="CUB_200_2011/, with segmentations/ inside it or beside it")
    group.add_argument(
        "--places", metavar="DIR", help="Places365-Standard, the folder with data_large/ or with b/, f/, l/, o/"
    )
    group.add_argument(
        "--correlation",
        type=float,
        metavar="X",
        help="part of the training birds on the place of their class, such as 0.95",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of split, places and photographs (default: 0)")
    group.add_argument("--like", metavar="CSV", help="make the images of this metadata.csv instead of drawing any")
    group.add_argument(
        "--labels",
        choices=("official", "corrected"),
        help="corrected: three landbird species are landbirds (default: official)",
    )
    group.add_argument(
        "--only", choices=("foreground", "background"), help="paint only the bird, or only what is around it"
    )
    group.add_argument("--fill", choices=("black", "grey"), help="what --only leaves empty (default: black)")
    group.add_argument("--threads", type=int, metavar="N", help="images at once (default: one per core)")


def refuse_arguments(options: argparse.Namespace) -> None:
    """Say which flags have no meaning for a dataset that is drawn."""
    from spurbench.errors import ConfigError

    given = [f"--{flag}" for flag in _FLAGS if getattr(options, flag) is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for {', '.join(MADE_FROM_SOURCES)}, not for '{options.dataset}'")


def execute(options: argparse.Namespace) -> int:
    """Write WaterBirds to ``--to``; run again, it goes on where it was stopped."""
    from spurbench.composites import generate_waterbirds
    from spurbench.errors import ConfigError

    missing = [f"--{flag} DIR" for flag in ("cub", "places") if getattr(options, flag) is None]
    if missing:
        raise ConfigError(
            f"{options.dataset} is made from CUB-200-2011 and Places365: {' and '.join(missing)} missing. Example: "
            f"spurbench data generate {options.dataset} --cub data/CUB_200_2011 --places data/places365 "
            "--correlation 0.9 --to data/waterbirds_0.9"
        )
    if options.like is not None and options.seed is not None:
        raise ConfigError("--seed has no meaning with --like, whose table tells everything")
    if options.fill is not None and options.only is None:
        raise ConfigError("--fill has no meaning without --only foreground or --only background")
    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"--threads is {options.threads}, expected 1 or more")
    like = None if options.like is None else Path(options.like).expanduser()
    if like is not None and not like.is_file():
        raise ConfigError(f"--like {like} is not a file; name a metadata.csv of WaterBirds")
    folder = generate_waterbirds(
        Path(options.cub).expanduser(),
        Path(options.places).expanduser(),
        Path(options.to).expanduser(),
        correlation=options.correlation,
        seed=options.seed or 0,
        like=like,
        corrected=options.labels == "corrected",
        layer=options.only or "both",
        fill=options.fill or "black",
        threads=options.threads,
        progress=_Lines(),
    )
    print(folder)
    print(f"use it with: spurbench run --method erm --dataset {folder}", file=sys.stderr)
    print(_annotation(folder, Path(options.cub).expanduser()), file=sys.stderr)
    return 0


def _annotation(folder: Path, cub: Path) -> str:
    """Whether a run on the folder will find masks and boxes, and otherwise how to let it."""
    from spurbench.composites import find_cub_and_masks
    from spurbench.data.image_files import CUB_FOLDER
    from spurbench.dataset import find_dataset
    from spurbench.errors import DataError

    try:
        info = find_dataset("folder").open(folder).info
    except DataError as error:
        return f"it was written, but does not open: {error}"
    lacking = [word for word, there in (("masks", info.has_masks), ("boxes", info.has_boxes)) if not there]
    if not lacking:
        return "masks and boxes are found"
    source, masks = find_cub_and_masks(cub)
    beside = folder.absolute().parent
    links = {beside / CUB_FOLDER: source, beside / masks.name: masks}
    if masks.parent == source:
        del links[beside / masks.name]
    missing = [
        shlex.join(["ln", "-s", str(there.absolute()), str(link)]) for link, there in links.items() if not link.exists()
    ]
    cure = f"link CUB's beside it: {'; '.join(missing)}" if missing else f"CUB's in {beside}/ are incomplete"
    return f"{' and '.join(lacking)} are not found, which EPG needs; {cure}"


class _Lines:
    """Progress as plain lines, not too many."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS or done == total:
            self._last = now
            print(f"{done:,} of {total:,} images", file=sys.stderr, flush=True)
