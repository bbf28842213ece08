"""Images decoded once into a memory-mapped uint8 cache that all processes on a machine share.

A cache is a directory that appears by one atomic rename, so it is whole or absent. It is built by the first process
that needs it, under a lock; the others wait and then map the same pages. A build that was stopped goes on where its
files had last reached the disk.
"""

import contextlib
import errno
import hashlib
import math
import os
import re
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from torch import Tensor

from spurbench.data.decoding import (
    Chunk,
    Floats,
    Samples,
    available_cores,
    decode_in_order,
    mixed_masks,
    single_threaded_operations,
)
from spurbench.data.ondemand import MAX_THREADS, DecodedRows, Decoder, Rows
from spurbench.errors import DataError
from spurbench.io import read_json, write_json

if sys.platform != "win32":
    import fcntl

__all__ = ["CACHE_VERSION", "Frames", "frame_bytes", "load_frames", "readable_size"]

logger = getLogger(__name__)

CACHE_VERSION = 1
"""Raised when equal images would be stored as other pixels or in other files."""

META = "meta.json"
IMAGES = "images.u8"
MASKS = "masks.u8"
BOXES = "boxes.f32"
DONE = "done.json"
"""In an unfinished cache: how many samples of it are on the disk, and their boxes."""
SAVE_BYTES = 256 << 20
"""Bytes of frames between two such notes."""


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """A split squashed to R x R, in split order. Read only: writing to the mapped arrays kills the process."""

    images: Rows
    """uint8 [N, R, R, 3], RGB."""
    masks: Rows | None
    """uint8 [N, R, R], 1 on the foreground object; None when the split has no masks."""
    boxes: Rows | None
    """float32 [N, K, 4], xyxy in frame pixels, padded with NaN; None when the split has no boxes."""


def load_frames(
    split: Samples,
    *,
    key: str,
    resize: int,
    folder: Path | None,
    has_boxes: bool = True,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Frames:
    """The frames of ``split``, from the cache below ``folder``; built there if absent or damaged.

    Args:
        split: Samples to decode; touched only when there is no cache.
        key: Says which images these are. Equal keys must mean equal images, masks, boxes and order.
        resize: R. Images are squashed with the antialiased bilinear filter of ``torchvision.transforms.Resize((R, R))``
            on PIL images, masks by nearest neighbour.
        folder: Where caches lie; may be shared by processes and users. None: nothing is stored, and frames are decoded
            whenever they are asked for.
        has_boxes: Whether the split may have boxes; only asked where nothing is stored.
        progress: Called with (samples done, all samples) while this process builds.
        threads: Decoding threads; one per available core by default.

    Raises:
        DataError: a sample is damaged (the split's own error, unchanged), only some samples have a mask, or the cache
            cannot be written. No cache is left behind.
    """
    if folder is None:
        return _without_cache(split, resize, has_boxes, threads)
    target = folder / _directory_name(key, resize)
    identity = {"cache_version": CACHE_VERSION, "key": key, "resize": resize, "number": len(split)}
    frames = _open(target, identity)
    if frames is not None:
        return frames
    needed = frame_bytes(len(split), resize, masks=False)
    with _writing(folder, needed):
        folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, needed)
    with _lock(folder / f".{target.name}.lock", folder, needed) as locked:
        frames = _open(target, identity)  # by the process that held the lock before
        if frames is not None:
            return frames
        if locked:  # without a lock, another process may still write to its temporary directory
            _remove_leftovers(target)
        _build(split, target, identity, progress, threads or min(available_cores(), MAX_THREADS), locked=locked)
    frames = _open(target, identity)
    if frames is None:
        raise DataError(f"{target}: the image cache was written but cannot be read back; is something deleting it?")
    return frames


def _without_cache(split: Samples, resize: int, has_boxes: bool, threads: int | None) -> Frames:
    decoder = Decoder(split, resize, threads)
    return Frames(
        images=DecodedRows(decoder, "images"),
        masks=DecodedRows(decoder, "masks") if decoder.has_masks else None,
        boxes=DecodedRows(decoder, "boxes") if has_boxes else None,
    )


# ---------------------------------------------------------------------------------------------------------- reading


def _directory_name(key: str, resize: int) -> str:
    """Readable, safe as a file name, and different for different keys."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", key).strip("-.")[:60]
    return f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:16]}-r{resize}-v{CACHE_VERSION}"


def _open(target: Path, identity: dict[str, Any]) -> Frames | None:
    """Map a complete cache; None when it is absent, damaged or of other data."""
    try:
        meta = read_json(target / META)
        if {name: meta[name] for name in identity} != identity:
            return None
        shapes = {name: None if shape is None else tuple(shape) for name, shape in meta["shapes"].items()}
        number, resize = identity["number"], identity["resize"]
        if shapes["images"] != (number, resize, resize, 3):
            return None
        return Frames(
            images=_map_bytes(target / IMAGES, shapes["images"]),
            masks=None if shapes["masks"] is None else _map_bytes(target / MASKS, shapes["masks"]),
            boxes=None if shapes["boxes"] is None else _read_floats(target / BOXES, shapes["boxes"]),
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    except OSError as error:
        raise DataError(f"cannot read the image cache {target}: {error.strerror or error}") from error


def _map_bytes(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A uint8 tensor over the file's own pages, shared with every process that maps them."""
    _check_size(path, math.prod(shape))
    if math.prod(shape) == 0:  # no page to map
        return torch.empty(shape, dtype=torch.uint8)
    array = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    with warnings.catch_warnings():
        # A private writable mapping would not warn, but the kernel refuses those larger than the memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _read_floats(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor with the file's content, in this process's own memory."""
    _check_size(path, 4 * math.prod(shape))
    return torch.from_numpy(np.fromfile(path, dtype="<f4").astype(np.float32).reshape(shape))


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} has {size} bytes instead of {expected}")


# --------------------------------------------------------------------------------------------------------- building


def _build(
    split: Samples,
    target: Path,
    identity: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    threads: int,
    *,
    locked: bool,
) -> None:
    """Write a cache beside ``target`` and move it there.

    Without a lock, others may be at the same: then each has a directory of its own, which does not outlast it.
    """
    needed = frame_bytes(identity["number"], identity["resize"], masks=False)
    temporary = _unfinished(target) if locked else _temporary(target)
    try:
        with _writing(target.parent, needed):
            temporary.mkdir(exist_ok=True)
        begun = _Begun.found(temporary, identity)
        chunks = decode_in_order(split, identity["resize"], threads, start=len(begun.boxes))
        with single_threaded_operations(), contextlib.closing(chunks):
            shapes = _write_arrays(chunks, begun, temporary, identity, progress)
        with _writing(target.parent, needed):
            write_json(temporary / META, {**identity, "shapes": shapes, "pillow": PIL.__version__})
            (temporary / DONE).unlink(missing_ok=True)
            _publish(temporary, target, identity)
    except DataError:  # neither damaged images nor a full disk are something to go on from
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if not locked:
            shutil.rmtree(temporary, ignore_errors=True)  # nothing is there when it was moved


@dataclass(slots=True)
class _Begun:
    """What of a cache is there."""

    has_masks: bool | None
    """None before the first sample."""
    boxes: list[Floats | None]
    """One entry per sample."""

    @classmethod
    def found(cls, folder: Path, identity: dict[str, Any]) -> "_Begun":
        """Where an earlier build of the same cache has come to, by the same version of Pillow."""
        try:
            note = read_json(folder / DONE)
            if note["identity"] != identity or note["pillow"] != PIL.__version__:
                return cls(None, [])
            boxes = [None if rows is None else np.array(rows, np.float32).reshape(-1, 4) for rows in note["boxes"]]
            pixels = len(boxes) * identity["resize"] ** 2
            for name, size in ((IMAGES, 3 * pixels), (MASKS, pixels if note["has_masks"] else 0)):
                if (folder / name).stat().st_size < size:
                    return cls(None, [])
            return cls(note["has_masks"], boxes)
        except (OSError, ValueError, KeyError, TypeError):
            return cls(None, [])

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Note it; the samples themselves must be on the disk."""
        boxes = [None if rows is None else rows.tolist() for rows in self.boxes]
        note = {"identity": identity, "pillow": PIL.__version__, "has_masks": self.has_masks, "boxes": boxes}
        write_json(folder / DONE, note)


def _write_arrays(
    chunks: Iterator[Chunk],
    begun: _Begun,
    temporary: Path,
    identity: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[int, ...] | None]:
    """Write what is missing of all arrays in order, to the disk itself, and return their shapes."""
    number, resize, boxes = identity["number"], identity["resize"], begun.boxes
    needed = frame_bytes(number, resize, masks=bool(begun.has_masks))
    with contextlib.ExitStack() as stack:
        with _writing(temporary.parent, needed):
            images_file = stack.enter_context(_opened(temporary / IMAGES, len(boxes) * resize * resize * 3))
            masks_file = stack.enter_context(
                _opened(temporary / MASKS, len(boxes) * resize * resize if begun.has_masks else 0)
            )
        unsaved = 0
        for chunk in chunks:
            if begun.has_masks is None:  # the first chunk tells
                begun.has_masks = chunk.masks is not None
                needed = frame_bytes(number, resize, masks=begun.has_masks)
                _check_space(temporary.parent, needed)
            if (chunk.masks is not None) != begun.has_masks:
                raise mixed_masks(len(boxes), len(boxes) + len(chunk.images))
            with _writing(temporary.parent, needed):
                images_file.write(chunk.images.data)
                if chunk.masks is not None:
                    masks_file.write(chunk.masks.data)
                boxes += chunk.boxes
                unsaved += chunk.images.nbytes
                if unsaved >= SAVE_BYTES:
                    _sync(images_file)
                    _sync(masks_file)
                    begun.save(temporary, identity)
                    unsaved = 0
            if progress is not None:
                progress(len(boxes), number)
        padded = _pad_boxes(boxes)
        with _writing(temporary.parent, needed):
            _sync(images_file)
            _sync(masks_file)
            if padded is not None:
                boxes_file = stack.enter_context((temporary / BOXES).open("wb"))
                boxes_file.write(padded.astype("<f4").tobytes())
                _sync(boxes_file)
            if not begun.has_masks:
                (temporary / MASKS).unlink()
    return {
        "images": (number, resize, resize, 3),
        "masks": (number, resize, resize) if begun.has_masks else None,
        "boxes": None if padded is None else padded.shape,
    }


def _opened(path: Path, size: int) -> BinaryIO:
    """A file that is written on from ``size`` bytes, of which there are at least so many."""
    stream = path.open("r+b" if size else "wb")
    stream.truncate(size)
    stream.seek(size)
    return stream


def _pad_boxes(boxes: list[Floats | None]) -> Floats | None:
    """[N, K, 4] with K the largest number of boxes, rows of NaN where there are fewer; None without any boxes."""
    if all(rows is None for rows in boxes):
        return None
    most = max(len(rows) for rows in boxes if rows is not None)
    padded = np.full((len(boxes), most, 4), np.nan, dtype=np.float32)
    for index, rows in enumerate(boxes):
        if rows is not None:
            padded[index, : len(rows)] = rows
    return padded


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _publish(temporary: Path, target: Path, identity: dict[str, Any]) -> None:
    """Move a complete cache into place; a valid one that is already there wins, a damaged one goes."""
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise
        if _open(target, identity) is not None:
            return
        damaged = _temporary(target)
        target.rename(damaged)  # processes that have mapped it keep their pages
        temporary.rename(target)
        _remove(damaged)


def _unfinished(target: Path) -> Path:
    return target.parent / f".{target.name}.unfinished"


def _temporary(target: Path) -> Path:
    return target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"


def _remove_leftovers(target: Path) -> None:
    """What killed builders left behind. Only for the holder of the lock: nobody else is building then."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        logger.info("removing %s, left by a build that was stopped", leftover)
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path, folder: Path, needed: int) -> Iterator[bool]:
    """Wait for the exclusive lock on ``path``; gives False where the platform or the file system has none.

    The kernel releases it when its process ends, however that happens. The file stays: removing it would let two
    processes lock two different files.
    """
    with contextlib.ExitStack() as stack:
        with _writing(folder, needed):
            stream = stack.enter_context(path.open("ab"))
        locked = _acquire(stream)
        try:
            yield locked
        finally:
            if locked:
                _release(stream)


if sys.platform != "win32":

    def _acquire(stream: BinaryIO) -> bool:
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another process is decoding these images; waiting for it (%s)", stream.name)
                fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            logger.info("no lock on %s (%s): building without one", stream.name, error)
            return False
        return True

    def _release(stream: BinaryIO) -> None:
        # Closing alone would not do if a child was forked meanwhile: it shares the lock.
        fcntl.flock(stream, fcntl.LOCK_UN)

else:

    def _acquire(stream: BinaryIO) -> bool:
        return False

    def _release(stream: BinaryIO) -> None:
        pass


# ------------------------------------------------------------------------------------------------------------ space


def frame_bytes(number: int, resize: int, *, masks: bool) -> int:
    """Bytes of the images, and of the masks if there are any; boxes are negligible."""
    return number * resize * resize * (4 if masks else 3)


def _check_space(folder: Path, needed: int) -> None:
    """Fail before an hour of decoding rather than after it."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(_cannot_write(folder, needed, f"only {readable_size(free)} are free"))


@contextlib.contextmanager
def _writing(folder: Path, needed: int) -> Iterator[None]:
    """Explain a full disk, a folder without write permission and the like."""
    try:
        yield
    except OSError as error:
        raise DataError(_cannot_write(folder, needed, error.strerror or str(error))) from error


def _cannot_write(folder: Path, needed: int, reason: str) -> str:
    return (
        f"cannot write the image cache to {folder}, which needs {needed:,} bytes ({readable_size(needed)}): {reason}; "
        "set $SPURBENCH_CACHE to a folder with room for it"
    )


def readable_size(num_bytes: int) -> str:
    """``"3.1 GiB"`` or ``"12.0 MiB"``."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
