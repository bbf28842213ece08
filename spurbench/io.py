"""Files that are either whole or absent, whatever happens to the process that writes them."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic_write", "folder_bytes", "hash_file", "read_json", "remove_leftovers", "write_json"]


_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and move it over ``path`` when the block ends well.

    The data is on disk before the move, so a reader sees the old content or the new, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left below ``folder``. Only for a process that alone may write there."""
    for path in folder.rglob(f".*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write ``document`` atomically; NaN and infinity are refused (JSON has no such numbers)."""
    text = json.dumps(document, indent=1, sort_keys=False, allow_nan=False, ensure_ascii=False)
    with atomic_write(path) as stream:
        stream.write(text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """The document in ``path``."""
    return json.loads(path.read_text(encoding="utf-8"))


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file's bytes, read in blocks; ``progress`` gets the size of each."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def folder_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; of a file with several names each name's part."""
    files = [path] if path.is_file() else [inside for inside in path.rglob("*") if inside.is_file()]
    return sum(stat.st_size // stat.st_nlink for stat in (file.stat() for file in files))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
